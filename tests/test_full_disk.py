"""A disk that fills up: an error in words, nothing half-written, and exact continuation later.

Each disk is a tmpfs of a few hundred kilobytes in a mount namespace of its own.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

ALONE = ["unshare", "--user", "--map-root-user", "--mount"]

PROGRAM = '''
import json, os, shutil, subprocess, sys
from hashlib import sha256
from pathlib import Path

import gptkit.onnx.export.format, gptkit.runs.train, torch._dynamo
from gptkit.cli.app import main

disk, recipe, sizes = Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
command = [word.replace("DISK", str(disk)) for word in sys.argv[4:]]
os.environ["GPTKIT_CACHE"] = str(disk / "cache")


def mount(kilobytes, *options):
    subprocess.run(
        ["mount", *options, "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", disk], check=True
    )


def gptkit(*arguments):
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.dup2(writer, 2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.argv = ["gptkit", *map(str, arguments)]
        code = 70  # of a traceback
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
        except BaseException:
            import traceback
            traceback.print_exc()
        sys.stderr.flush()
        os._exit(code)
    os.close(writer)
    with open(reader) as told:
        text = told.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), text


def outcome(run):
    last = sorted((run / "checkpoints").glob("step-*"))[-1]
    files = sorted(last.glob("*.safetensors"))
    return [last.name, *(sha256(path.read_bytes()).hexdigest() for path in files)]


def hidden():
    return [str(path) for path in disk.rglob(".*.tmp")]


def write_onto(free, run, *arguments):
    """A command that writes disk/out, on a disk with so many free kilobytes, and then again."""
    with open(disk / "ballast", "wb") as ballast:
        room = os.statvfs(disk)
        ballast.write(bytes(room.f_bavail * room.f_frsize - free * 1024))
    code, text = gptkit(arguments[0], run, *arguments[1:])
    left = [*hidden(), *map(str, disk.glob("out.*"))] if code else []
    (disk / "ballast").unlink()
    again, words = gptkit(arguments[0], run, *arguments[1:])
    for path in disk.glob("out.*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    print(json.dumps({"code": code, "text": text, "left": left, "again": again, "words": words}))


def train_on(size):
    """A recipe that is trained on a disk of so many kilobytes, and continued on a larger one."""
    mount(size)
    run = disk / "run"
    code, text = gptkit("train", recipe, "--out", run)
    left = hidden()
    mount(1 << 16, "-o", "remount")
    again = ["resume", run] if (run / "recipe.toml").exists() else ["train", recipe, "--out", run]
    resumed, words = (0, "") if code == 0 else gptkit(*again)
    told = {"size": size, "code": code, "text": text, "left": left}
    told |= {"resumed": resumed, "words": words, "outcome": resumed == 0 and outcome(run)}
    print(json.dumps(told))
    subprocess.run(["umount", disk], check=True)


if command:
    mount(1 << 12)
    assert gptkit("train", recipe, "--out", disk / "run")[0] == 0
    for free in sizes:
        write_onto(free, disk / "run", *command)
else:
    for size in sizes:
        train_on(size)
'''


Results = list[dict[str, Any]]
Disks = Callable[..., Results]


@pytest.fixture
def disks(tmp_path: Path, tiny_recipe: Callable[..., Path]) -> Disks:
    """Trains on disks of these sizes in kilobytes, or runs a command with so much free space."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = [*ALONE, "mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk]
    if not shutil.which(ALONE[0]) or subprocess.run(mount, check=False).returncode:
        pytest.skip("a disk cannot be mounted here")
    recipe = tiny_recipe(train={"steps": 6, "eval_every": 2, "save_every": 1, "keep": 2})

    def run(sizes: Sequence[int], *command: str) -> Results:
        program = [sys.executable, "-c", PROGRAM, disk, recipe, json.dumps([*sizes]), *command]
        done = subprocess.run([*ALONE, *program], check=True, stdout=subprocess.PIPE, text=True)
        return [json.loads(line) for line in done.stdout.splitlines()]

    return run


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_training_on_a_disk_that_fills_up(disks: Disks) -> None:
    results = disks([*range(4, 400, 12), 1 << 16])

    assert results[-1]["code"] == 0
    assert_full(results, at_least=10)
    for result in results:
        assert result["resumed"] == 0, result["words"]
        assert result["outcome"] == results[-1]["outcome"], result["size"]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("command", "sizes"),
    [
        (["export", "--out", "DISK/out.onnx"], range(0, 200, 20)),
        (["export", "--out", "DISK/out.bundle"], range(0, 600, 60)),
        (["sample", "--tokens", "9000", "--out", "DISK/out.txt"], range(0, 20, 4)),
    ],
    ids=["file", "bundle", "sample"],
)
def test_writing_onto_a_full_disk(disks: Disks, command: list[str], sizes: Sequence[int]) -> None:
    results = disks([*sizes, 1 << 11], *command)

    assert results[-1]["code"] == 0, results[-1]["text"]
    assert_full(results, at_least=2)
    assert all(result["again"] == 0 for result in results)


def assert_full(results: Results, *, at_least: int) -> None:
    """Those that failed say why in words, and leave nothing half-written."""
    full = [result for result in results if result["code"]]
    assert len(full) >= at_least
    for result in full:
        assert result["code"] == 1, result["text"]
        assert "error: " in result["text"]
        assert "No space left" in result["text"]
        assert "Traceback" not in result["text"]
        assert not result["left"]
