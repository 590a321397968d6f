"""An area: texts, pictures and folders of them that nobody would call good, and prompts."""

import hashlib
import io
import json
import os
import socket
import sys
import unicodedata
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from PIL import Image

from tests.hostile.harness import Case

MODEL = "[model]\nn_layer = 1\nn_head = 1\nn_embd = 4\n[train]\nsteps = 1\nbatch_size = 2\n"
RECIPES = {
    "pixels": f'[dataset]\nuse = "cifar10"\nsize = 2\ncolors = 4\n{MODEL}eval_batches = 1\n',
    "text": f'[dataset]\nuse = "char-text"\nblock_size = 2\n{MODEL}eval_batches = 1\n',
}
CALM = ("--set", "train.device=cpu")
SENTENCE = "the quick brown fox jumps over the lazy dog.\n"
LETTERS = "abcéßя日\U0001f40d\u0301\u2028\u0085\u00a0\u200d\u202e\x1b\x7f\0\ufeff\r\n\t "
ENDINGS = [".txt", ".TXT", ".Txt", ".md", "", ".png", ".txt~", ".csv\x1b[31m"]


def prepare(base: Path) -> None:
    """Two recipes, and a run of each for prompts."""
    write_pictures(base / "pixels", Random(0))
    (base / "text").mkdir()
    (base / "text" / "a.txt").write_text(SENTENCE * 40 + "caf\u00e9\n")
    for kind in RECIPES:
        (base / f"{kind}.toml").write_text(RECIPES[kind])
        train(base / f"{kind}.toml", base / kind, base / f"{kind}-run")
        out = base / ("out.png" if kind == "pixels" else "out.txt")
        _gptkit("sample", base / f"{kind}-run", "--out", out)  # imports what takes seconds


def train(recipe: Path, data: Path, out: Path) -> None:
    """A run of one step."""
    _gptkit("train", recipe, "--set", f"dataset.path={data}", "--out", out, *CALM)


def _gptkit(*words: object) -> None:
    from gptkit.cli.app import main

    sys.argv = ["gptkit", *map(str, words)]
    unread = io.TextIOWrapper(io.BytesIO())  # stdout is for the outcomes
    try:
        with redirect_stdout(unread):
            main()
    except SystemExit as end:
        assert not end.code


def write_pictures(root: Path, random: Random) -> None:
    """Two classes of two pictures."""
    for label in ("blue", "red"):
        (root / label).mkdir(parents=True)
        for number in range(2):
            color = tuple(random.randrange(256) for _ in range(3))
            Image.new("RGB", (4, 4), color).save(root / label / f"{number}.png")


def case(random: Random, base: Path, folder: Path) -> Case:
    """A text, a folder of texts, pictures, or a prompt."""
    os.environ["GPTKIT_CACHE"] = str(folder / "cache")
    make = random.choice([_text, _texts, _texts, _pictures, _pictures, _layout, _prompt])
    return make(random, base, folder)


def _training(base: Path, folder: Path, kind: str, data: object, about: str, **more: Any) -> Case:
    words = ("train", base / f"{kind}.toml", "--set", f"dataset.path={data}")
    return Case((*words, "--out", folder / "run", *CALM), about=f"{kind}: {about}", **more)


def _text(random: Random, base: Path, folder: Path) -> Case:
    path, (about, contents) = folder / "a.txt", _words(random)
    if random.random() < 0.3:
        about = special(random, path)
    else:
        path.write_bytes(contents)
    return _training(base, folder, "text", path, about)


def _words(random: Random) -> tuple[str, bytes]:
    """The contents of a text file, most of them good."""
    text = "".join(random.choice(LETTERS) for _ in range(random.choice([0, 1, 20, 60, 200])))
    encoding = random.choice(["utf-8"] * 4 + ["utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
    contents = text.encode(encoding)
    harm = random.choice(["none"] * 4 + ["cut", "surrogate", "bits"])
    if harm == "cut":
        contents = contents[: random.randrange(len(contents) + 1)]
    elif harm == "surrogate":
        contents += b"\xed\xa0\x80"
    elif harm == "bits":
        contents += random.randbytes(5)
    return f"{encoding}, {harm}, {text[:20]!a}", contents


def special(random: Random, path: Path) -> str:
    """Something at `path` that is no regular file, or leads to none."""
    makers: dict[str, Callable[[], Any]] = {
        "nothing": lambda: None,
        "pipe": lambda: os.mkfifo(path),
        "folder": path.mkdir,
        "socket": lambda: _socket(path),
        "a link to nothing": lambda: path.symlink_to("nowhere"),
        "a link to itself": lambda: path.symlink_to(path.name),
        "/dev/zero": lambda: path.symlink_to("/dev/zero"),
        "/dev/null": lambda: path.symlink_to("/dev/null"),
        "/proc": lambda: path.symlink_to("/proc"),
        "/proc/self/mem": lambda: path.symlink_to("/proc/self/mem"),
    }
    about = random.choice(sorted(makers))
    makers[about]()
    return about


def _socket(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # the whole path may be too long for a socket
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(here)


def _texts(random: Random, base: Path, folder: Path) -> Case:
    """A tree whose text is known: what is trained on must be just that."""
    root, outside = folder / "data", folder / "outside"
    root.mkdir()
    outside.mkdir()
    found: dict[str, bytes] = {}
    folders, about = [""], []
    for number in range(random.randint(1, 8)):
        parent = random.choice(folders)
        hidden = random.random() < 0.2
        name = f"{'.' if hidden else ''}{random.choice('bcd')}{number}"
        kind = random.choice(["file"] * 4 + ["folder", "link out", "folder out", "loop", "odd"])
        about.append(f"{kind} {parent}{name}")
        shown, visible = f"{parent}{name}", not hidden and "." not in parent
        contents = SENTENCE.encode() * 2 + f"{number}\n".encode()
        if kind == "folder":
            (root / shown).mkdir()
            folders.append(f"{shown}/")
        elif kind == "folder out":
            (outside / str(number)).mkdir()
            (outside / str(number) / "z.txt").write_bytes(contents)
            (root / shown).symlink_to(outside / str(number))
            found |= {f"{shown}/z.txt": contents} if visible else {}
        elif kind == "loop":
            (root / shown).symlink_to(random.choice([".", "..", root, root / "absent"]))
            if (root / shown).resolve() == folder.resolve():
                (root / shown).unlink()
        elif kind == "odd":
            special(random, root / f"{shown}.txt")
        else:
            ending = random.choice(ENDINGS)
            place = outside / f"{number}.txt" if kind == "link out" else root / f"{shown}{ending}"
            place.write_bytes(contents)
            if kind == "link out":
                (root / f"{shown}{ending}").symlink_to(place)
            if visible and ending.lower() == ".txt":
                found[f"{shown}{ending}"] = contents
    whole = b"\n".join(found[name] for name in sorted(found))

    def expect(code: int, out: str, err: str) -> str | None:
        if code or not found:
            return None if code and not found else f"should be read: {sorted(found)}"
        environment = json.loads((folder / "run" / "environment.json").read_text())
        same = hashlib.sha256(whole).hexdigest() in json.dumps(environment)
        return None if same else f"another text was read than that of {sorted(found)}"

    return _training(base, folder, "text", root, ", ".join(about), expect=expect)


def _pictures(random: Random, base: Path, folder: Path) -> Case:
    """A folder with one odd picture."""
    root = folder / "data"
    write_pictures(root, random)
    if random.random() < 0.2:
        about = special(random, root / "red" / "x.png")
    else:
        about = _picture(random, root / "red")
    return _training(base, folder, "pixels", root, about)


def _picture(random: Random, parent: Path) -> str:
    """A picture of any mode and format, perhaps damaged."""
    mode = random.choice(["RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "I", "F", "I;16", "YCbCr"])
    side, other = random.choice([(1, 1), (4, 4), (3, 7), (200, 1)])
    values = np.random.default_rng(random.randrange(1 << 30)).integers(0, 256, (other, side))
    scale = random.choice([1, 1 / 255, 257, -1, 1e9, float("nan")])
    if mode in ("F", "I", "I;16"):
        kinds = {"F": np.float32, "I": np.int32, "I;16": np.uint16}
        with np.errstate(all="ignore"):
            image = Image.fromarray((values * scale).astype(kinds[mode]))
    else:
        image = Image.fromarray(values.astype(np.uint8)).convert("RGB").convert(mode)
    name = "x" + random.choice([".png", ".gif", ".jpg", ".TIF", ".webp", ".bmp", ".pcx", ".ico"])
    name = random.choice([name, name, "x.ppm", "x.tga", "x.sgi", "x.jp2", "x.dds", "x.avif"])
    try:
        image.save(parent / name)
    except (OSError, ValueError, KeyError):
        (parent / name).unlink(missing_ok=True)
        name = "x.tif"
        image.save(parent / name)
    contents = bytearray((parent / name).read_bytes())
    harm = random.choice(["none", "none", "cut", "bits", "huge", "random"])
    if harm == "cut":
        del contents[random.randrange(len(contents)) :]
    elif harm == "bits":
        for _ in range(random.choice([1, 3, 20])):
            contents[random.randrange(len(contents))] ^= 1 << random.randrange(8)
    elif harm == "huge":  # in PNG: width and height
        contents[16:24] = random.choice([b"\0\0\x34\x80" * 2, b"\x7f\xff\xff\xff" * 2])
    elif harm == "random":
        contents[8:] = random.randbytes(200)
    (parent / name).write_bytes(contents)
    return f"{name}, {mode} times {scale}, {side} x {other}, {harm}"


def _layout(random: Random, base: Path, folder: Path) -> Case:
    """Class folders with links, hidden things and other files: counted as they are seen."""
    root = folder / "data"
    write_pictures(root, random)
    about, expected, spare = [], 4, folder / "spare"
    spare.mkdir()
    for number in range(random.randint(1, 5)):
        parent = root / random.choice(["blue", "red", "red/deep"])
        parent.mkdir(exist_ok=True)
        kind = random.choice(["picture", "hidden", "folder", "link", "loop", "again", "odd"])
        about.append(f"{kind} {parent.name}")
        if kind in ("picture", "hidden", "folder", "link"):
            place = {"hidden": f".{number}", "folder": f".{number}/{number}"}.get(
                kind, f"n{number}"
            )
            target = spare / f"{number}.gif" if kind == "link" else parent / f"{place}.GIF"
            target.parent.mkdir(exist_ok=True)
            color = tuple(random.randrange(256) for _ in range(3))
            Image.new("RGB", (4, 4), color).save(target, "GIF")
            if kind == "link":
                (parent / f"l{number}.gif").symlink_to(target)
            expected += kind in ("picture", "link")
        elif kind == "loop":
            (parent / f"loop{number}").symlink_to(random.choice([".", "..", root]))
        elif kind == "again":
            (parent / f"again{number}.png").symlink_to(root / "red" / "0.png")
        else:
            special(random, parent / f"odd{number}.txt")
    told = " ".join(about)

    def expect(code: int, out: str, err: str) -> str | None:
        if code:
            return "should be read"
        (labels,) = (folder / "cache").rglob("labels.bin")
        count = labels.stat().st_size // 8
        return None if count == expected else f"{count} pictures were read, not {expected}"

    return _training(base, folder, "pixels", root, told, expect=expect)


def _prompt(random: Random, base: Path, folder: Path) -> Case:
    kind = random.choice(sorted(RECIPES))
    path = folder / random.choice(["p.png", "caf\udce9.png", "p"])
    if random.random() < 0.5:
        about = special(random, path)
        prompt = str(path)
    elif random.random() < 0.5:
        about = _picture(random, folder)
        (made,) = folder.glob("x.*")
        prompt = str(made)
    else:
        letters = (random.choice(LETTERS) for _ in range(random.choice([0, 1, 5])))
        prompt = unicodedata.normalize("NFD", "".join(letters)).replace("\0", "") or "caf\u00e9"
        about = ascii(prompt)
    words = ("sample", base / f"{kind}-run", "--prompt", prompt, "--tokens", "2")
    return Case(words, about=f"{kind} prompt {about}")
