"""Append a proof to an exported file; the bytes that were proven do not change."""

import os
from collections.abc import Sequence
from pathlib import Path

from gptkit.files import digest
from gptkit.onnx.runtime.metadata import Comparison, Proof, appendix
from gptkit.onnx.runtime.providers import WEIGHTS_FILE


def append_proof(path: Path, comparisons: Sequence[Comparison], weights: str | None = None) -> None:
    """Append comparisons, and the digest of the file so far, to an ONNX file as metadata.

    Args:
        path: the file that was proven.
        comparisons: all of them passed.
        weights: sha256 of the file of weights beside it; None if it holds them itself.
    """
    proof = Proof(
        size=path.stat().st_size,
        sha256=digest(path),
        checks=list(comparisons),
        weights={WEIGHTS_FILE: weights} if weights else {},
    )
    with path.open("ab") as file:
        file.write(appendix(proof.model_dump_json()))
        file.flush()
        os.fsync(file.fileno())
