"""Whether two computations of one model give equal logits, but for rounding."""

import numpy as np
from numpy.typing import ArrayLike

from gptkit.errors import ExportError

TOLERANCE = 1e-4
"""How far logits in float32 may be from each other, in parts of the largest one."""


def compare_logits(
    what: str,
    expected: ArrayLike,
    found: ArrayLike,
    *,
    hint: str,
    tolerance: float = TOLERANCE,
) -> float:
    """The largest difference of logits, in parts of the largest logit.

    Where it is within the tolerance, the likeliest token is the same wherever it leads the next
    one by more than twice as much.

    Args:
        what: was computed, for the error.
        expected: logits, (..., vocab_size).
        found: others, of the same shape.
        hint: what to do if they differ.
        tolerance: the largest difference that is rounding.

    Raises:
        ExportError: they differ.
    """
    wanted, got = np.asarray(expected), np.asarray(found)
    if got.shape != wanted.shape:
        raise ExportError(
            f"{what}: computes logits {[*got.shape]}, not {[*wanted.shape]}", hint=hint
        )
    largest = max(float(np.abs(wanted).max()), 1e-9)
    with np.errstate(invalid="ignore"):  # infinite ones
        difference = float(np.abs(got - wanted).max()) / largest
    if not difference <= tolerance:  # also true for NaN
        raise ExportError(
            f"{what}: is not equal to the model: logits differ by {difference:.1e} of the largest "
            "one",
            hint=hint,
        )
    return difference
