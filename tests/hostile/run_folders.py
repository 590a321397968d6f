"""An area: run folders whose files, links and names are not what gptkit wrote."""

import json
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from random import Random

from gptkit.files import read_json
from tests.hostile.harness import Case

RECIPE = """\
seed = 1
[dataset]
use = "char-text"
path = "{base}/text.txt"
block_size = 8
[model]
n_layer = 1
n_head = 1
n_embd = 4
[train]
steps = 2
batch_size = 2
eval_every = 1
eval_batches = 1
device = "cpu"
[[callbacks]]
use = "log"
every = 1
sample_tokens = 2
"""
DEEP = "[" * 100_000
VALUES = [None, True, -1, 0, 1.5, 10**30, "", "x", "\ud800", "\x1b]0;owned\x07", "\u202e", []]
VALUES += [[1, [2]], {"a": {"b": 1}}, "y" * 100_000, float("nan"), float("inf"), [None], "../.."]
NAMES = ["\udcff", "a\nb", "\x1b[31m", "-rf", "x" * 250, " ", "日本", "a'b", "[bold]", "*"]
COMMANDS = ["list", "list --json", "show", "show --json", "compare", "compare --json"]
COMMANDS += ["resume", "resume newest", "eval", "sample"]


def prepare(base: Path) -> None:
    """A run of two steps and its text; run folders are small, so that they are copied quickly."""
    from gptkit.runs import train

    (base / "text.txt").write_text("to be or not to be, " * 20)
    (base / "tiny.toml").write_text(RECIPE.format(base=base))
    train.train(base / "tiny.toml", out=base / "good", report=lambda line: None)


def case(random: Random, base: Path, folder: Path) -> Case:
    """Damage a run beside a good one, and give one of them, or both, to a command."""
    name = random.choice(NAMES) if random.random() < 0.3 else "bad"
    good, bad = folder / "runs" / "good", folder / "runs" / name
    for path in (good, bad):
        shutil.copytree(base / "good", path, symlinks=True)
    damages = [random.choice(DAMAGES)(random, bad) for _ in range(random.choice([1, 1, 2]))]
    command = random.choice(COMMANDS)
    arguments, expect = _command(random, command, Path("runs") / name)
    return Case(arguments, about=ascii([name, *damages])[:500], expect=expect)


def _command(
    random: Random, command: str, bad: Path
) -> tuple[list[object], Callable[[int, str, str], str | None]]:
    """The arguments, and what must hold whatever the damage is."""
    word, _, rest = command.partition(" ")
    options = [rest] if rest == "--json" else []
    match word:
        case "list":
            return ["runs", "list", *options], _shows_the_good_one(options)
        case "compare":
            return ["runs", "compare", "runs/good", bad, *options], _shows_the_good_one(options)
        case "show":
            return ["runs", "show", "--", bad] if not options else [
                "runs", "show", *options, "--", bad,
            ], _is_json if options else _anything  # fmt: skip
        case "resume" if rest:
            return ["resume"], _anything
        case "resume":
            steps = random.choice([2, 3])
            return ["resume", "--set", f"train.steps={steps}", "--", bad], _trained(bad, steps)
        case "eval":
            return ["eval", "--", bad], _anything
        case _:
            return ["sample", "--tokens", 4, "--", bad], _anything


def _anything(code: int, out: str, err: str) -> str | None:
    return None


def _is_json(code: int, out: str, err: str) -> str | None:
    if code == 0:
        try:
            json.loads(out)
        except ValueError:
            return "this is no JSON"
    return None


def _shows_the_good_one(options: list[str]) -> Callable[[int, str, str], str | None]:
    def expect(code: int, out: str, err: str) -> str | None:
        if code or "good" not in out:
            return "the good run is not shown"
        return _is_json(code, out, err) if options else None

    return expect


def _trained(run: Path, steps: int) -> Callable[[int, str, str], str | None]:
    def expect(code: int, out: str, err: str) -> str | None:
        if code:
            return None
        saved = run / "checkpoints" / f"step-{steps:08}" / "state.json"
        logged = steps == 2 or 'use = "log"' not in (run / "recipe.toml").read_text()
        if not saved.exists() or not (logged or _last_step(run) == steps):
            return "it says that it trained, but it did not"
        return None

    return expect


def _last_step(run: Path) -> object:
    try:
        return json.loads((run / "metrics.jsonl").read_bytes().splitlines()[-1])["step"]
    except (OSError, ValueError, IndexError, KeyError) as error:
        return error


def _replace(random: Random, path: Path) -> str:
    """Put something else at the place of a file."""
    what = random.choice(list(REPLACEMENTS))
    if not path.parent.is_dir() or path.parent.is_symlink():
        return "nothing"  # its folder was replaced before
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    REPLACEMENTS[what](path)
    return f"{path.name}: {what}"


REPLACEMENTS: dict[str, Callable[[Path], object]] = {
    "missing": lambda path: None,
    "empty": lambda path: path.touch(),
    "folder": lambda path: path.mkdir(),
    "pipe": lambda path: os.mkfifo(path),
    "device": lambda path: _link_to_a_device(path, "zero"),
    "null": lambda path: _link_to_a_device(path, "null"),
    "link to itself": lambda path: path.symlink_to(path.name),
    "link to nothing": lambda path: path.symlink_to("nothing"),
    "link to its folder": lambda path: path.symlink_to("."),
    "bytes": lambda path: path.write_bytes(b"\xff\xfe\x00\x81"),
    "nested": lambda path: path.write_text(DEEP),
    "nested object": lambda path: path.write_text('{"step":' * 50_000),
    "list": lambda path: path.write_text("[1, 2]\n"),
    "number": lambda path: path.write_text("7\n"),
    "large": lambda path: path.write_bytes(b"{}\n" * (1 << 20)),
    "one long line": lambda path: path.write_bytes(b"x" * (4 << 20)),
}


def _link_to_a_device(path: Path, name: str) -> None:
    """A link to a copy of a device: what root writes must not replace that of the system."""
    found = Path("/dev", name)
    if os.geteuid() == 0:
        copy = path.parent / f"{path.name}.{name}"
        os.mknod(copy, 0o666 | stat.S_IFCHR, found.stat().st_rdev)
        found = copy
    path.symlink_to(found)


def _replace_any(random: Random, run: Path) -> str:
    names = ["recipe.toml", "environment.json", "metrics.jsonl", ".lock", "samples", "checkpoints"]
    return _replace(random, run / random.choice(names))


def _replace_link(random: Random, run: Path) -> str:
    names = ["last", "best", "step-00000002", "step-00000001", ".step-00000002.x.tmp", "step-x"]
    return _replace(random, run / "checkpoints" / random.choice(names))


def _bytes(random: Random, run: Path) -> str:
    """Flip, cut or insert bytes in a text file."""
    path = run / random.choice(["recipe.toml", "environment.json", "metrics.jsonl"])
    if not path.is_file() or path.is_symlink():
        return "nothing"
    content = bytearray(path.read_bytes()[:100_000])
    place = random.randrange(len(content) + 1)
    how = random.choice(["flip", "cut", "insert", "repeat"])
    match how:
        case "flip" if place < len(content):
            content[place] ^= 1 << random.randrange(8)
        case "cut":
            del content[place:]
        case "insert":
            content[place:place] = random.randbytes(random.randrange(20))
        case _:
            content += content[place:]
    path.write_bytes(content)
    return f"{path.name}: {how} at {place}"


def _environment(random: Random, run: Path) -> str:
    """Give a key of environment.json, at any depth, another value."""
    path = run / "environment.json"
    try:
        about = read_json(path)
        assert isinstance(about, dict)
    except (OSError, ValueError, AssertionError):
        return "nothing"  # it was replaced before
    began = {"run": "runs/good", "step": 1, "weights": None, "sha256": "0" * 64}
    about |= {"changes": [{"step": 1, "set": {"train.steps": 2}}]}
    if random.random() < 0.3:
        about |= {"from": began}
    table = about
    while True:
        key = random.choice([*table, "from", "changes", "recipe", "job", "started", "data_sha256"])
        below = table.get(key)
        if isinstance(below, list) and below and isinstance(below[0], dict):
            below = below[0]
        if not isinstance(below, dict) or not below or random.random() < 0.4:
            break
        table = below
    value = random.choice(VALUES)
    if value is None and random.random() < 0.5:
        table.pop(key, None)
    else:
        table[key] = value
    path.write_text(json.dumps(about))
    return f"environment.json: {key} = {ascii(value)[:60]}"


def _metrics(random: Random, run: Path) -> str:
    """Give a record of metrics.jsonl another value, or put other lines at the end."""
    path = run / "metrics.jsonl"
    if not path.is_file() or path.is_symlink():
        return "nothing"
    key, value = random.choice(["step", "elapsed", "loss", "val_loss"]), random.choice(VALUES)
    lines = [json.dumps({"step": 1, "elapsed": 0.1, key: value}) for _ in range(2)]
    lines += [random.choice(['{"step": 9', DEEP, "null", "\x00", '{"step": 2}', '{"step": 2e999}'])]
    random.shuffle(lines)
    with path.open("ab") as file:
        file.write("\n".join(lines).encode() + random.choice([b"", b"\n", b"\r\n"]))
    return f"metrics.jsonl: {key} = {ascii(value)[:60]}"


DAMAGES = [_replace_any, _replace_any, _replace_link, _bytes, _environment, _environment, _metrics]
