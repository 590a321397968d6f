"""What environment.json says of a run's past: the weights that it began with, and its changes.

The file may have been edited or damaged: what is read here has the right types.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, NonNegativeInt, ValidationError

FORMAT = 2
"""Of environment.json. 0.1 to 0.3 wrote none; to them, in recipe.toml too, `mlp = "gelu"` was what
is now "gelu_tanh"."""


class Began(BaseModel):
    """The checkpoint whose weights a run began with."""

    model_config = ConfigDict(frozen=True, strict=True)

    run: str
    """The path of its run folder."""
    step: NonNegativeInt
    weights: str | None
    """The name of the set of weights; None: the model's own."""
    sha256: str
    """Digest of the file with the weights."""

    def __str__(self) -> str:
        return f"step {self.step} of {self.run}" + (
            f", weights {self.weights}" if self.weights else ""
        )


class Changed(BaseModel):
    """What changed when a run was resumed."""

    model_config = ConfigDict(frozen=True, strict=True)

    step: NonNegativeInt
    set: dict[str, Any]
    """The new values."""


def began(environment: Mapping[str, Any]) -> Began | None:
    """What a run began with; None: with random weights.

    Raises:
        ValueError: the record is damaged.
    """
    found = environment.get("from")
    return None if found is None else Began.model_validate(found)


def changed(environment: Mapping[str, Any]) -> Iterator[Changed]:
    """What changed, oldest first, without damaged records."""
    found = environment.get("changes")
    for record in found if isinstance(found, list) else []:
        try:
            yield Changed.model_validate(record)
        except ValidationError:
            continue
