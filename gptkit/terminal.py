"""Text that comes from files, plugins, recipes and models, made harmless for a terminal."""

import unicodedata

REPLACEMENT = "\ufffd"
STEERING = ("Cc", "Cs", "Zl", "Zp")
"""Categories of control characters, lone surrogates and separators of lines."""
OVERRIDES = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
"""Bidirectional classes of characters after which a terminal writes in another direction."""


def harmless(text: str, *, keep: str = "\n\t") -> str:
    r"""Text whose characters cannot steer a terminal: those that could become U+FFFD.

    Every other character stays, among them wide and narrow spaces, and what joins letters or
    emoji. A `\r` before a `\n` is dropped.

    Args:
        text: anything, also lone surrogates.
        keep: control characters that stay; "" for a name, which takes one line.
    """
    lines = text.replace("\r\n", "\n")
    return "".join(REPLACEMENT if c not in keep and _steers(c) else c for c in lines)


def _steers(character: str) -> bool:
    steering = unicodedata.category(character) in STEERING
    return steering or unicodedata.bidirectional(character) in OVERRIDES
