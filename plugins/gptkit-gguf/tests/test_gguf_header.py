"""Reading files that are damaged, hostile or of another kind."""

import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf.quants import dequantize, quantize

from gptkit.plugin import RunError, UsageError
from gptkit_gguf.header import READABLE, read_header
from gptkit_gguf.metadata import config_of
from gptkit_gguf.tensors import read_tensor
from gptkit_gguf.vocabulary import read_vocabulary

Write = Callable[..., Path]
Tensors = Mapping[str, tuple[tuple[int, ...], int, int]]


def text(value: str | bytes) -> bytes:
    contents = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(contents)) + contents


def built(*, fields: bytes = b"", n_fields: int = 0, tensors: bytes = b"", n_tensors: int = 0,
          magic: bytes = b"GGUF", version: int = 3, data: int = 0) -> bytes:  # fmt: skip
    """The bytes of a file, right or wrong."""
    head = magic + struct.pack("<IQQ", version, n_tensors, n_fields) + fields + tensors
    return head + bytes(-len(head) % 32) + bytes(data)


def tensor(name: str, *sizes: int, kind: int = 0, offset: int = 0) -> bytes:
    dimensions = struct.pack(f"<I{len(sizes)}Q", len(sizes), *sizes)
    return text(name) + dimensions + struct.pack("<IQ", kind, offset)


@pytest.mark.parametrize("kind", [7, 8], ids=["truth values", "texts"])
def test_a_file_with_holes_takes_no_memory(kind: int, tmp_path: Path) -> None:
    values = struct.pack("<IIQ", 9, kind, 1 << 23)
    path = tmp_path / "holes.gguf"
    path.write_bytes(built(n_fields=9, fields=text("a") + values))
    with path.open("r+b") as file:
        file.truncate(1 << 40)
    with pytest.raises(RunError, match="its header has more than 8,388,608 values"):
        read_header(path)


HUGE = 1 << 62
DAMAGED = {
    "counts of metadata": (built(n_fields=HUGE), "4,611,686,018,427,387,904 entries of metadata"),
    "counts of tensors": (built(n_tensors=HUGE, data=99), "tensors do not fit"),
    "a length of a key": (built(n_fields=1, fields=struct.pack("<Q", HUGE), data=64), "a text of"),
    "a key beyond the end": (built(n_fields=1, fields=text("a")[:8], data=0)[:40], "entries of"),
    "bytes that are no text": (
        built(n_fields=1, fields=text(b"\xff\xfe") + struct.pack("<II", 4, 1)), "not UTF-8"),
    "a key twice": (
        built(n_fields=2, fields=2 * (text("a") + struct.pack("<II", 4, 1))), "'a' twice"),
    "a kind of value": (
        built(n_fields=1, fields=text("a") + struct.pack("<II", 77, 1)), "unknown kind of value 77"
    ),
    "an array of arrays": (
        built(n_fields=1, fields=text("a") + struct.pack("<IIQ", 9, 9, 1), data=64),
        "unknown kind of value 9"),
    "a count of an array": (
        built(n_fields=1, fields=text("a") + struct.pack("<IIQ", 9, 4, HUGE)), "numbers do not"),
    "a count of texts": (
        built(n_fields=1, fields=text("a") + struct.pack("<IIQ", 9, 8, HUGE)), "texts do not fit"),
    "an alignment of 0": (
        built(n_fields=1, fields=text("general.alignment") + struct.pack("<II", 4, 0)),
        "general.alignment is 0"),
    "an alignment of 3": (
        built(n_fields=1, fields=text("general.alignment") + struct.pack("<II", 4, 3)),
        "general.alignment is 3"),
    "dimensions": (
        built(n_tensors=1, tensors=tensor("a", *[1] * 9)), "'a' has 9 dimensions"),
    "no dimension": (built(n_tensors=1, tensors=tensor("a"), data=64), "'a' has 0 dimensions"),
    "an empty tensor": (built(n_tensors=1, tensors=tensor("a", 0)), "'a' of type F32 has the"),
    "a tensor beyond the end": (built(n_tensors=1, tensors=tensor("a", 9), data=32), "but the"),
    "a tensor that is huge": (
        built(n_tensors=1, tensors=tensor("a", HUGE, HUGE), data=32), "but the file has"),
    "a tensor far away": (
        built(n_tensors=1, tensors=tensor("a", 1, offset=HUGE), data=32), "but the file has"),
    "a tensor twice": (
        built(n_tensors=2, tensors=2 * tensor("a", 1), data=32), "tensor 'a' twice"),
    "a type of tensor": (
        built(n_tensors=1, tensors=tensor("a", 1, kind=999), data=32), "unknown type 999"),
    "half a block": (
        built(n_tensors=1, tensors=tensor("a", 33, kind=8), data=99), "shape [33]"),
}  # fmt: skip
REFUSED = {
    "no GGUF": (built(magic=b"PK\x03\x04"), "is no GGUF file"),
    "empty": (b"", "is no GGUF file"),
    "version 1": (built(version=1), "version 1 is not supported"),
    "version 99": (built(version=99), "version 99 is not supported"),
    "big-endian": (built(version=3 << 24), "big-endian"),
    "another type": (
        built(n_tensors=1, tensors=tensor("a", 256, kind=16), data=99), "IQ2_XXS, which is not"),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_file_says_what_is_wrong(case: str, tmp_path: Path) -> None:
    contents, fault = DAMAGED[case]
    (tmp_path / "a.gguf").write_bytes(contents)
    with pytest.raises(RunError) as error:
        read_header(tmp_path / "a.gguf")
    assert f"{tmp_path}/a.gguf: damaged: " in str(error.value)
    assert fault in str(error.value)


@pytest.mark.parametrize("case", REFUSED)
def test_another_file_is_refused(case: str, tmp_path: Path) -> None:
    contents, fault = REFUSED[case]
    (tmp_path / "a.gguf").write_bytes(contents)
    with pytest.raises(UsageError) as error:
        read_header(tmp_path / "a.gguf")
    assert fault in str(error.value)


def test_a_file_that_is_missing_or_a_folder_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.gguf", tmp_path):
        with pytest.raises(UsageError, match="cannot be read"):
            read_header(path)


def test_a_truncated_file_is_damaged_wherever_it_ends(tiny_file: Write) -> None:
    path = tiny_file()
    contents = path.read_bytes()
    whole = read_header(path)
    assert max(place.start + place.size for place in whole.tensors.values()) == len(contents)
    for length in [*range(4, 400), *range(400, len(contents), 997), len(contents) - 1]:
        path.write_bytes(contents[:length])
        with pytest.raises(RunError, match="damaged: "):
            read_header(path)


def test_any_damage_is_an_error_that_can_be_understood(tiny_file: Write) -> None:
    path = tiny_file()
    contents = path.read_bytes()
    length = min(place.start for place in read_header(path).tensors.values())
    random = np.random.default_rng(3)
    refused = 0
    for _ in range(600):
        changed = bytearray(contents)
        for _ in range(random.integers(1, 4)):
            changed[random.integers(4, length)] = random.integers(256)
        path.write_bytes(changed)
        try:
            header = read_header(path)
            config_of(header)
            read_vocabulary(header)
        except (RunError, UsageError):
            refused += 1
    assert refused > 100


FAULTS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "another architecture": (
        {"general.architecture": "mamba"}, UsageError, "architecture 'mamba' is not supported"),
    "more layers": ({"llama.block_count": 2}, RunError, "blk.1.attn_norm.weight is missing"),
    "countless layers": ({"llama.block_count": 1 << 30}, RunError, "1,073,741,824 layers, but"),
    "no layers": ({"llama.block_count": 0}, UsageError, "llama.block_count is 0"),
    "a list of sizes": (
        {"llama.feed_forward_length": [64, 32]}, UsageError, r"feed_forward_length is \[64, 32\]"),
    "a text as a size": ({"llama.embedding_length": "x"}, UsageError, "is 'x': not supported"),
    "a missing size": ({"llama.context_length": None}, RunError, "context_length is missing"),
    "another width": ({"llama.embedding_length": 64}, RunError, r"\[257, 32\].* \[257, 64\]"),
    "another head": ({"llama.attention.head_count": 3}, RunError, "3 heads do not|has the shape"),
    "other kv heads": ({"llama.attention.head_count_kv": 2}, RunError, "attn_k.weight has the"),
    "partial rotation": ({"llama.rope.dimension_count": 8}, UsageError, "rope.dimension_count, 8"),
    "yarn": ({"llama.rope.scaling.type": "yarn"}, UsageError, "scaling.type is 'yarn'"),
    "a scale": ({"llama.attention.scale": 0.5}, UsageError, "llama.attention.scale, 0.5, is not"),
    "experts": ({"llama.expert_count": 8}, UsageError, "llama.expert_count, 8, is not supported"),
    "a NaN": (
        {"llama.attention.layer_norm_rms_epsilon": float("nan")}, RunError, "epsilon is nan"),
    "split": ({"split.count": 3}, UsageError, "is one of 3 files"),
}  # fmt: skip


@pytest.mark.parametrize("case", FAULTS)
def test_metadata_that_lies_or_asks_for_more_is_refused(case: str, tiny_file: Write) -> None:
    fields, kind, fault = FAULTS[case]
    path = tiny_file(**fields)
    with pytest.raises(kind, match=fault) as error:
        config_of(read_header(path))
    assert str(error.value).startswith(f"{path}: ")


def test_a_tensor_that_no_llama_has_is_named(tiny_file: Write) -> None:
    path = tiny_file()
    path.write_bytes(
        path.read_bytes().replace(b"blk.0.attn_norm.weight", b"blk.0.attn_what.weight")
    )
    with pytest.raises(RunError, match=r"blk\.0\.attn_norm\.weight is missing"):
        config_of(read_header(path))


@pytest.mark.parametrize("name", READABLE)
def test_tensors_are_what_the_package_gguf_reads(name: str, tmp_path: Path) -> None:
    kind = gguf.GGMLQuantizationType[name]
    random = np.random.default_rng(1)
    try:
        packed = quantize(random.normal(size=(300, 512)).astype(np.float32), kind)
    except NotImplementedError:  # only dequantised: any bytes will do, but for their scales
        block, size = gguf.GGML_QUANT_SIZES[kind]
        packed = random.integers(0, 60, (300, 512 // block * size)).astype(np.uint8)
    file = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    file.add_tensor("a", packed, raw_dtype=kind)
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()
    place = read_header(tmp_path / "a.gguf").tensors["a"]
    assert place.shape == (300, 512)
    found = read_tensor(tmp_path / "a.gguf", place)
    assert np.array_equal(found, dequantize(packed, kind), equal_nan=True)
    assert found.any()
