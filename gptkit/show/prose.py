"""Texts such as docstrings, which a narrow terminal would break within words."""

import shutil
import sys
import textwrap

from gptkit.terminal import print_result


def print_prose(text: str) -> None:
    """Print a text; on a terminal lines that are too long go on below, indented as they are."""
    if sys.stdout.isatty():
        width = shutil.get_terminal_size().columns
        text = "\n".join(_broken(line, width) for line in text.split("\n"))
    print_result(text)


def _broken(line: str, width: int) -> str:
    indent = line[: len(line) - len(line.lstrip())]
    if len(line) <= width or len(indent) >= width:
        return line
    return textwrap.fill(
        line.strip(),
        width,
        initial_indent=indent,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
