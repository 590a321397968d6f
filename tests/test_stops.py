"""Where samples end: stop tokens and stop texts, the same in torch, in graphs and in sessions."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import onnx_ir as ir
import pytest
import torch

from gptkit.codec import TextCodec
from gptkit.errors import UsageError
from gptkit.model.gpt import GPT
from gptkit.onnx.graphs.decode import decode_model
from gptkit.onnx.graphs.generate import generate_model
from gptkit.onnx.graphs.source import ExportSource
from gptkit.onnx.graphs.step import step_model
from gptkit.onnx.runtime.decode_session import DecodeSession
from gptkit.onnx.runtime.generate_session import GenerateSession
from gptkit.onnx.runtime.metadata import Metadata, Tokens
from gptkit.onnx.runtime.model import OnnxModel
from gptkit.recipe.codec_record import CodecRecord
from gptkit.recipe.options import GPTConfig
from gptkit.runs.loaded import LoadedModel
from gptkit.sampling import each
from gptkit.sampling.model import Model
from gptkit.sampling.rule import SamplingOptions
from gptkit.sampling.samples import SampleRequest
from gptkit.sampling.stops import Sample, Stops, StopSearch

VOCAB = (b"", b"a", b"b", b"ab", b"\n", b"\n\n", b"b\na", "é".encode(), b"\xc3", b"\xa9", b".", b"")
"""Tokens that are no text, that have several characters, and that are parts of one."""
SIZE = 8
KINDS = ["torch float32", "generate float32", "decode float32", "generate int8", "decode int8"]
STOPS = [
    {}, {"ignore_stop": True}, {"stop": ("\n",)}, {"stop": ("b\n", "\nb")}, {"stop": ("é", "ab.")},
    {"stop": ("a", "bab", "\n\n"), "ignore_stop": True}, {"stop": ("never drawn",)},
]  # fmt: skip


class Words(TextCodec):
    """Draws end at any of `ends`."""

    contract = 1
    ends: tuple[int, ...] = ()

    @property
    def stop_tokens(self) -> tuple[int, ...]:
        return self.ends

    @property
    def token_bytes(self) -> Sequence[bytes]:
        return VOCAB

    def encode(self, prompt: str) -> list[int]:
        return [int(word) for word in prompt.split()] or [0]


@pytest.fixture(scope="module")
def gpt() -> GPT:
    """A small model whose every weight matters."""
    torch.manual_seed(2)
    sizes = {"vocab_size": len(VOCAB), "block_size": SIZE, "n_layer": 2, "n_head": 2, "n_embd": 32}
    model = GPT(GPTConfig(**sizes, position="rotary")).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model


@pytest.fixture(scope="module")
def folders(gpt: GPT, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The three graphs of the model, by precision."""
    found = {}
    graphs = {"generate": generate_model, "model": step_model, "decode": decode_model}
    for dtype in ("float32", "int8"):
        found[dtype] = tmp_path_factory.mktemp(dtype)
        for name, build in graphs.items():
            source = ExportSource.of(gpt, dtype)
            graph = {"model": "step"}.get(name, name)
            metadata = described(gpt, dtype, ends=(), graph=graph).entries()
            ir.save(build(replace(source, metadata=metadata)), found[dtype] / f"{name}.onnx")
    return found


def described(gpt: GPT, dtype: str, ends: tuple[int, ...], graph: Any = "generate") -> Metadata:
    return Metadata(
        graph=graph, dtype=dtype, opset=21, gptkit="0", config=gpt.config, block_size=SIZE,
        vocab_size=len(VOCAB), codec=CodecRecord(name="words", distribution="acme", options={}),
        tokens=Tokens(
            starts=[[0]], stop_tokens=list(ends), length=None, temperature=1, suffix=".txt",
            legend=None,
        ),
        dataset="", step=1, val_loss=None, checkpoint_sha256="",
    )  # fmt: skip


@pytest.fixture
def load(gpt: GPT, folders: dict[str, Path]) -> Callable[..., Model]:
    """The model of one of `KINDS`, with a codec that has these stop tokens."""

    def call(kind: str, ends: tuple[int, ...] = ()) -> Model:
        graph, dtype = kind.split()
        if graph == "torch":
            return LoadedModel(gpt, Words(ends=ends), None)  # type: ignore[arg-type]
        session: Any = (
            DecodeSession(folders[dtype], "cpu")
            if graph == "decode"
            else GenerateSession(folders[dtype] / "generate.onnx", "cpu")
        )
        model = OnnxModel(folders[dtype], described(gpt, dtype, ends), session)
        vars(model)["codec"] = Words(ends=ends)
        return model

    return call


def cut(drawn: Sequence[int], ends: Sequence[int], texts: Sequence[bytes]) -> tuple[int, bytes]:
    """What of a drawing belongs to the sample: the number of whole tokens, and the bytes."""
    text, sizes = b"", [0]
    for token in drawn:
        if token in ends:
            break
        for byte in VOCAB[token]:
            text += bytes([byte])
            if found := max((stop for stop in texts if text.endswith(stop)), key=len, default=b""):
                kept = text[: -len(found)]
                return sum(size <= len(kept) for size in sizes[1:]), kept
        sizes.append(len(text))
    return len(sizes) - 1, text


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ends", [(), (10,), (11, 3)])
def test_samples_end_before_the_first_stop(
    kind: str, ends: tuple[int, ...], load: Callable[..., Model]
) -> None:
    """In every kind of model the sample is a beginning of what it draws without stops."""
    sampling, asked = SamplingOptions(seed=5, temperature=1.5), {"tokens": 30, "samples": 3}
    lengths = set()
    plain, model = load(kind), load(kind, ends)
    for prompt in ("", "1 10 11 4 3 6 2 1 9"):
        endless = plain.draw(SampleRequest(prompt, **asked), sampling).drawn()
        for options, streaming in itertools.product(STOPS, (False, True)):
            if streaming and "int8" in kind:
                continue  # another division into runs rounds differently
            request = SampleRequest(prompt, **asked, **options)
            drawn = model.draw(request, sampling, streaming=streaming).drawn()
            for sample, whole in zip(drawn, endless, strict=True):
                tokens = whole.tokens[len(whole.start) :]
                texts = [text.encode() for text in options.get("stop", ())]
                active = () if options.get("ignore_stop") else ends
                size, text = cut(tokens, active, texts)
                assert sample.tokens == [*whole.start, *tokens[:size]], (options, streaming)
                start = b"".join(VOCAB[token] for token in whole.start)
                assert sample.text(model.codec) == (start + text).decode(errors="replace")
                lengths.add(size)
    assert len(lengths) > 5


@pytest.mark.parametrize("kind", KINDS[:3])
def test_pieces_never_show_what_becomes_a_stop(kind: str, load: Callable[..., Model]) -> None:
    model = load(kind, (11,))
    for seed, options in itertools.product(range(3), STOPS):
        asked = SampleRequest(tokens=40, **options), SamplingOptions(seed=seed, temperature=1.5)
        (expected,) = model.draw(*asked).texts(model.codec)
        assert isinstance(model.codec, TextCodec)
        pieces = list(model.draw(*asked, streaming=True).pieces(model.codec))
        assert "".join(pieces) == expected
        assert all(pieces)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", KINDS[:3])
@pytest.mark.parametrize("options", [{}, {"stop": ("b", "a", "\n")}], ids=["tokens", "texts"])
def test_drawing_ends_when_all_rows_have_ended(
    kind: str, options: dict[str, Any], load: Callable[..., Model]
) -> None:
    model = load(kind, () if options else tuple(range(1, 9)))
    tokens = 10**5 if kind.startswith("generate") else 10**9  # its random numbers fill a table
    drawn = model.draw(SampleRequest(tokens=tokens, samples=3, **options), SamplingOptions())
    assert max(sample.size for sample in drawn.drawn()) < 100
    assert all(sample.ended for sample in drawn.samples)
    endless = load(kind).draw(SampleRequest(tokens=20), SamplingOptions()).drawn()
    assert [(sample.size, sample.ended) for sample in endless] == [(20, True)]


def test_the_stop_text_that_is_complete_first_ends_the_text() -> None:
    random = Random(1)
    for _ in range(3000):
        text = bytes(random.choices(b"ab.", k=random.randrange(12)))
        texts = [bytes(random.choices(b"ab.", k=random.randrange(1, 5))) for _ in range(3)]
        ends = [i for i in range(len(text)) if text[: i + 1].endswith(tuple(texts))]
        whole = text[: ends[0] + 1] if ends else text
        expected = whole[: -max(len(t) for t in texts if whole.endswith(t))] if ends else text
        search, given = StopSearch(texts), b""
        for part in parts(text, random):
            given += search.feed(part)
            assert not search.found or not search.held
            if search.found:
                break
            known = given + search.held
            assert text.startswith(known)
            assert search.held == b"" or any(t.startswith(search.held) for t in texts)
        assert given + search.held == expected, (text, texts)
        assert search.found == bool(ends)


def parts(text: bytes, random: Random) -> Iterator[bytes]:
    """The text in parts of random lengths, some of them empty."""
    while text:
        size = random.randrange(4)
        yield text[:size]
        text = text[size:]


def test_a_stop_is_searched_in_the_drawn_text_only() -> None:
    sample = Sample([1, 4], Stops(texts=(b"\n\n", b"ab"), token_bytes=VOCAB))
    for token in (4, 1, 2, 1):
        sample.add(token)
    assert sample.text(Words()) == "a\n\n"  # the newlines before and after the start are no stop
    assert sample.tokens == [1, 4, 4]


def test_what_cannot_be_a_stop() -> None:
    with pytest.raises(UsageError, match="a stop text should not be empty"):
        SampleRequest(stop=("a", ""))
    with pytest.raises(UsageError, match="a stop text should be UTF-8"):
        SampleRequest(stop=("a\udcff",))  # what Python makes of the byte FF in an argument
    with pytest.raises(UsageError, match="only text can end at a stop text"):
        SampleRequest(stop=("a",)).stops((), None)


# Prompts of different lengths, drawn together.


@pytest.mark.parametrize("kind", KINDS)
def test_each_of_many_prompts_is_drawn_as_it_is_alone(
    kind: str, load: Callable[..., Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(each, "ROWS", 5)
    model, random = load(kind, (11,)), Random(2)
    requests, seeds = [], []
    for length in [0, 1, 1, 2, 3, 5, SIZE - 1, SIZE, SIZE, SIZE + 1, 3 * SIZE, 4]:
        prompt = " ".join(str(random.randrange(len(VOCAB))) for _ in range(length))
        options = random.choice(STOPS)
        requests.append(SampleRequest(prompt, tokens=random.randrange(1, 30), **options))
        seeds.append(random.randrange(2**63))
    options = {"temperature": 1.3, "top_p": 0.95}
    drawn = model.draw_each(requests, SamplingOptions(**options), seeds).token_ids()
    for request, seed, tokens in zip(requests, seeds, drawn, strict=True):
        alone = model.draw(request, SamplingOptions(**options, seed=seed)).token_ids()
        assert [tokens] == alone, request
