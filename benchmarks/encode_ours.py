"""From text to token files as `gptkit train` does it."""

from collections.abc import Sequence
from pathlib import Path

from gptkit_text.codec import TokenizerCodec
from gptkit_text.documents import Reader
from gptkit_text.files import find
from gptkit_text.shards import encoded


def prepare(
    text: Path, tokenizer: Path, folder: Path, *, end: int, processes: int
) -> Sequence[Path]:
    """Write the tokens of a JSONL file, the end token before each document and at the end.

    All documents are for training, so that the stream can be compared.
    """
    codec = TokenizerCodec(tokenizer=tokenizer.read_text(encoding="utf-8"), end=end)
    cache = folder / "encoded"
    found = encoded(Reader(find([text])), codec, val_fraction=0.0, processes=processes, cache=cache)
    return [segment.path for segment in found.segments("train")]
