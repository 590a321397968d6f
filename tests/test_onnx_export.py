"""`gptkit export`: what is not equal to the checkpoint is never written, nor is half a file."""

import itertools
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from typer.testing import Result

from gptkit.errors import ExportError
from gptkit.onnx.export import build, bundle
from gptkit.onnx.export import export as exporting
from gptkit.onnx.export import format as format_
from gptkit.onnx.graphs.cache import SCORES
from gptkit.onnx.proof.compare import LOSS, raise_if_failed
from gptkit.onnx.runtime.metadata import Comparison, appendix, check_files
from gptkit.onnx.runtime.model import load_exported
from gptkit.runs.loaded import load_checkpoint
from tests.support import stir, train

Command = Callable[..., Result]
Mutation = Callable[[ir.Model], None]

CLASSIC: dict[str, Any] = {"mlp": "gelu", "tie_embeddings": True}
MODERN: dict[str, Any] = {
    "norm": "rmsnorm", "position": "rotary", "mlp": "swiglu", "qk_norm": True, "n_kv_head": 2,
    "bias": False, "tie_embeddings": False,
}  # fmt: skip
BUNDLE_FILES = {
    "generate.onnx", "model.onnx", "decode.onnx", "model.safetensors", "config.json",
    "genai_config.json", "tokenizer.json", "tokenizer_config.json", "selftest.json", "README.md",
}  # fmt: skip


def make_run(folder: Path, *, block_size: int = 8, **shape: Any) -> Path:
    """A run folder "r" whose checkpoint holds weights that all matter."""
    text = folder / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog.\n" * 50)
    dataset = {"use": "char-text", "path": str(text), "block_size": block_size}
    return stir(
        train(folder, dataset, {"n_layer": 2, "n_head": 4, "n_embd": 32, **shape}), scale=0.3
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Run folders by name, which no test changes."""
    shapes: dict[str, dict[str, Any]] = {
        "classic": CLASSIC, "modern": MODERN, "long": {"block_size": 140, **CLASSIC}
    }  # fmt: skip
    return {name: make_run(tmp_path_factory.mktemp(name), **s) for name, s in shapes.items()}


@pytest.fixture
def r(runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The modern run, as "r" in the working directory."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(runs["modern"], tmp_path / "r")
    return Path("r")


def contents(folder: Path) -> dict[Path, bytes | None]:
    """Everything below a folder, None for folders."""
    return {p: p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


# What is not equal to the checkpoint. Each mutation is made to the graph before it is written.


def nodes(model: ir.Model, operator: str) -> list[ir.Node]:
    return [node for node in model.graph.all_nodes() if node.op_type == operator]


def node_of(model: ir.Model, name: str) -> ir.Node:
    (node,) = [node for node in model.graph.all_nodes() if node.name == name]
    return node


NUMBERS = itertools.count()


def add_before(node: ir.Node, operator: str, inputs: list[Any], **attributes: Any) -> ir.Value:
    """The result of another node before this one; arrays become constants."""
    values = []
    for value in inputs:
        if not isinstance(value, ir.Value):
            value = add_before(node, "Constant", [], value=ir.Tensor(np.asarray(value)))
        values.append(value)
    added = ir.node(operator, values, attributes)
    added.outputs[0].name = f"added/{next(NUMBERS)}"
    node.graph.insert_before(node, added)
    return added.outputs[0]


def with_input(name: str, index: int, operator: str, *others: Any, **attributes: Any) -> Mutation:
    """Give a node f(x, *others) in the place of its input x."""

    def mutate(model: ir.Model) -> None:
        node = node_of(model, name)
        value = add_before(node, operator, [node.inputs[index], *others], **attributes)
        node.replace_input_with(index, value)

    return mutate


def all_of(*mutations: Mutation) -> Mutation:
    return lambda model: [mutate(model) for mutate in mutations] and None


def initializers(model: ir.Model) -> dict[str, ir.Value]:
    graphs = [model.graph, *model.graph.subgraphs()]
    return {name: value for graph in graphs for name, value in graph.initializers.items()}


def change(value: ir.Value | None, function: Callable[[Any], Any]) -> None:
    """Put another array in the place of an initializer's."""
    assert value is not None
    assert value.const_value is not None
    before = value.const_value.numpy()
    after = np.asarray(function(before.copy()), before.dtype)
    value.const_value = ir.Tensor(after, name=value.name)


def weight(name: str, function: Callable[[Any], Any]) -> Mutation:
    return lambda model: change(initializers(model)[name], function)


def drop_mask(model: ir.Model) -> None:
    """What is added to the score of a hidden token."""
    added = {node.inputs[2] for node in nodes(model, "Where") if is_hidden(node.inputs[2])}
    assert added
    for value in added:
        change(value, np.zeros_like)


def is_hidden(value: ir.Value | None) -> bool:
    array = value.const_value and value.const_value.numpy() if value else None
    return array is not None and array.size == 1 and array == SCORES["hidden"]


def swap_transpose(model: ir.Model) -> None:
    """Of a square matrix, whose shape does not tell."""
    change(initializers(model)["h.0.attn.proj.weight"], np.transpose)


def other_axis(model: ir.Model) -> None:
    node_of(model, "h.0.attn/Softmax").attributes["axis"] = ir.AttrInt64("axis", -2)


def tanh_gelu(model: ir.Model) -> None:
    nodes(model, "Gelu")[0].attributes["approximate"] = ir.AttrString("approximate", "tanh")


def swap_inputs(name: str) -> Mutation:
    def mutate(model: ir.Model) -> None:
        node = node_of(model, name)
        first, second = node.inputs[0], node.inputs[1]
        node.replace_input_with(0, second)
        node.replace_input_with(1, first)

    return mutate


def restart_from(change_length: Callable[[Any], Any]) -> Mutation:
    def mutate(model: ir.Model) -> None:
        graph = next(g for g in model.graph.subgraphs() if g.name == "restart")
        change(next(n for n in graph if n.op_type == "Slice").inputs[1], change_length)

    return mutate


def forget_the_gate(model: ir.Model) -> None:
    sigmoid = nodes(model, "Sigmoid")[0]
    gate = sigmoid.inputs[0]
    (product,) = [n for n, _ in sigmoid.outputs[0].uses()]
    product.replace_input_with(1, gate)


def swap_halves(model: ir.Model) -> None:
    """Which half gates and which is gated."""
    first, second = nodes(model, "Sigmoid")[0].inputs[0].producer().outputs
    uses = [(*use, value) for value in (first, second) for use in value.uses()]
    for node, index, value in uses:
        node.replace_input_with(index, second if value is first else first)


def other_epsilon(operator: str) -> Mutation:
    def mutate(model: ir.Model) -> None:
        nodes(model, operator)[0].attributes["epsilon"] = ir.AttrFloat32("epsilon", 1e-2)

    return mutate


def cache_unrotated_keys(model: ir.Model) -> None:
    split = node_of(model, "h.0.attn/Split_2")
    unrotated = node_of(model, "h.0.attn.rotary/Split").inputs[0]
    _, k = split.outputs
    both = ir.node("Split", [unrotated, split.inputs[1]], {"axis": 1}, num_outputs=2)
    split.graph.insert_before(split, both)
    for node, index in list(k.uses()):
        node.replace_input_with(index, both.outputs[1])


def forget_a_shift(model: ir.Model) -> None:
    xor = node_of(model, "sampling.uniforms/BitwiseXor_2")
    for node, index in list(xor.outputs[0].uses()):
        node.replace_input_with(index, xor.inputs[0])


def use_constant(name: str, index: int, value: Any) -> Mutation:
    def mutate(model: ir.Model) -> None:
        node = node_of(model, name)
        node.replace_input_with(index, add_before(node, "Identity", [value]))

    return mutate


def perturb(array: Any) -> Any:
    """One number of a tensor."""
    array.flat[array.size // 2] += 0.05
    return array


EARLIER = b"an earlier file" + appendix('{"format":1,"size":15,"sha256":"","checks":[]}')
"""It ends as exports do."""
WRONG_GRAPHS: dict[str, tuple[str, Mutation]] = {
    "a swapped transpose": ("modern", swap_transpose),
    "a perturbed embedding": ("modern", weight("wte.weight", perturb)),
    "a perturbed position": ("classic", weight("position.wpe.weight", perturb)),
    "a perturbed norm": ("classic", weight("h.0.ln_1.bias", perturb)),
    "a perturbed attention": ("classic", weight("h.0.attn.qkv.weight", perturb)),
    "a perturbed bias": ("classic", weight("h.0.mlp.proj.bias", perturb)),
    "a perturbed MLP": ("modern", weight("h.0.mlp.up.weight", perturb)),
    "a perturbed head": ("modern", weight("lm_head.weight", perturb)),
    "the wrong rotary sign": ("modern", weight("rotary.sin", np.negative)),
    "rotary angles of the position before": (
        "modern", weight("rotary.cos", lambda a: np.roll(a, 1, 0))
    ),
    "a dropped mask": ("modern", drop_mask),
    "an inverted mask": ("classic", swap_inputs("cache/LessOrEqual")),
    "unscaled queries": ("classic", weight("attention.scale", np.ones_like)),
    "softmax along the wrong axis": ("modern", other_axis),
    "another GELU": ("classic", tanh_gelu),
    "another epsilon": ("classic", other_epsilon("LayerNormalization")),
    "a gate that lets everything through": ("modern", forget_the_gate),
    "gate and value swapped": ("modern", swap_halves),
    "half a context and one": ("modern", restart_from(lambda a: a - 1)),
    "half a context but one": ("modern", restart_from(lambda a: a + 1)),
    "a whole context": ("classic", restart_from(lambda a: a * 2)),
    "keys cached before they are rotated": ("modern", cache_unrotated_keys),
    "positions off by one": (
        "classic",
        all_of(
            with_input("position.wpe/Gather", 1, "Add", np.int64(1)),
            with_input("position.wpe/Gather", 1, "Min", np.int64(7)),
        ),
    ),
    "queries of other groups": (
        "modern", with_input("h.0.attn/Mul", 0, "Gather", np.array([0, 2, 1, 3]), axis=1)
    ),
    "random numbers off by one": (
        "modern", with_input("sampling.uniforms/Add_2", 0, "Add", np.int64(1))
    ),
    "random numbers without a shift": ("modern", forget_a_shift),
    "the next token": (
        "modern", with_input("sampling.from_all/Min", 0, "Add", np.int64(1))
    ),
    "the next of the likeliest tokens": (
        "modern", with_input("sampling.from_top/Min", 0, "Add", np.int64(1))
    ),
    "a smaller random number": (
        "modern", with_input("sampling.from_all/Mul", 0, "Mul", np.float32(0.99))
    ),
    "a smaller random number among the likeliest": (
        "modern", with_input("sampling.from_top/Mul", 0, "Mul", np.float32(0.9))
    ),
    "one candidate too few": (
        "modern",
        all_of(
            with_input("sampling.from_top/TopK", 1, "Sub", np.array([1])),
            with_input("sampling.from_top/TopK", 1, "Max", np.array([1])),
        ),
    ),
    "a temperature that is ignored": (
        "modern", use_constant("sampling/Div", 1, np.float32(1))
    ),
    "a top_p that is ignored": (
        "modern", use_constant("sampling.from_top/Less", 1, np.float32(1))
    ),
    "a top_k that is ignored": ("modern", swap_inputs("sampling/LessOrEqual")),
    "the unlikeliest": ("modern", with_input("sampling.from_top/TopK", 0, "Neg")),
    "a stop token that ends nothing": (
        "modern",
        all_of(
            use_constant("stops/Equal_2", 0, np.array(0)),
            use_constant("blocks/Not", 0, np.array(False)),
        ),
    ),
    "a row that draws on after its stop token": (
        "modern", use_constant("stops/Where", 0, np.array(False))
    ),
    "only the first of several stop tokens": (
        "modern", with_input("stops/Concat", 0, "Slice", [0], [1], [0])
    ),
}  # fmt: skip
"""The run that shows it, and what goes wrong in its graph `generate`."""


def mutate_graph(patch: pytest.MonkeyPatch, name: str, mutate: Mutation) -> None:
    build_model = build.build_model

    def wrong_model(trained: Any, source: Any, graph: Any) -> ir.Model:
        model = build_model(trained, source, graph)
        if graph == name:
            mutate(model)
        return model

    patch.setattr(build, "build_model", wrong_model)


@pytest.fixture
def caught(tmp_path: Path) -> Callable[..., str]:
    """Exports a run, which must fail and leave everything as it was; gives the error."""

    def call(path: Path, out: str = "model.onnx", **options: Any) -> str:
        (tmp_path / "model.onnx").write_bytes(EARLIER)
        before = contents(tmp_path)
        with pytest.raises(ExportError) as error:
            exporting.export(path, out=tmp_path / out, **options)
        assert contents(tmp_path) == before
        said = str(error.value)
        assert all(f"{out} is not equal to the checkpoint: " in x for x in said.splitlines())
        assert error.value.exit_code == 4
        assert error.value.hint
        return said

    return call


@pytest.mark.parametrize("wrong", WRONG_GRAPHS)
def test_a_wrong_graph_is_caught(
    wrong: str,
    runs: dict[str, Path],
    caught: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name, mutate = WRONG_GRAPHS[wrong]
    mutate_graph(monkeypatch, "generate", mutate)
    said = caught(runs[name])
    assert ", limit 0" in said
    assert "(" in said  # the place


def prepend_keys(model: ir.Model) -> None:
    graph = next(g for g in model.graph.subgraphs() if g.name == "append")
    for node in [node for node in graph if node.op_type == "Concat"][::2]:  # then a layer's values
        first, second = node.inputs
        node.replace_input_with(0, second)
        node.replace_input_with(1, first)


def test_a_cache_that_grows_the_wrong_way_is_caught(
    runs: dict[str, Path], caught: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    mutate_graph(monkeypatch, "generate", prepend_keys)
    assert "logits: " in caught(runs["long"])


def break_shapes(model: ir.Model) -> None:
    """A transpose that onnxruntime finds out about while it runs."""
    transpose = next(n for n in nodes(model, "Transpose") if "Concat" in uses_of(n.outputs[0]))
    transpose.attributes["perm"] = ir.AttrInt64s("perm", [0, 1, 2, 3])


def uses_of(value: ir.Value) -> set[str]:
    return {node.op_type for node, _ in value.uses()}


def unknown_operator(model: ir.Model) -> None:
    nodes(model, "Gemm")[0].op_type = "Gemmm"


@pytest.mark.parametrize("mutate", [break_shapes, unknown_operator])
def test_a_graph_that_does_not_run_is_not_written(
    mutate: Mutation, r: Path, cli: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mutate_graph(monkeypatch, "generate", mutate)
    before = contents(tmp_path)
    for out in ("model.onnx", "bundle"):
        result = cli("export", r, "--out", out)
        assert result.exit_code == 4, result.output
        assert result.stderr.startswith("error: ")
        assert contents(tmp_path) == before


def swap_present(model: ir.Model) -> None:
    names = [value.name for value in model.graph.outputs[1:]]
    for value, name in zip(model.graph.outputs[1:], names[::-1], strict=True):
        value.name = f"{name}."
    for value in model.graph.outputs[1:]:
        value.name = str(value.name)[:-1]


def ignore_padding(model: ir.Model) -> None:
    nodes(model, "Greater")[0].replace_input_with(1, initial(model, "below", np.int64(-1)))


def draw_with_others_numbers(model: ir.Model) -> None:
    gather = next(n for n in nodes(model, "Gather") if n.inputs[0].name == "uniforms")
    table = model.graph.inputs[3]
    assert table.name == "uniforms"
    flipped = ir.node("Sub", [initial(model, "one", np.float32(1)), table])
    model.graph.insert_before(gather, flipped)
    gather.replace_input_with(0, flipped.outputs[0])


def initial(model: ir.Model, name: str, value: Any) -> ir.Value:
    tensor = ir.Tensor(np.asarray(value), name=name)
    found = ir.Value(name=name, const_value=tensor, shape=tensor.shape)
    found.type = ir.TensorType(tensor.dtype)
    model.graph.initializers[name] = found
    return found


WRONG_BUNDLES: dict[str, tuple[str, str, Mutation, dict[str, Any]]] = {
    "a rotary sign in step": ("modern", "step", weight("rotary.sin", np.negative), {}),
    "a rotary sign in decode": ("modern", "decode", weight("rotary.sin", np.negative), {}),
    "a rotary sign in decode for CUDA": (
        "modern", "decode", weight("rotary.sin", np.negative), {"device": "cuda"}
    ),
    "a dropped mask in step": ("modern", "step", drop_mask, {}),
    "a dropped mask in decode": (
        "modern", "decode", drop_mask, {"device": "cuda"}
    ),
    "padding that is seen": ("classic", "step", ignore_padding, {}),
    "keys and values swapped": ("classic", "step", swap_present, {}),
    "other random numbers": ("classic", "decode", draw_with_others_numbers, {}),
    "a wrong generate": ("classic", "generate", tanh_gelu, {}),
}  # fmt: skip
"""The run that shows it, the graph, what goes wrong in it, and options of the export."""


@pytest.mark.parametrize("wrong", WRONG_BUNDLES)
def test_a_wrong_bundle_is_caught(
    wrong: str,
    runs: dict[str, Path],
    caught: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    name, graph, mutate, options = WRONG_BUNDLES[wrong]
    (tmp_path / "bundle").mkdir()
    for file in ("generate.onnx", "selftest.json"):
        (tmp_path / "bundle" / file).write_bytes(EARLIER)
    assert bundle.is_bundle(tmp_path / "bundle")
    mutate_graph(monkeypatch, graph, mutate)
    said = caught(runs[name], "bundle", **options)
    checks = [line.partition("checkpoint: ")[2] for line in said.splitlines()]
    if graph == "generate":
        assert checks[0].startswith("logits: ")
    else:
        assert all(check.startswith(("step: ", "decode: ")) for check in checks)


def test_what_few_bits_lose_is_no_fault_of_the_graph() -> None:
    lost = Comparison.of("validation loss", 0.3, 0.1, LOSS)
    wrong = Comparison.of("stop tokens", 1, 0, "ignored")
    for found, hint in (
        ([lost], "A model may lose too much in so few bits: choose more"),
        ([lost, wrong], "This is a bug in gptkit"),
        ([Comparison.of("validation loss", np.nan, 0.1, LOSS)], "This is a bug in gptkit"),
    ):
        with pytest.raises(ExportError) as caught:
            raise_if_failed("m.onnx", found)
        assert hint in str(caught.value.hint)


@pytest.mark.parametrize("dtype", ["float16", "int8", "int4"])
@pytest.mark.parametrize("wrong", ["the wrong rotary sign", "a dropped mask"])
def test_rough_precision_hides_no_wrong_graph(
    wrong: str,
    dtype: str,
    runs: dict[str, Path],
    caught: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name, mutate = WRONG_GRAPHS[wrong]
    mutate_graph(monkeypatch, "generate", mutate)
    assert "logits" in caught(runs[name], dtype=dtype)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["classic", "modern"])
def test_every_weight_is_looked_at(
    name: str, runs: dict[str, Path], caught: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A change too small to turn a token, but not one that rounding makes."""
    for parameter in load_checkpoint(runs[name], device="cpu").model.weights():
        with monkeypatch.context() as patch:
            mutate_graph(patch, "generate", weight(parameter, lambda a: a * (1 + 1e-3)))
            caught(runs[name])


def test_a_weight_of_a_token_that_nobody_draws_is_looked_at(
    runs: dict[str, Path], caught: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One number alone, the smallest of the table: no logit shows it."""

    def nudge(array: Any) -> Any:
        array.flat[np.abs(array).argmin()] += 1e-6
        return array

    mutate_graph(monkeypatch, "generate", weight("wte.weight", nudge))
    caught(runs["modern"])


def test_an_unequal_export_on_the_command_line(
    r: Path, cli: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mutate_graph(monkeypatch, "generate", weight("rotary.sin", np.negative))
    before = contents(tmp_path)
    for out in ("model.onnx", "deep/er/model.onnx", "bundle"):
        result = cli("export", r, "--out", out)
        assert (result.exit_code, result.stdout) == (4, "")
        name = Path(out).name
        assert result.stderr.startswith(f"error: {name} is not equal to the checkpoint: logits: ")
        first = result.stderr.splitlines()[0]
        assert "max error / max logit, limit 0.0001 (" in first
        assert ", at (" in first
        assert "\nhint:  nothing was written." in result.stderr
        assert contents(tmp_path) == before


# What is equal.


@pytest.mark.parametrize("name", ["classic", pytest.param("modern", marks=pytest.mark.slow)])
@pytest.mark.parametrize("dtype", ["float32", "float16", "int8", "int4"])
def test_every_precision_passes(
    name: str, dtype: str, runs: dict[str, Path], tmp_path: Path
) -> None:
    cuda = [("bundle", "cuda")] if name == "modern" else []
    for out, device in (("m.onnx", "cpu"), ("bundle", "cpu"), *cuda):
        exported = exporting.export(runs[name], out=tmp_path / out, dtype=dtype, device=device)
        assert all(each.passed for each in exported.comparisons)
        file = exported.path / "generate.onnx" if out == "bundle" else exported.path
        assert check_files(file)[0].checks == exported.comparisons
        described = load_exported(exported.path, device="cpu").metadata
        assert (described.dtype, described.opset) == (dtype, 21)
    assert {path.name for path in tmp_path.iterdir()} == {"bundle", "m.onnx"}


@pytest.mark.parametrize(
    "shape",
    [
        {"block_size": 1}, {"block_size": 2}, {"block_size": 3, "n_head": 1, "n_embd": 5},
        {"n_head": 2, "n_embd": 12, "position": "rotary"}, {"n_embd": 20, "n_inner": 7},
    ],
    ids=str,
)  # fmt: skip
def test_odd_sizes_pass(shape: dict[str, Any], tmp_path: Path) -> None:
    path = make_run(tmp_path, **shape)
    for dtype in ("float32", "int4") if shape.get("n_embd", 32) % 32 else ("float32",):
        exported = exporting.export(path, out=tmp_path / "bundle", dtype=dtype)
        assert all(each.passed for each in exported.comparisons)


def test_the_proof_is_shown(
    r: Path, cli: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    result = cli("export", r)
    assert (result.exit_code, result.stdout) == (0, "model.onnx\n")
    assert "logits" in result.stderr
    assert "gptkit sample, " in result.stderr
    onnx.checker.check_model(tmp_path / "model.onnx", full_check=True)
    result = cli("export", r, "--out", "bundle", "--dtype", "int8")
    assert (result.exit_code, result.stdout) == (0, "bundle\n")
    for name in ("validation loss", "step: padded rows", "decode: "):
        assert name in result.stderr
    table = result.stderr.splitlines()
    assert len(table) == 1 + 13, "no row is wrapped"


def test_the_option_onnx_is_not_needed_and_still_accepted(r: Path, cli: Command) -> None:
    assert "--onnx" not in cli("export", "--help").stdout
    assert cli("export", r, "--onnx").exit_code == 0
    before = Path("model.onnx").read_bytes()
    assert cli("export", r).exit_code == 0
    assert Path("model.onnx").read_bytes() == before


# Options.


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["r", "--dtype", "bfloat16"], "onnx.dtype: should be 'float32', 'float16', 'int8' or"),
        (["r", "--dtype", "int3"], "got 'int3'"),
        (["r", "--device", "mps", "--out", "bundle"], "onnx.device: should be 'cpu' or"),
        (["r", "--out", "r"], "r: already exists and is not a bundle"),
        (["r", "--out", "r/recipe.toml"], "r/recipe.toml: already exists and is not a bundle"),
        (["r", "--out", "a.onnx"], "a.onnx: is a folder"),
        (["r", "--web", "w", "--out", "b.onnx"], "--web and --out are both given"),
        (["r", "--out", "/dev/null"], "/dev/null: already exists and is not a bundle"),
        (["r", "--device", "cuda"], "model.onnx: a single file is for CPUs"),
        (["r", "--device", "cuda", "--web", "w"], "a single file is for CPUs"),
        (["r", "--web", "r/recipe.toml"], "r/recipe.toml: not a folder"),
        (["r", "--web", "a.onnx"], "index.html: already exists, and gptkit did not"),
        (["nope"], "nope: no such run folder"),
        (["a.onnx"], "a.onnx: not a run folder"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_options_that_make_no_sense(
    arguments: list[str], said: str, r: Path, cli: Command, tmp_path: Path
) -> None:
    (tmp_path / "a.onnx").mkdir()
    (tmp_path / "a.onnx/index.html").write_text("<!doctype html><title>mine</title>")
    before = contents(tmp_path)
    result = cli("export", *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert said in result.stderr
    assert "Traceback" not in result.stderr
    assert contents(tmp_path) == before


def test_a_checkpoint_that_is_not_there(r: Path, cli: Command, tmp_path: Path) -> None:
    before = contents(tmp_path)
    result = cli("export", r, "--checkpoint", 9)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "no checkpoint 9" in result.stderr
    assert contents(tmp_path) == before


def test_what_is_too_large_for_a_single_file_becomes_a_bundle(
    r: Path, cli: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(format_, "MAX_FILE_WEIGHTS", 10_000)
    before = contents(tmp_path)
    result = cli("export", r, "--out", "big.onnx", "--dtype", "float16")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "are too large for a single file" in result.stderr
    assert contents(tmp_path) == before
    assert result.stderr.splitlines()[-1] == "hint:  --out big writes a bundle"
    result = cli("export", r, "--out", "big", "--dtype", "float16")
    assert (result.exit_code, result.stdout) == (0, "big\n")
    assert load_exported(tmp_path / "big", device="cpu").metadata.dtype == "float16"


def test_quantising_needs_the_data_and_says_so(r: Path, cli: Command, tmp_path: Path) -> None:
    text = Path((r / "recipe.toml").read_text().partition('path = "')[2].split('"')[0])
    moved = text.rename(text.with_suffix(".bak"))
    try:
        before = contents(tmp_path)
        result = cli("export", r, "--dtype", "int8")
        assert (result.exit_code, result.stdout) == (2, "")
        assert f"{text}: no such file or folder" in result.stderr
        assert f"note:  the data is named in {r}/recipe.toml\n" in result.stderr
        assert (
            "note:  int8 needs the run's data, to measure the loss that it costs" in result.stderr
        )
        text.write_text("Something else altogether. " * 100)
        result = cli("export", r, "--dtype", "int4")
        assert (result.exit_code, result.stdout) == (1, "")
        assert "the training data is not the data that this run started with" in result.stderr
        text.unlink()
        assert contents(tmp_path) == before
        assert cli("export", r).exit_code == 0
    finally:
        moved.rename(text)


# Files that were there.


def test_an_earlier_file_is_replaced(r: Path, cli: Command, tmp_path: Path) -> None:
    assert cli("export", r).exit_code == 0
    with (tmp_path / "model.onnx").open("r+b") as reader:
        reader.write(b"an earlier file")
        reader.seek(0)
        assert cli("export", r).exit_code == 0
        assert reader.read(15) == b"an earlier file", "who reads it goes on reading it"
    check_files(tmp_path / "model.onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", "r"]


def test_a_file_of_another_program_is_left_alone(r: Path, cli: Command, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"a year's work")
    os.mkfifo(tmp_path / "pipe.onnx")
    for arguments in (["--out", "model.onnx"], ["--web", "."], ["--out", "pipe.onnx"]):
        result = cli("export", r, *arguments)
        assert (result.exit_code, result.stdout) == (2, "")
        assert ".onnx: already exists, and gptkit did not write it\nhint:  choose" in result.stderr
    assert (tmp_path / "model.onnx").read_bytes() == b"a year's work"
    (tmp_path / "model.onnx").write_bytes(b"")
    assert cli("export", r).exit_code == 0


def test_a_bundle_of_another_program_is_left_alone(r: Path, cli: Command, tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    for name in ("generate.onnx", "selftest.json"):
        (tmp_path / "b" / name).write_text("mine")
    result = cli("export", r, "--out", "b")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "b: already exists and is not a bundle" in result.stderr
    assert (tmp_path / "b/generate.onnx").read_text() == "mine"


def test_one_process_of_torchrun_exports(
    r: Path, cli: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    for rank, exported in (("1", ""), ("0", "model.onnx\n")):
        monkeypatch.setenv("RANK", rank)
        result = cli("export", r)
        assert (result.exit_code, result.stdout) == (0, exported), result.stderr
        assert (tmp_path / "model.onnx").exists() == bool(exported)


def test_the_ending_may_have_any_case(r: Path, cli: Command, tmp_path: Path) -> None:
    assert cli("export", r, "--out", "UP.ONNX").exit_code == 0
    (tmp_path / "UP.ONNX").rename(tmp_path / "Up.Onnx")
    shutil.copy(tmp_path / "Up.Onnx", tmp_path / "without")
    drawn = [
        cli("sample", name, "--tokens", 9, "--device", "cpu") for name in ("Up.Onnx", "without")
    ]
    assert [result.exit_code for result in drawn] == [0, 0]
    assert drawn[0].stdout == drawn[1].stdout


def test_an_earlier_bundle_is_replaced(r: Path, cli: Command, tmp_path: Path) -> None:
    assert cli("export", r, "--out", "bundle", "--dtype", "int8").exit_code == 0
    assert cli("export", r, "--out", "bundle").exit_code == 0
    assert {path.name for path in (tmp_path / "bundle").iterdir()} == BUNDLE_FILES
    assert load_exported(tmp_path / "bundle", device="cpu").metadata.dtype == "float32"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "r"]


def test_a_bundle_with_a_users_own_files_is_left_alone(
    r: Path, cli: Command, tmp_path: Path
) -> None:
    assert cli("export", r, "--out", "bundle").exit_code == 0
    (tmp_path / "bundle/notes.txt").write_text("mine")
    (tmp_path / "bundle/onnx").mkdir()
    before = contents(tmp_path)
    result = cli("export", r, "--out", "bundle", "--dtype", "int8")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "bundle: a new bundle would also delete notes.txt, onnx\nhint:  " in result.stderr
    assert contents(tmp_path) == before


def test_an_empty_folder_may_become_a_bundle(r: Path, cli: Command, tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    assert cli("export", r, "--out", "bundle").exit_code == 0
    assert {path.name for path in (tmp_path / "bundle").iterdir()} == BUNDLE_FILES


def test_a_bundle_that_cannot_take_its_name_leaves_the_earlier_one(
    r: Path, cli: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli("export", r, "--out", "bundle", "--dtype", "int8").exit_code == 0
    before = contents(tmp_path)
    replace = Path.replace

    def refuse(self: Path, target: Path) -> Path:
        if self.parent.suffix == ".tmp" and self.name == "bundle":
            raise OSError(28, "No space left on device")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", refuse)
    result = cli("export", r, "--out", "bundle")
    assert result.exit_code == 1
    assert "bundle: cannot be written: No space left on device" in result.stderr
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    "place", ["/proc/nope/m.onnx", "/proc/nope/bundle", "r/recipe.toml/m.onnx"]
)
def test_a_place_that_cannot_be_written(place: str, r: Path, cli: Command, tmp_path: Path) -> None:
    before = contents(tmp_path)
    result = cli("export", r, "--out", place)
    assert (result.exit_code, result.stdout) == (1, "")
    assert f"error: {place}: cannot be written: " in result.stderr
    assert contents(tmp_path) == before


@contextmanager
def limited(size: int) -> Iterator[None]:
    """Every write beyond a size fails, as on a full disk."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such limits")
@pytest.mark.parametrize(
    ("out", "size"),
    [
        ("model.onnx", 100),
        ("model.onnx", 30_000),
        ("bundle", 1000),
        ("bundle", 10_000),
        ("bundle", 100_000),
    ],
)
def test_a_disk_that_is_full(out: str, size: int, r: Path, cli: Command, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(EARLIER)
    before = contents(tmp_path)
    with limited(size):
        result = cli("export", r, "--out", out)
    assert (result.exit_code, result.stdout) == (1, "")
    assert f"error: {out}: cannot be written: " in result.stderr
    assert contents(tmp_path) == before


SLOWLY = """
import sys, time
from gptkit.cli.app import main
from gptkit.onnx.export import bundle, format
prove = format.prove_generate
def slowly(*arguments):
    print("proving", file=sys.stderr, flush=True)
    time.sleep(60)
    yield from prove(*arguments)
format.prove_generate = bundle.prove_generate = slowly
main()
"""


@pytest.fixture
def proving() -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    """Starts an export, and waits until it is at its proof."""
    processes: list[subprocess.Popen[str]] = []

    def call(*arguments: object) -> "subprocess.Popen[str]":
        command = [sys.executable, "-c", SLOWLY, "export", *map(str, arguments)]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        processes.append(process)
        assert process.stderr
        assert "proving" in process.stderr.readline()
        return process

    yield call
    for process in processes:
        process.kill()
        process.wait()
        assert process.stderr
        process.stderr.close()


@pytest.mark.parametrize("out", ["model.onnx", pytest.param("bundle", marks=pytest.mark.slow)])
def test_a_process_that_is_killed_at_its_proof(
    out: str, r: Path, cli: Command, tmp_path: Path, proving: Callable[..., Any]
) -> None:
    earlier = exporting.export(r, out=Path(out), dtype="int8").path
    before = contents(earlier) if out == "bundle" else earlier.read_bytes()
    process = proving(r, "--out", out)
    process.kill()
    process.wait()
    assert (contents(earlier) if out == "bundle" else earlier.read_bytes()) == before
    assert load_exported(earlier, device="cpu").metadata.dtype == "int8"
    assert cli("export", r, "--out", out).exit_code == 0
    assert load_exported(earlier, device="cpu").metadata.dtype == "float32"
    assert sorted(path.name for path in tmp_path.iterdir()) == [out, "r"]


def test_two_exports_to_one_place(
    r: Path, cli: Command, tmp_path: Path, proving: Callable[..., Any]
) -> None:
    first = proving(r)
    result = cli("export", r)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "error: model.onnx: another export is writing there\nhint:  " in result.stderr
    assert cli("export", r, "--out", "other.onnx").exit_code == 0
    first.send_signal(signal.SIGINT)
    assert first.wait(60) == 130
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other.onnx", "r"]


def test_ctrl_c_at_the_proof_leaves_nothing(
    r: Path, cli: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        assert [path.name for path in tmp_path.glob(".model.onnx.*.tmp/*")] == ["model.onnx"]
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(format_, "prove_generate", interrupted)
    before = contents(tmp_path)
    result = cli("export", r)
    assert (result.exit_code, result.stdout) == (130, "")
    assert contents(tmp_path) == before


def test_everybody_may_read_what_was_written(r: Path, cli: Command, tmp_path: Path) -> None:
    mask = os.umask(0o022)
    try:
        cli("export", r, "--out", "m.onnx")
        cli("export", r, "--out", "bundle")
    finally:
        os.umask(mask)
    for path in (tmp_path / "m.onnx", *(tmp_path / "bundle").iterdir()):
        assert path.stat().st_mode & 0o777 == 0o644, path
    assert (tmp_path / "bundle").stat().st_mode & 0o777 == 0o755
    assert bundle.is_bundle(tmp_path / "bundle")
