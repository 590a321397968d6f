"""Bytes to text: UTF-8 with an error that names the file and the offset."""

import codecs
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

from gptkit.plugin import DataError
from gptkit_text.files import CHUNK

Errors = Literal["strict", "replace"]
UTF_8 = "save the text as UTF-8"
OR_REPLACE = ', or set errors = "replace" in [dataset]'
SAVE = "save the text as UTF-8; it seems to be UTF-16, or no text at all"
REPLACEMENT = "\ufffd"
HALF = re.compile("[\ud800-\udfff]")
MARK = "\ufeff"  # byte order mark
WIDE_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)  # UTF-32's begins with UTF-16's

MANY_ZEROS = 8  # one in so many bytes is zero in UTF-16, unlike in a text with a stray one


@dataclass(frozen=True)
class Decoder:
    """Decodes the bytes of one file."""

    path: Path
    errors: Errors
    """Whether bytes that are not UTF-8, zero bytes and lone surrogates are an error or U+FFFD."""
    otherwise: str = OR_REPLACE
    """What else a user can do, as the end of a hint."""

    def chunks(self, stream: BinaryIO) -> Iterator[str]:
        """The text of a stream in chunks, without a byte order mark.

        Raises:
            DataError: it is not UTF-8, or has a zero byte, and `errors` is "strict".
        """
        offset, data = 0, b""
        while chunk := stream.read(CHUNK):
            data += chunk
            text, used = self._decoded(data, offset, final=False)
            yield text if offset else text.removeprefix(MARK)
            data, offset = data[used:], offset + used
        yield self._decoded(data, offset, final=True)[0]

    def lines(self, stream: BinaryIO, *, most: int) -> Iterator[str]:
        """The lines of a stream with their ends, without a byte order mark.

        Args:
            stream: bytes.
            most: length of a line in bytes.

        Raises:
            DataError: as for `chunks`, or a line is longer.
        """
        offset, number = 0, 1
        while line := stream.readline(most + 1):
            if len(line) > most:
                raise DataError(
                    f"{self.path}: line {number:,}: is longer than {most:,} bytes",
                    hint="split it into several rows",
                )
            text, _ = self._decoded(line, offset, final=True)
            yield text if offset else text.removeprefix(MARK)
            offset, number = offset + len(line), number + 1

    def value(self, value: bytes, row: int) -> str:
        """The text of a single value of a row.

        Raises:
            DataError: it is not UTF-8, or has a zero byte, and `errors` is "strict".
        """
        try:
            return self._without_zeros(value.decode(errors=self.errors), row)
        except UnicodeDecodeError as error:
            fault = f"row {row:,}: not UTF-8: {_byte(value, error.start)} of the text"
            raise DataError(f"{self.path}: {fault}", hint=UTF_8 + self.otherwise) from error

    def whole(self, text: str, row: int) -> str:
        r"""A text of JSON without the escapes "\u0000" and of half a character, such as "\ud83d".

        Raises:
            DataError: it has one, and `errors` is "strict".
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            if self.errors == "replace":
                return self._without_zeros(HALF.sub(REPLACEMENT, text), row)
            half = f"\\u{ord(text[error.start]):04x}"
            raise DataError(
                f"{self.path}: row {row:,}: has half a character, the surrogate {half}",
                hint=UTF_8 + self.otherwise,
            ) from error
        return self._without_zeros(text, row)

    def _without_zeros(self, text: str, row: int) -> str:
        if "\0" not in text or self.errors == "replace":
            return text.replace("\0", REPLACEMENT)
        number = text.index("\0") + 1
        raise DataError(
            f"{self.path}: row {row:,}: has a zero byte at character {number:,} of the text",
            hint=f"take it out{self.otherwise}",
        )

    def _decoded(self, data: bytes, offset: int, *, final: bool) -> tuple[str, int]:
        """Text, and how many bytes it took: a character may go on in the next chunk."""
        try:
            text, used = codecs.utf_8_decode(data, self.errors, final)
        except UnicodeDecodeError as error:
            wide = not offset and data.startswith(WIDE_MARKS)
            raise DataError(
                f"{self.path}: not UTF-8: {_byte(data, error.start, offset)}",
                hint=SAVE if wide else UTF_8 + self.otherwise,
            ) from error
        if "\0" not in text:
            return text, used
        if self.errors == "replace":
            return text.replace("\0", REPLACEMENT), used
        raise DataError(
            f"{self.path}: not a text: {_byte(data, data.index(0), offset)}",
            hint=SAVE if data.count(0) * MANY_ZEROS > len(data) else UTF_8 + self.otherwise,
        )


def _byte(data: bytes, index: int, offset: int = 0) -> str:
    return f"bad byte 0x{data[index]:02x} at offset {offset + index:,}"
