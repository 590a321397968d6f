"""Tokenizers of other programs: their tokens, except for a space before every text."""

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from gptkit.plugin import DataError
from gptkit.testing import check_codec
from gptkit_text.codec import TokenizerCodec
from gptkit_text.tokenizer import make_codec
from gptkit_text.words import Encoder

TEXTS = ["The day of the month, the hour of the day. Days, days!", "An end </s>, or [SEP] is it?"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
SAMPLES = [
    "the day",
    " The  day\n\tof 🦊 it",
    "</s>",
    "a</s></s> b",
    "[SEP] [SEP]",
    "<s>x<unk>",
    "é",
]


def learn(library: Tokenizer, trainer: Any) -> dict[str, Any]:
    library.train_from_iterator(TEXTS * 3, trainer)
    spec: dict[str, Any] = json.loads(library.to_str())
    return spec


def codec_of(spec: dict[str, Any], folder: Path) -> TokenizerCodec:
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(spec))
    return make_codec(path, list, key="", join=False)


def llama() -> dict[str, Any]:
    """A BPE of SentencePiece, as Llama 2 has it: a space before a text, bytes for rare letters."""
    library = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    library.normalizer = normalizers.Replace(" ", "▁")
    special = ["<unk>", "<s>", "</s>"]
    spec = learn(
        library, trainers.BpeTrainer(show_progress=False, special_tokens=special, vocab_size=100)
    )
    for piece in BYTES:
        spec["model"]["vocab"][piece] = len(spec["model"]["vocab"])
    prepend = {"type": "Prepend", "prepend": "▁"}
    spec["normalizer"] = {"type": "Sequence", "normalizers": [prepend, spec["normalizer"]]}
    names = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    library.decoder = decoders.Sequence([*names, decoders.Strip(" ", 1, 0)])
    return spec | {"decoder": json.loads(library.to_str())["decoder"]}


def metaspace(scheme: str) -> dict[str, Any]:
    """The newer form of the same: Metaspace puts the space there; a start token is added."""
    spec = llama()
    library = Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    library.decoder = decoders.Metaspace(prepend_scheme=scheme)
    library.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    own = json.loads(library.to_str())
    changed = {name: own[name] for name in ("pre_tokenizer", "decoder", "post_processor")}
    return spec | changed | {"normalizer": None}


def unigram() -> dict[str, Any]:
    """A Unigram model, as T5 has it, but with bytes; its special tokens are pieces of text, too."""
    library = Tokenizer(models.Unigram())
    library.pre_tokenizer = pre_tokenizers.Metaspace()
    library.decoder = decoders.Metaspace()
    special = ["<unk>", "<s>", "</s>"]
    options = {"special_tokens": special, "unk_token": "<unk>", "show_progress": False}
    spec = learn(library, trainers.UnigramTrainer(vocab_size=80, **options))
    spec["model"]["vocab"] += [[piece, -20.0] for piece in BYTES]
    spec["model"]["byte_fallback"] = True
    return spec


def byte_level() -> dict[str, Any]:
    """A byte-level BPE with a pre-tokenizer and added tokens of its own, as newer models have."""
    library = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(r"\s?\p{L}+|."), "isolated")
    level = pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=False)
    library.pre_tokenizer = pre_tokenizers.Sequence([split, level])
    library.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    learn(
        library, trainers.BpeTrainer(show_progress=False, vocab_size=300, initial_alphabet=alphabet)
    )
    library.add_special_tokens(["<|im_end|>"])
    library.add_tokens([AddedToken("[SEP]", normalized=False), AddedToken("    ")])
    spec: dict[str, Any] = json.loads(library.to_str())
    return spec


LOSSLESS: dict[str, Callable[[], dict[str, Any]]] = {
    "llama": llama,
    "metaspace-first": lambda: metaspace("first"),
    "metaspace-always": lambda: metaspace("always"),
    "unigram": unigram,
    "byte-level": byte_level,
}


@pytest.fixture(params=LOSSLESS)
def codec(request: pytest.FixtureRequest, tmp_path: Path) -> TokenizerCodec:
    return codec_of(LOSSLESS[request.param](), tmp_path)


def test_the_contract(codec: TokenizerCodec) -> None:
    check_codec(codec, prompts=SAMPLES, vocab_size=codec.vocab_size)


def test_texts_come_back(
    codec: TokenizerCodec, random_texts: Callable[[int], Iterator[str]]
) -> None:
    library = Tokenizer.from_str(codec.tokenizer_json())
    encoder = Encoder(codec)
    for text in [*TEXTS, *SAMPLES, *random_texts(500)]:
        if "▁" in text and '"ByteLevel"' not in codec.tokenizer:
            continue  # SentencePiece takes it for a space
        tokens = codec.divide(text)
        assert codec.decode(tokens).decode() == text
        assert library.decode(tokens) == text
        assert encoder.encode(text).tolist() == tokens
        assert codec.end not in tokens


def test_nothing_is_said_of_tokenizers_that_give_texts_back(
    codec: TokenizerCodec, capsys: pytest.CaptureFixture[str]
) -> None:
    assert capsys.readouterr().err == ""


def word_piece() -> dict[str, Any]:
    """WordPiece as BERT has it: small letters, no spaces, [UNK] for what it does not know."""
    library = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    library.normalizer = normalizers.BertNormalizer()
    library.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    library.decoder = decoders.WordPiece()
    options = {"special_tokens": ["[UNK]", "[CLS]", "[SEP]"], "show_progress": False}
    return learn(library, trainers.WordPieceTrainer(vocab_size=60, **options))


def words() -> dict[str, Any]:
    """Whole words, one of which is spelled as the end token is."""
    names = ["[UNK]", "[SEP]", "The", "the", "day", "of"]
    vocabulary = {name: token for token, name in enumerate(names)}
    library = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    library.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    library.add_special_tokens(names[:2])
    spec: dict[str, Any] = json.loads(library.to_str())
    return spec


def suffixes() -> dict[str, Any]:
    """A BPE whose pieces tell where a word ends, as the first GPT's do."""
    library = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    library.normalizer = normalizers.NFKC()
    library.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    library.decoder = decoders.BPEDecoder()
    options = {"special_tokens": ["<unk>"], "end_of_word_suffix": "</w>", "show_progress": False}
    return learn(library, trainers.BpeTrainer(vocab_size=90, **options))


@pytest.mark.parametrize(
    ("make", "text", "decoded"),
    [
        (word_piece, "The day,  the HOURS", " the day , the hours"),
        (words, "The day\nof the", " The day of the"),
        (suffixes, "the day  of \uff54he", "the day of the "),
    ],
)
def test_a_tokenizer_that_changes_texts_is_noted(
    make: Callable[[], dict[str, Any]],
    text: str,
    decoded: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    codec = codec_of(make(), tmp_path)
    assert f"{tmp_path}/tokenizer.json: this tokenizer changes texts" in capsys.readouterr().err
    tokens = codec.divide(text)
    assert codec.decode(tokens).decode() == decoded
    assert codec.divide(decoded) == tokens
    check_codec(codec, prompts=[text], vocab_size=codec.vocab_size)


def test_a_word_that_spells_the_end_token_is_cut(tmp_path: Path) -> None:
    codec = codec_of(words(), tmp_path)
    unknown, end = 0, 1
    assert codec.end == end
    assert codec.divide("of [SEP] of") == [
        codec.divide("of")[0],
        unknown,
        unknown,
        codec.divide("of")[0],
    ]


def test_a_normalizer_never_makes_the_end_token(tmp_path: Path) -> None:
    spec = unigram()
    spec["normalizer"] = {"type": "NFKC"}
    codec = codec_of(spec, tmp_path)
    tokens = codec.divide("\uff1c/s\uff1e")
    assert codec.end not in tokens
    assert codec.decode(tokens) == b"</s>"


def test_an_end_token_for_unknown_characters(tmp_path: Path) -> None:
    """As in GPT-2's, where nothing is unknown; elsewhere it cannot be the end token."""
    spec = byte_level()
    spec["model"]["unk_token"] = "<|im_end|>"
    codec = codec_of(spec, tmp_path)
    assert codec.end not in codec.divide("The <|im_end|> of 🦊")
    spec = word_piece()
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "[UNK]"}')
    with pytest.raises(DataError, match=r"the end token, '\[UNK\]', stands for unknown"):
        codec_of(spec, tmp_path)


VALUES = [None, 0, -1, 3.5, "", "▁", "a", [], {}, True, 2**32, ["a", "b"], "ByteLevel", "\ud800"]


def places(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where there is something in JSON; of long lists and tables only in the beginning."""
    yield place
    keys = value if isinstance(value, dict) else range(len(value) if isinstance(value, list) else 0)
    for key in list(keys)[:30]:
        yield from places(value[key], (*place, key))


def spoil(spec: dict[str, Any], generator: random.Random) -> None:
    """Take something away, or put another value there."""
    *parents, last = generator.choice([place for place in places(spec) if place])
    value: Any = spec
    for key in parents:
        value = value[key]
    if generator.random() < 0.3:
        del value[last]
    else:
        value[last] = generator.choice(VALUES)


@pytest.mark.parametrize("count", [100, pytest.param(3000, marks=pytest.mark.slow)])
def test_a_spoilt_file_is_an_error_or_a_tokenizer(count: int, tmp_path: Path) -> None:
    generator, kinds = random.Random(1), [*LOSSLESS.values(), word_piece, words, suffixes]
    texts = [json.dumps(make()) for make in kinds]
    outcomes = set()
    for _ in range(count):
        spec = json.loads(generator.choice(texts))
        spoil(spec, generator)
        try:
            codec = codec_of(spec, tmp_path)
        except DataError as error:
            outcomes.add("error")
            assert str(error).startswith(f"{tmp_path}/tokenizer.json: ")
            continue
        outcomes.add("tokenizer")
        for text in SAMPLES:
            assert codec.end not in codec.divide(text)
            codec.decode(codec.encode(text))
        assert json.loads(codec.tokenizer_json())
    assert outcomes == {"error", "tokenizer"}
