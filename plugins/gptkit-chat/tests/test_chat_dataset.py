"""Conversations as training data: rows, windows, what is cut, what is learned."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from gptkit.plugin import IGNORE, Data, DataError
from gptkit.testing import check_dataset
from gptkit_chat.conversations import messages_of
from gptkit_chat.dataset import Chat
from gptkit_chat.encoding import ChatEncoder
from gptkit_chat.packing import pack
from gptkit_chat.template import DAY
from gptkit_chat.tokens import chat_codec


def chat(*turns: str) -> dict[str, Any]:
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[i % 2], "content": t} for i, t in enumerate(turns)]}


def numbered(count: int, size: int = 3) -> list[dict[str, Any]]:
    return [chat(f"q{i}", f"a{i}" * (1 + i % size)) for i in range(count)]


def targets(data: Data) -> list[bytes]:
    """What is learned, run by run, over both splits, as bytes."""
    found = []
    for split in (data.train, data.val):
        _, y = split[torch.arange(len(split))]
        for row in y.tolist():
            run: list[int] = []
            for token in [*row, IGNORE]:
                if token != IGNORE:
                    run.append(token)
                elif run:
                    found.append(bytes(t if t < 256 else ord("$") for t in run))
                    run = []
    return sorted(found)


FORMS = [
    {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
    {"prompt": "q", "completion": "a"},
    {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
    {
        "prompt": [{"role": "user", "content": "q"}],
        "completion": [{"role": "assistant", "content": "a"}],
    },
    {"conversations": [{"from": "user", "value": "q"}, {"from": "assistant", "value": "a"}]},
]  # fmt: skip


@pytest.mark.parametrize("row", FORMS)
def test_a_row_may_have_three_forms(row: dict[str, Any]) -> None:
    assert messages_of(row, "x") == FORMS[0]["messages"]


def test_the_contract() -> None:
    data = check_dataset(Chat(template="chatml"), prompts=["Hello!"])
    assert (data.vocab_size, data.block_size) == (259, 512)
    assert len(targets(data)) == 54
    assert b"I am Pip, a small model.$" in targets(data)


@pytest.mark.parametrize("documents", ["mask", "pad"])
@pytest.mark.parametrize("order", ["shuffle", "sample"])
def test_every_conversation_is_in_one_window(
    documents: str, order: str, rows: Callable[..., Path]
) -> None:
    path = rows(*numbered(50))
    data = check_dataset(
        Chat(path=str(path), block_size=64, val_fraction=0.2, documents=documents, order=order)
    )
    assert targets(data) == sorted(f"a{i}".encode() * (1 + i % 3) + b"$" for i in range(50))
    if documents == "pad":
        assert len(data.train) + len(data.val) == 50
    else:
        assert len(data.train) + len(data.val) < 35


def test_shuffled_windows_come_once_per_epoch(rows: Callable[..., Path]) -> None:
    data = Chat(path=str(rows(*numbered(50))), block_size=64, documents="pad").load()
    size = len(data.train)
    epochs = [
        torch.cat([data.train.indices(3, e * size + i, 1) for i in range(size)]) for e in (0, 1)
    ]
    assert all(sorted(each.tolist()) == list(range(size)) for each in epochs)
    assert epochs[0].tolist() != epochs[1].tolist()


def test_a_window_holds_what_the_encoder_gives_and_a_mark_between(
    rows: Callable[..., Path],
) -> None:
    data = Chat(path=str(rows(*numbered(40))), block_size=100, val_fraction=0.2).load()
    end = data.document_end
    assert end is not None
    encoder = ChatEncoder(data.codec, now=DAY)
    known = {tuple(encoder.encode(row["messages"]).ids[:-1]) for row in numbered(40)}
    x, y = data.train[torch.arange(len(data.train))]
    found = set()
    for row in x.tolist():
        parts = [[]]
        for token in row:
            if token == end:
                parts.append([])
            else:
                parts[-1].append(token)
        found |= {tuple(part) for part in parts if part}
    assert found <= known
    assert (y[x == end] == IGNORE).all()
    assert not (y == end).any()


def test_packing_is_tight_and_loses_nothing() -> None:
    generator = np.random.default_rng(0)
    lengths = generator.integers(1, 65, 2000).tolist()
    groups = pack(lengths, 64)
    assert sorted(i for group in groups for i in group) == list(range(2000))
    assert max(sum(lengths[i] for i in group) for group in groups) <= 64
    assert len(groups) <= 1.03 * sum(lengths) / 64
    assert pack([64] * 3, 64) == [[0], [1], [2]]
    assert pack([], 64) == []


def note_of(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err


def test_what_does_not_fit_is_cut_by_a_rule_and_told(
    rows: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path = rows(
        *numbered(20),
        chat("x", "first", "y", "second" * 20, "z", "third"),
        chat("x", "long" * 50),
        chat("x" * 200, "never"),
        chat("x"),
        chat("x", " "),
        chat("x", "kept", "dropped"),
    )
    options = {"path": str(path), "block_size": 64, "val_fraction": 0.2}
    for _ in range(2):  # the second time from the cache
        found = targets(Chat(**options).load())
        told = note_of(capsys)
        for words in (
            "1 cut after the last answer that fits into block_size",
            "1 cut within their first answer",
            "1 left out, since block_size ends before their first answer",
            "2 left out, since they have no answer, or an empty one",
        ):
            assert words in told
        assert b"first$" in found and b"kept$" in found
        assert any(run.startswith(b"longlong") and b"$" not in run for run in found)
        assert not any(b"second" in run or b"third" in run or b"never" in run for run in found)


def test_a_long_conversation_is_not_encoded_whole(
    rows: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths, encode = [], ChatEncoder.encode

    def counted(self: ChatEncoder, messages: Any) -> Any:
        lengths.append(len(messages))
        return encode(self, messages)

    monkeypatch.setattr(ChatEncoder, "encode", counted)
    long = chat(*(f"{i}" for i in range(4000)))
    found = targets(Chat(path=str(rows(*numbered(9), long)), block_size=400).load())
    assert b"19$" in found and b"3999$" not in found
    assert max(lengths) <= 64
    exact = [len(encode(ChatEncoder(chat_codec("byte", "chatml", [], list, key="")),
                        long["messages"][:end]).ids) for end in range(2, 60, 2)]  # fmt: skip
    assert f"{2 * sum(size <= 401 for size in exact) - 1}$".encode() in found


def test_validation_is_chosen_by_the_content(rows: Callable[..., Path]) -> None:
    def val(*values: Any) -> set[bytes]:
        data = Chat(path=str(rows(*values)), block_size=64, val_fraction=0.3).load()
        train = Data(data.val, data.val, data.codec, data.vocab_size, data.block_size)
        return set(targets(train))

    some, more = numbered(30), numbered(60)
    assert val(*some) == val(*reversed(some)) < val(*more)


def test_a_few_conversations_are_divided_at_the_end(
    rows: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    data = Chat(path=str(rows(*numbered(2))), block_size=64, val_fraction=0.0001).load()
    assert (len(data.train), len(data.val)) == (1, 1)
    assert "the last 1 are taken" in note_of(capsys)
    with pytest.raises(DataError, match="1 conversation that can be learned from"):
        Chat(path=str(rows(*numbered(1)))).load()


BAD = {
    "not JSON": ("{", r"row 3: not JSON"),
    "no object": ([1], r"row 3: is no object, but \[1\]"),
    "other keys": ({"text": "a"}, r"row 3: no conversation; its keys are text"),
    "no list": ({"messages": "a"}, r'row 3: messages: is no list of messages, but "a"'),
    "empty list": ({"messages": []}, r"row 3: messages: is no list of messages"),
    "no role": ({"messages": [{"content": "a"}]}, r"row 3: messages\[0\]: is no object with role"),
    "role": (
        {"messages": [{"role": "user", "content": "a"}, {"role": "robot\x1b", "content": "a"}]},
        r"row 3: messages\[1\]: unknown role",
    ),
    "role of sharegpt": (
        {"conversations": [{"from": "bing", "value": "a"}]},
        r'row 3: conversations\[0\]: unknown from "bing"',
    ),
    "null": (
        {"messages": [{"role": "assistant", "content": None}]},
        r"row 3: messages\[0\]\.content: is null, not text",
    ),
    "parts": ({"prompt": "a", "completion": 3}, r"row 3: completion: is 3, not text"),
    "surrogate": (
        '{"prompt": "\\ud83d", "completion": "a"}', r"row 3: has half a character"
    ),
    "zero": ('{"prompt": "a\\u0000", "completion": "a"}', r"row 3: has a zero byte"),
    "deep": ("[" * 100_000, r"row 3: cannot be read as JSON"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_row_is_told_with_its_place(name: str, rows: Callable[..., Path]) -> None:
    value, fault = BAD[name]
    path = rows(chat("q", "a"), "", value)
    with pytest.raises(DataError, match=rf"chats\.jsonl: {fault}") as caught:
        Chat(path=str(path)).load()
    assert "\x1b" not in str(caught.value)


def test_a_row_that_the_template_refuses_is_told_with_its_place(
    rows: Callable[..., Path], tmp_path: Path
) -> None:
    template = tmp_path / "own.jinja"
    template.write_text(
        "{% for m in messages %}{% if m.content == 'no' %}{{ raise_exception('not this') }}"
        "{% endif %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"
    )
    path = rows(chat("q", "a"), chat("no", "a"))
    special = ["<|im_start|>", "<|im_end|>"]
    options = {"path": str(path), "template": str(template), "special_tokens": special}
    with pytest.raises(DataError, match=r"row 2: the chat template says: not this"):
        Chat(**options).load()
    with pytest.raises(DataError, match=r"no special token that ends an answer") as caught:
        Chat(**options | {"special_tokens": []}).load()
    assert "special_tokens" in (caught.value.hint or "")


def test_files_may_be_json_and_compressed_and_in_folders(
    rows: Callable[..., Path], tmp_path: Path
) -> None:
    import gzip

    folder = tmp_path / "many"
    folder.mkdir()
    (folder / "a.json").write_text(json.dumps(numbered(10)), encoding="utf-8")
    lines = "".join(json.dumps(row) + "\n" for row in numbered(20)[10:])
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (folder / "notes.txt").write_text("no conversation")
    data = Chat(path=str(folder), block_size=64, val_fraction=0.2).load()
    assert len(targets(data)) == 20
    with pytest.raises(DataError, match=r"notes\.txt: is neither JSONL nor JSON"):
        Chat(path=str(folder / "notes.txt")).load()
    with pytest.raises(DataError, match=r"nowhere\.jsonl: no such file"):
        Chat(path=str(tmp_path / "nowhere.jsonl")).load()
    with pytest.raises(ValidationError, match="should be on this machine"):
        Chat(path="https://x.example/a.jsonl")


def test_tokens_may_be_learned_from_the_conversations(rows: Callable[..., Path]) -> None:
    data = check_dataset(
        Chat(path=str(rows(*numbered(40))), tokenizer={"train": 270}, block_size=64)
    )
    assert data.vocab_size in range(260, 273)
    assert data.codec.chat_template is not None


def test_a_damaged_cache_is_made_anew(rows: Callable[..., Path], cache: Path) -> None:
    options = {"path": str(rows(*numbered(20))), "block_size": 64, "val_fraction": 0.2}
    first = targets(Chat(**options).load())
    (ids,) = (cache / "chat").glob("*/ids")
    ids.write_bytes(ids.read_bytes()[:-4] + b"\0\0\0\0")
    assert targets(Chat(**options).load()) == first
