import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from gptkit.codec import PromptError
from gptkit.testing import check_codec
from gptkit_text.codec import TokenizerCodec
from gptkit_text.tokenizer import TrainTokenizer, make_codec
from gptkit_text.tokenizer_file import begin_with

TEXT = "She said: “zwölf Boxkämpfer”, don't… 12 😀\n"


@pytest.fixture(params=["learned", "byte"])
def codec(request: pytest.FixtureRequest) -> TokenizerCodec:
    option = TrainTokenizer(train=300) if request.param == "learned" else "byte"
    return make_codec(option, lambda: [TEXT] * 3, key="twelve", join=False)


def test_the_contract(codec: TokenizerCodec) -> None:
    check_codec(codec, prompts=[TEXT, " ", "\0", "<|endoftext|>"], vocab_size=codec.vocab_size)


def test_the_codec_survives_json(codec: TokenizerCodec) -> None:
    again = TokenizerCodec.model_validate_json(codec.model_dump_json())
    assert again == codec
    assert again.encode(TEXT) == codec.encode(TEXT)
    assert list(again.token_bytes) == list(codec.token_bytes)


def test_the_end_token_begins_a_document_and_ends_a_sample(codec: TokenizerCodec) -> None:
    assert codec.end == codec.vocab_size - 1
    assert codec.stop_tokens == (codec.end,)
    assert codec.encode("") == codec.starts[0] == [codec.end]
    assert codec.encode("a")[0] == codec.end
    assert codec.token_bytes[codec.end] == b""
    assert codec.decode(codec.encode(TEXT)).decode() == TEXT


def test_without_an_end_token_a_sample_starts_after_a_line_feed(codec: TokenizerCodec) -> None:
    joined = make_codec("byte", list, key="", join=True)
    assert joined.vocab_size == 256
    assert joined.stop_tokens == ()
    assert joined.encode("") == joined.encode("\n") == [10]
    assert joined.encode("ab") == [97, 98]


def test_what_spells_the_end_token_is_text(codec: TokenizerCodec) -> None:
    text = "<|endoftext|> a<|endoftext|><|endoftext|>"
    tokens = codec.encode(text)
    assert tokens.count(codec.end or 0) == 1
    assert codec.decode(tokens).decode() == text


def test_an_emoji_is_divided_over_tokens(codec: TokenizerCodec) -> None:
    tokens = codec.divide("🦊")
    assert len(tokens) > 1
    assert b"".join(codec.token_bytes[token] for token in tokens) == "🦊".encode()


def test_the_codec_is_shown_without_its_vocabulary(codec: TokenizerCodec) -> None:
    assert repr(codec) == f"TokenizerCodec(end={codec.end})"


def test_every_byte_is_a_token(codec: TokenizerCodec) -> None:
    assert {bytes([byte]) for byte in range(256)} <= set(codec.token_bytes)


def test_half_a_character_is_no_prompt(codec: TokenizerCodec) -> None:
    with pytest.raises(PromptError) as caught:
        codec.encode("ab\ud83d")
    assert str(caught.value) == "prompt: half a character, U+D83D, at 2"


def test_an_end_token_that_a_text_can_have_is_refused() -> None:
    learned = make_codec(TrainTokenizer(train=300), lambda: [TEXT], key="x", join=True)
    with pytest.raises(ValidationError, match="end, 5, should be a special token"):
        TokenizerCodec(tokenizer=learned.tokenizer, end=5)


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        ({"tokenizer": "", "end": 5}, "end, 5, should be a special token"),
        ({"tokenizer": "", "end": 257}, "end, 257, should be a special token"),
        ({"tokenizer": "{}"}, "not a tokenizer.json: Model missing"),
        ({"tokenizer": "", "end": -1}, "greater than or equal to 0"),
        ({"tokenizer": "", "size": 3}, "Extra inputs"),
    ],
)
def test_a_codec_that_cannot_be_is_refused(fields: dict[str, Any], fault: str) -> None:
    with pytest.raises(ValidationError, match=fault):
        TokenizerCodec(**fields)


def special_first(spec: dict[str, Any]) -> None:
    spec["post_processor"] = json.loads(
        begin_with(json.dumps(spec), spec["added_tokens"][0]["id"])
    )["post_processor"]


def cut_after(size: int, *, stride: int) -> Callable[[dict[str, Any]], None]:
    cut = {"direction": "Right", "max_length": size, "strategy": "LongestFirst", "stride": stride}
    return lambda spec: spec.update(truncation=cut)


def padded(spec: dict[str, Any]) -> None:
    spec["padding"] = {"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": None,
                       "pad_id": 0, "pad_type_id": 0, "pad_token": "a"}  # fmt: skip


@pytest.mark.parametrize(
    ("harm", "fault"),
    [
        (cut_after(3, stride=0), "truncation"),
        (cut_after(3, stride=5), "truncation"),  # the library panics when it divides a text
        (padded, "padding"),
        (special_first, "post_processor"),
        (lambda spec: spec["model"].update(dropout=0.5), "dropout"),
    ],
)
def test_a_codec_of_a_checkpoint_that_lies_is_refused(
    harm: Callable[[dict[str, Any]], None], fault: str
) -> None:
    learned = make_codec(TrainTokenizer(train=300), lambda: [TEXT], key="x", join=False)
    spec = json.loads(learned.tokenizer)
    harm(spec)
    with pytest.raises(ValidationError, match=f"the tokenizer should have no {fault}"):
        TokenizerCodec(tokenizer=json.dumps(spec), end=learned.end)


@pytest.mark.parametrize("kind", ["WordLevel", "WordPiece"])
def test_a_prompt_that_the_tokenizer_cannot_divide_is_an_error_in_words(kind: str) -> None:
    model: dict[str, Any] = {"type": kind, "vocab": {"a": 0}, "unk_token": "?"}
    if kind == "WordPiece":
        model |= {"continuing_subword_prefix": "##", "max_input_chars_per_word": 9}
    spec: dict[str, Any] = dict.fromkeys(
        ("truncation", "padding", "normalizer", "post_processor", "decoder")
    )
    split = {"type": "Whitespace"}
    spec |= {"version": "1.0", "model": model, "pre_tokenizer": split, "added_tokens": []}
    codec = TokenizerCodec(tokenizer=json.dumps(spec))
    assert codec.encode("a a") == [0, 0]
    with pytest.raises(PromptError, match="the tokenizer cannot divide 'a fox': ") as caught:
        codec.encode("a fox")
    assert caught.value.hint


READ = """
import json, sys
from transformers import PreTrainedTokenizerFast
tokenizer = PreTrainedTokenizerFast(tokenizer_file=sys.argv[1], split_special_tokens=True)
texts = json.load(sys.stdin)
ids = [tokenizer(text)["input_ids"] for text in texts]
bare = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
print(json.dumps([ids, bare, tokenizer.batch_decode(ids, skip_special_tokens=True)]))
"""


@pytest.mark.slow
def test_transformers_divides_texts_alike(codec: TokenizerCodec, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    texts = [TEXT, " two  spaces", "<|endoftext|>", "\r\n\t🦊", "a , b . c n't"]
    path = tmp_path / "tokenizer.json"
    path.write_text(codec.tokenizer_json(), encoding="utf-8")
    command = [sys.executable, "-c", READ, str(path)]
    printed = subprocess.check_output(command, input=json.dumps(texts), text=True)
    ids, bare, decoded = json.loads(printed)
    assert ids == [codec.encode(text) for text in texts]
    assert bare == [codec.divide(text) for text in texts]
    assert decoded == texts


def test_a_codec_needs_neither_torch_nor_numpy() -> None:
    code = """
import sys
sys.modules["torch"] = sys.modules["numpy"] = None
from gptkit_text.codec import TokenizerCodec
assert TokenizerCodec(tokenizer="", end=256).encode("a") == [256, 97]
"""
    subprocess.run([sys.executable, "-c", code], check=True)
