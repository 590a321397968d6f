"""Append a proof to an exported file, without touching the bytes that were proven."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from gptkit.onnx.runtime.metadata import Check, Proof, appendix, digest


def append_proof(
    path: Path, checks: Sequence[Check], weights: Mapping[str, str] | None = None
) -> None:
    """Append the checks, and the digest of all that comes before, to an ONNX file.

    Protobuf messages that follow one another are read as one, so this adds a metadata entry.

    Args:
        path: the file that was proven.
        checks: what was measured.
        weights: sha256 of the files beside it that hold its weights, by name.
    """
    proof = Proof(
        size=path.stat().st_size,
        sha256=digest(path),
        checks=list(checks),
        weights=dict(weights or {}),
    )
    with path.open("ab") as file:
        file.write(appendix(proof.model_dump_json()))
        file.flush()
        os.fsync(file.fileno())
