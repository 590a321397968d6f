"""What a GGUF file says about itself: metadata, and where its tensors are. Checked, not believed.

The layout is that of https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, version 2 or 3,
little-endian.
"""

import math
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from gptkit.plugin import RunError, UsageError, open_file

MAGIC = b"GGUF"
ALIGNMENT = 32  # bytes, where general.alignment is not given
LONGEST = 1 << 24  # bytes of a single text
LONGEST_NAME = 1 << 16  # bytes of a key or of a tensor's name
LARGEST = 1 << 28  # bytes of a header; those of real models have some 10 MB
MOST_VALUES = 1 << 23  # of a header, in arrays, too; real ones have less than 1 << 20
MOST_DIMENSIONS = 4
SCALARS = {
    0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 10: "<u8", 11: "<i8",
    12: "<f8",
}  # fmt: skip
"""Kinds of numbers in the metadata, as numpy spells them."""
BOOL, TEXT, ARRAY = 7, 8, 9
READABLE = (
    "F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K",
    "Q6_K", "IQ4_NL", "IQ4_XS",
)  # fmt: skip
"""Types of tensors that are read."""


@dataclass(frozen=True)
class TensorPlace:
    """Where a tensor is in its file.

    Attributes:
        shape: As torch has it; GGUF has the axes in the opposite order.
        kind: Its type.
        start: Byte of the file that it begins at.
        size: Its bytes.
    """

    shape: tuple[int, ...]
    kind: GGMLQuantizationType
    start: int
    size: int


@dataclass(frozen=True)
class Header:
    """The metadata of a GGUF file, and its tensors by name."""

    path: Path
    fields: Mapping[str, Any]
    """Numbers, truth values, texts, or lists of these."""
    tensors: Mapping[str, TensorPlace]


class _DamageError(Exception):
    """The file is not what it says; the message is the fault."""


def read_header(path: Path) -> Header:
    """Read and check the beginning of a GGUF file: no tensor may lie outside of the file.

    Raises:
        UsageError: it cannot be read, is no GGUF file, or of a kind that is not supported.
        RunError: it is damaged.
    """
    try:
        with open_file(path) as file:
            if file.read(4) != MAGIC:
                raise UsageError(f"{path}: is no GGUF file: it does not begin with GGUF")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as contents:
                return _read(path, contents)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror or error}") from error
    except _DamageError as error:
        raise RunError(f"{path}: damaged: {error}", hint="download it again") from error


def _read(path: Path, contents: mmap.mmap) -> Header:
    cursor = _Cursor(contents)
    _check_version(path, cursor.number("<u4"))
    n_tensors, n_fields = cursor.number("<u8"), cursor.number("<u8")
    cursor.check_room(n_fields, 13, "entries of metadata")
    cursor.check_room(n_tensors, 32, "tensors")
    fields: dict[str, Any] = {}
    for _ in range(n_fields):
        key = cursor.text(LONGEST_NAME)
        if key in fields:
            raise _DamageError(f"its metadata has {key!r} twice")
        fields[key] = cursor.value()
    places = _places(path, cursor, n_tensors, fields)
    return Header(path, fields, places)


def _check_version(path: Path, version: int) -> None:
    if version & 0xFFFF == 0:
        raise UsageError(
            f"{path}: is for big-endian machines", hint="download the little-endian file"
        )
    if version not in (2, 3):
        raise UsageError(f"{path}: GGUF version {version} is not supported, 2 and 3 are")


def _places(
    path: Path, cursor: "_Cursor", count: int, fields: Mapping[str, Any]
) -> dict[str, TensorPlace]:
    """Where the tensors are, all within the file."""
    found = {}
    for _ in range(count):
        name = cursor.text(LONGEST_NAME)
        if name in found:
            raise _DamageError(f"it has the tensor {name!r} twice")
        n_dimensions = cursor.number("<u4")
        if not 1 <= n_dimensions <= MOST_DIMENSIONS:
            raise _DamageError(f"the tensor {name!r} has {n_dimensions:,} dimensions")
        sizes = [cursor.number("<u8") for _ in range(n_dimensions)]
        found[name] = (sizes, cursor.number("<u4"), cursor.number("<u8"))
    alignment = _alignment(fields)
    data = -(-cursor.position // alignment) * alignment
    return {
        name: _place(path, name, sizes, kind, data + offset, cursor.size)
        for name, (sizes, kind, offset) in found.items()
    }


def _alignment(fields: Mapping[str, Any]) -> int:
    alignment = fields.get("general.alignment", ALIGNMENT)
    if not isinstance(alignment, int) or not 1 <= alignment <= 1 << 20 or alignment.bit_count() > 1:
        raise _DamageError(f"general.alignment is {alignment!r}")
    return alignment


def _place(
    path: Path, name: str, sizes: list[int], number: int, start: int, end: int
) -> TensorPlace:
    try:
        kind = GGMLQuantizationType(number)
    except ValueError:
        raise _DamageError(f"the tensor {name!r} has the unknown type {number}") from None
    if kind.name not in READABLE:
        raise UsageError(
            f"{path}: the tensor {name} is of type {kind.name}, which is not supported",
            hint=f"supported: {', '.join(READABLE)}",
        )
    block, block_bytes = GGML_QUANT_SIZES[kind]
    if min(sizes) < 1 or sizes[0] % block:
        raise _DamageError(f"the tensor {name!r} of type {kind.name} has the shape {sizes[::-1]}")
    size = math.prod(sizes) // block * block_bytes
    if start + size > end:
        raise _DamageError(
            f"the tensor {name!r} ends at byte {start + size:,}, but the file has {end:,}"
        )
    return TensorPlace(tuple(reversed(sizes)), kind, start, size)


class _Cursor:
    """A position in the file; what would lie behind the file's end is damage."""

    def __init__(self, contents: mmap.mmap) -> None:
        self.contents = contents
        self.size = len(contents)
        self.position = len(MAGIC)
        self.values_left = MOST_VALUES

    def take(self, count: int) -> bytes:
        """The next bytes."""
        if count > self.size - self.position:
            raise _DamageError(f"it ends in its header, at byte {self.size:,}")
        if self.position + count > LARGEST:
            raise _DamageError(f"its header is longer than {LARGEST:,} bytes")
        self.position += count
        return self.contents[self.position - count : self.position]

    def check_room(self, count: int, least: int, what: str) -> None:
        """Refuse a count of things, each of at least some bytes, that do not fit into the file.

        A file may have holes, which take no place on the disk: so there is a limit, too.
        """
        if count * least > self.size - self.position:
            raise _DamageError(f"{count:,} {what} do not fit into its {self.size:,} bytes")
        self.values_left -= count
        if self.values_left < 0:
            raise _DamageError(f"its header has more than {MOST_VALUES:,} values")

    def number(self, kind: str) -> int:
        """An integer."""
        return int(self.array(kind, 1)[0])

    def array(self, kind: str, count: int) -> Any:
        """Numbers in numpy's spelling of their kind."""
        size = np.dtype(kind).itemsize
        self.check_room(count, size, "numbers")
        return np.frombuffer(self.take(count * size), kind)

    def text(self, longest: int = LONGEST) -> str:
        """A text, which has its length before it."""
        (length,) = struct.unpack("<Q", self.take(8))
        if length > longest:
            raise _DamageError(f"a text of {length:,} bytes at byte {self.position:,}")
        start = self.position
        try:
            return self.take(length).decode()
        except UnicodeDecodeError:
            raise _DamageError(f"the text at byte {start:,} is not UTF-8") from None

    def value(self) -> Any:
        """A value of the metadata, which has its kind before it."""
        kind = self.number("<u4")
        if kind != ARRAY:
            (value,) = self.values(kind, 1)
            return value
        kind, count = self.number("<u4"), self.number("<u8")
        return self.values(kind, count)

    def values(self, kind: int, count: int) -> list[Any]:
        """Values of one kind."""
        if kind == TEXT:
            self.check_room(count, 8, "texts")
            return [self.text() for _ in range(count)]
        if kind == BOOL:
            return [bool(value) for value in self.array("<u1", count)]
        if kind not in SCALARS:
            raise _DamageError(f"the unknown kind of value {kind} at byte {self.position:,}")
        found: list[Any] = self.array(SCALARS[kind], count).tolist()
        return found
