"""The options of `[model]` and `[train]` with its optimizer, and the full description of a GPT."""

import re
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    field_validator,
    model_validator,
)

from gptkit.recipe.phrases import shown

Preset = Literal[
    "gpt2",
    "gpt2-medium",
    "gpt2-large",
    "gpt2-xl",
    "gopher-44m",
    "gpt-mini",
    "gpt-micro",
    "gpt-nano",
]
PRESETS: dict[str, dict[str, Any]] = {
    "gpt2": {"n_layer": 12, "n_head": 12, "n_embd": 768, "mlp": "gelu_tanh"},  # 124 M
    "gpt2-medium": {"n_layer": 24, "n_head": 16, "n_embd": 1024, "mlp": "gelu_tanh"},  # 350 M
    "gpt2-large": {"n_layer": 36, "n_head": 20, "n_embd": 1280, "mlp": "gelu_tanh"},  # 774 M
    "gpt2-xl": {"n_layer": 48, "n_head": 25, "n_embd": 1600, "mlp": "gelu_tanh"},  # 1,558 M
    "gopher-44m": {"n_layer": 8, "n_head": 16, "n_embd": 512},
    "gpt-mini": {"n_layer": 6, "n_head": 6, "n_embd": 192},
    "gpt-micro": {"n_layer": 4, "n_head": 4, "n_embd": 128},
    "gpt-nano": {"n_layer": 3, "n_head": 3, "n_embd": 48},
}
"""Options by name; the names come from the papers and from minGPT's tiny models."""


Size = Annotated[int, Field(gt=0, le=2**31 - 1)]
"""Of a tensor; what torch and ONNX can count is far above what a computer can hold."""
Number = Annotated[int, Field(ge=0, le=2**63 - 1)]
"""Of steps or tokens."""
Count = Annotated[int, Field(gt=0, le=2**63 - 1)]
"""Of steps or tokens, at least 1."""


class Options(BaseModel):
    """Frozen, strict about keys and types; the sentence below a field is its help."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,  # TOML has types: "100" is not a number, true is not 1
        allow_inf_nan=False,
        ser_json_inf_nan="constants",  # a plugin's option may be infinite; TOML has inf
        use_attribute_docstrings=True,
        validate_default=True,
    )


class RopeScaling(Options):
    """How rotary positions reach further than the context of an earlier training (Llama 3.1)."""

    rope_type: Literal["llama3"] = "llama3"
    """Slow rotations become slower, those between low_freq_factor and high_freq_factor partly."""
    factor: PositiveFloat
    """How much slower."""
    low_freq_factor: PositiveFloat = 1.0
    """Turns in the earlier context up to which a rotation counts as slow."""
    high_freq_factor: PositiveFloat = 4.0
    """Turns in it from which on a rotation stays as it is."""
    original_max_position_embeddings: Size
    """The earlier context, in tokens."""

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        if self.low_freq_factor >= self.high_freq_factor:
            raise ValueError(
                f"low_freq_factor {self.low_freq_factor:g} should be below high_freq_factor "
                f"{self.high_freq_factor:g}"
            )
        return self


class ModelOptions(Options):
    """The table `[model]`: the shape of a GPT. The data set adds vocab_size and block_size.

    The defaults are GPT-2's architecture (Radford et al. 2019), but with the exact GELU.
    """

    preset: Preset | None = None
    """Sets n_layer, n_head and n_embd by name, and GPT-2's mlp; what is given beside it wins."""
    n_layer: Size = 6
    """Number of blocks."""
    n_head: Size = 6
    """Query heads per attention layer; must divide n_embd, unless head_dim is set."""
    n_kv_head: Size | None = None
    """Key and value heads, shared by groups of queries (Ainslie et al. 2023); n_head if unset."""
    n_embd: Size = 384
    """Width of the residual stream."""
    head_dim: Size | None = None
    """Width of a head; n_embd / n_head if unset."""
    n_inner: Size | None = None
    """Width inside the MLP; if unset 4 * n_embd, for swiglu 8/3 * n_embd rounded up to 64s."""
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    """Normalisation before attention, before the MLP and before the head."""
    norm_eps: PositiveFloat = 1e-5
    """What every norm adds to the mean square."""
    position: Literal["learned", "rotary"] = "learned"
    """Position encoding: a learned table, or rotated queries and keys."""
    rope_theta: PositiveFloat = 10_000.0
    """Base of rotary positions: the larger, the slower the slowest rotation."""
    rope_scaling: RopeScaling | None = None
    """A table that slows rotary positions down, for a longer context."""
    mlp: Literal["gelu", "gelu_tanh", "relu2", "swiglu"] = "gelu"
    """The MLP's non-linearity: GELU, its approximation in GPT-2, squared ReLU, or SiLU-gated."""
    embed_norm: bool = False
    """Normalise the embedding (RMS, without a learned scale)."""
    qk_norm: bool = False
    """Normalise queries and keys per head (RMS)."""
    qk_norm_scale: bool = False
    """Give these norms learned scales, one for queries and one for keys."""
    window: Size | None = None
    """Tokens that a token sees in a windowed layer, itself included (Beltagy et al. 2020)."""
    window_pattern: str = Field(default="S", pattern=r"^[SL]+$")
    """Which layers have the window: S has it, L sees all tokens; repeated over the layers."""
    bias: bool = True
    """Give linear layers and layer norms a bias."""
    qkv_bias: bool | None = None
    """Give queries, keys and values a bias; as bias if unset."""
    tie_embeddings: bool = True
    """Let the head share the token embedding's weights."""
    logit_softcap: PositiveFloat | None = None
    """Keep logits x between -c and c: c * tanh(x / c) (Gemma 2)."""
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Dropout of the embedding, the attention weights and both residual branches."""

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, values: Any) -> Any:
        if isinstance(values, dict) and isinstance(preset := values.get("preset"), str):
            preset = "gpt2" if preset == "openai-gpt" else preset  # 0.1 had two names for one size
            return PRESETS.get(preset, {}) | values | {"preset": preset}
        return values

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        self._check_heads()
        self._check_parts()
        return self

    def _check_heads(self) -> None:
        if self.head_dim is None and self.n_embd % self.n_head:
            raise ValueError(f"n_embd {self.n_embd} should be divisible by n_head {self.n_head}")
        if self.n_head % (self.n_kv_head or self.n_head):
            raise ValueError(
                f"n_head {self.n_head} should be divisible by n_kv_head {self.n_kv_head}"
            )
        size = self.head_dim or self.n_embd // self.n_head
        if self.position == "rotary" and size % 2:
            made = f"n_embd {self.n_embd} / n_head {self.n_head} = {size}"
            made = f"head_dim {size}" if self.head_dim else made
            raise ValueError(f"rotary positions need an even head size, got {made}")

    def _check_parts(self) -> None:
        for option, given, needs in (
            ("rope_scaling", self.rope_scaling and self.position != "rotary", 'position="rotary"'),
            ("qk_norm_scale", self.qk_norm_scale and not self.qk_norm, "qk_norm=true"),
        ):
            if given:
                raise ValueError(f"{option} should be left out, or it needs {needs}")


class ModelTable(ModelOptions):
    """The table `[model]` of a recipe: the shape, weights to begin with, what stays as it is."""

    init: str | None = Field(default=None, min_length=1)
    """Begin with these weights, and take sizes and parts from there: a run folder, or a model of
    another program that `gptkit import` reads."""
    checkpoint: Literal["last", "best"] | Number = "last"
    """Of the run: "last", "best" or a step's number."""
    freeze: tuple[str, ...] = Field(default=(), strict=False)
    """Parts that are not trained, such as ["wte", "h.0-5", "h.6.attn"]: they need no gradient and
    no moments, and decay as little as they learn."""

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.init is None:  # else what is not set here is not known yet
            self._check_heads()
            self._check_parts()
        return self

    def shape(self) -> dict[str, Any]:
        """The fields that describe the model, and no weights."""
        return self.model_dump(include=set(ModelOptions.model_fields))


class GPTConfig(ModelOptions):
    """Everything that determines a GPT's parameters: its shape and the data's sizes."""

    vocab_size: Size
    """Number of different token ids."""
    block_size: Size
    """Longest context in tokens."""

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        return self.head_dim or self.n_embd // self.n_head

    @property
    def qkv_sizes(self) -> tuple[int, int, int]:
        """Widths of all queries, keys and values of a token."""
        kv = self.kv_heads * self.head_size
        return self.n_head * self.head_size, kv, kv

    @property
    def has_qkv_bias(self) -> bool:
        """Whether queries, keys and values have a bias."""
        return self.bias if self.qkv_bias is None else self.qkv_bias

    def window_of(self, layer: int) -> int | None:
        """Tokens that a token sees in a layer, if these are not all of the context; else None."""
        if self.window is None or self.window >= self.block_size:
            return None
        windowed = self.window_pattern[layer % len(self.window_pattern)] == "S"
        return self.window if windowed else None

    @property
    def windows(self) -> frozenset[int | None]:
        """The different windows of the layers."""
        return frozenset(map(self.window_of, range(min(self.n_layer, len(self.window_pattern)))))

    @property
    def kv_heads(self) -> int:
        """Number of key and value heads."""
        return self.n_kv_head or self.n_head

    @property
    def inner_size(self) -> int:
        """Width inside the MLP."""
        if self.n_inner:
            return self.n_inner
        return -(-8 * self.n_embd // 3 // 64) * 64 if self.mlp == "swiglu" else 4 * self.n_embd


class LoraOptions(Options):
    """The table `[lora]`: the weights stay, and small matrices beside them are trained.

    Hu et al. 2021: the product of a layer's matrices B (out, rank) and A (rank, in), times
    alpha / rank, is added to its weights.
    """

    rank: Size = 8
    """Rows of A and columns of B."""
    alpha: PositiveFloat | None = None
    """The product of B and A counts alpha / rank times; 2 * rank if unset."""
    targets: tuple[str, ...] | None = Field(default=None, strict=False, min_length=1)
    """Linear layers of the blocks, such as ["attn.q", "attn.v"]; all of them if unset."""
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Dropout of what A multiplies."""


class OptimizerOptions(Options):
    """The table `[train.optimizer]`: which optimizer, with its options."""

    use: str
    """The optimizer."""
    learning_rate: PositiveFloat = 1e-3
    """Base rate of AdamW."""
    betas: tuple[NonNegativeFloat, NonNegativeFloat] = Field(default=(0.9, 0.95), strict=False)
    """AdamW's two averaging factors, each below 1."""
    weight_decay: NonNegativeFloat = 0.1
    """Decoupled decay of matrices and embeddings; never of biases and norms."""

    @model_validator(mode="after")
    def _check_betas(self) -> Self:
        if max(self.betas) >= 1:
            raise ValueError(f"betas should be below 1, got {list(self.betas)}")
        return self


class AdamWOptions(OptimizerOptions):
    """`[train.optimizer] use = "adamw"`: AdamW for everything."""

    use: Literal["adamw"] = "adamw"
    """The optimizer."""


class MuonOptions(OptimizerOptions):
    """`[train.optimizer] use = "muon"`: Muon for the blocks' matrices and AdamW for the rest."""

    use: Literal["muon"] = "muon"
    """The optimizer."""
    muon_learning_rate: PositiveFloat = 0.02
    """Base rate of Muon."""
    muon_momentum: float = Field(default=0.95, ge=0.0, lt=1.0)
    """Averaging factor of Muon; a lower one suits a run of a few hundred steps."""


AnyOptimizerOptions = AdamWOptions | MuonOptions
OPTIMIZERS: dict[str, type[OptimizerOptions]] = {"adamw": AdamWOptions, "muon": MuonOptions}
"""The options of each optimizer, by its name in recipes."""


DEVICE = re.compile(r"auto|cpu|mps|cuda(:[0-9]{1,4})?")
LENGTHS = ("steps", "tokens", "epochs")
"""The options of `[train]` that say how long a training is; one of them is set."""


class TrainOptions(Options):
    """The table `[train]`: steps, batches, optimizer, evaluation, checkpoints and device."""

    steps: Count | None = 1000
    """Updates of the weights. In its place: tokens or epochs."""
    tokens: Count | None = None
    """Target tokens to train on, such as 1e9, masked ones included; rounded up to whole steps."""
    epochs: PositiveFloat | None = None
    """Training takes as many windows as so many passes over the training split; rounded up to
    whole steps. A step's windows are drawn at random, unless the data set has another order."""
    batch_size: Size = 32
    """Sequences per update, over all micro-batches and processes."""
    micro_batch_size: Size | None = None
    """Sequences per forward pass; gradients accumulate over a process's part of batch_size. Unset:
    the whole part at once."""
    recompute: bool = False
    """Keep only the input of each block, and compute the rest again in the backward pass: less
    memory for about a third more computation (Chen et al. 2016)."""
    shard: bool = False
    """With several processes, keep a part of the weights, gradients and moments on each (FSDP2),
    instead of all of them (DDP)."""
    eval_every: Count = 100
    """Steps between evaluations; the last step is always evaluated."""
    eval_batches: Count | None = None
    """Batches of batch_size per evaluation, whose windows are spread evenly over the validation
    split; unset: all of it."""
    save_every: Count | None = None
    """Steps between checkpoints; unset: after each evaluation. The last step is always saved."""
    keep: Count = 2
    """How many of the newest checkpoints stay on disk, besides the best by validation loss."""
    device: str = "auto"
    """"auto", "cpu", "mps", "cuda" or "cuda:N"; auto takes a GPU if there is one."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of the matrix products; auto: bfloat16 on GPUs that have it and on CPUs where a
    short trial shows that it is clearly faster, else float32."""
    compile: Literal["auto"] | bool = "auto"
    """torch.compile the model; auto: on GPUs only, since it takes half a minute on a CPU."""
    optimizer: Annotated[AnyOptimizerOptions, Field(discriminator="use")] = AdamWOptions()
    """AdamW for everything, or Muon for the blocks' matrices and AdamW for the rest."""

    @model_validator(mode="before")
    @classmethod
    def _choose_length(cls, values: Any) -> Any:
        if isinstance(values, dict) and any(values.get(name) is not None for name in LENGTHS[1:]):
            return {"steps": None} | values
        return values

    @field_validator("device")
    @classmethod
    def _check_device(cls, value: str) -> str:
        if not DEVICE.fullmatch(value):
            raise ValueError(f"should be auto, cpu, mps, cuda or cuda:N, got {shown(value)}")
        return value

    @field_validator("tokens", mode="before")
    @classmethod
    def _take_whole_float(cls, value: Any) -> Any:
        return int(value) if isinstance(value, float) and value.is_integer() else value

    @field_validator("optimizer", mode="before")
    @classmethod
    def _default_optimizer(cls, value: Any) -> Any:
        return {"use": "adamw"} | value if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _check(self) -> Self:
        lengths = [name for name in LENGTHS if getattr(self, name) is not None]
        if len(lengths) != 1:
            given = " and ".join(lengths) or "none"
            raise ValueError(f"one of {', '.join(LENGTHS)} should be set, got {given}")
        if self.micro_batch_size and self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"batch_size {self.batch_size} should be a multiple of "
                f"micro_batch_size {self.micro_batch_size}"
            )
        return self
