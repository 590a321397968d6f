"""The metadata of exported files: JSON under two keys of the ONNX metadata. Imports no torch.

`gptkit` describes the model. `gptkit.proof` is appended to the file once it was proven equal to the
checkpoint: an ONNX file is a protobuf message, and fields that follow its end belong to it, too.
"""

import math
import os
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveInt,
    ValidationError,
    model_validator,
)

from gptkit.errors import ModelFileError
from gptkit.files import digest, open_file
from gptkit.onnx.runtime.providers import AGAIN
from gptkit.recipe import older, phrases
from gptkit.recipe.codec_record import CodecRecord
from gptkit.recipe.options import GPTConfig

FORMAT: Literal[4] = 4
"""Increased when an older gptkit could not use what a newer one exports. 2: `stop_tokens` are an
input of the graph `generate`, in place of 1's `stop_token`. 3: `mlp = "gelu"` is the exact GELU,
"gelu_tanh" what 1 and 2 call "gelu". 4: the model has more options."""
PROOF_FORMAT: Literal[1] = 1
"""The same for proofs."""
KEY, PROOF_KEY = "gptkit", "gptkit.proof"

MAX_PROOF_BYTES = 1 << 16
"""How far from the end of a file a proof may begin."""

FOREIGN = "gptkit samples only complete files that gptkit export wrote; if this was one, " + AGAIN


def _without_unknown(config: Any) -> Any:
    """A GPTConfig without the fields that a newer gptkit added."""
    if not isinstance(config, dict):
        return config
    return {name: value for name, value in config.items() if name in GPTConfig.model_fields}


class StoredJson(BaseModel):
    """Base of what a file stores; fields that a newer gptkit adds are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore", ser_json_inf_nan="constants")


class Tokens(StoredJson):
    """What a program without the codec needs to know about the token ids."""

    starts: list[list[int]] = Field(min_length=1)
    """Ids that a sample without a prompt starts with: one list per class, or a single one."""
    stop_tokens: list[int] = []
    """Ids that end a sample and are not part of it."""
    length: PositiveInt | None
    """Ids of a whole sample, its start included; null if samples have no fixed length."""
    temperature: float
    """The default temperature."""
    suffix: str
    """File name ending of samples, e.g. ".txt"."""
    legend: dict[str, Any] | None
    """What the ids stand for; see `gptkit.onnx.export.legend`. None for other data than text and
    images."""


class Metadata(StoredJson):
    """What an exported file says about its model."""

    @model_validator(mode="before")
    @classmethod
    def _upgrade(cls, values: Any) -> Any:
        return older.upgrade(values)

    @model_validator(mode="after")
    def _check_sizes(self) -> Self:
        if (self.block_size, self.vocab_size) != (self.config.block_size, self.config.vocab_size):
            raise ValueError("config should have the same block_size and vocab_size")
        starts = self.tokens.starts
        if len({len(start) for start in starts}) != 1 or not starts[0]:
            raise ValueError("tokens.starts should be lists of one length, at least 1")
        if not all(0 <= token < self.vocab_size for start in starts for token in start):
            raise ValueError(f"tokens.starts should be ids below {self.vocab_size}")
        return self

    format: Literal[1, 2, 3, 4] = FORMAT
    graph: Literal["generate", "step", "decode"]
    """Which of the graphs the file holds."""
    dtype: str
    """float32, float16, int8 or int4."""
    opset: PositiveInt
    gptkit: str
    """The gptkit version that exported it."""
    config: Annotated[GPTConfig, BeforeValidator(_without_unknown)]
    """All sizes and options of the model."""
    block_size: PositiveInt
    vocab_size: PositiveInt
    codec: CodecRecord
    tokens: Tokens
    dataset: str
    step: int
    """The training step of the checkpoint."""
    val_loss: float | None
    checkpoint_sha256: str
    """sha256 of the checkpoint's model.safetensors."""

    def entries(self) -> dict[str, str]:
        """As entries of the ONNX metadata."""
        return {KEY: self.model_dump_json()}


class Comparison(StoredJson):
    """One comparison of an exported file with its checkpoint."""

    name: str
    measured: float | None
    """null if it was not a number."""
    limit: float
    unit: str
    """Of `measured` and `limit`, in words."""
    where: str
    """Which case, row and token the measured value belongs to."""

    @classmethod
    def of(
        cls, name: str, measured: float, limit: float, unit: str, where: str = ""
    ) -> "Comparison":
        """A comparison; a measured NaN or infinity is stored as null."""
        number = measured if math.isfinite(measured) else None
        return cls(name=name, measured=number, limit=limit, unit=unit, where=where)

    @property
    def passed(self) -> bool:
        """Whether what was measured is within the limit."""
        return self.measured is not None and self.measured <= self.limit

    def __str__(self) -> str:
        found = "not a number" if self.measured is None else f"{self.measured:.3g}"
        place = f" ({self.where})" if self.where else ""
        return f"{self.name}: {found} {self.unit}, limit {self.limit:g}{place}"


class Proof(StoredJson):
    """The evidence that a file equals its checkpoint, and its size and digest."""

    format: Literal[1] = PROOF_FORMAT
    size: PositiveInt
    """Bytes of the file before the proof was appended."""
    sha256: str
    """Digest of these bytes."""
    checks: list[Comparison]
    weights: dict[Literal["model.safetensors"], str] = {}
    """Digest of the weights beside it, by file name; none if they are in the file itself."""


def read(entries: Mapping[str, str], path: Path) -> Metadata:
    """Parse the entries of a file's ONNX metadata.

    Raises:
        ModelFileError: gptkit's entry is missing, of a newer format or malformed.
    """
    if KEY not in entries:
        raise ModelFileError(f'{path}: has no metadata "{KEY}"', hint=FOREIGN)
    try:
        return Metadata.model_validate_json(entries[KEY])
    except ValidationError as error:
        raise _malformed(path, KEY, error) from None


def of_session(session: Any, path: Path) -> Metadata:
    """The metadata of the file that an onnxruntime session has loaded; see `read`."""
    try:
        entries = session.get_modelmeta().custom_metadata_map
    except UnicodeDecodeError as error:
        raise ModelFileError(f"{path}: damaged: metadata is not UTF-8", hint=AGAIN) from error
    return read(entries, path)


def is_exported(path: Path) -> bool:
    """Whether an export may replace a file: it ends with a proof of gptkit's, or is empty."""
    try:
        with open_file(path) as file:
            return not file.read(1) or bool(_proof(path))
    except (OSError, ModelFileError):
        return False


def check_files(*paths: Path) -> list[Proof]:
    """Verify the proofs at the ends of files, and return them.

    Done before onnxruntime opens a file, so that nothing damaged or foreign is ever loaded. Weight
    files that several graphs share are read once.

    Raises:
        ModelFileError: a proof is missing or of a newer format, or the file has changed.
    """
    sha256 = cache(digest)
    try:
        return [_check_file(path, sha256) for path in paths]
    except OSError as error:
        raise ModelFileError(
            f"{error.filename}: cannot be read: {error.strerror}", hint=AGAIN
        ) from error


def _check_file(path: Path, sha256: Callable[[Path], str]) -> Proof:
    proof, text, tail = _proof(path)
    if not tail.endswith(appendix(text)) or path.stat().st_size != proof.size + len(appendix(text)):
        raise ModelFileError(f"{path}: damaged: the file does not end with its proof", hint=AGAIN)
    if digest(path, proof.size) != proof.sha256:
        raise ModelFileError(
            f"{path}: damaged: its sha256 differs from the one in its proof", hint=AGAIN
        )
    for name, expected in proof.weights.items():
        weights = path.with_name(name)
        if not weights.exists():
            raise ModelFileError(f"{path}: its weights, {weights.name}, are missing", hint=AGAIN)
        if sha256(weights) != expected:
            raise ModelFileError(
                f"{weights}: damaged: its sha256 differs from the one in {path.name}", hint=AGAIN
            )
    return proof


def appendix(proof: str) -> bytes:
    """The bytes to append for a proof: the protobuf field of an entry of the ONNX metadata."""
    key, value = PROOF_KEY.encode(), proof.encode()
    entry = b"\x0a" + _length(key) + key + b"\x12" + _length(value) + value
    return b"\x72" + _length(entry) + entry  # 0x72: field 14, metadata_props


def _length(message: bytes) -> bytes:
    """The message's length as a protobuf varint: 7 bits per byte, the lowest first."""
    left, groups = len(message), []
    while left > 127:
        groups.append(left & 127 | 128)
        left >>= 7
    return bytes([*groups, left])


def _proof(path: Path) -> tuple[Proof, str, bytes]:
    """The proof, its JSON, and the last `MAX_PROOF_BYTES` of the file, where it was found."""
    with open_file(path) as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - MAX_PROOF_BYTES))
        tail = file.read()
    at = tail.rfind(PROOF_KEY.encode())
    start = tail.find(b'{"', at)  # "{" alone may be a byte of the length before it
    if at < 0 or start < 0:
        raise ModelFileError(f'{path}: has no metadata "{PROOF_KEY}"', hint=FOREIGN)
    text = tail[start : tail.rfind(b"}") + 1]
    try:
        return Proof.model_validate_json(text), text.decode(), tail
    except ValidationError as error:
        raise _malformed(path, PROOF_KEY, error) from None


def _malformed(path: Path, key: str, error: ValidationError) -> ModelFileError:
    first = error.errors(include_url=False)[0]
    if first["loc"] == ("format",) and isinstance(first["input"], int):
        known = FORMAT if key == KEY else PROOF_FORMAT
        return ModelFileError(
            f"{path}: exported in format {first['input']}, this gptkit reads {known}",
            hint="pip install --upgrade gptkit",
        )
    where = ".".join(map(str, (key, *first["loc"])))
    return ModelFileError(f"{path}: damaged: metadata {where}: {phrases.fault(first)}", hint=AGAIN)
