"""Templates give what transformers gives; the assistant's tokens alone are learned."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gptkit.testing import check_codec
from gptkit_chat.encoding import ChatEncoder, template_of
from gptkit_chat.template import ChatError
from gptkit_chat.tokens import chat_codec
from gptkit_text.codec import TokenizerCodec
from tests.chat_templates import IM, MODELS, QWEN2

transformers = pytest.importorskip("transformers")

TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is the capital of France?"},
    {"role": "assistant", "content": "Paris, thank you."},
    {"role": "user", "content": "  Zwölf 🦊?\n"},
    {"role": "assistant", "content": "  I am fine.\n\nFine!  "},
]
CHATS = {
    "one": TURNS[1:3],
    "two": TURNS[1:],
    "system": TURNS,
    "asked": TURNS[:4],
}


def spelt(codec: TokenizerCodec, ids: list[int]) -> str:
    """Token ids as text, special tokens as they are spelt."""
    pieces = {token: text for text, token in codec._vocabulary.library.get_vocab().items()}
    parts = [codec.decode([i]) or pieces[i].encode() for i in ids]
    return b"".join(parts).decode()


def learned(codec: TokenizerCodec, messages: list[dict[str, str]]) -> list[str]:
    """The parts of a conversation that carry loss."""
    found = ChatEncoder(codec).encode(messages)
    runs: list[list[int]] = [[]]
    for token, on in zip(found.ids, found.learned, strict=True):
        if on:
            runs[-1].append(token)
        elif runs[-1]:
            runs.append([])
    return [spelt(codec, run) for run in runs if run]


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest, model_folder: Callable[..., Path]) -> tuple[str, Path]:
    template, special, names = MODELS[request.param]
    return request.param, model_folder(template, special, **names)


def codec_of(folder: Path, template: str = "auto", special: tuple[str, ...] = ()) -> TokenizerCodec:
    return chat_codec(folder, template, special, list, key="")


@pytest.mark.parametrize("chat", CHATS)
def test_text_and_ids_are_those_of_transformers(model: tuple[str, Path], chat: str) -> None:
    name, folder = model
    codec, messages = codec_of(folder), CHATS[chat]
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    asked = messages[-1]["role"] == "user"
    text = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=asked)
    ids = theirs(text, add_special_tokens=False)["input_ids"]
    encoder = ChatEncoder(codec)
    ours = encoder.prompt(messages) if asked else encoder.encode(messages).ids
    assert ours == ids
    assert spelt(codec, ours) == text
    del name


EXPECTED = {
    "chatml": ["Paris, thank you.<|im_end|>", "  I am fine.\n\nFine!  <|im_end|>"],
    "smollm2": ["Paris, thank you.<|im_end|>", "  I am fine.\n\nFine!  <|im_end|>"],
    "qwen2": ["Paris, thank you.<|im_end|>", "  I am fine.\n\nFine!  <|im_end|>"],
    "qwen3": [
        "Paris, thank you.<|im_end|>",
        "<think>\n\n</think>\n\n  I am fine.\n\nFine!  <|im_end|>",
    ],
    "llama3": ["Paris, thank you.<|eot_id|>", "I am fine.\n\nFine!<|eot_id|>"],
    "mistral": [" Paris, thank you.</s>", " I am fine.\n\nFine!</s>"],
    "generation": ["Paris, thank you.<|im_end|>", "  I am fine.\n\nFine!  <|im_end|>"],
}
ENDS = {"llama3": "<|eot_id|>", "mistral": "</s>"}


def test_the_assistants_tokens_alone_are_learned_with_their_end(model: tuple[str, Path]) -> None:
    name, folder = model
    codec = codec_of(folder)
    assert learned(codec, TURNS) == EXPECTED[name]
    assert learned(codec, TURNS[1:3])[0].endswith(EXPECTED[name][0])
    assert codec.stop_tokens[0] == codec._vocabulary.library.token_to_id(ENDS.get(name, IM[2]))
    check_codec(codec, prompts=["Hello <|im_end|>"], vocab_size=codec.vocab_size)


def test_a_mask_of_the_template_is_ours(model_folder: Callable[..., Path]) -> None:
    template, special, names = MODELS["generation"]
    folder = model_folder(template, special, **names)
    theirs = transformers.AutoTokenizer.from_pretrained(folder).apply_chat_template(
        TURNS, return_dict=True, return_assistant_tokens_mask=True
    )
    ours = ChatEncoder(codec_of(folder)).encode(TURNS)
    assert ours.ids == theirs["input_ids"]
    assert ours.learned == [bool(each) for each in theirs["assistant_masks"]]


def test_thoughts_are_learned_where_the_template_keeps_them(
    model_folder: Callable[..., Path],
) -> None:
    template, special, names = MODELS["qwen3"]
    codec = codec_of(model_folder(template, special, **names))
    thought = [dict(turn) for turn in TURNS]
    for turn in thought[2::2]:
        turn["content"] = f"<think>\nHm.\n</think>\n\n{turn['content'].strip()}"
    assert learned(codec, thought) == [
        "Paris, thank you.<|im_end|>",
        "<think>\nHm.\n</think>\n\nI am fine.\n\nFine!<|im_end|>",
    ]


@pytest.mark.parametrize("role", [1, 2], ids=["user", "assistant"])
def test_a_content_that_spells_special_tokens_is_text(model: tuple[str, Path], role: int) -> None:
    name, folder = model
    _, special, _ = MODELS[name]
    codec = codec_of(folder)
    plain, hostile = [[dict(turn) for turn in TURNS[:3]] for _ in range(2)]
    hostile[role]["content"] = "a" + "b".join([*special, *special]) + "c"
    ids = {codec._vocabulary.library.token_to_id(each) for each in special}
    for make in (lambda e, m: e.prompt(m[:2]), lambda e, m: e.encode(m).ids):
        expected, found = (
            [i for i in make(ChatEncoder(codec), messages) if i in ids]
            for messages in (plain, hostile)
        )
        assert found == expected
    whole = spelt(codec, ChatEncoder(codec).encode(hostile).ids)
    assert hostile[role]["content"] in whole
    if role == 2:
        assert hostile[2]["content"] in learned(codec, hostile)[0]


def test_special_tokens_may_overlap_in_a_content(model_folder: Callable[..., Path]) -> None:
    template, special, names = MODELS["chatml"]
    more = ["<s>", "s><t>", "ab", "bc"]
    codec = codec_of(model_folder(template, [*special, *more], **names))
    library = codec._vocabulary.library
    turns = [{"role": "user", "content": "<s><t>"}, {"role": "assistant", "content": "abc<s><t>"}]
    found = ChatEncoder(codec).encode(turns)
    assert not {library.token_to_id(each) for each in more} & {*found.ids}
    assert learned(codec, turns) == ["abc<s><t><|im_end|>"]


def test_a_special_token_of_one_character_is_left_out_of_a_content(
    model_folder: Callable[..., Path],
) -> None:
    template, special, names = MODELS["chatml"]
    codec = codec_of(model_folder(template, [*special, "\u2603"], **names))
    encoder = ChatEncoder(codec)
    found, plain = (encoder.prompt([{"role": "user", "content": c}]) for c in ("a\u2603b", "ab"))
    assert found == plain
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "\u2603b"}]
    assert learned(codec, turns) == ["b<|im_end|>"]


def test_a_special_token_is_not_put_together_from_contents_and_the_template(
    model_folder: Callable[..., Path],
) -> None:
    around = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n<|{{ m.content }}|><|im_end|>{% endfor %}"
    )
    folder = model_folder(around, [*IM, "<|x|>"], eos_token=IM[2])
    codec = codec_of(folder)
    found = ChatEncoder(codec).encode(
        [{"role": "user", "content": "x"}, {"role": "assistant", "content": "im_end"}]
    )
    library = codec._vocabulary.library
    assert library.token_to_id("<|x|>") not in found.ids
    assert found.ids.count(library.token_to_id("<|im_end|>")) == 2


def test_characters_that_mark_contents_may_be_in_them(model_folder: Callable[..., Path]) -> None:
    template, special, names = MODELS["chatml"]
    codec = codec_of(model_folder(template, special, **names))
    odd = "".join(chr(code) for code in range(0xFDD0, 0xFDED))
    turns = [{"role": "user", "content": odd}, {"role": "assistant", "content": odd + "<|im_end|>"}]
    assert learned(codec, turns) == [odd + "<|im_end|><|im_end|>"]
    turns[0]["content"] += chr(0xFDED)
    with pytest.raises(ChatError, match="characters that are none"):
        learned(codec, turns)


def test_tokens_that_the_tokenizer_lacks_follow_its_own() -> None:
    codec = chat_codec("byte", "chatml", [], list, key="")
    assert codec.vocab_size == 259
    ids = ChatEncoder(codec).encode(TURNS[1:3]).ids
    assert ids[:6] == [257, *b"user\n"]
    assert (codec.begin, codec.end, codec.stop_tokens) == (257, 256, (258, 256))
    assert codec.encode("a") == [257, 97]
    more = chat_codec("byte", "chatml", ["<|pad|>", "<|im_end|>"], list, key="")
    assert more.vocab_size == 260
    again = TokenizerCodec.model_validate_json(more.model_dump_json())
    assert again == more


def test_spaces_beside_a_special_token_may_belong_to_it(model_folder: Callable[..., Path]) -> None:
    """As in Phi-3, whose special tokens take the white space after them."""
    template, special, names = MODELS["chatml"]
    folder = model_folder(template, special, **names)
    path = folder / "tokenizer.json"
    text = path.read_text(encoding="utf-8")
    text = re.sub(r'("content": "<\|im_start\|>",[^}]*"rstrip": )false', r"\1true", text)
    path.write_text(text, encoding="utf-8")
    template = "{% for m in messages %}<|im_start|>\n {{ m.content }}<|im_end|>{% endfor %}"
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    ids = theirs("<|im_start|>\n a<|im_end|><|im_start|>\n b<|im_end|>")["input_ids"]
    (folder / "own.jinja").write_text(template, encoding="utf-8")
    codec = codec_of(folder, str(folder / "own.jinja"))
    found = ChatEncoder(codec).encode(
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    )
    assert found.ids == ids


def test_a_tokenizer_that_changes_texts_learns_the_answer_alone(
    model_folder: Callable[..., Path], tmp_path: Path
) -> None:
    from tokenizers import Tokenizer, normalizers

    template, special, names = MODELS["mistral"]
    folder = model_folder(template, special, **names)
    library = Tokenizer.from_file(str(folder / "tokenizer.json"))
    library.normalizer = normalizers.NFC()
    library.save(str(folder / "tokenizer.json"))
    codec = codec_of(folder)
    turns = [{"role": "user", "content": "o\u0308"}, {"role": "assistant", "content": "u\u0308 x"}]
    assert learned(codec, turns) == [" ü x</s>"]


def test_a_model_without_a_template_has_that_of_chatml_if_it_has_its_tokens(
    model_folder: Callable[..., Path],
) -> None:
    from gptkit_text.tokenizer import make_codec

    codec = make_codec(model_folder(None, IM), list, key="", join=False)
    chat = template_of(codec)
    assert spelt(chat, ChatEncoder(chat).prompt(TURNS[1:2])).startswith("<|im_start|>user\nWhat")
    assert codec._vocabulary.library.token_to_id("<|im_end|>") == chat.stop_tokens[0]
    with pytest.raises(ChatError, match="no chat template, nor the tokens of ChatML"):
        template_of(make_codec("byte", list, key="", join=False))


def test_a_template_that_ends_no_answer_is_refused(model_folder: Callable[..., Path]) -> None:
    from gptkit.plugin import DataError

    folder = model_folder(QWEN2, IM, eos_token=IM[2])
    with pytest.raises(DataError, match="no special token that ends an answer"):
        codec_of(folder)


def test_messages_that_a_template_reads_are_the_same_or_refused(
    model_folder: Callable[..., Path],
) -> None:
    """Marks may not change what is rendered, unseen."""
    template = (
        "{% for m in messages %}<|im_start|>{{ 'short' if m.content|length < 3 else m.content }}"
        "<|im_end|>{% endfor %}{% if add_generation_prompt %}<|im_start|>{% endif %}"
    )
    codec = codec_of(model_folder(template, IM, eos_token=IM[2]))
    turns: list[dict[str, Any]] = [
        {"role": "user", "content": "ab"}, {"role": "assistant", "content": "abcd"}
    ]  # fmt: skip
    assert learned(codec, turns) == ["abcd<|im_end|>"]
    turns[1]["content"] += "<|im_end|>"
    with pytest.raises(ChatError, match="cannot be told from the template's own"):
        learned(codec, turns)
