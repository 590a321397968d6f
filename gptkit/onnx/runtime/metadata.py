"""What an exported file says of itself: JSON under two keys of the ONNX metadata. No torch.

`gptkit` describes the model. `gptkit.proof` is appended to the finished file, once it has been
proven equal to the checkpoint: bytes added to an ONNX file (protobuf) merge with what is there.
"""

import hashlib
import math
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveInt,
    ValidationError,
    model_validator,
)

from gptkit.errors import ModelFileError
from gptkit.recipe.registry import CodecRecord

FORMAT: Literal[1] = 1
"""Raised whenever an older gptkit could not use what a newer one exports."""
KEY, PROOF_KEY = "gptkit", "gptkit.proof"

LONGEST_PROOF = 1 << 16
"""Bytes at a file's end among which the proof is looked for."""

AGAIN = "copy the file again, or export the model again"
FOREIGN = "only whole files that gptkit export --onnx wrote can be sampled; if it was one, " + AGAIN


class Record(BaseModel):
    """Base of what is stored; fields that a newer gptkit adds are passed over."""

    model_config = ConfigDict(frozen=True, extra="ignore", ser_json_inf_nan="constants")


class Tokens(Record):
    """What other programs need to know about the token ids."""

    starts: list[list[int]] = Field(min_length=1)
    """Ids with which a sample from nothing starts: one list per class, or a single one."""
    length: PositiveInt | None
    """Ids of a whole sample, its start included; null where it can go on for ever."""
    temperature: float
    """For sampling, where nobody asks for another."""
    suffix: str
    """Of the files that samples are."""
    legend: dict[str, Any] | None
    """What an id stands for; see `gptkit.codec.Codec.legend`."""


class Metadata(Record):
    """A model, as its exported file describes it."""

    @model_validator(mode="after")
    def _check_starts(self) -> Self:
        starts = self.tokens.starts
        if len({len(start) for start in starts}) != 1 or not starts[0]:
            raise ValueError("tokens.starts should be lists of one length, at least 1")
        if not all(0 <= token < self.vocab_size for start in starts for token in start):
            raise ValueError(f"tokens.starts should be ids below {self.vocab_size}")
        return self

    format: Literal[1] = FORMAT
    graph: Literal["generate", "step", "decode"]
    """What one run of the file does."""
    dtype: str
    """float32, float16, int8 or int4."""
    opset: PositiveInt
    gptkit: str
    """The version that exported it."""
    config: dict[str, Any]
    """The GPTConfig."""
    block_size: PositiveInt
    vocab_size: PositiveInt
    codec: CodecRecord
    tokens: Tokens
    dataset: str
    step: int
    """Of training, at which the checkpoint was saved."""
    val_loss: float | None
    checkpoint_sha256: str
    """Of the checkpoint's model.safetensors."""

    def entries(self) -> dict[str, str]:
        """As entries of the ONNX metadata."""
        return {KEY: self.model_dump_json()}


class Check(Record):
    """One comparison of an exported file with its checkpoint."""

    name: str
    measured: float | None
    """null where it was not a number."""
    limit: float
    unit: str
    """Of both, in words."""
    where: str
    """The place of what was measured."""

    @classmethod
    def of(cls, name: str, measured: float, limit: float, unit: str, where: str = "") -> "Check":
        """A comparison that was made."""
        number = measured if math.isfinite(measured) else None
        return cls(name=name, measured=number, limit=limit, unit=unit, where=where)

    @property
    def passed(self) -> bool:
        """Whether the file is as equal as it has to be."""
        return self.measured is not None and self.measured <= self.limit

    def __str__(self) -> str:
        found = "not a number" if self.measured is None else f"{self.measured:.3g}"
        place = f" ({self.where})" if self.where else ""
        return f"{self.name}: {found} {self.unit}, at most {self.limit:g}{place}"


class Proof(Record):
    """That a file is equal to its checkpoint, and complete."""

    format: Literal[1] = FORMAT
    size: PositiveInt
    """Bytes of the file before this was appended."""
    sha256: str
    """Of these bytes."""
    checks: list[Check]
    weights: dict[str, str] = {}
    """sha256 of the files beside it that hold the weights, by name."""


def read(entries: Mapping[str, str], path: Path) -> Metadata:
    """What a file's ONNX metadata says of the model.

    Raises:
        ModelFileError: it is missing, of a newer format, or not of the right shape.
    """
    if KEY not in entries:
        raise ModelFileError(f'{path}: it lacks the metadata "{KEY}"', hint=FOREIGN)
    try:
        return Metadata.model_validate_json(entries[KEY])
    except ValidationError as error:
        raise _misshapen(path, KEY, error) from None


def of(session: Any, path: Path) -> Metadata:
    """What the file that an onnxruntime session was opened from says of the model; see `read`."""
    return read(session.get_modelmeta().custom_metadata_map, path)


def check_files(*paths: Path) -> list[Proof]:
    """The proofs at the ends of files, once these are known to be the ones that were proven.

    This comes before onnxruntime sees a file, so nothing damaged or foreign is ever loaded. Weights
    that several have in common are read once.

    Raises:
        ModelFileError: there is none, it is of a newer format, or the bytes are not those.
    """
    sha256 = cache(digest)
    return [_check_file(path, sha256) for path in paths]


def _check_file(path: Path, sha256: Callable[[Path], str]) -> Proof:
    proof, text, tail = _proof(path)
    if not tail.endswith(appendix(text)) or path.stat().st_size != proof.size + len(appendix(text)):
        raise ModelFileError(f"{path}: damaged: its proof is not its end", hint=AGAIN)
    if digest(path, proof.size) != proof.sha256:
        raise ModelFileError(f"{path}: damaged: its sha256 is not the one it names", hint=AGAIN)
    for name, expected in proof.weights.items():
        weights = path.parent / Path(name).name
        if not weights.is_file():
            raise ModelFileError(f"{path}: its weights, {weights.name}, are missing", hint=AGAIN)
        if sha256(weights) != expected:
            raise ModelFileError(
                f"{weights}: damaged: its sha256 is not the one that {path.name} names", hint=AGAIN
            )
    return proof


def appendix(proof: str) -> bytes:
    """A proof as the bytes that follow the proven ones: an ONNX model with a metadata entry."""
    key, value = PROOF_KEY.encode(), proof.encode()
    entry = b"\x0a" + _length(key) + key + b"\x12" + _length(value) + value
    return b"\x72" + _length(entry) + entry  # 0x72 is metadata_props


def _length(message: bytes) -> bytes:
    """As protobuf writes it: seven bits a byte, the lowest first."""
    left, written = len(message), []
    while left > 127:
        written.append(left & 127 | 128)
        left >>= 7
    return bytes([*written, left])


def _proof(path: Path) -> tuple[Proof, str, bytes]:
    """The proof, its text, and the end of the file, where alone it is looked for."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - LONGEST_PROOF))
            tail = file.read()
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be read: {error.strerror}", hint=AGAIN) from error
    at = tail.rfind(PROOF_KEY.encode())
    start = tail.find(b'{"', at)  # a single brace may be the length before it
    if at < 0 or start < 0:
        raise ModelFileError(f'{path}: it lacks the metadata "{PROOF_KEY}"', hint=FOREIGN)
    text = tail[start : tail.rfind(b"}") + 1]
    try:
        return Proof.model_validate_json(text), text.decode(), tail
    except ValidationError as error:
        raise _misshapen(path, PROOF_KEY, error) from None


def digest(path: Path, size: int | None = None) -> str:
    """The sha256 of a file's first `size` bytes, or of all, in hex."""
    sha256 = hashlib.sha256()
    left = path.stat().st_size if size is None else size
    with path.open("rb") as file:
        while left > 0 and (chunk := file.read(min(left, 1 << 20))):
            sha256.update(chunk)
            left -= len(chunk)
    return sha256.hexdigest()


def _misshapen(path: Path, key: str, error: ValidationError) -> ModelFileError:
    first = error.errors(include_url=False)[0]
    if first["loc"] == ("format",) and isinstance(first["input"], int):
        return ModelFileError(
            f"{path}: exported in format {first['input']}, this gptkit reads {FORMAT}",
            hint="pip install --upgrade gptkit",
        )
    where = ".".join(map(str, (key, *first["loc"])))
    return ModelFileError(f"{path}: damaged: metadata {where}: {first['msg']}", hint=AGAIN)
