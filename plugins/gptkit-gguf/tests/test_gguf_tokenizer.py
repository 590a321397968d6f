"""Tokenizers in both directions: the same ids in gptkit, in the file, and in llama.cpp."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import TokenType
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from gptkit.codec import TextCodec
from gptkit_char_text.codec import CharCodec
from gptkit_gguf.header import read_header
from gptkit_gguf.pre_tokenizers import KINDS
from gptkit_gguf.reading import codec_of
from gptkit_gguf.spelling import spell
from gptkit_gguf.vocabulary import read_vocabulary
from gptkit_text.codec import TokenizerCodec
from gptkit_text.tokenizer_file import prepare

Llama = Callable[..., dict[str, Any]]
Write = Callable[..., Path]
TEXTS = [
    "The capital of France is",
    "It's 12345 and 3.14, we'LL see; they've 7 ½ ² Ⅷ",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich",
    "日本語 中文 한국어 العربية हिन्दी",
    "🦊👩‍👩‍👧 e\u0301 \u00a0nbsp\u3000wide",
    "def f(x):\n\treturn x ** 2  # square\n\n\n    if x<=3: print('a','b')\r\n",
    "  leading,   many    spaces   ",
    "a=b+c;d|e~f^g $9 <tag> [x] {y} @z #1 %2 &3 `q`",
    "\n",
]
FREQUENT = " ".join(TEXTS) * 3


def trained(pre_tokenizer: Any, *, whole: bool = False) -> str:
    """A BPE of bytes that has learned the texts, and more; its end token is <|endoftext|>."""
    library = Tokenizer(models.BPE(ignore_merges=whole))
    library.pre_tokenizer = pre_tokenizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet,
        show_progress=False,
    )  # fmt: skip
    library.train_from_iterator([FREQUENT], trainer)
    return library.to_str()


def pieces() -> str:
    """SentencePiece's kind of BPE, as Llama 2 has it, without a space before a text."""
    library = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    library.normalizer = normalizers.Replace(" ", "▁")
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=special[:3], show_progress=False, limit_alphabet=60
    )
    library.train_from_iterator([text.replace(" ", "▁") for text in TEXTS] * 3, trainer)
    spec = json.loads(library.to_str())
    vocabulary = spec["model"]["vocab"]
    for piece in special[3:]:
        vocabulary[piece] = len(vocabulary)
    return json.dumps(spec)


def known(codec: TextCodec, texts: Sequence[str]) -> list[list[int]]:
    return [codec.divide(text) for text in texts] if isinstance(codec, TokenizerCodec) else []


@pytest.mark.parametrize("name", ["gpt-2", "smollm", "llama-bpe", "qwen2", "dbrx", "default"])
def test_words_are_those_of_llama_cpp(name: str, llama: Llama, tiny_file: Write) -> None:
    words = KINDS[name]
    spec = json.loads(trained(pre_tokenizers.ByteLevel(add_prefix_space=False)))
    spec["pre_tokenizer"] = words.spec
    spec["model"]["ignore_merges"] = words.whole
    text, end = prepare(json.dumps(spec))
    codec = TokenizerCodec(tokenizer=text, end=end)
    spelling = spell(codec, codec.vocab_size)
    assert spelling.fields["pre"] == name
    file = tiny_file(spelling)
    found = llama(file, texts=TEXTS)
    assert found["tokens"] == known(codec, TEXTS)
    assert (found["eos"], found["bos"], found["prepends"]) == (end, end, True)
    read = read_vocabulary(read_header(file))
    assert (read.begin, read.end, read.stops) == (end, end, (end,))
    again = codec_of(file, read, codec.vocab_size)
    assert again.end == end
    assert known(again, TEXTS) == found["tokens"]


def test_pieces_are_those_of_llama_cpp(llama: Llama, tiny_file: Write) -> None:
    text, end = prepare(pieces(), end="</s>")
    codec = TokenizerCodec(tokenizer=text, end=end, begin=1)
    file = tiny_file(spell(codec, codec.vocab_size))
    found = llama(file, texts=TEXTS)
    assert found["tokens"] == known(codec, TEXTS)
    assert (found["eos"], found["bos"], found["prepends"]) == (end, 1, True)
    read = read_vocabulary(read_header(file))
    assert (read.begin, read.end) == (1, end)
    assert known(codec_of(file, read, codec.vocab_size), TEXTS) == found["tokens"]


def test_a_space_before_a_text_is_that_of_llama_cpp(llama: Llama, tiny_file: Write) -> None:
    text, end = prepare(pieces(), end="</s>")
    codec = TokenizerCodec(tokenizer=text, end=end, begin=1, space="always")
    file = tiny_file(spell(codec, codec.vocab_size))
    read = codec_of(file, read_vocabulary(read_header(file)), codec.vocab_size)
    assert read.space == "always"
    expected = [codec.encode(each)[1:] for each in TEXTS]
    assert llama(file, texts=TEXTS)["tokens"] == expected
    assert [read.encode(each)[1:] for each in TEXTS] == expected


def test_characters_need_no_end_token(llama: Llama, tiny_file: Write) -> None:
    codec = CharCodec(vocabulary="".join(sorted(set("".join(TEXTS[:7]) + "\\\"'"))))
    texts = [*TEXTS[:7], "'\\\""]
    spelling = spell(codec, len(codec.vocabulary) + 3)
    assert spelling.types[-3:] == [TokenType.UNUSED] * 3
    found = llama(
        tiny_file(spelling), texts=texts, ids=codec.encode("The"),
        count=40,
    )  # fmt: skip
    assert found["tokens"] == [codec.encode(text) for text in texts]
    assert found["shown"] == texts
    assert (found["bos"], found["eos"], len(found["greedy"])) == (None, None, 40)


@pytest.mark.parametrize("end", [256, None])
def test_single_bytes_are_those_of_llama_cpp(
    end: int | None, llama: Llama, tiny_file: Write
) -> None:
    codec = TokenizerCodec(tokenizer="", end=end)
    file = tiny_file(spell(codec, codec.vocab_size))
    found = llama(file, texts=TEXTS)
    assert found["tokens"] == known(codec, TEXTS)
    assert found["eos"] == (255 if end is None else end)
    assert found["prepends"] is (end is not None)


def test_numbers_are_right_at_random(llama: Llama, tiny_file: Write) -> None:
    """Texts of odd characters, in the words of GPT-2."""
    random = np.random.default_rng(5)
    odd = [*"ab'sLl1 2\t\n\r.,!ßé中🦊½\u00a0\u0301\u200b_-<|>", "  ", "'ve", "\n\n"]
    texts = ["".join(random.choice(odd, 40)) for _ in range(30)]
    text, end = prepare(trained(pre_tokenizers.ByteLevel(add_prefix_space=False)))
    codec = TokenizerCodec(tokenizer=text, end=end)
    file = tiny_file(spell(codec, codec.vocab_size))
    assert llama(file, texts=texts)["tokens"] == known(codec, texts)
