"""Texts such as docstrings, whose lines a narrow terminal would break within words."""

import re
import shutil
import sys
import textwrap

from gptkit.terminal import print_result

ITEM = re.compile(r"\s*\w+(, \w+)*: .")
"""A line that says something about a name; what belongs to it is indented more."""
ENDS = (".", ":", ")", "]", "}")
"""What a line that does not go on in the next one may end with; code may, too."""


def print_prose(text: str) -> None:
    """Print a text; on a terminal that is too narrow its paragraphs are broken anew."""
    if sys.stdout.isatty():
        width = shutil.get_terminal_size().columns
        if any(len(line) > width for line in text.split("\n")):
            text = "\n".join(_broken(line, width) for line in _joined(text))
    print_result(text)


def _joined(text: str) -> list[str]:
    """The lines, those of a paragraph or of an item as a single one."""
    lines: list[str] = []
    for line in text.split("\n"):
        last = lines[-1] if lines else ""
        deeper = _indent(line) - _indent(last)
        goes_on = last.strip() and line.strip() and not last.endswith(ENDS)
        if goes_on and deeper == (4 if ITEM.match(last) else 0):
            lines[-1] = f"{last} {line.strip()}"
        else:
            lines.append(line)
    return lines


def _broken(line: str, width: int) -> str:
    indent = " " * min(_indent(line), width - 1)
    deeper = f"{indent}    " if indent and ITEM.match(line) else indent
    return textwrap.fill(
        line.strip(),
        width,
        initial_indent=indent,
        subsequent_indent=deeper if len(deeper) < width else indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip(" "))
