"""What people see of a token: its text, with escapes for what has no visible form."""

import re

HALVES = re.compile("[\udc80-\udcff]+")
"""Bytes that are no whole character, as `surrogateescape` decodes them."""


def visible(piece: bytes) -> str:
    r"""The text of a token, harmless for a terminal.

    Bytes that are only a part of a character become `<F0 9F>`; line feeds, control characters and
    all others that are not printable become escapes such as `\n`, `\x1b` and `\u200d`.
    """
    text = piece.decode(errors="surrogateescape")
    return HALVES.sub(_hex, "".join(map(_printable, text)))


def _printable(character: str) -> str:
    if character.isprintable() or HALVES.match(character):
        return character
    return character.encode("unicode_escape").decode()


def _hex(found: re.Match[str]) -> str:
    return f"<{found[0].encode(errors='surrogateescape').hex(' ').upper()}>"
