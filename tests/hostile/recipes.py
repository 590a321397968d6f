"""An area: recipes with mutated text and values, checked, and some trained for a step."""

import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from random import Random
from typing import Any

import tomli_w

from tests.hostile.harness import Case

GOOD: dict[str, Any] = {
    "seed": 1,
    "dataset": {"use": "char-text", "path": "a.txt", "block_size": 16},
    "model": {"n_layer": 1, "n_head": 2, "n_embd": 16},
    "train": {
        "steps": 1,
        "batch_size": 2,
        "eval_batches": 1,
        "device": "cpu",
        "optimizer": {"use": "adamw", "learning_rate": 0.001, "betas": [0.9, 0.95]},
    },
    "callbacks": [
        {"use": "lr-decay", "warmup_steps": 2},
        {"use": "grad-clip", "max_norm": 1.0},
        {"use": "log", "every": 1, "sample_tokens": 2},
    ],
}
BIG = 2**40_000
VALUES: list[Any] = [
    *(0, -1, 1, 2**31, 2**63 - 1, 2**63, -(2**63), BIG, 0.0, -0.5, 1e400, float("nan"), 1e-320),
    *(True, False, "", " ", "x", "a" * 100_000, "\x1b]0;owned\x07", "\u202e", "\0", "日本"),
    *("None", "True", "1", ".5", "auto", "cuda:99", "..", "/dev/zero", "/proc", "~nobody/x"),
    *([], [[]], [1, 2], [0.9, 0.99], ["a", 1], {}, {"use": "log"}, {"a": {"b": [1]}}, [{}] * 3),
]  # fmt: skip
USUAL: list[Any] = [1, 2, 3, 4, 8, 0.1, 0.5, 1e-3, True, "auto", "cpu", "adamw", [0.5, 0.9]]
KEYS = [
    "use",
    "on_error",
    "steps",
    "tokens",
    "epochs",
    "betas",
    "path",
    "seed",
    "x",
    "",
    "a b",
    "é",
]
KEYS += ["preset", "muon_momentum", "dtype", "compile", "n_kv_head", "shard", "micro_batch_size"]
MARKS = [*"[]{}=\"'#.,\\\n\t\r\0é\ufeff_-+:0", '"""', "[[", "]]", "\\u0000", "0x", "1e"]
TEXTS: list[bytes] = [
    b"",
    b"\xef\xbb\xbf",
    b"\xff\xfe",
    b"a" * (1 << 21),
    b"x = " + b"[" * 50_000,
    b"x = " + b"{a=" * 1000,
    b"x = 1" + b"0" * 5000,
    b"x = 0x" + b"f" * 5000,
    b".".join([b"a"] * 100_000) + b" = 1",
    b"[" + b".".join([b"a"] * 100_000) + b"]",
    b"x = {" + b".".join([b"a"] * 50_000) + b" = 1}",
    b".".join([b"a"] * 900) + b" = 1",
    b"".join(b"k%d = 1\n" % i for i in range(50_000)),
    b"[[callbacks]]\nuse = 'log'\n" * 3000,
    b"[callbacks]\nuse = 'log'\n",
    b"callbacks = ['log']\n",
    b"\xe9 = 1",
    b"x = '\xe9'",
]


def prepare(base: Path) -> None:
    """A text to train on."""
    (base / "a.txt").write_text("to be or not to be, that is the question\n" * 20)


def case(random: Random, base: Path, folder: Path) -> Case:
    """A recipe that is mutated as tables, as text or as bytes."""
    (folder / "a.txt").symlink_to(base / "a.txt")
    mutate = random.choices([_tables, _text, _bytes], weights=[14, 4, 2])[0]
    contents, about = mutate(random)
    path = folder / "r.toml"
    path.write_bytes(contents)
    trained = random.random() < 0.15
    command = ["train", path, "--out", "r"] if trained else ["check", path]
    sizes = ["train.steps=1", "train.batch_size=2", "model.n_embd=8", "model.n_head=2"]
    sets = [word for size in sizes for word in ("--set", size)] if trained else []
    return Case([*command, *sets], about=about, expect=None if trained else _reads_back(folder))


def _tables(random: Random) -> tuple[bytes, str]:
    """Some values of a good recipe are replaced, added or removed."""
    table = deepcopy(GOOD)
    about = []
    for _ in range(random.choice([1, 1, 2, 3])):
        node: Any = table
        while isinstance(node, dict | list) and node and random.random() < 0.75:
            inner = list(node.values()) if isinstance(node, dict) else node
            inner = [each for each in inner if isinstance(each, dict | list)]
            if not inner:
                break
            node = random.choice(inner)
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        value = deepcopy(random.choice(random.choice([USUAL, VALUES])))
        if isinstance(node, dict) and random.random() < 0.4:
            keys = KEYS
        if not keys:
            continue
        key = random.choice(keys)
        old = node.get(key) if isinstance(node, dict) else node[key]
        if isinstance(old, int | float) and random.random() < 0.5:
            value = type(old)(old * random.choice([0, 1, 2, 3]))
        if random.random() < 0.15 and isinstance(node, dict):
            node.pop(key, None)
            about.append(f"without {key}")
        else:
            node[key] = value
            about.append(f"{key} = {_short(value)}")
    try:
        return tomli_w.dumps(table).encode(), "; ".join(about)
    except ValueError:  # a number with too many digits for Python
        return tomli_w.dumps(GOOD).replace("seed = 1", f"seed = {'9' * 5000}").encode(), "digits"


def _text(random: Random) -> tuple[bytes, str]:
    """Marks are put into the text of a good recipe, or pieces of it are moved."""
    text = tomli_w.dumps(GOOD)
    for _ in range(random.choice([1, 1, 2, 4])):
        at, length = random.randrange(len(text)), random.randrange(12)
        piece = random.choice([random.choice(MARKS), text[length : length + 20], ""])
        text = text[:at] + piece + text[at + length :]
    return text.encode(random.choice(["utf-8"] * 8 + ["utf-16"])), "text"


def _bytes(random: Random) -> tuple[bytes, str]:
    """A hostile text before, behind or in place of a good recipe, or wrong bytes in it."""
    good, bad = tomli_w.dumps(GOOD).encode(), random.choice(TEXTS)
    at = random.randrange(len(good))
    made = random.choice(
        [bad, bad + b"\n" + good, good + bad, good[:at] + random.randbytes(2) + good[at:]]
    )
    return made, f"bytes {bad[:40]!r}"


def _reads_back(folder: Path) -> Callable[[int, str, str], str | None]:
    """What `check` prints is a recipe that `check` takes, and errors are short."""

    def expect(code: int, out: str, err: str) -> str | None:
        from gptkit.recipe import build

        if any(len(line) > 1500 for line in err.splitlines()) or len(err) > 20_000:
            return "a long error"
        if any(words in err for words in ("Input should", "valid dictionary", "pydantic")):
            return "words of pydantic"
        if code == 0:
            (folder / "printed.toml").write_text(out)
            if build.build(build.read(folder / "printed.toml")).recipe.to_toml() != out:
                return "the printed recipe is another one"
        return None

    return expect


def _short(value: Any) -> str:
    return "2**40000" if value is BIG else json.dumps(value, default=str)[:40]
