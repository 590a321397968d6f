"""Conversations in the rows of JSONL and JSON files, in three forms."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptkit.plugin import DataError, harmless
from gptkit_text.compression import opened
from gptkit_text.decoding import Decoder
from gptkit_text.documents import Advance
from gptkit_text.files import ENDINGS, TextFile, find, reading
from gptkit_text.rows import json_values, jsonl_values

Messages = list[dict[str, str]]
"""Each has a role, "system", "user" or "assistant", and a content; as templates get them."""

ROWS = {"jsonl": jsonl_values, "json": json_values}
CHAT_ENDINGS = tuple(ending for ending in ENDINGS if ".json" in ending or ".ndjson" in ending)
"""What folders are searched for."""
FORMS = (
    'a row should have "messages" (a list of objects with role and content), "prompt" and '
    '"completion", or "conversations" (a list of objects with from and value)'
)
ROLES = {name: name for name in ("system", "user", "assistant")}
SHAREGPT = {"human": "user", "gpt": "assistant", **ROLES}
LONGEST_SHOWN = 60  # characters of a value in an error


@dataclass(frozen=True)
class Conversation:
    """A row."""

    messages: Messages
    place: str
    """Its file and row, for errors."""

    @property
    def key(self) -> bytes:
        """All of it, as bytes."""
        return json.dumps(self.messages).encode()


def find_conversations(paths: Sequence[str | Path]) -> list[TextFile]:
    """The files that paths name: each a JSONL or JSON file, or a folder of such.

    Raises:
        DataError: a path is neither, or a folder has none.
    """
    files: dict[Path, TextFile] = {}
    for path in map(Path, paths):
        with reading(path):
            endings = CHAT_ENDINGS if path.is_dir() else None
        for file in find([path], endings=endings):
            if file.kind not in ROWS:
                raise DataError(
                    f"{file.path}: is neither JSONL nor JSON, which conversations are read from",
                    hint="its name should end in .jsonl or .json, or in one of these with .gz, "
                    ".zst, .bz2 or .xz",
                )
            files.setdefault(file.path, file)
    return list(files.values())


def read(files: Sequence[TextFile], advance: Advance) -> Iterator[Conversation]:
    """All conversations, in order.

    Args:
        files: JSONL and JSON files.
        advance: told how many bytes of the files are done.

    Raises:
        DataError: a file cannot be read, or a row is no conversation; names the file and the row.
    """
    for file in files:
        decoder = Decoder(file.path, "strict", otherwise="")
        with reading(file.path), opened(file.path, file.compression, advance) as stream:
            for number, row in ROWS[file.kind](stream, decoder):
                place = f"{file.path}: row {number:,}"
                messages = messages_of(row, place)
                for message in messages:
                    decoder.whole(message["content"], number)
                yield Conversation(messages, place)


def messages_of(row: Any, place: str) -> Messages:
    """The messages of a row, whatever its form.

    Args:
        row: a JSON value.
        place: of the row, for errors.

    Raises:
        DataError: it has none of the three forms; names the message and the fault.
    """
    if isinstance(row, dict):
        if "messages" in row:
            return _list(row["messages"], f"{place}: messages", ("role", "content"), ROLES)
        if "conversations" in row:
            where = f"{place}: conversations"
            return _list(row["conversations"], where, ("from", "value"), SHAREGPT)
        if "prompt" in row and "completion" in row:
            return _pair(row["prompt"], row["completion"], place)
        keys = ", ".join(harmless(key[:LONGEST_SHOWN], keep="") for key in list(row)[:10])
        raise DataError(f"{place}: no conversation; its keys are {keys or 'none'}", hint=FORMS)
    raise DataError(f"{place}: is no object, but {_shown(row)}", hint=FORMS)


def _pair(prompt: Any, completion: Any, place: str) -> Messages:
    """A prompt and its completion: two texts, or two lists of messages."""
    found: Messages = []
    for name, value, role in (("prompt", prompt, "user"), ("completion", completion, "assistant")):
        if isinstance(value, list):
            found += _list(value, f"{place}: {name}", ("role", "content"), ROLES)
        else:
            found.append({"role": role, "content": _text(value, f"{place}: {name}")})
    return found


def _list(value: Any, place: str, keys: tuple[str, str], roles: Mapping[str, str]) -> Messages:
    if not isinstance(value, list) or not value:
        raise DataError(f"{place}: is no list of messages, but {_shown(value)}", hint=FORMS)
    return [_message(each, f"{place}[{i}]", keys, roles) for i, each in enumerate(value)]


def _message(
    value: Any, place: str, keys: tuple[str, str], roles: Mapping[str, str]
) -> dict[str, str]:
    if not isinstance(value, dict) or not all(key in value for key in keys):
        raise DataError(
            f"{place}: is no object with {keys[0]} and {keys[1]}: {_shown(value)}", hint=FORMS
        )
    role, content = (value[key] for key in keys)
    if not isinstance(role, str) or role not in roles:
        raise DataError(
            f"{place}: unknown {keys[0]} {_shown(role)}",
            hint=f"known: {', '.join(roles)}; take other messages, such as those of tools, out",
        )
    return {"role": roles[role], "content": _text(content, f"{place}.{keys[1]}")}


def _text(value: Any, place: str) -> str:
    if not isinstance(value, str):
        raise DataError(
            f"{place}: is {_shown(value)}, not text",
            hint="calls of tools, pictures and parts of other kinds cannot be learned",
        )
    return value


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return harmless(text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}...", keep="")
