import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from gptkit_text import words
from gptkit_text.codec import TokenizerCodec
from gptkit_text.tokenizer import TrainTokenizer, make_codec
from gptkit_text.word_pattern import word_pattern
from gptkit_text.words import Encoder

ODD = " \n\t\r\x0b\x0c\x85\xa0\u1680\u2003\u2028\u3000\x1c\x1f\u200b\ufeff's中😀1²¾!|\u0301\u0627"

ENCODE = """
const { encode, decode } = require(process.argv[1]);
const texts = JSON.parse(require("fs").readFileSync(0, "utf8"));
console.log(JSON.stringify(texts.map((text) => [encode(text), decode(encode(text)) === text])));
"""

DIVIDE = """
const { pieces, pattern, texts } = JSON.parse(require("fs").readFileSync(0, "utf8"));
const latin = (text) => Buffer.from(text, "utf8").toString("latin1");
const ids = new Map(pieces.map((piece, id) => [piece, id]));
ids.delete("");
function merge(parts) {
  const found = parts.slice(1).map((part, i) => ids.get(parts[i] + part) ?? Infinity);
  const lowest = Math.min(...found, Infinity), at = found.indexOf(lowest);
  if (lowest === Infinity) return parts.map((part) => ids.get(part));
  return merge([...parts.slice(0, at), parts[at] + parts[at + 1], ...parts.slice(at + 2)]);
}
const words = (text) => text.match(new RegExp(pattern, "gu")) ?? [];
const divide = (text) => words(text).flatMap((word) => merge([...latin(word)]));
console.log(JSON.stringify(texts.map(divide)));
"""


def run_node(program: str, *arguments: str, value: object) -> Any:
    """What a program prints for a value that it reads, both as JSON."""
    if shutil.which("node") is None:
        pytest.skip("node is not installed")
    command = ["node", "--eval", program, "--", *arguments]
    done = subprocess.run(command, input=json.dumps(value), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.fixture
def gpt2(gpt2_folder: Path) -> TokenizerCodec:
    return make_codec(gpt2_folder, list, key="", join=False)


@pytest.fixture
def reference(gpt2_folder: Path) -> Callable[[str], list[int]]:
    """GPT-2's tokenizer, as the library builds it of the two files."""
    files = [str(gpt2_folder / name) for name in ("encoder.json", "vocab.bpe")]
    library = Tokenizer(models.BPE.from_file(*files))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return lambda text: library.encode(text).ids


@pytest.fixture
def learned() -> TokenizerCodec:
    texts = ["the cat sat on the mat, the dog's 'bone' 1 2 33 \n\n  \t zwölf 😀😀"] * 3
    return make_codec(TrainTokenizer(train=300), lambda: texts, key="cat", join=False)


def test_words_of_the_king_james_text_are_those_of_the_library(
    gpt2: TokenizerCodec, reference: Callable[[str], list[int]], king_james: list[str]
) -> None:
    encoder = Encoder(gpt2)
    for start in range(0, len(king_james), 100):
        text = "\n".join(king_james[start : start + 100])
        tokens = encoder.encode(text)
        assert tokens.dtype == np.uint16
        assert tokens.tolist() == reference(text)
        assert gpt2.decode(tokens.tolist()).decode() == text


def test_words_of_odd_texts_are_those_of_the_library(
    gpt2: TokenizerCodec, reference: Callable[[str], list[int]], oddities: list[str]
) -> None:
    encoder = Encoder(gpt2)
    for text in oddities:
        tokens = encoder.encode(text).tolist()
        assert tokens == reference(text)
        assert gpt2.decode(tokens).decode() == text


@pytest.mark.parametrize("every", [10, pytest.param(1, marks=pytest.mark.slow)])
def test_tokens_are_those_of_gpt2s_own_encoder(
    every: int,
    gpt2: TokenizerCodec,
    gpt2_folder: Path,
    king_james: list[str],
    oddities: list[str],
) -> None:
    texts = king_james[::every] + oddities
    found = run_node(ENCODE, str(gpt2_folder), value=texts)
    encoder = Encoder(gpt2)
    for text, (tokens, same) in zip(texts, found, strict=True):
        assert same
        assert encoder.encode(text).tolist() == tokens, text


@pytest.mark.parametrize("name", ["gpt2", "learned"])
def test_a_program_without_the_codec_divides_texts_alike(
    name: str, request: pytest.FixtureRequest, king_james: list[str], oddities: list[str]
) -> None:
    codec: TokenizerCodec = request.getfixturevalue(name)
    texts = king_james[::10] + oddities + ["".join(ODD), "", " ", "\n\n a  b \t\u3000 ", "x" * 200]
    pieces = [piece.decode("latin-1") for piece in codec.token_bytes]
    known = {"pieces": pieces, "pattern": codec.word_pattern, "texts": texts}
    assert run_node(DIVIDE, value=known) == [codec.divide(text) for text in texts]


def test_only_a_tokenizer_like_gpt2s_has_words(learned: TokenizerCodec) -> None:
    spec = json.loads(learned.tokenizer)
    vocab, merges = spec["model"]["vocab"], spec["model"]["merges"]
    last, before = ("".join(merge) for merge in merges[:-3:-1])
    swapped = vocab | {last: vocab[before], before: vocab[last]}
    for change in (
        {"model": spec["model"] | {"vocab": swapped}},  # ids are not in the order of the merges
        {"model": spec["model"] | {"merges": merges[1:]}},  # a token is never merged
        {"model": spec["model"] | {"ignore_merges": True}},
        {"normalizer": {"type": "NFC"}},
        {"pre_tokenizer": spec["pre_tokenizer"] | {"use_regex": False}},
        {"pre_tokenizer": None},
    ):
        assert word_pattern(json.dumps(spec)) is not None
        assert word_pattern(json.dumps(spec | change)) is None, change


def check(codec: TokenizerCodec, texts: Iterator[str]) -> None:
    """Assert that the encoder, the library and the codec agree, and that texts come back."""
    library = Tokenizer.from_str(codec.tokenizer_json())
    library.encode_special_tokens = True
    encoder = Encoder(codec)
    for text in texts:
        tokens = encoder.encode(text).tolist()
        assert tokens == library.encode(text, add_special_tokens=False).ids, repr(text)
        assert tokens == codec.divide(text)
        assert library.encode(text).ids == codec.encode(text)
        decoded = codec.decode(tokens).decode()
        assert decoded == text
        assert library.decode(tokens) == text
        assert codec.encode(decoded) == codec.encode(text)
        assert codec.end not in tokens


@pytest.mark.parametrize("count", [2000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_random_texts_come_back(
    count: int, learned: TokenizerCodec, random_texts: Callable[[int], Iterator[str]]
) -> None:
    check(learned, random_texts(count))


@pytest.mark.parametrize("count", [2000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_random_texts_come_back_from_gpt2s_tokens(
    count: int, gpt2: TokenizerCodec, random_texts: Callable[[int], Iterator[str]]
) -> None:
    check(gpt2, random_texts(count))


def test_random_texts_come_back_from_bytes(random_texts: Callable[[int], Iterator[str]]) -> None:
    check(make_codec("byte", list, key="", join=False), random_texts(2000))


def test_words_that_are_kept_are_of_a_bounded_number(
    learned: TokenizerCodec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(words, "MOST_WORDS", 10)
    encoder = Encoder(learned)
    for number in range(100):
        text = f"{number} words and {number * number}, then a long one: {'x' * 100}"
        assert encoder.encode(text).tolist() == learned.divide(text)
        assert encoder._words is not None
        assert len(encoder._words) <= 10
        assert len(encoder._words.older) <= 10


def test_white_space_without_end_takes_linear_time(learned: TokenizerCodec) -> None:
    text = " " * 300_000 + "a" * 300_000 + "\n \t" * 100_000
    assert Encoder(learned).encode(text).tolist() == learned.divide(text)


def test_a_large_vocabulary_has_wider_tokens(learned: TokenizerCodec) -> None:
    spec = json.loads(learned.tokenizer)
    vocab = spec["model"]["vocab"]
    spec["added_tokens"] = []
    vocab |= {f"<{number}>": number for number in range(len(vocab), (1 << 16) + 1)}
    codec = TokenizerCodec(tokenizer=json.dumps(spec))
    assert codec.vocab_size == (1 << 16) + 1
    assert Encoder(codec).encode("the cat").dtype == np.uint32
