"""The graphs against torch and against other implementations of ONNX, for models of all shapes."""

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from gptkit import __version__
from gptkit.model.gpt import GPT
from gptkit.onnx.graphs.decode import decode_model
from gptkit.onnx.graphs.generate import BLOCK_TOKENS, generate_model
from gptkit.onnx.graphs.scope import OPSET
from gptkit.onnx.graphs.source import ExportSource
from gptkit.onnx.graphs.step import step_model
from gptkit.onnx.graphs.weights import BLOCK, PRECISIONS, Precision, quantised
from gptkit.onnx.runtime.decode_session import DECODE_FILE, STEP_FILE, DecodeSession
from gptkit.onnx.runtime.generate_session import feeds
from gptkit.onnx.runtime.metadata import Metadata, Tokens
from gptkit.onnx.runtime.text_session import TextSession
from gptkit.recipe.codec_record import CodecRecord
from gptkit.recipe.options import GPTConfig
from gptkit.sampling.generate import generate
from gptkit.sampling.rule import SamplingOptions, uniforms
from gptkit.sampling.torch_decoder import TorchDecoder
from tests.support import LLAMA3, names_of, options_of, pairwise

Array = NDArray[Any]

CLASSIC: dict[str, Any] = {}
MODERN = {
    "norm": "rmsnorm", "position": "rotary", "mlp": "swiglu", "qk_norm": True, "n_kv_head": 1,
    "bias": False, "tie_embeddings": False,
}  # fmt: skip
CHOICES: dict[str, Sequence[Any]] = {
    "norm": names_of("norm"),
    "position": names_of("position"),
    "mlp": names_of("mlp"),
    "embed_norm": (False, True),
    "qk_norms": ({}, {"qk_norm": True}, {"qk_norm": True, "qk_norm_scale": True}),
    "tie_embeddings": (False, True),
    "bias": (False, True),
    "qkv_bias": (None, True, False),
    "norm_eps": (1e-5, 0.1),
    "rope": ({}, {"rope_theta": 50.0}, {"position": "rotary", "rope_scaling": LLAMA3}),
    "windows": ({}, {"window": 2}, {"window": 3, "window_pattern": "LS"}, {"window": 40}),
    "logit_softcap": (None, 5.0),
    "n_layer": (1, 2),
    "n_inner": (None, 19),
}
"""Values of an option; what is no option's name has several of them."""
HEADS = ((1, 1), (6, 2), (2, 1), (4, 4))
"""n_head and n_kv_head."""
VOCABULARIES, BLOCK_SIZES, HEAD_SIZES = (11, 2, 65, 3), (7, 1, 16, 2, 8, 3), (8, 2, 16, 6)
CASES = pairwise(heads=HEADS, **CHOICES)
"""Every two options meet."""
SWEEP = range(136)
"""Seeds of the random models among the slow tests."""


def config_of(case: int) -> GPTConfig:
    """A small model with the options of a case; sizes take turns."""
    chosen = options_of({name: v for name, v in CASES[case].items() if name != "heads"})
    n_head, n_kv_head = CASES[case]["heads"]
    vocab_size, block_size, head_size = (
        sizes[case % len(sizes)] for sizes in (VOCABULARIES, BLOCK_SIZES, HEAD_SIZES)
    )
    width = n_head * head_size if case % 3 else 24
    return GPTConfig(
        n_head=n_head, n_kv_head=n_kv_head, n_embd=width, head_dim=head_size,
        vocab_size=vocab_size, block_size=block_size, **chosen,
    )  # fmt: skip


def random_config(seed: int) -> GPTConfig:
    """A small model of any shape."""
    random = np.random.default_rng(seed)
    chosen = options_of(
        {name: values[random.integers(len(values))] for name, values in CHOICES.items()}
    )
    n_head, n_kv_head = HEADS[random.integers(len(HEADS))]
    sizes = (2, 4, 6, 8, 16) if chosen["position"] == "rotary" else (1, 2, 5, 8, 16)
    return GPTConfig(
        n_head=n_head, n_kv_head=n_kv_head, n_embd=n_head * sizes[random.integers(len(sizes))],
        vocab_size=int(random.choice(VOCABULARIES)), block_size=int(random.choice(BLOCK_SIZES)),
        **chosen,
    )  # fmt: skip


def make(config: GPTConfig | None = None, /, *, std: float = 0.4, **shape: Any) -> GPT:
    """A model whose every weight matters."""
    sizes = {"vocab_size": 9, "block_size": 8, "n_layer": 2, "n_head": 2, "n_embd": 16}
    torch.manual_seed(4)
    model = GPT(config or GPTConfig(**sizes | shape)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=std)
    return model


def tensors(model: GPT) -> dict[str, Array]:
    return {name: tensor.detach().numpy() for name, tensor in model.weights().items()}


def build(maker: Any, model: GPT, *, dtype: str = "float32", **changes: Any) -> Any:
    """A graph as a protobuf, of a source with changes."""
    metadata = about(model, dtype, maker.__name__.removesuffix("_model")).entries()
    source = replace(ExportSource.of(model, dtype), metadata=metadata, **changes)
    return ir.to_proto(maker(source))


def about(model: GPT, dtype: str = "float32", graph: Any = "generate") -> Metadata:
    """What a file with such a graph says about itself."""
    config = model.config
    return Metadata(
        graph=graph,
        dtype=dtype,
        opset=OPSET,
        gptkit=__version__,
        config=config,
        block_size=config.block_size,
        vocab_size=config.vocab_size,
        codec=CodecRecord(name="none", distribution="none", options={}),
        tokens=Tokens(starts=[[0]], length=None, temperature=1, suffix="", legend=None),
        dataset="none",
        step=0,
        val_loss=None,
        checkpoint_sha256="",
    )


def session(proto: onnx.ModelProto) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def torch_tokens(model: GPT, prompts: Array, count: int, sampling: SamplingOptions) -> Array:
    """What `gptkit sample` draws, (B, count)."""
    rows = len(prompts)
    drawn = generate(
        TorchDecoder(model, rows), prompts.tolist(), tokens=count, sampling=sampling, samples=rows
    )
    return np.stack(list(drawn), axis=1)


@torch.no_grad()
def torch_logits(model: GPT, ids: Array) -> Array:
    return model.logits(torch.from_numpy(ids)).numpy()


@dataclass(frozen=True)
class Step:
    """A `step` graph, in onnxruntime or in anything else that has its `run`."""

    config: GPTConfig
    runner: Any
    real: Any = np.float32

    @property
    def names(self) -> list[str]:
        return [
            f"past_key_values.{i}.{kind}"
            for i in range(self.config.n_layer)
            for kind in ("key", "value")
        ]

    def __call__(
        self, ids: Array, past: Sequence[Array] = (), *, attended: Array | None = None
    ) -> tuple[Array, list[Array]]:
        """Logits of ids (B, T) after a past, and the present; `attended` is 0 for padding."""
        if not past:
            nothing = (len(ids), self.config.kv_heads, 0, self.config.head_size)
            past = [np.zeros(nothing, self.real)] * len(self.names)
        if attended is None:
            attended = np.ones((len(ids), past[0].shape[2] + ids.shape[1]), np.int64)
        positions = np.maximum(attended.cumsum(axis=1) - 1, 0)[:, -ids.shape[1] :]
        inputs = {"input_ids": ids, "attention_mask": attended, "position_ids": positions}
        logits, *present = self.runner.run(None, inputs | dict(zip(self.names, past, strict=True)))
        return logits, present


def prompts_of(model: GPT, rows: int, length: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(0, model.config.vocab_size, (rows, length))


def settings_of(config: GPTConfig) -> Iterator[tuple[int, int, int, SamplingOptions]]:
    """Rows, length of the prompt, tokens and settings: below, at and past the block size."""
    size, k = config.block_size, config.vocab_size
    yield 1, 1, 2 * size + 3, SamplingOptions(temperature=0)
    yield 3, size + 2, size + 2, SamplingOptions(seed=2**63 - 1)
    yield 2, size, 2 * size + 1, SamplingOptions(temperature=0.7, top_k=max(1, k // 2), seed=2)
    yield 2, max(1, size - 1), 9, SamplingOptions(top_p=0.8, seed=3)
    yield 1, max(1, size // 2), size + 2, SamplingOptions(1.4, top_k=k + 3, top_p=0.6, seed=4)


# Models of every shape: tokens and logits.


def check_generate(config: GPTConfig) -> None:
    model = make(config)
    graph = session(build(generate_model, model))
    for rows, length, count, sampling in settings_of(model.config):
        prompts = prompts_of(model, rows, length)
        expected = torch_tokens(model, prompts, count, sampling)
        (tokens,) = graph.run(None, feeds(prompts, count, sampling))
        assert tokens.tolist() == expected.tolist(), (model.config, length, sampling)


def check_step(config: GPTConfig) -> None:
    model = make(config)
    step = Step(model.config, session(build(step_model, model)))
    size = model.config.block_size
    ids = prompts_of(model, 3, size)
    expected = torch_logits(model, ids)
    limit = 2e-5 * max(1.0, float(np.abs(expected).max()))
    for parts in ([size], [1] * size, [1, size // 2, size - 1 - size // 2]):
        past: list[Array] = []
        found, at = [], 0
        for part in filter(None, parts):
            logits, past = step(ids[:, at : at + part], past)
            at += part
            found.append(logits)
            assert {x.shape for x in past} == {(3, model.config.kv_heads, at, past[0].shape[3])}
        np.testing.assert_allclose(np.concatenate(found, axis=1), expected[:, :at], atol=limit)
    check_padding(step, ids, expected, limit)


def check_padding(step: Step, ids: Array, expected: Array, limit: float) -> None:
    """Rows of other lengths, padded on the left, then continued token by token."""
    size = ids.shape[1]
    lengths = [size, max(1, size // 2), 1]
    padded = np.zeros_like(ids)
    attended = np.zeros_like(ids)
    for row, length in enumerate(lengths):
        padded[row, size - length :] = ids[row, :length]
        attended[row, size - length :] = 1
    logits, past = step(padded, attended=attended)
    for row, length in enumerate(lengths):
        np.testing.assert_allclose(logits[row, size - length :], expected[row, :length], atol=limit)
    for more in range(size - max(lengths[1:])):  # the padding stays in the cache
        places = np.minimum(np.array(lengths) + more, size - 1)
        new = ids[np.arange(3), places][:, None]
        attended = np.concatenate([attended, np.ones((3, 1), np.int64)], axis=1)
        attended[0] = 0  # a row that is complete
        attended[0, -1] = 1
        logits, past = step(new, past, attended=attended)
        for row in (1, 2):
            place = lengths[row] + more
            np.testing.assert_allclose(logits[row, 0], expected[row, place], atol=limit)


def check_decode(config: GPTConfig, folder: Path) -> None:
    model = make(config)
    folder.mkdir(exist_ok=True)
    onnx.save(build(step_model, model), folder / STEP_FILE)
    fusable = model.config.head_size % 8 == 0 and model.config.windows == {None}
    assert ExportSource.of(model).fused == fusable
    for fused in (False, True)[: 1 + fusable]:
        onnx.save(build(decode_model, model, fused=fused), folder / DECODE_FILE)
        decoding = DecodeSession(folder, "cpu")
        for chunk, (rows, length, count, sampling) in zip(
            (1, 3, 64, 2, 5), settings_of(model.config), strict=True
        ):
            prompts = prompts_of(model, rows, length)
            expected = torch_tokens(model, prompts, count, sampling)
            drawn = list(decoding.stream(prompts, count, sampling, chunk=chunk))
            assert max(part.shape[1] for part in drawn) <= chunk
            tokens = np.concatenate(drawn, axis=1)
            assert tokens.tolist() == expected.tolist(), (model.config, fused, sampling)


def check_text(config: GPTConfig, folder: Path) -> None:
    model = make(config)
    onnx.save(build(generate_model, model), folder / "text.onnx")
    text = TextSession(folder / "text.onnx", about(model), "cpu")
    for length in {1, model.config.block_size}:
        ids = prompts_of(model, 1, length)
        expected = torch_logits(model, ids)[0]
        with torch.no_grad():
            features = model.features(torch.from_numpy(ids))[0].numpy()
        limit = 2e-5 * max(1.0, float(np.abs(expected).max()))
        np.testing.assert_allclose(text.logits(ids[0]), expected, atol=limit)
        np.testing.assert_allclose(text.features(ids[0]), features, atol=limit)


def test_the_cases_have_every_option_of_a_model() -> None:
    """A new option belongs into CHOICES, so that its graph is compared."""
    sizes = {"preset", "n_head", "n_kv_head", "n_embd", "head_dim", "vocab_size", "block_size"}
    chosen = {name for case in CASES for name in options_of({**case, "heads": {}})}
    assert chosen | sizes | {"dropout"} == set(GPTConfig.model_fields)
    configs = [config_of(case) for case in range(len(CASES))]
    assert len(configs) < 30
    assert {config.n_embd % BLOCK == 0 for config in configs} == {True, False}
    assert {config.head_size % 8 == 0 for config in configs} == {True, False}
    assert {config.vocab_size for config in configs} == set(VOCABULARIES)
    assert {config.block_size for config in configs} == set(BLOCK_SIZES)


@pytest.mark.parametrize("case", range(len(CASES)))
def test_generate_draws_what_torch_draws(case: int) -> None:
    check_generate(config_of(case))


@pytest.mark.parametrize("case", range(len(CASES)))
def test_step_has_torchs_logits(case: int) -> None:
    check_step(config_of(case))


@pytest.mark.parametrize("case", range(len(CASES)))
def test_decode_draws_what_torch_draws(case: int, tmp_path: Path) -> None:
    check_decode(config_of(case), tmp_path)


@pytest.mark.parametrize("case", range(len(CASES)))
def test_a_text_has_torchs_features_and_logits(case: int, tmp_path: Path) -> None:
    check_text(config_of(case), tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_sweep_over_models(tmp_path: Path) -> None:
    for seed in SWEEP:
        check_generate(random_config(seed))
        check_step(random_config(seed))
        check_decode(random_config(seed), tmp_path)


@pytest.mark.parametrize("field", ["norm", "position", "mlp"])
def test_an_option_that_the_graphs_do_not_know_is_never_exported(field: str) -> None:
    model = make()
    source = ExportSource.of(model)
    config = model.config.model_copy(update={field: "new"})
    for maker in (generate_model, step_model, decode_model):
        with pytest.raises(AssertionError, match="new"):
            maker(replace(source, config=config))


# The loop: blocks, stop tokens, nothing to draw.


@pytest.mark.parametrize(("block_size", "prompt"), [(150, 1), (150, 80), (64, 64), (65, 1)])
def test_tokens_across_blocks_of_the_cache(block_size: int, prompt: int) -> None:
    model = make(block_size=block_size, n_layer=1, vocab_size=31)
    graph = session(build(generate_model, model))
    prompts = prompts_of(model, 2, prompt)
    block = BLOCK_TOKENS
    for count in (block - 1, block, block + 1, block + 2, 2 * block + 1, 240):
        expected = torch_tokens(model, prompts, count, SamplingOptions(seed=count))
        (tokens,) = graph.run(None, feeds(prompts, count, SamplingOptions(seed=count)))
        assert tokens.tolist() == expected.tolist(), count


@pytest.mark.parametrize("shape", [CLASSIC, MODERN], ids=["classic", "modern"])
@pytest.mark.parametrize("rows", [1, 3])
def test_a_stop_token_ends_a_row(shape: dict[str, Any], rows: int) -> None:
    model = make(**shape)
    graph = session(build(generate_model, model))
    prompts, sampling = prompts_of(model, rows, 3), SamplingOptions(seed=9)
    endless = torch_tokens(model, prompts, 100, sampling).tolist()
    lengths = set()
    for stops in [[], *([stop] for stop in range(9)), [0, 1], [8, 3, 5], [7, -1, 99, 7], [99]]:
        ends = [next((i for i, t in enumerate(row) if t in stops), 99) for row in endless]
        (tokens,) = graph.run(None, feeds(prompts, 100, sampling, stop_tokens=stops))
        for row, whole, end in zip(tokens.tolist(), endless, ends, strict=True):
            assert row[: end + 1] == whole[: end + 1], stops
            assert row[end + 1 :] == [whole[end]] * (max(ends) - end), stops
        lengths.add(tokens.shape[1])
    assert min(lengths) < 8  # within the first context
    assert len(lengths) > 3


@pytest.mark.parametrize("count", [0, -1])
def test_nothing_to_draw(count: int) -> None:
    model = make()
    (tokens,) = session(build(generate_model, model)).run(
        None, feeds(prompts_of(model, 2, 3), count, SamplingOptions())
    )
    assert tokens.shape == (2, 0)


# The sampling rule.

LARGEST_U, SMALLEST_U = 3747935, 5618432
"""Seeds whose first random number is the largest or the smallest that there is."""
EDGES = [
    SamplingOptions(temperature=1e-7),
    SamplingOptions(temperature=1e-5, seed=1),
    SamplingOptions(temperature=0),
    SamplingOptions(temperature=50, seed=2),
    SamplingOptions(top_k=1),
    SamplingOptions(top_k=10**12, seed=3),
    SamplingOptions(top_p=1e-30, seed=4),
    SamplingOptions(top_p=1e-60, seed=4),
    SamplingOptions(top_p=0.5, seed=5),
    SamplingOptions(top_p=1 - 2**-24, seed=6),
    SamplingOptions(top_p=1 - 1e-12, seed=7),
    SamplingOptions(top_k=2, top_p=0.999, seed=8),
    SamplingOptions(seed=2**63 - 1),
    SamplingOptions(seed=2**62),
]
"""Settings at the ends of their ranges."""
EXTREMES = [
    SamplingOptions(top_k=k, top_p=p, seed=seed)
    for seed in (LARGEST_U, SMALLEST_U)
    for k in (0, 1, 7)
    for p in (1.0, 0.6)
]


@pytest.mark.parametrize("std", [0.4, 0.0, 3.0], ids=["usual", "all alike", "wild"])
def test_the_edges_of_the_sampling_rule(std: float, tmp_path: Path) -> None:
    model = make(n_layer=1, vocab_size=33, std=std)  # std 0: every logit is the same
    graph = session(build(generate_model, model))
    onnx.save(build(step_model, model), tmp_path / STEP_FILE)
    onnx.save(build(decode_model, model), tmp_path / DECODE_FILE)
    decoding = DecodeSession(tmp_path, "cpu")
    prompts = prompts_of(model, 3, 2)
    assert [uniforms(seed, 0, 3)[0] for seed in (LARGEST_U, SMALLEST_U)] == [1, 2**-25]
    for sampling in EDGES + EXTREMES * (std < 1):  # wild tails are lost in rounding
        expected = torch_tokens(model, prompts, 12, sampling).tolist()
        (tokens,) = graph.run(None, feeds(prompts, 12, sampling))
        assert tokens.tolist() == expected, sampling
        drawn = decoding.stream(prompts, 12, sampling, chunk=12)
        assert np.concatenate(list(drawn), axis=1).tolist() == expected, sampling


def test_a_graph_takes_the_likeliest_token_below_0_too() -> None:
    model = make(n_layer=1, vocab_size=33)
    graph, prompts = session(build(generate_model, model)), prompts_of(model, 3, 2)
    greedy = feeds(prompts, 12, SamplingOptions(temperature=0))
    expected, found = (
        graph.run(None, greedy | {"temperature": np.array(t, np.float32)})[0] for t in (0, -1)
    )
    assert found.tolist() == expected.tolist()


def test_options_that_are_not_numbers_are_the_ones_that_change_nothing() -> None:
    model = make(n_layer=1, vocab_size=33)
    graph, prompts = session(build(generate_model, model)), prompts_of(model, 3, 2)
    for name, value in (("temperature", 0), ("top_p", 1)):
        for top_k in (0, 5):
            asked = feeds(prompts, 12, SamplingOptions(top_k=top_k))
            expected, found = (
                graph.run(None, asked | {name: np.array(x, np.float32)})[0] for x in (value, np.nan)
            )
            assert found.tolist() == expected.tolist()


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8", "int4"])
def test_a_graph_refuses_ids_that_the_model_does_not_have(dtype: str) -> None:
    """So that a program in any language hears of it; quantised operators read any id."""
    model = make(n_layer=1, vocab_size=33, n_embd=32)
    generate, step = (session(build(m, model, dtype=dtype)) for m in (generate_model, step_model))
    real = np.float16 if dtype == "float16" else np.float32
    shape = (1, model.config.kv_heads, 0, model.config.head_size)
    rest = {"attention_mask": np.ones((1, 2), np.int64), "position_ids": np.array([[0, 1]])}
    for past in step.get_inputs()[3:]:
        rest[past.name] = np.zeros(shape, real)
    for wrong in (33, -1, -33, -34, 10**9, 2**63 - 1, -(2**63)):
        ids = np.array([[1, wrong]])
        with pytest.raises(Exception, match=r"Name:'vocabulary/Gather'.* idx=-?[0-9]+ must be"):
            generate.run(None, feeds(ids, 3, SamplingOptions()))
        with pytest.raises(Exception, match=r"Name:'vocabulary/Gather'.* idx=-?[0-9]+ must be"):
            step.run(None, {"input_ids": ids, **rest})
    assert generate.run(None, feeds(np.array([[0, 32]]), 3, SamplingOptions()))
    assert step.run(None, {"input_ids": np.array([[0, 32]]), **rest})


# Other precisions.


@pytest.mark.parametrize("shape", [CLASSIC, MODERN], ids=["classic", "modern"])
def test_float16_is_near(shape: dict[str, Any], tmp_path: Path) -> None:
    model = make(block_size=16, std=0.2, **shape)
    ids = prompts_of(model, 3, 16)
    expected = torch_logits(model, ids)
    step = Step(model.config, session(build(step_model, model, dtype="float16")), np.float16)
    first, past = step(ids[:, :5])
    second, _ = step(ids[:, 5:], past)
    found = np.concatenate([first, second], axis=1)
    assert found.dtype == np.float32
    assert {x.dtype for x in past} == {np.dtype(np.float16)}
    assert np.abs(found - expected).max() < 0.01 * np.abs(expected).max()

    greedy = SamplingOptions(temperature=0)
    proto = build(generate_model, model, dtype="float16")
    (tokens,) = session(proto).run(None, feeds(ids[:, :4], 13, greedy))
    onnx.save(build(step_model, model, dtype="float16"), tmp_path / STEP_FILE)
    for fused in (True, False):
        proto = build(decode_model, model, dtype="float16", fused=fused)
        onnx.save(proto, tmp_path / DECODE_FILE)
        drawn = DecodeSession(tmp_path, "cpu").stream(ids[:, :4], 13, greedy, chunk=13)
        assert np.concatenate(list(drawn), axis=1).tolist() == tokens.tolist()
    clear = np.sort(expected, axis=-1)[..., -1] - np.sort(expected, axis=-1)[..., -2] > 0.1
    fed = np.concatenate([ids[:, :4], tokens[:, :-1]], axis=1)
    likeliest = torch_logits(model, fed)[:, 3:].argmax(axis=-1)
    assert (likeliest == tokens)[clear[:, 3:]].mean() > 0.9


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("size", [(7, 64), (5, 33), (3, 20), (2, 1)])
def test_quantising_is_within_half_a_level(bits: int, size: tuple[int, int]) -> None:
    weight = np.random.default_rng(0).normal(size=size).astype(np.float32)
    weight[0] = 0
    name, precision = "h.0.mlp.up.weight", PRECISIONS[f"int{bits}"]
    packed = quantised(name, weight, precision)["quantised"]
    assert packed.shape == (size[0], -(-size[1] // BLOCK), BLOCK * bits // 8)
    blocks = np.pad(weight, ((0, 0), (0, -size[1] % BLOCK))).reshape(size[0], -1, BLOCK)
    error = np.pad(restore(name, weight, precision) - weight, ((0, 0), (0, -size[1] % BLOCK)))
    error = np.abs(error).reshape(blocks.shape)
    largest = np.abs(blocks).max(axis=-1, keepdims=True)
    level = largest / (2 ** (bits - 1) - 1)
    assert (error[np.abs(blocks) == largest] < 1e-6).all()
    clipped = np.abs(blocks) > largest - level / 2  # only on the other side of 0
    assert (error <= np.where(clipped, 1.001, 0.501) * level).all()
    assert not restore(name, weight, precision)[0].any()


def restore(name: str, weight: Array, precision: Precision) -> Array:
    """The numbers that quantised blocks stand for, as onnxruntime's documentation has it."""
    parts, bits = quantised(name, weight, precision), precision.bits_of(name)
    packed = parts["quantised"]
    if bits == 4:
        packed = np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:2], BLOCK)
    values = (packed.astype(np.float32) - 2 ** (bits - 1)) * parts["scales"][..., None]
    if "shifts" in parts:
        values += parts["shifts"].T[..., None]
    return values.reshape(len(weight), -1)[:, : weight.shape[1]]


def on_a_grid(kind: str, shape: tuple[int, int]) -> Array:
    """Weights that a GGUF file has in blocks of 32, of one of ggml's types."""
    random = np.random.default_rng(1)
    blocks = (shape[0], shape[1] // BLOCK, BLOCK)
    scales = random.uniform(0.01, 0.1, blocks[:2]).astype(np.float16).astype(np.float32)
    least, most = {"Q4_0": (-8, 7), "Q4_1": (0, 15), "Q8_0": (-127, 127)}[kind]
    levels = random.integers(least, most + 1, blocks)
    levels[..., 0], levels[..., 1] = least, most
    values = levels * scales[..., None]
    if kind == "Q4_1":
        values -= random.uniform(0.2, 2.0, (*blocks[:2], 1)).astype(np.float16)
    return values.reshape(shape).astype(np.float32)


@pytest.mark.parametrize(
    ("kind", "dtype"), [("Q4_0", "int4"), ("Q4_1", "int4"), ("Q4_1", "int8"), ("Q8_0", "int8")]
)
def test_weights_that_were_quantised_before_keep_their_levels(kind: str, dtype: str) -> None:
    name, precision = "h.0.attn.proj.weight", PRECISIONS[dtype]
    weight = on_a_grid(kind, (48, 64))
    assert np.abs(restore(name, weight, precision) - weight).max() < 1e-6
    assert ("shifts" in quantised(name, weight, precision)) == (kind == "Q4_1")
    assert "shifts" not in quantised("wte.weight", weight, precision)
    weight[20] *= 1e4  # however much larger others are
    weight[40, 3] += 0.004
    assert "shifts" not in quantised(name, weight, precision)


@pytest.mark.parametrize("scale", [1e-24, 1e30])
def test_weights_that_lie_on_no_levels_have_no_shifts(scale: float) -> None:
    weight = (np.random.default_rng(0).normal(size=(8, 64)) * scale).astype(np.float32)
    assert "shifts" not in quantised("h.0.mlp.up.weight", weight, PRECISIONS["int4"])


@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_blocks_of_equal_weights_have_no_noise(dtype: str) -> None:
    """What 8 bits of the activations lose is in proportion to the steps between levels."""
    name, precision = "h.0.mlp.up.weight", PRECISIONS[dtype]
    weight = on_a_grid("Q4_1", (48, 64))
    weight[:, :32] = 0
    weight[5] = 0.25
    parts = quantised(name, weight, precision)
    assert "shifts" in parts
    middle = 2 ** (precision.bits_of(name) - 1)
    expected = middle if dtype == "int8" else middle | middle << 4
    assert (parts["quantised"][:, 0] == expected).all()
    assert np.abs(restore(name, weight, precision) - weight).max() < 1e-6
    assert "shifts" not in quantised(name, np.zeros((4, 64), np.float32), precision)


@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_a_graph_of_weights_with_shifts_is_the_model(dtype: str) -> None:
    model = make(block_size=16, n_embd=64, **MODERN)
    with torch.no_grad():
        for name, tensor in model.weights().items():
            if name.startswith("h.") and tensor.ndim == 2:
                shape = (tensor.shape[0], tensor.shape[1])
                tensor.copy_(torch.from_numpy(on_a_grid("Q4_1", shape)) / 4)
    proto = build(step_model, model, dtype=dtype)
    assert any(each.name.endswith(".shifts") for each in proto.graph.initializer)
    ids = prompts_of(model, 3, 16)
    found, _ = Step(model.config, session(proto))(ids)
    expected = torch_logits(model, ids)
    assert np.sqrt(np.square(found - expected).mean()) < 0.05 * expected.std()


@pytest.mark.parametrize("tied", [True, False])
def test_the_vocabulary_has_8_bits_in_an_int4_file(tied: bool) -> None:
    model = make(block_size=8, n_embd=64, tie_embeddings=tied)
    proto = build(step_model, model, dtype="int4")
    bits = {
        attribute.i
        for node in proto.graph.node
        if node.op_type in ("MatMulNBits", "GatherBlockQuantized")
        and node.input[int(node.op_type == "MatMulNBits")].startswith(("wte", "lm_head"))
        for attribute in node.attribute
        if attribute.name == "bits"
    }
    assert bits == {8}


@pytest.mark.parametrize("n_embd", [32, 20, 64])
@pytest.mark.parametrize("dtype", ["int8", "int4"])
@pytest.mark.parametrize("shape", [CLASSIC, MODERN], ids=["classic", "modern"])
def test_quantised_graphs_are_the_model_with_rounded_weights(
    shape: dict[str, Any], dtype: str, n_embd: int
) -> None:
    model = make(block_size=16, n_embd=n_embd, std=0.2, **shape)
    bits = PRECISIONS[dtype].bits
    assert bits
    step = Step(model.config, session(build(step_model, model, dtype=dtype)))
    ids = prompts_of(model, 3, 16)
    found, _ = step(ids)
    original = torch_logits(model, ids)
    linear = [n for n, t in model.weights().items() if t.ndim == 2 and "wte" not in n]
    linear = [name for name in linear if "wpe" not in name]
    tied = model.config.tie_embeddings
    names = linear + (["wte.weight"] if tied and n_embd % BLOCK == 0 else [])
    with torch.no_grad():
        for name, tensor in model.weights().items():
            if name in names:
                tensor.copy_(torch.from_numpy(restore(name, tensor.numpy(), PRECISIONS[dtype])))
    expected = torch_logits(model, ids)
    if tied and n_embd % BLOCK:  # the table is looked up whole, the head multiplies rounded numbers
        table = model.wte.weight.detach().numpy()
        head = torch.from_numpy(restore("wte.weight", table, PRECISIONS[dtype]))
        with torch.no_grad():
            expected = (model.features(torch.from_numpy(ids)) @ head.T).numpy()
    spread = original.std()
    assert np.sqrt(np.square(found - expected).mean()) < 0.03 * spread  # int8 activations
    assert np.sqrt(np.square(found - original).mean()) < (0.05 if bits == 8 else 0.5) * spread

    greedy, prompts = SamplingOptions(temperature=0), ids[:, :4]
    (tokens,) = session(build(generate_model, model_again(model, shape, n_embd), dtype=dtype)).run(
        None, feeds(prompts, 13, greedy)
    )
    logits, _ = step(np.concatenate([prompts, tokens[:, :-1]], axis=1))
    ordered = np.sort(logits[:, 3:], axis=-1)
    clear = ordered[..., -1] - ordered[..., -2] > 0.05 * spread
    assert (logits[:, 3:].argmax(axis=-1) == tokens)[clear].all()
    assert clear.mean() > 0.5


def model_again(model: GPT, shape: dict[str, Any], n_embd: int) -> GPT:
    return make(block_size=16, n_embd=n_embd, std=0.2, **shape)


# Other implementations.


@pytest.mark.parametrize("shape", [CLASSIC, MODERN], ids=["classic", "modern"])
def test_the_reference_implementation_of_onnx_agrees(shape: dict[str, Any]) -> None:
    model = make(block_size=6, **shape)
    evaluator = ReferenceEvaluator(build(generate_model, model))
    for rows, length, sampling in (
        (1, 1, SamplingOptions(temperature=0)), (2, 8, SamplingOptions(seed=1)),
        (2, 3, SamplingOptions(temperature=0.7, top_k=4, top_p=0.9, seed=2)),
    ):  # fmt: skip
        prompts = prompts_of(model, rows, length)
        expected = torch_tokens(model, prompts, 10, sampling)
        (tokens,) = evaluator.run(None, feeds(prompts, 10, sampling))
        assert tokens.tolist() == expected.tolist()
    step = Step(model.config, ReferenceEvaluator(build(step_model, model)))
    ids = prompts_of(model, 2, 6)
    first, past = step(ids[:, :4])
    second, _ = step(ids[:, 4:], past)
    found = np.concatenate([first, second], axis=1)
    np.testing.assert_allclose(found, torch_logits(model, ids), atol=2e-5)


def test_the_reference_implementation_draws_one_token_like_decode() -> None:
    model = make(**MODERN)
    proto = build(decode_model, model, fused=False)
    evaluator, runtime = ReferenceEvaluator(proto), session(proto)
    random = np.random.default_rng(0)
    inputs: dict[str, Array] = {
        "input_ids": np.array([[3], [4]]), "length": np.array([5, 2], np.int32),
        "draw": np.array([1]), "uniforms": random.random((3, 2), np.float32),
        "tokens_in": np.array([[7, 8], [0, 0], [0, 0]]),
        "temperature": np.array([0.8], np.float32), "top_k": np.array([5]),
        "top_p": np.array([0.9], np.float32),
    }  # fmt: skip
    for value in runtime.get_inputs():
        if value.name.startswith("past_key_values"):
            shape = [2, *value.shape[1:]]
            inputs[value.name] = random.normal(size=shape).astype(np.float32)
    ours, theirs = runtime.run(None, inputs), evaluator.run(None, inputs)
    assert ours[1].tolist() == [6, 3]
    assert ours[3][0].tolist() == [7, 8]
    assert ours[3][1].tolist() == ours[0][:, 0].tolist()
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine, other, atol=1e-5)


GRAPHS: tuple[tuple[Any, dict[str, Any]], ...] = (
    (generate_model, {}), (step_model, {}), (decode_model, {"fused": False}),
    (decode_model, {"fused": True}),
)  # fmt: skip


@pytest.mark.parametrize(
    ("shape", "dtype"), [*itertools.product([CLASSIC, MODERN], ["float32", "float16"])]
)
def test_the_graphs_are_valid(shape: dict[str, Any], dtype: str) -> None:
    model = make(**shape)
    for maker, changes in GRAPHS:
        proto = build(maker, model, dtype=dtype, **changes)
        onnx.checker.check_model(proto, full_check=True)
        assert proto.ir_version == 10
        opsets = {entry.domain: entry.version for entry in proto.opset_import}
        assert opsets[""] == 21
        foreign = {node.domain for node in every_node(proto.graph)} - {""}
        assert foreign == ({"com.microsoft"} if changes.get("fused") else set())
        defaults = {x.name for x in proto.graph.input} & {x.name for x in proto.graph.initializer}
        assert defaults == set(), "onnxruntime-web and -node do not take inputs with defaults"


def every_graph(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from every_graph(attribute.g)


def every_node(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for each in every_graph(graph):
        yield from each.node


# Speed: what onnxruntime runs for a token.


def test_a_token_takes_few_nodes_and_products_of_vectors(tmp_path: Path) -> None:
    counts = []
    for n_layer in (1, 2):
        options = ort.SessionOptions()
        options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
        proto = build(generate_model, make(n_layer=n_layer))
        ort.InferenceSession(proto.SerializeToString(), options)
        graph = onnx.load(tmp_path / "optimized.onnx").graph
        (token,) = (each for each in every_graph(graph) if each.name == "token")
        counts.append(len(token.node))
        products = [node for node in token.node if node.op_type == "FusedMatMul"]
        attributes = [{a.name: a for a in node.attribute} for node in products]
        # other factors than 1 keep onnxruntime from its routine for products with a vector
        assert [each["alpha"].f for each in attributes] == [1.0, 1.0] * n_layer
        assert not any(node.name.startswith("cache/") for node in token.node), "once a block"
    layer = counts[1] - counts[0]
    assert layer <= 28
    assert counts[0] - layer <= 22


# Names.

PARTS = {
    "classic": {
        "h.1.ln_1": {"LayerNormalization"}, "h.1.ln_2": {"LayerNormalization"},
        "h.1.attn.qkv": {"Gemm"}, "h.1.attn.proj": {"Gemm"}, "h.1": {"Add"},
        "h.1.mlp.up": {"Gemm"}, "h.1.mlp.act": {"Gelu"}, "h.1.mlp.proj": {"Gemm"},
    },
    "modern": {
        "h.1.ln_1": {"Pow", "ReduceMean", "Add", "Sqrt", "Div", "Mul"},
        "h.1.attn.qk_norm": {"Pow", "ReduceMean", "Add", "Sqrt", "Div", "Mul"},
        "h.1.attn.rotary": {"Split", "Mul", "Sub", "Add", "Concat"},
        "h.1.mlp.up": {"Gemm"}, "h.1.mlp.act": {"Split", "Sigmoid", "Mul"},
    },
}  # fmt: skip
"""Operators by role, for some of the roles in the second block."""
ROLES = r"(wte|position|position\.wpe|embed_norm|ln_f|lm_head|shape|cache|sampling"
ROLES += r"|prompt|vocabulary|blocks|tokens|stops|next|cache\.\w+|sampling\.\w+|h\.[01]"
ROLES += r"|h\.[01]\.(ln_[12]|attn|attn\.(qkv|qk_norm|rotary|cache|proj)|mlp\.(up|act|proj)))"


@pytest.mark.parametrize("shape", [CLASSIC, MODERN], ids=["classic", "modern"])
def test_every_node_has_the_name_of_its_part(
    shape: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    model = make(embed_norm=True, **shape)
    parts = PARTS["modern" if shape else "classic"]
    for maker, changes in GRAPHS:
        nodes = list(every_node(build(maker, model, **changes).graph))
        assert len({node.name for node in nodes}) == len(nodes)
        found: dict[str, set[str]] = {}
        for node in nodes:
            role, _, operator = node.name.partition("/")
            assert re.fullmatch(ROLES, role), node.name
            assert re.fullmatch(rf"{node.op_type}(_\d+)?", operator), node.name
            found.setdefault(role, set()).add(node.op_type)
        assert {role: found[role] for role in parts} == parts
        assert {"wte", "ln_f", "lm_head", "h.0.attn", "h.1.attn", "sampling"} <= {
            *found,
            "sampling",
        }


def test_values_have_the_names_of_their_nodes() -> None:
    graph = build(step_model, make()).graph
    outputs = {output.name for output in graph.output}
    for node in graph.node:
        for i, name in enumerate(node.output):
            assert name in {node.name, f"{node.name}:{i}"} | outputs


def test_every_graph_says_what_it_does_and_who_wrote_it() -> None:
    for maker, changes in GRAPHS:
        proto = build(maker, make(), **changes)
        assert (proto.producer_name, proto.producer_version) == ("gptkit", __version__)
        for graph in every_graph(proto.graph):
            assert len(graph.doc_string.split()) > 4, graph.name
            assert graph.doc_string.endswith("."), graph.name


def test_onnxruntimes_errors_and_profiles_tell_the_part(tmp_path: Path) -> None:
    model = make()
    options = ort.SessionOptions()
    options.enable_profiling = True
    options.profile_file_prefix = str(tmp_path / "profile")
    graph = ort.InferenceSession(build(generate_model, model).SerializeToString(), options)
    with pytest.raises(Exception, match=r"running Gather node. Name:'vocabulary/Gather'"):
        graph.run(None, feeds(np.array([[99]]), 2, SamplingOptions()))
    graph.run(None, feeds(np.array([[1]]), 2, SamplingOptions()))
    profile = Path(graph.end_profiling()).read_text()
    assert "h.0.attn.qkv/Gemm" in profile
    assert "h.1.mlp.proj/Gemm" in profile


class Logits(torch.nn.Module):
    def __init__(self, model: GPT) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.model.logits(ids)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [CLASSIC, MODERN], ids=["classic", "modern"])
def test_torchs_own_exporter_agrees(shape: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="torch.onnx.export needs it")
    model = make(**shape)
    ids = prompts_of(model, 3, 8)
    program = torch.onnx.export(
        Logits(model).eval(), (torch.from_numpy(ids),), dynamo=True, opset_version=21,
        verbose=False,
    )  # fmt: skip
    assert program
    program.save(tmp_path / "torch.onnx")
    theirs = session(onnx.load(tmp_path / "torch.onnx"))
    (expected,) = theirs.run(None, {theirs.get_inputs()[0].name: ids})
    step = Step(model.config, session(build(step_model, model)))
    np.testing.assert_allclose(step(ids)[0], expected, atol=1e-5)
