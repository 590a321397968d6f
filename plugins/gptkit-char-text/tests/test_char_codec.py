import subprocess
import sys
import unicodedata
from typing import Literal

import pytest
from pydantic import ValidationError

from gptkit.codec import PromptError
from gptkit_char_text.codec import CharCodec

CODEC = CharCodec(vocabulary="\n abc")


def test_a_token_is_an_index_into_the_vocabulary() -> None:
    assert CODEC.encode("cab\n") == [4, 2, 3, 0]
    assert CODEC.decode([4, 2, 3, 0]) == b"cab\n"


def test_round_trip_in_any_script() -> None:
    text = "Грустный 🐍 snake\r\n日本語"
    codec = CharCodec(vocabulary="".join(sorted(set(text))))
    assert codec.decode(codec.encode(text)).decode() == text


def test_a_sample_from_nothing_starts_after_a_newline() -> None:
    assert CharCodec(vocabulary="\t\nab").encode("") == [1]
    assert CharCodec(vocabulary="ab").encode("") == [0]


def test_unknown_characters_of_a_prompt_are_listed_once_with_the_known_ones() -> None:
    with pytest.raises(PromptError) as caught:
        CODEC.encode("zabz!")
    assert str(caught.value) == "prompt: the model never saw '!', 'z'"
    assert caught.value.hint is not None
    assert caught.value.hint.endswith(r"'\n abc'")


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_a_prompt_in_the_other_form_of_unicode_is_taken(form: Literal["NFC", "NFD"]) -> None:
    text = unicodedata.normalize(form, "café crème")
    codec = CharCodec(vocabulary="".join(sorted(set(text))))
    for prompt in (unicodedata.normalize("NFC", text), unicodedata.normalize("NFD", text)):
        assert codec.decode(codec.encode(prompt)).decode() == text


def test_characters_that_cannot_be_seen_are_named() -> None:
    with pytest.raises(PromptError) as caught:
        CODEC.encode("a\u0301\u202eé\udce9")
    told = "prompt: the model never saw 'é' (U+00E9), U+0301 COMBINING ACUTE ACCENT, "
    assert str(caught.value) == told + "U+202E RIGHT-TO-LEFT OVERRIDE, U+DCE9"


def test_long_lists_of_characters_are_cut() -> None:
    codec = CharCodec(vocabulary="".join(map(chr, range(0x4E00, 0x4E00 + 500))))
    with pytest.raises(PromptError) as caught:
        codec.encode("abcdefghijklmn")
    assert "'j' and 4 more" in str(caught.value)
    assert caught.value.hint is not None
    assert caught.value.hint.endswith("and 400 more")


@pytest.mark.parametrize("vocabulary", ["", "aba"])
def test_a_vocabulary_holds_each_character_once(vocabulary: str) -> None:
    with pytest.raises(ValidationError):
        CharCodec(vocabulary=vocabulary)


def test_json_keeps_the_codec() -> None:
    CODEC.encode("a")
    assert CharCodec.model_validate_json(CODEC.model_dump_json()) == CODEC
    assert set(CODEC.model_dump()) == {"vocabulary"}


def test_the_codec_needs_no_torch() -> None:
    code = "import sys, gptkit_char_text.codec; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_token_is_a_character_in_utf_8() -> None:
    assert CharCodec(vocabulary="\n aö").token_bytes == [b"\n", b" ", b"a", "ö".encode()]
