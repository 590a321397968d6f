"""An area: caches of encoded texts and images that were damaged, or lie about what they hold."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from tests.hostile.data_files import CALM, RECIPES, train, write_pictures
from tests.hostile.harness import Case

LIES: list[Any] = [
    None,
    True,
    -1,
    0,
    1,
    3,
    1e400,
    10**30,
    0.5,
    "x",
    "",
    [],
    {},
    [[1, 2, 3]],
    "\ud800",
]


def prepare(base: Path) -> None:
    """A text and pictures; for each a cache, and the weights of one step with it."""
    write_pictures(base / "pixels", Random(0))
    (base / "text").mkdir()
    (base / "text" / "a.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 40)
    for kind in RECIPES:
        (base / f"{kind}.toml").write_text(RECIPES[kind])
        os.environ["GPTKIT_CACHE"] = str(base / f"{kind}-cache")
        train(base / f"{kind}.toml", base / kind, base / f"{kind}-run")


def case(random: Random, base: Path, folder: Path) -> Case:
    """One cache with one to three faults; the weights must be those of the good cache."""
    kind = random.choice(sorted(RECIPES))
    cache = folder / "cache"
    shutil.copytree(base / f"{kind}-cache", cache)
    os.environ["GPTKIT_CACHE"] = str(cache)
    about = [_harm(random, cache) for _ in range(random.randint(1, 3))]
    good = _weights(base / f"{kind}-run")

    def expect(code: int, out: str, err: str) -> str | None:
        if code:
            return None if "cache" in err else "a damaged cache is built anew"
        return None if _weights(folder / "run") == good else "the cache changed the weights"

    out = ("--out", folder / "run", *CALM)
    words = ("train", base / f"{kind}.toml", "--set", f"dataset.path={base / kind}", *out)
    return Case(words, about=f"{kind}: {'; '.join(about)}", expect=expect)


def _weights(run: Path) -> bytes:
    return (run / "checkpoints" / "step-00000001" / "model.safetensors").read_bytes()


def _harm(random: Random, cache: Path) -> str:
    files = sorted(path for path in cache.rglob("*") if path.is_file())
    if not files:
        return "nothing is left to harm"
    path = random.choice(files)
    harm = random.choice([_flip, _cut, _lie, _lie, _lie, _reseal, _swap, _replace])
    return f"{path.name}: {harm(random, path)}"


def _flip(random: Random, path: Path) -> str:
    contents = bytearray(path.read_bytes() or b"x")
    places = [random.randrange(len(contents)) for _ in range(random.choice([1, 1, 50]))]
    for place in places:
        contents[place] ^= 1 << random.randrange(8)
    path.write_bytes(contents)
    return f"{len(places)} bits are flipped"


def _cut(random: Random, path: Path) -> str:
    contents = path.read_bytes()
    length = random.choice([0, 1, len(contents) - 1, len(contents) - 2, len(contents) // 2])
    path.write_bytes(random.choice([contents[:length], contents + contents[:length]]))
    return f"cut to {length} bytes, or continued"


def _lie(random: Random, path: Path) -> str:
    """Change a field of meta.json, whichever file was chosen."""
    meta = _read_meta(path)
    if not isinstance(meta, dict) or not meta:
        return "meta.json is no object any more"
    key = random.choice(sorted(meta))
    kind = random.randrange(4)
    if kind == 0:
        meta[key] = random.choice(LIES)
    elif kind == 1:
        del meta[key]
    elif isinstance(meta[key], str) and meta[key]:
        letters = list(meta[key])
        letters[random.randrange(len(letters))] = random.choice("éxyz\0\U0001f40d")
        meta[key] = "".join(sorted(letters) if kind == 2 else letters)
    elif isinstance(meta[key], int):
        meta[key] += random.choice([-1, 1])
    elif isinstance(meta[key], list) and meta[key]:
        meta[key][random.randrange(len(meta[key]))] = random.choice([[1, 2, 3], [0, 0], 300, "a"])
    path.with_name("meta.json").write_text(json.dumps(meta))
    return f"{key} is changed ({kind})"


def _reseal(random: Random, path: Path) -> str:
    """Change a file and write its digest into meta.json, where there is one."""
    if path.name == "meta.json":
        return _flip(random, path)
    told = _flip(random, path)
    meta = _read_meta(path)
    if isinstance(meta, dict) and isinstance(meta.get("sha256"), dict):
        meta["sha256"][path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
        path.with_name("meta.json").write_text(json.dumps(meta))
    return f"{told}, and its digest is written anew"


def _swap(random: Random, path: Path) -> str:
    others = sorted(other for other in path.parent.iterdir() if other.is_file())
    path.write_bytes(random.choice(others).read_bytes())
    return "has the contents of another file"


def _replace(random: Random, path: Path) -> str:
    path.unlink()
    makers: dict[str, Callable[[], Any]] = {
        "is missing": lambda: None,
        "is a pipe": lambda: os.mkfifo(path),
        "is a folder": path.mkdir,
        "is a link to /dev/zero": lambda: path.symlink_to("/dev/zero"),
        "is a link to itself": lambda: path.symlink_to(path.name),
        "is nested deeply": lambda: path.write_text("[" * 100_000),
        "has 5,000 digits": lambda: path.write_text('{"train": ' + "9" * 5000 + "}"),
    }
    about = random.choice(sorted(makers))
    makers[about]()
    return about


def _read_meta(path: Path) -> Any:
    meta = path.with_name("meta.json")
    try:
        return json.loads(meta.read_bytes()) if meta.is_file() else None
    except (OSError, ValueError, RecursionError):
        return None
