"""An area: exported models with lies in graphs, metadata, proofs and weights, sealed again."""

import copy
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from gptkit.files import digest
from gptkit.onnx.runtime.metadata import KEY, PROOF_KEY, Proof, appendix
from tests.hostile.harness import Case

MADE_BY_0_1 = Path(__file__).parents[1] / "data/v0.1"
SINGLE = ["text.onnx", "int8.onnx", "float16.onnx", "pixels.onnx", "old.onnx", "old-int8.onnx"]
BUNDLES = ["bundle", "old-bundle"]
GRAPHS = ["generate.onnx", "model.onnx", "decode.onnx"]
WEIGHTS = "model.safetensors"
VOCABULARY = {"pixels.onnx": 26, "old-bundle": 26}
"""Token ids of the models; the others are of the same run."""

VALUES: list[Any] = [None, True, -1, 0, 1, 7, 2**31, 2**63, 2**64, 10**400, -0.5, 1e308]
VALUES += [float("nan"), float("inf"), "", "x", "\0", "é" * 5000, "../../x", "/dev/zero", [], {}]
VALUES += [[[]], [[-1]], [[10**9]], [1.5], ["x"], {"x": [1]}, "generate", "step", "decode"]
NUMBERS = [0, 1, -1, 2, 3, 7, 64, 1000, 2**31 - 1, 2**31, 2**40, 2**62, 2**63 - 1, -(2**63)]
PLACES = [WEIGHTS, "..", "../x", "/etc/passwd", "/dev/zero", "pipe", "link", "loop", "x" * 5000]
PLACES += ["", ".", "\n", "self", "zero", "generate.onnx", "folder"]
TOKENS = [0, 1, 8, 8, 8, -1, 2**31, 2**62, 2**63, 2**64, "x", "1e3"]
SAMPLES = [1, 1, 2, 3, 0, -1, 10**6, 10**9, 10**15, 2**63]
TEMPERATURES = [0, 1, 1e-9, 1e30, -1, "nan", "inf", "-inf", "1e400"]

Mutation = Callable[[Random, Path], str]


def prepare(base: Path) -> None:
    """Files of every kind, proven or not."""
    from gptkit.onnx.export.build import build_model, gpt
    from gptkit.onnx.export.export import export
    from gptkit.onnx.graphs.source import ExportSource
    from gptkit.runs.export import trained_model

    for name in ("text", "pixels"):
        export(MADE_BY_0_1 / name, out=base / f"{name}.onnx")
    export(MADE_BY_0_1 / "text", out=base / "bundle")
    shutil.copy(MADE_BY_0_1 / "text.onnx", base / "old.onnx")
    shutil.copy(MADE_BY_0_1 / "text-int8.onnx", base / "old-int8.onnx")
    shutil.copytree(MADE_BY_0_1 / "kit", base / "old-bundle")
    trained = trained_model(MADE_BY_0_1 / "text")
    for dtype in ("int8", "float16"):
        import onnx_ir

        source = ExportSource.of(gpt(trained), dtype)
        onnx_ir.save(build_model(trained, source, "generate"), base / f"{dtype}.onnx")
        seal(base / f"{dtype}.onnx")


def case(random: Random, base: Path, folder: Path) -> Case:
    """A mutated export, and a use of it."""
    if random.random() < 0.7:
        name = random.choice(SINGLE)
        path, target = folder / name, folder / name
        shutil.copy(base / name, path)
        mutations = [*OF_GRAPHS, *OF_FILES]
    else:
        name = random.choice(BUNDLES)
        path = shutil.copytree(base / name, folder / "bundle")
        target = path / random.choice(GRAPHS)
        mutations = [*OF_GRAPHS, *OF_FILES, of_weights, of_bundle, of_bundle]
    mutate = random.choice([*mutations, nothing])
    about = f"{name}: {mutate.__name__}: {mutate(random, target)}"[:300]
    if path.suffix != ".onnx":
        path = random.choice([path, path, path / "generate.onnx"])
    vocabulary = VOCABULARY.get(name, 59)
    if random.random() < 0.2:
        return Case([], about=about, call=lambda: use(Random(about), path))
    return Case(
        ["sample", path, *options(random, name)], about=ascii(about), expect=ids_of(vocabulary)
    )


def use(random: Random, path: Path) -> None:
    """One of the functions of a model that was loaded in Python."""
    from gptkit import load

    model = load(path, device="cpu")
    call = random.choice(["sample", "stream", "logits", "embed", "logprobs"])
    ids = np.array([random.choice([0, 1, 2, 25, 25, -1, 2**40]) for _ in range(3)], np.int64)
    if call == "sample":
        model.sample("a", tokens=random.choice([1, 40]), samples=2)
    elif call == "stream":
        list(model.stream("a", tokens=40))
    elif call == "logits":
        assert np.isfinite(model.logits(ids)).all()
    elif call == "embed":
        model.embed("a rose")
    else:
        model.logprobs("a rose")


def options(random: Random, name: str) -> list[object]:
    """Of `gptkit sample`; most are good."""
    found: list[object] = ["--device", "cpu", "--tokens", 8]
    if random.random() < 0.15:
        found += ["--tokens", random.choice(TOKENS)]
        found += ["--samples", random.choice(SAMPLES)]
        found += ["--temperature", random.choice(TEMPERATURES)]
        found += ["--top-k", random.choice(NUMBERS), "--top-p", random.choice([0.5, 1, 1e-30])]
    if random.random() < 0.3 and name not in VOCABULARY:
        found += ["--prompt", random.choice(["a", "thee", "Shall I compare thee to a " * 9])]
    if name in VOCABULARY and random.random() < 0.5:
        return [*found, "--out", "x.png"]
    return [*found, "--ids"] if name in VOCABULARY or random.random() < 0.7 else found


def ids_of(vocabulary: int) -> Callable[[int, str, str], str | None]:
    """A fault of what `--ids` printed: an id that the model does not have."""

    def fault(code: int, out: str, err: str) -> str | None:
        words = out.split()
        if code or not words or not all(word.lstrip("-").isdecimal() for word in words):
            return None
        wrong = [word for word in words if not 0 <= int(word) < vocabulary]
        return f"drawn: {wrong[:3]}" if wrong else None

    return fault


# What a file says about itself.


def nothing(random: Random, path: Path) -> str:
    """Good files must stay good."""
    return ""


def of_metadata(random: Random, path: Path) -> str:
    """Another value in any place of the metadata, or none."""
    model = onnx.load(path, load_external_data=False)
    entry = next(entry for entry in model.metadata_props if entry.key == KEY)
    value = json.loads(entry.value)
    holders = [holder for holder in walk(value) if holder]
    holder = random.choice(holders)
    key = random.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
    if random.random() < 0.1:
        del holder[key]
    else:
        holder[key] = copy.deepcopy(random.choice(VALUES))
    entry.value = json.dumps(value)
    write(model, path)
    return f"{key}: {holder.get(key) if isinstance(holder, dict) else holder!r}"


def of_texts(random: Random, path: Path) -> str:
    """Metadata that is no JSON, or no UTF-8."""
    model = onnx.load(path, load_external_data=False)
    (entry,) = (entry for entry in model.metadata_props if entry.key == KEY)
    kind = random.choice(["none", "nested", "twice", "not utf-8", "long"])
    if kind == "none":
        model.metadata_props.remove(entry)
    elif kind == "nested":
        entry.value = random.choice(["[", '{"x":']) * random.choice([100, 10**5])
    elif kind == "twice":
        model.metadata_props.add(key=KEY, value="{}")
    elif kind == "long":
        entry.value = entry.value.replace("char-text", "c" * 10**6)
    write(model, path)
    if kind == "not utf-8":
        contents = path.read_bytes().replace(b"char-text", b"char\xfftext")
        path.write_bytes(contents)
        seal(path)
    return kind


def of_proof(random: Random, path: Path) -> str:
    """Another value in any place of the proof."""
    contents, proof = apart(path)
    value = json.loads(proof.model_dump_json())
    value["checks"] = value["checks"][:1]
    if random.random() < 0.4:
        value["weights"] = {random.choice(PLACES): random.choice(["", "0" * 64])}
        special_files(path)
    else:
        holder = random.choice([holder for holder in walk(value) if holder])
        key = random.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
        holder[key] = random.choice(VALUES)
    path.write_bytes(contents + appendix(json.dumps(value)))
    return str(value)[:200]


def of_bytes(random: Random, path: Path) -> str:
    """Flipped bits, sealed again or not."""
    contents, proof = apart(path)
    spoilt = bytearray(contents)
    for _ in range(random.choice([1, 3, 30])):
        spoilt[random.randrange(len(spoilt))] = random.randrange(256)
    path.write_bytes(spoilt)
    if random.random() < 0.8:
        seal(path, proof.weights)
    return "bytes"


# Graphs.


def of_node(random: Random, path: Path) -> str:
    """A node that is missing, is called otherwise, or reads and writes something else."""
    model = onnx.load(path, load_external_data=False)
    graph = random.choice(list(graphs(model.graph)))
    node = random.choice(graph.node)
    kind = random.choice(["remove", "operator", "input", "output", "attribute", "domain"])
    about = f"{node.name} {kind}"
    if kind == "remove":
        graph.node.remove(node)
    elif kind == "operator":
        node.op_type = random.choice(["Add", "Mul", "Gather", "Cast", "Loop", "Nope", "Identity"])
    elif kind == "input" and node.input:
        place = random.randrange(len(node.input))
        node.input[place] = random.choice(["", "prompt_ids", *random.choice(graph.node).output])
    elif kind == "output":
        node.output[0] = random.choice(["", "prompt_ids", "tokens", "x"])
    elif kind == "attribute" and node.attribute:
        attribute = random.choice(node.attribute)
        attribute.i = random.choice(NUMBERS)
        attribute.ints[:] = [random.choice(NUMBERS) for _ in attribute.ints]
    elif kind == "domain":
        node.domain = random.choice(["com.microsoft", "nope"])
    write(model, path)
    return about


def of_outputs(random: Random, path: Path) -> str:
    """An output of another name, type or shape, or with other numbers."""
    model = onnx.load(path, load_external_data=False)
    output = random.choice(model.graph.output[:4])
    name, inner = output.name, f"{output.name}_inner"
    for node in model.graph.node:
        node.output[:] = [inner if made == name else made for made in node.output]
        node.input[:] = [inner if read == name else read for read in node.input]
    constants, nodes = random.choice(CHANGES)(random, inner, name)
    model.graph.initializer.extend(
        numpy_helper.from_array(np.array(value), key) for key, value in constants.items()
    )
    model.graph.node.extend(nodes)
    kind = output.type.tensor_type
    del kind.shape.dim[:]
    kind.ClearField("shape")
    if nodes and nodes[-1].op_type == "Cast":
        kind.elem_type = nodes[-1].attribute[0].i
    if random.random() < 0.2:
        output.name = random.choice(["Tokens", "", "x"])
    write(model, path)
    return f"{name} {nodes[-1].op_type} {list(constants.values())}"


Change = tuple[dict[str, Any], list[NodeProto]]


def _more(random: Random, x: str, y: str) -> Change:
    added = random.choice([1, -1, 60, 1000, 2**31, 2**40, -(2**62)])
    return {"more": np.int64(added)}, [helper.make_node("Add", [x, "more"], [y])]


def _cast(random: Random, x: str, y: str) -> Change:
    to = random.choice([TensorProto.FLOAT, TensorProto.INT32, TensorProto.STRING, TensorProto.BOOL])
    return {}, [helper.make_node("Cast", [x], [y], to=to)]


def _shape(random: Random, x: str, y: str) -> Change:
    shape = random.choice([[-1], [1, 1, -1], [-1, 1], [1, -1], [-1, 2]])
    return {"shape": np.array(shape)}, [helper.make_node("Reshape", [x, "shape"], [y])]


def _slice(random: Random, x: str, y: str) -> Change:
    axis, end = random.choice([0, 1]), random.choice([0, 1, 2])
    values = {"begin": np.array([0]), "end": np.array([end]), "axis": np.array([axis])}
    return values, [helper.make_node("Slice", [x, *values], [y])]


def _repeat(random: Random, x: str, y: str) -> Change:
    times = random.choice([[1, 2], [2, 1], [10**4, 10**4], [1, 10**13], [10**9, 10**9]])
    return {"times": np.array(times)}, [helper.make_node("Tile", [x, "times"], [y])]


CHANGES = [_more, _more, _cast, _shape, _slice, _repeat]


def of_inputs(random: Random, path: Path) -> str:
    """An input of another name, type or shape, one too many or too few."""
    model = onnx.load(path, load_external_data=False)
    value = random.choice(model.graph.input)
    kind = random.choice(["name", "type", "shape", "remove", "add"])
    about = f"{value.name} {kind}"
    if kind == "name":
        value.name = random.choice(["x", "", "stop_token", "prompt_ids"])
    elif kind == "type":
        value.type.tensor_type.elem_type = random.choice([1, 6, 7, 8, 10, 16])
    elif kind == "shape":
        del value.type.tensor_type.shape.dim[:]
        for _ in range(random.randrange(4)):
            value.type.tensor_type.shape.dim.add(dim_value=random.choice([0, 1, 7, 2**40]))
    elif kind == "remove":
        model.graph.input.remove(value)
    else:
        shape = random.choice([[], [3], ["batch", 4, "n", 8]])
        model.graph.input.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, shape))
    write(model, path)
    return about


def of_initializers(random: Random, path: Path) -> str:
    """A tensor of another shape, type or size, or one that is in another file."""
    model = onnx.load(path, load_external_data=False)
    tensors = [tensor for graph in graphs(model.graph) for tensor in graph.initializer]
    tensor = random.choice(tensors)
    kind = random.choice(["dims", "type", "cut", "place", "place", "offset"])
    about = f"{tensor.name} {kind}"
    if kind == "dims":
        tensor.dims[:] = [random.choice(NUMBERS) for _ in range(random.randrange(4))]
    elif kind == "type":
        tensor.data_type = random.randrange(24)
    elif kind == "cut":
        tensor.raw_data = tensor.raw_data[: random.choice([0, 3, 100])]
    else:
        place = random.choice(PLACES) if kind == "place" else path.name
        special_files(path)
        about += f" {place[:30]}"
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        del tensor.external_data[:]
        tensor.external_data.add(key="location", value=path.name if place == "self" else place)
        if random.random() < 0.5:
            tensor.external_data.add(key="offset", value=str(random.choice(NUMBERS)))
            tensor.external_data.add(key="length", value=str(random.choice(NUMBERS)))
    write(model, path)
    return about


def of_versions(random: Random, path: Path) -> str:
    """Other versions of the format and the operators."""
    model = onnx.load(path, load_external_data=False)
    if random.random() < 0.5:
        model.ir_version = random.choice(NUMBERS)
    else:
        random.choice(model.opset_import).version = random.choice(NUMBERS)
    write(model, path)
    return "versions"


# Files.


def of_place(random: Random, path: Path) -> str:
    """No regular file, or one that ends too early."""
    kind = random.choice(["pipe", "zero", "folder", "empty", "cut", "loop", "gone", "tail"])
    contents = path.read_bytes()
    path.unlink()
    match kind:
        case "pipe":
            os.mkfifo(path)
        case "zero":
            path.symlink_to("/dev/zero")
        case "folder":
            path.mkdir()
        case "empty":
            path.touch()
        case "loop":
            path.symlink_to(path)
        case "cut":
            path.write_bytes(contents[: random.randrange(len(contents))])
        case "tail":
            path.write_bytes(contents[random.randrange(len(contents)) :])
    return kind


def of_weights(random: Random, path: Path) -> str:
    """The weights of a bundle, sealed again or not."""
    weights = path.with_name(WEIGHTS)
    contents = bytearray(weights.read_bytes())
    kind = random.choice(["flip", "cut", "header", "not finite"])
    if kind == "flip":
        contents[random.randrange(len(contents))] ^= 255
    elif kind == "cut":
        del contents[random.randrange(len(contents)) :]
    elif kind == "header":
        contents[:8] = random.choice(NUMBERS).to_bytes(8, "little", signed=True)
    else:
        contents[-4000:] = np.full(1000, np.nan, np.float32).tobytes()
    weights.write_bytes(contents)
    if random.random() < 0.9:
        for name in GRAPHS:
            path.with_name(name).write_bytes(apart(path.with_name(name))[0])
            seal(path.with_name(name), {WEIGHTS: digest(weights)})
    return kind


def of_bundle(random: Random, path: Path) -> str:
    """A file of the bundle that is another one, or none."""
    chosen = path.with_name(random.choice([*GRAPHS, WEIGHTS, WEIGHTS]))
    if random.random() < 0.7:
        return f"{chosen.name} {of_place(random, chosen)}"
    other = path.with_name(random.choice([*GRAPHS, WEIGHTS]))
    contents = other.read_bytes()
    chosen.write_bytes(contents)
    return f"{chosen.name} is {other.name}"


OF_GRAPHS: list[Mutation] = [of_node, of_outputs, of_outputs, of_inputs, of_initializers]
OF_FILES: list[Mutation] = [of_metadata, of_metadata, of_texts, of_proof, of_bytes, of_place]
OF_FILES += [of_versions]


def special_files(path: Path) -> None:
    """Files beside an export that are no weights."""
    beside = path.parent
    if not (beside / "pipe").exists():
        os.mkfifo(beside / "pipe")
        (beside / "zero").symlink_to("/dev/zero")
        (beside / "link").symlink_to("/etc/passwd")
        (beside / "loop").symlink_to("loop")
        (beside / "folder").mkdir()


def graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """A graph and those inside."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from graphs(attribute.g)


def walk(value: Any) -> Iterator[Any]:
    """All objects and lists in a JSON value."""
    if isinstance(value, dict | list):
        yield value
        for inner in value.values() if isinstance(value, dict) else value:
            yield from walk(inner)


def write(model: ModelProto, path: Path) -> None:
    """Write a mutated model and seal it again."""
    weights = apart(path)[1].weights
    for entry in [entry for entry in model.metadata_props if entry.key == PROOF_KEY]:
        model.metadata_props.remove(entry)
    path.write_bytes(model.SerializeToString())
    seal(path, weights)


def apart(path: Path) -> tuple[bytes, Proof]:
    """The contents of an export before its proof, and the proof."""
    contents = path.read_bytes()
    start = contents.index(b'{"', contents.rindex(PROOF_KEY.encode()))
    proof = Proof.model_validate_json(contents[start : contents.rindex(b"}") + 1])
    return contents[: proof.size], proof


def seal(path: Path, weights: dict[str, str] | None = None) -> None:
    """Append a proof that fits."""
    contents = path.read_bytes()
    proof = Proof(size=len(contents), sha256=digest(path), checks=[], weights=weights or {})
    path.write_bytes(contents + appendix(proof.model_dump_json()))
