"""kill -9 before every file operation of encoding and exporting: nothing half-written is used."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

if sys.platform == "win32":
    pytest.skip("no fork, no kill -9", allow_module_level=True)

PROGRAM = '''
import json, os, shutil, signal, sys
from hashlib import sha256
from itertools import count
from pathlib import Path

import gptkit.analysis.evaluation, gptkit.onnx.export.format
import gptkit.show.exports, gptkit.show.results
import gptkit_char_text.dataset, rich.progress, rich.table, torch._dynamo
from gptkit.cli.app import main

disk, stride, fresh = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "fresh"
os.environ["GPTKIT_CACHE"] = str(disk / "cache")


def gptkit(die_at):
    """The exit code of the command in a process that dies before a file operation on the disk."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    left = [die_at]

    def count_down(event, args):
        changes = event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir")
        if changes or (event == "open" and str(args[0]).startswith(str(disk))):
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)

    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.addaudithook(count_down)
    sys.argv = ["gptkit", *sys.argv[4:]]
    code = 70  # of a traceback
    try:
        main()
    except SystemExit as end:
        code = end.code or 0
    finally:
        os._exit(code)


def files():
    found = [path for path in disk.rglob("*") if path.is_file()]
    return {str(path.relative_to(disk)): sha256(path.read_bytes()).hexdigest() for path in found}


disk.mkdir()
assert gptkit(0) == 0
expected, kills = files(), 0
for operation in count(1, stride):
    if fresh:
        shutil.rmtree(disk)
        disk.mkdir()
    code = gptkit(operation)
    if code == 0:
        break
    assert code == -signal.SIGKILL, code
    kills += 1
    seen = {name: digest for name, digest in files().items() if "/." not in f"/{name}"}
    assert seen.items() <= expected.items(), (operation, seen)
    for path in (disk, *disk.rglob("*")):
        os.utime(path, (0, 0))  # a day later
    assert gptkit(0) == 0, operation
    assert files() == expected, (operation, files())
print(json.dumps([kills, sorted(expected)]))
'''


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("what", "disk", "stride"),
    [
        ("eval", "fresh", 6),
        ("export", "used", 9),
        pytest.param("eval", "fresh", 1, marks=pytest.mark.slow),
        *(
            pytest.param(what, disk, 1, marks=pytest.mark.slow)
            for what in ("export", "export --out DISK/bundle")
            for disk in ("fresh", "used")
        ),
    ],
)
def test_kill_9_before_a_file_operation(
    what: str, disk: str, stride: int, tiny_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    from gptkit.runs import train

    text, place, run = tmp_path / "text.txt", tmp_path / "disk", tmp_path / "r"
    text.write_text("to be or not to be, " * 50)
    train.train(tiny_recipe(dataset={"path": str(text)}), out=run, report=print)
    name, *options = what.replace("DISK", str(place)).split()
    if what == "export":
        options = ["--out", str(place / "model.onnx")]
    command = [sys.executable, "-c", PROGRAM, place, stride, disk, name, run, *options]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    kills, made = json.loads(done.stdout)
    assert kills >= 2
    assert any(file.endswith((".onnx", "tokens.bin")) for file in made)
