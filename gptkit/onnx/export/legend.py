"""What token ids stand for, as JSON, for programs that do not have a model's codec."""

from base64 import b64encode
from typing import Any

from gptkit.codec import Codec, ImageCodec, TextCodec


def make_legend(codec: Codec) -> dict[str, Any] | None:
    """The legend of a codec.

    Returns:
        Text: `{"text": [...]}`, a string per id, if every token is text by itself; otherwise
        `{"bytes": [...]}`, the bytes of every id in base64, which form UTF-8 when they are joined;
        and `"pattern"`, the codec's `word_pattern`, if it has one.
        Images: `{"width": W, "height": H, "colors": [[r, g, b], ...], "classes": [...]}`, a colour
        per id, or `"channels": 3` in place of `"colors"` if red, green and blue are separate tokens
        with ids 0 to 255; `"classes"` names the starts. None for other data.
    """
    match codec:
        case TextCodec():
            return _of_text(codec)
        case ImageCodec():
            colors = {"colors": codec.colors} if codec.colors else {"channels": 3}
            size = {"width": codec.width, "height": codec.height}
            return {**size, **colors, "classes": codec.classes}
        case _:
            return None


def _of_text(codec: TextCodec) -> dict[str, Any]:
    pieces, pattern = list(codec.token_bytes), codec.word_pattern
    words = {"pattern": pattern} if pattern else {}
    try:
        return {"text": [piece.decode() for piece in pieces], **words}
    except UnicodeDecodeError:
        return {"bytes": [b64encode(piece).decode() for piece in pieces], **words}
