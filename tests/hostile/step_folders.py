"""An area: step folders of other programs' making, with digests that fit their contents."""

import hashlib
import json
import math
import os
import shutil
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import tomli_w
from PIL import Image

from tests.hostile.harness import Case

TEXT: dict[str, Any] = {
    "dataset": {"use": "char-text", "block_size": 8},
    "model": {"n_layer": 2, "n_head": 2, "n_embd": 8, "dropout": 0.1},
    "train": {"optimizer": {"use": "muon"}},
    "callbacks": [{"use": "ema"}, {"use": "lr-decay"}, {"use": "log", "sample_tokens": 0}],
}
PIXELS: dict[str, Any] = {
    "dataset": {"use": "cifar10", "size": 2, "colors": 4},
    "model": {"n_layer": 1, "n_head": 1, "n_embd": 4, "position": "rotary", "mlp": "swiglu"},
    "train": {},
    "callbacks": [{"use": "grad-clip"}],
}
TRAIN = {"steps": 2, "batch_size": 2, "eval_every": 1, "eval_batches": 1, "device": "cpu"}
STATE, DIGEST = "state.json", "state.json.sha256"
VALUES: list[Any] = [None, True, False, 0, 1, -1, 2, 7, 1.5, -0.5, 10**9, 10**12, 10**18, 10**30]
VALUES += [2**31 - 1, 2**31, 2**63 - 1, 2**63, math.nan, math.inf, "", "\0", "x", "/", "../../x"]
VALUES += ["\x1b]0;owned\x07", "a" * 5000, [], {}, [1], [[]], {"a": 1}, [0.9, 0.99], [0.9, 1.0]]
NAMES = ["/dev/zero", "../../x", "\0", "model", "model.safetensors/", "a/model.safetensors", "."]
NAMES += ["model.ema.safetensors", "model.x.safetensors", "other.safetensors", "a" * 5000, ""]
SIZES = ["n_layer", "n_head", "n_kv_head", "n_embd", "n_inner", "vocab_size", "block_size"]
KINDS: list[tuple[str, list[Any]]] = [
    ("norm", ["rmsnorm", "layernorm"]),
    ("position", ["rotary", "learned"]),
    ("mlp", ["gelu", "gelu_tanh", "swiglu", "relu2"]),
    ("bias", [True, False]),
    ("tie_embeddings", [True, False]),
    ("dropout", [0.0, 0.99]),
]
DTYPES = {"F32": 4, "F64": 8, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "U8": 1, "BOOL": 1}
DTYPES |= {"F8_E4M3": 1, "F8_E5M2": 1, "U64": 8, "C64": 8, "F4": 1, "X": 1, "I8": 1, "U16": 2}
OTHERS = ["state.json", DIGEST, "model.safetensors", "optimizer.safetensors", "."]

State = dict[str, Any]
Header = dict[str, Any]


def prepare(base: Path) -> None:
    """A run of texts and a run of pictures, each with two step folders."""
    from gptkit.runs import train

    (base / "a.txt").write_text("Shall I compare thee to a summer's day?\n" * 20)
    for color in ("red", "blue"):
        for i in range(3):
            path = base / "pictures" / color / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (4, 4), color).save(path)
    for name, recipe, data in (("text", TEXT, "a.txt"), ("pixels", PIXELS, "pictures")):
        tables = {"seed": 1} | recipe | {"train": TRAIN | recipe["train"]}
        tables["dataset"] = tables["dataset"] | {"path": str(base / data)}
        (base / f"{name}.toml").write_text(tomli_w.dumps(tables))
        train.train(base / f"{name}.toml", out=base / name, report=lambda line: None)


def case(random: Random, base: Path, folder: Path) -> Case:
    """One run with one or two faults in its newest step folder, or in both."""
    name = random.choice(["text", "text", "pixels"])
    shutil.copytree(base / name, folder / "r", symlinks=True)
    steps = sorted((folder / "r" / "checkpoints").glob("step-*"))
    told = []
    for _ in range(random.choice([1, 1, 2])):
        mutate = random.choice(MUTATIONS)
        seed = random.random()
        for step in steps if random.random() < 0.2 else steps[-1:]:
            with suppress(ValueError, LookupError, TypeError, AttributeError, RecursionError):
                told.append(mutate(Random(seed), step))  # else an earlier fault is in its way
    if random.random() < 0.9:
        for step in steps:
            _seal(step)
    commands: list[list[object]] = [
        ["resume", "r", "--set", "train.steps=3"],
        ["resume", "r", "--set", "train.steps=3"],
        ["sample", "r", "--tokens", 4],
        ["sample", "r", "--tokens", 4, "--checkpoint", random.choice(["best", "1", "2", "²"])],
        ["sample", "r", "--tokens", 4, "--weights", "ema"],
        ["eval", "r"],
        ["probe", "r"] if name == "pixels" else ["eval", "r", "--weights", "ema"],
        ["runs", "show", "r"],
        ["train", base / f"{name}.toml", "--from", "r", "--set", "train.steps=1", "--out", "n"],
    ]
    return Case(random.choice(commands), about=ascii("; ".join(told))[:600])


def _state(change: Callable[[Random, State], str]) -> Callable[[Random, Path], str]:
    def mutate(random: Random, step: Path) -> str:
        state = json.loads((step / STATE).read_text() if (step / STATE).is_file() else "")
        told = change(random, state)
        (step / STATE).write_text(json.dumps(state))
        return told

    return mutate


@_state
def any_value(random: Random, state: State) -> str:
    """Replace, remove or add a value anywhere in state.json."""
    table = random.choice(list(state))
    inside = list(_places(state[table])) if isinstance(state[table], dict | list) else []
    where, key = random.choice([(state, table), *inside])
    if random.random() < 0.2:
        del where[key]
        return f"state: {key} removed"
    if random.random() < 0.1 and isinstance(where, dict):
        key = random.choice(["x", "params", "maximize", "", "a" * 5000, "\0"])
    where[key] = random.choice(VALUES)
    return f"state: {key} = {where[key]!r}"


@_state
def sizes(random: Random, state: State) -> str:
    """Another size of the model."""
    key = random.choice(SIZES)
    state["config"][key] = random.choice([1, 2, 3, 4, 16, 10**5, 10**6, 10**9, 10**12, 2**31 - 1])
    return f"config.{key} = {state['config'][key]}"


@_state
def choices(random: Random, state: State) -> str:
    """Another kind of model."""
    key, values = random.choice(KINDS)
    state["config"][key] = random.choice(values)
    return f"config.{key} = {state['config'][key]}"


@_state
def digests(random: Random, state: State) -> str:
    """Other names of files."""
    files = state["sha256"]
    if not isinstance(files, dict):
        return ""
    name = random.choice(NAMES)
    if files and random.random() < 0.5:
        old = random.choice(list(files))
        files[name] = files.pop(old)
        return f"sha256: {old} is {name[:50]}"
    files[name] = "0" * 64
    return f"sha256 has {name[:50]}"


@_state
def group(random: Random, state: State) -> str:
    """Another number or flag of a parameter group."""
    groups = state[random.choice(["optimizer_groups", "first_groups"])]
    if not isinstance(groups, list) or not groups or not isinstance(groups[0], dict):
        return ""
    chosen = random.choice(groups)
    kind = random.random()
    if kind < 0.2:
        groups.remove(chosen) if random.random() < 0.5 else groups.append(dict(chosen))
        return "another number of groups"
    key = random.choice([*chosen, "amsgrad", "differentiable", "maximize", "foreach", "capturable"])
    if kind < 0.3:
        chosen.pop(key, None)
        return f"group without {key}"
    chosen[key] = random.choice(VALUES)
    return f"group: {key} = {chosen[key]!r}"


@_state
def codec(random: Random, state: State) -> str:
    """Another codec."""
    options = state["codec"]["options"] if isinstance(state["codec"], dict) else {}
    if "vocabulary" in options:
        options["vocabulary"] = random.choice(["a", "ab", "", "\n", options["vocabulary"] + "é"])
    elif random.random() < 0.5:
        options["palette"] = random.choice([[], [[0, 0, 0]], [[1, 1, 1]] * 300])
    else:
        options[random.choice(["size", "classes"])] = random.choice([1, 3, 10**6, [], ["a"] * 2])
    return f"codec: {str(options)[:60]}"


def _tensors(change: Callable[[Random, Header, bytearray], str]) -> Callable[[Random, Path], str]:
    def mutate(random: Random, step: Path) -> str:
        path = random.choice(sorted(step.glob("*.safetensors")) or [step])
        if not path.is_file():
            return ""
        raw = path.read_bytes()
        length = int.from_bytes(raw[:8], "little")
        header, body = json.loads(raw[8 : 8 + length]), bytearray(raw[8 + length :])
        header.pop("__metadata__", None)
        told = change(random, header, body)
        text = json.dumps(header).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(body))
        return f"{path.name}: {told}"

    return mutate


@_tensors
def rename(random: Random, header: Header, body: bytearray) -> str:
    """A tensor of another name, or a few too many."""
    old = random.choice(list(header))
    new = random.choice(["x", "", "h.9.ln_1.weight", "generator:cpu", "wte.weight:step", "a/b"])
    if random.random() < 0.2:
        for i in range(10 ** random.randint(1, 5)):
            header[f"{new}{i}"] = {"dtype": "F32", "shape": [0], "data_offsets": [len(body)] * 2}
        return f"many {new}"
    header[new] = header.pop(old)
    return f"{old} is {new}"


@_tensors
def remove(random: Random, header: Header, body: bytearray) -> str:
    """Tensors are missing."""
    old = random.sample(list(header), random.randint(1, len(header)))
    kept = {key: value for key, value in header.items() if key not in old}
    contents = bytearray()
    for value in kept.values():
        begin, end = value["data_offsets"]
        value["data_offsets"] = [len(contents), len(contents) + end - begin]
        contents += body[begin:end]
    header.clear()
    header.update(kept)
    body[:] = contents
    return f"without {old}"


@_tensors
def retype(random: Random, header: Header, body: bytearray) -> str:
    """A tensor of another dtype, with as many numbers or as many bytes."""
    name = random.choice(list(header))
    found, dtype = header[name], random.choice(list(DTYPES))
    old = DTYPES.get(found["dtype"], 1)
    found["dtype"] = dtype
    if random.random() < 0.8:
        return _replace(
            header, body, name, random, len_of=math.prod(found["shape"]) * DTYPES[dtype]
        )
    found["shape"] = [math.prod(found["shape"]) * old // DTYPES[dtype]]
    return f"{name}: the bytes as {dtype}"


@_tensors
def reshape(random: Random, header: Header, body: bytearray) -> str:
    """A tensor of another shape."""
    name = random.choice(list(header))
    shape = header[name]["shape"]
    numbers = math.prod(shape)
    new = [
        [numbers],
        [numbers, 1],
        [1, numbers],
        shape[::-1],
        [],
        [0],
        [1],
        [2, 3],
        [5055],
        [10**12],
    ]
    new += [[*shape, 1], [n + 1 for n in shape], [n * 2 for n in shape]]
    header[name]["shape"] = random.choice(new)
    size = min(math.prod(header[name]["shape"]), 10**6) * DTYPES.get(header[name]["dtype"], 1)
    return _replace(header, body, name, random, len_of=size)


@_tensors
def contents(random: Random, header: Header, body: bytearray) -> str:
    """Other numbers in a tensor."""
    name = random.choice(list(header))
    begin, end = header[name]["data_offsets"]
    body[begin:end] = random.choice([b"\0", b"\xff", b"\x7f", b"\x01"]) * (end - begin)
    return f"{name}: other numbers"


@_tensors
def offsets(random: Random, header: Header, body: bytearray) -> str:
    """A header that lies about where its tensors are."""
    name = random.choice(list(header))
    key = random.choice(["data_offsets", "shape", "dtype"])
    header[name][key] = random.choice([[0, 0], [-1, 4], [0, 10**18], [4, 0], None, "F32", [1.5]])
    return f"{name}: {key} {header[name][key]}"


def raw(random: Random, step: Path) -> str:
    """A file that is cut, or has other bytes."""
    path = step / random.choice(OTHERS[:-1])
    if not path.is_file():
        return ""
    found = bytearray(path.read_bytes())
    if random.random() < 0.5:
        del found[random.randrange(len(found) + 1) :]
    for _ in range(random.choice([0, 1, 8])):
        if found:
            found[random.randrange(len(found))] = random.randrange(256)
    if random.random() < 0.1:
        found[:] = b"[" * 100_000
    path.write_bytes(found)
    return f"{path.name}: other bytes"


def kind(random: Random, step: Path) -> str:
    """A pipe, a device, a folder or a link in the place of a file."""
    path = step / random.choice(OTHERS)
    if path == step:
        target = random.choice([step.parent, Path("/dev/zero"), step.parent / "step-00000001"])
        if step != target:
            shutil.rmtree(step)
            step.symlink_to(target)
        return f"the step folder is a link to {target}"
    if path.is_dir():
        return ""
    path.unlink(missing_ok=True)
    made = random.choice(["pipe", "/dev/zero", "/dev/null", "folder", "loop", "gone"])
    if made == "pipe":
        os.mkfifo(path)
    elif made == "folder":
        path.mkdir()
    elif made != "gone":
        path.symlink_to(path if made == "loop" else made)
    return f"{path.name}: {made}"


MUTATIONS = [any_value, any_value, any_value, sizes, choices, digests, digests, group, group, codec]
MUTATIONS += [rename, remove, retype, reshape, reshape, contents, offsets, raw, kind]


def _replace(header: Header, body: bytearray, name: str, random: Random, *, len_of: int) -> str:
    """Give a tensor so many bytes; those behind it move."""
    order = sorted(header, key=lambda key: header[key]["data_offsets"])
    parts = {key: bytes(body[slice(*header[key]["data_offsets"])]) for key in order}
    parts[name] = (parts[name] * (len_of // max(1, len(parts[name])) + 1))[:len_of].ljust(len_of)
    at = 0
    body.clear()
    for key in order:
        header[key]["data_offsets"] = [at, at := at + len(parts[key])]
        body += parts[key]
    return f"{name}: {header[name]['dtype']} {header[name]['shape']}"


def _places(tree: Any) -> Any:
    """Every place in a tree, as the container and the key."""
    items = list(tree.items() if isinstance(tree, dict) else enumerate(tree))
    for key, value in items:
        yield tree, key
        if isinstance(value, dict | list):
            yield from _places(value)


def _seal(step: Path) -> None:
    """Make the digests those of the files, as far as there are such files."""
    path = step / STATE
    if not path.is_file() or path.is_symlink():
        return
    with suppress(ValueError, KeyError, TypeError, RecursionError):
        state = json.loads(path.read_bytes())
        files = state["sha256"]
        for name in files if isinstance(files, dict) else ():
            if len(name) < 100 and (step / Path(name).name).is_file():
                files[name] = _sha256((step / Path(name).name).read_bytes())
        path.write_text(json.dumps(state))
    if not os.path.lexists(step / DIGEST) or stat.S_ISREG((step / DIGEST).lstat().st_mode):
        (step / DIGEST).write_text(_sha256(path.read_bytes()) + "\n")


def _sha256(contents: bytes) -> str:
    return hashlib.sha256(contents).hexdigest()
