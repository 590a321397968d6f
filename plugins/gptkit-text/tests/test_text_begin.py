"""Codecs of tokenizers as other programs have them: a first token, several ends, a template."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from gptkit.plugin import DataError
from gptkit.testing import check_codec
from gptkit_text.codec import TokenizerCodec
from gptkit_text.dataset import Text
from gptkit_text.tokenizer import make_codec
from gptkit_text.tokenizer_file import prepare, space_before

VOCABULARY = {"<s>": 0, "</s>": 1, "<|im_end|>": 2, "▁": 3, "a": 4, "b": 5, "▁a": 6, "ab": 7}
KINDS = {
    "prepend": normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]),
    "metaspace": pre_tokenizers.Metaspace(prepend_scheme="first"),
    "plain": normalizers.Replace(" ", "▁"),
}
SPACES = {"prepend": "always", "metaspace": "missing", "plain": None}


def original(kind: str) -> Tokenizer:
    """A tokenizer as Llama's: of pieces, with three special tokens."""
    library = Tokenizer(models.BPE(VOCABULARY, [("▁", "a"), ("a", "b")]))
    library.add_special_tokens(["<s>", "</s>", "<|im_end|>"])
    if kind == "metaspace":
        library.pre_tokenizer = KINDS[kind]
    else:
        library.normalizer = KINDS[kind]
    return library


def codec_of(kind: str, **fields: Any) -> TokenizerCodec:
    text = original(kind).to_str()
    prepared, end = prepare(text, end="</s>")
    return TokenizerCodec(tokenizer=prepared, end=end, space=space_before(text), **fields)


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_have_the_tokens_that_the_tokenizer_itself_gives(kind: str) -> None:
    codec, library = codec_of(kind, begin=0), original(kind)
    exported = Tokenizer.from_str(codec.tokenizer_json())
    assert codec.space == SPACES[kind]
    for text in ("a", " a", "ab a", "  b", "b", ""):
        assert codec.encode(text) == [0, *library.encode(text).ids]
        assert exported.encode(text).ids == codec.encode(text)
    check_codec(codec, prompts=["a", " ab", "b a"], vocab_size=8)


def test_other_tokens_begin_and_end_a_sample() -> None:
    codec = codec_of("plain", begin=0, stops=(2, 1), chat_template="{{ messages }}")
    assert codec.starts == [[0]]
    assert codec.stop_tokens == (2, 1)
    assert TokenizerCodec.model_validate_json(codec.model_dump_json()) == codec


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("documents", ["mask", "mark"])
def test_documents_begin_in_training_as_prompts_do(documents: Any, tmp_path: Path) -> None:
    texts = [f"{'ab' * (i % 5)}a b{' ab' * i}" for i in range(40)]
    lines = (json.dumps({"text": text}) + "\n" for text in texts)
    (tmp_path / "texts.jsonl").write_text("".join(lines))
    folder = folder_of(codec_of("prepend", begin=0), tmp_path, begin=0, stops=[1], space="always")
    data = Text(
        path=str(tmp_path / "texts.jsonl"), tokenizer=str(folder), documents=documents, block_size=8
    ).load()
    assert data.document_start == (0 if documents == "mask" else None)
    windows = data.train[torch.arange(len(data.train))][0]  # at every place
    stream = str([*windows[0].tolist(), *windows[1:, -1].tolist()])
    known = [str([1, *data.codec.encode(text), 1])[1:-1] for text in texts]
    assert sum(ids in stream for ids in known) > 30  # the others are for validation


def test_the_codec_of_an_older_checkpoint_is_read() -> None:
    codec = TokenizerCodec.model_validate_json('{"tokenizer": "", "end": 256}')
    assert (codec.encode("a"), codec.stop_tokens) == ([256, 97], (256,))
    assert codec.chat_template is None


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        ({"begin": 4}, "begin, 4, should be a special token"),
        ({"stops": (8,)}, "stops should hold ids below 8, got 8"),
        ({"stops": (-1,)}, "greater than or equal to 0"),
    ],
)
def test_tokens_that_cannot_begin_or_end_are_refused(fields: dict[str, Any], fault: str) -> None:
    with pytest.raises(ValidationError, match=fault):
        codec_of("plain", **fields)


def folder_of(codec: TokenizerCodec, path: Path, **noted: Any) -> Path:
    config = {"eos_token": "</s>", "chat_template": codec.chat_template, "gptkit": noted}
    path.joinpath("tokenizer.json").write_text(codec.tokenizer_json(), encoding="utf-8")
    path.joinpath("tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return path


def test_a_folder_that_gptkit_wrote_gives_the_same_codec(tmp_path: Path) -> None:
    codec = codec_of("prepend", begin=0, stops=(2, 1), chat_template="{{ messages }}")
    folder = folder_of(codec, tmp_path, begin=0, stops=[2, 1], space="always")
    assert make_codec(folder, list, key="", join=False) == codec
    joined = make_codec(folder, list, key="", join=True)
    assert joined == TokenizerCodec(tokenizer=codec.tokenizer)


def test_a_template_in_a_file_of_its_own_is_taken(tmp_path: Path) -> None:
    folder = folder_of(codec_of("plain"), tmp_path)
    (folder / "chat_template.jinja").write_text("é{{ messages }}", encoding="utf-8")
    assert make_codec(folder, list, key="", join=False).chat_template == "é{{ messages }}"


def test_a_folder_that_tells_a_wrong_token_is_refused(tmp_path: Path) -> None:
    folder = folder_of(codec_of("plain"), tmp_path, begin=5)
    with pytest.raises(DataError, match=r"tokenizer_config\.json: gptkit: .*begin, 5, should be"):
        make_codec(folder, list, key="", join=False)


def model_folder(path: Path, **config: Any) -> Path:
    """A folder of transformers: what gptkit's own noted fields say is in other files there."""
    folder_of(codec_of("plain"), path)
    named = {"bos_token": "<s>", "add_bos_token": True, "eos_token": "</s>"}
    (path / "tokenizer_config.json").write_text(json.dumps(named))
    (path / "generation_config.json").write_text('{"eos_token_id": [1, 2]}')
    (path / "config.json").write_text(json.dumps({"model_type": "x", "vocab_size": 10} | config))
    return path


@pytest.mark.parametrize("name", [".", "tokenizer.json"])
def test_the_folder_of_a_model_gives_the_codec_of_the_model(name: str, tmp_path: Path) -> None:
    path = model_folder(tmp_path) / name
    codec = make_codec(path, list, key="", join=False)
    assert (codec.vocab_size, codec.end, codec.begin, codec.stops) == (10, 1, 0, (1, 2))
    joined = make_codec(path, list, key="", join=True)
    assert joined.token_bytes == codec.token_bytes
    assert (joined.end, joined.start_token, joined.stop_tokens) == (None, None, ())


@pytest.mark.parametrize(
    "config", [{"vocab_size": 3}, {"vocab_size": None}, {"vocab_size": "10"}], ids=str
)
def test_the_tokenizer_of_a_model_that_it_does_not_fit_is_taken_for_itself(
    config: dict[str, Any], tmp_path: Path
) -> None:
    codec = make_codec(model_folder(tmp_path, **config), list, key="", join=False)
    assert (codec.vocab_size, codec.end, codec.begin) == (8, 1, None)


@pytest.mark.parametrize(
    ("file", "contents", "fault"),
    [
        ("config.json", "{", r"config\.json: "),
        ("config.json", "[]", r"config\.json: is no JSON object"),
        ("config.json", '{"model_type": "x", "vocab_size": 999999999}', "far more"),
        ("generation_config.json", "{", r"generation_config\.json: "),
        ("generation_config.json", '{"eos_token_id": -1}', "eos_token_id = -1 should be a token"),
        ("generation_config.json", '{"eos_token_id": 99}', "the stop token 99 is none"),
        ("tokenizer_config.json", '{"bos_token": "<t>", "add_bos_token": true}', "'<t>' is no"),
        ("tokenizer_config.json", '{"gptkit": {"end": 3}}', "gptkit: unknown key 'end'"),
        ("chat_template.jinja", "\xff", r"chat_template\.jinja: not UTF-8"),
    ],
)
def test_damaged_files_of_a_model_are_named(
    file: str, contents: str, fault: str, tmp_path: Path
) -> None:
    (model_folder(tmp_path) / file).write_bytes(contents.encode("latin-1"))
    with pytest.raises(DataError, match=fault):
        make_codec(tmp_path, list, key="", join=False)
