"""State: what the file `state.json` of a step folder says."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from gptkit.recipe import older
from gptkit.recipe.codec_record import CodecRecord
from gptkit.recipe.options import GPTConfig, LoraOptions, Number, Size

FORMAT: Literal[5] = 5
"""Increased whenever an older gptkit could not read what a newer one writes. Older formats are
read, too: the "gelu" of 1 and 2 is what is now "gelu_tanh", callbacks and parameter groups of 1
have positions instead of names, 4 keeps a long codec in a file of its own, and 5 has more options
of the model."""


def _check_group(group: dict[str, Any]) -> dict[str, Any]:
    names = group.get("params", [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError("params should be names of parameters")
    if not isinstance(group.get("optimizer", ""), str):
        raise ValueError("optimizer should be a name")
    return group


Group = Annotated[dict[str, Any], AfterValidator(_check_group)]
"""Of a parameter group: its optimizer, its numbers, and as "params" the names of its parameters."""
SetName = Annotated[str, Field(pattern=r"^[a-z0-9_-]+$")]
"""Of a further set of weights."""


class State(BaseModel):
    """The contents of `state.json`, in which `Infinity` and `NaN` are numbers, too."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")

    format: Literal[1, 2, 3, 4, 5] = FORMAT
    gptkit: str
    """The version that wrote it."""
    config: GPTConfig
    dataset: str
    codec: CodecRecord
    """Without its options where these are long: they are in `codec.json`, which `sha256` names."""
    step: Number
    tokens: Number | None = None
    """Target tokens seen; None in format 1."""
    batch_size: Size | None = None
    """Sequences per update, if a callback changed it."""
    val_loss: float | None
    """Of the latest evaluation, in nats per token."""
    val_losses: dict[str, float] = {}
    """Of the further sets of weights at that evaluation, by name."""
    val_step: Number | None
    """The step of the latest evaluation."""
    optimizer_groups: list[Group]
    """Optimizer, numbers and parameter names of every group; in format 1 the numbers alone. Empty
    for an imported model, which has no optimizer yet."""
    first_groups: list[Group] = []
    """Likewise, after `on_fit_start` when the run began."""
    callbacks: dict[str, dict[str, Any]] | list[dict[str, Any]]
    """JSON values that callbacks keep, by name; in format 1 in the recipe's order. A tensor in
    `callbacks.safetensors` is null here; its key there is its path, such as `ema/wte.weight`."""
    weights: dict[SetName, str] = {}
    """The callback that offered each further set of weights, by the set's name."""
    lora: LoraOptions | None = None
    """Of the adapters whose products are in the weights, complete; None if there are none."""
    base_sha256: str | None = None
    """Digest of the run's base.safetensors, the weights beside which the adapters are trained."""
    sha256: dict[str, str] = {}
    """Digest by file name."""

    @property
    def imported(self) -> bool:
        """Whether these are the weights of an imported model, from which no training goes on."""
        return self.step == 0 and not self.optimizer_groups

    @model_validator(mode="before")
    @classmethod
    def _upgrade(cls, values: Any) -> Any:
        return older.upgrade(values)
