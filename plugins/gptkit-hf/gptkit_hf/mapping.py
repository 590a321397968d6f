"""Weights by gptkit's names from those by transformers' names, and back: one tensor at a time."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from gptkit.plugin import RunError
from gptkit_hf.families import choose
from gptkit_hf.shape import Shape
from gptkit_hf.tensors import CheckedTensors, tensor_shapes

Make = Callable[[], Tensor]
ROTARY_PARTS = {"attn.proj": "self_attn.o_proj", "mlp.proj": "mlp.down_proj"}
ROTARY_NORMS = {"ln_1": "input_layernorm", "ln_2": "post_attention_layernorm"}
GPT2_PARTS = {
    "attn.qkv": "attn.c_attn",
    "attn.proj": "attn.c_proj",
    "mlp.up": "mlp.c_fc",
    "mlp.proj": "mlp.c_proj",
}
QKV = ("q_proj", "k_proj", "v_proj")


class _Lazy(Mapping[str, Tensor]):
    """Tensors that are made when they are asked for."""

    def __init__(self) -> None:
        self._makers: dict[str, Make] = {}

    def __getitem__(self, name: str) -> Tensor:
        return self._makers[name]()

    def __contains__(self, name: object) -> bool:
        return name in self._makers  # without making it

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)


class ToGptkit(_Lazy):
    """The weights of a gptkit model, float32, over those of a model of transformers.

    Args:
        config: the contents of its config.json.
        tensors: by transformers' names, of any type of floating-point numbers.

    Raises:
        UsageError: gptkit does not have that architecture.
        RunError: as for `CheckedTensors`.
    """

    def __init__(self, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._tensors = checked = CheckedTensors(config, tensors)
        self._family, self._shape, self._shapes = checked.family, checked.shape, checked.shapes
        shape = checked.shape
        own = {"lm_head.weight": "lm_head.weight"} if not shape.tie_embeddings else {}
        if self._family.model_type == "gpt2":
            self._add_gpt2(own)
        else:
            self._add_rotary(own)

    def _get(self, name: str) -> Tensor:
        return self._tensors[name]

    def _plain(self, name: str) -> Make:
        return lambda: self._get(name)

    def _add_gpt2(self, own: dict[str, str]) -> None:
        top = "transformer."
        own |= {"wte.weight": f"{top}wte.weight", "position.wpe.weight": f"{top}wpe.weight"}
        own |= {f"ln_f.{end}": f"{top}ln_f.{end}" for end in ("weight", "bias")}
        for name, theirs in own.items():
            self._makers[name] = self._plain(theirs)
        for layer in range(self._shape.n_layer):
            a, b = f"h.{layer}.", f"{top}h.{layer}."
            for end in ("weight", "bias"):
                for norm in ("ln_1", "ln_2"):
                    self._makers[f"{a}{norm}.{end}"] = self._plain(f"{b}{norm}.{end}")
            for mine, theirs in GPT2_PARTS.items():
                self._makers[f"{a}{mine}.weight"] = self._turned(f"{b}{theirs}.weight")
                self._makers[f"{a}{mine}.bias"] = self._plain(f"{b}{theirs}.bias")

    def _turned(self, name: str) -> Make:
        """GPT-2 has its matrices the other way round."""
        return lambda: self._get(name).T.contiguous()

    def _add_rotary(self, own: dict[str, str]) -> None:
        shape, plain_norms = self._shape, self._family.model_type == "nanochat"
        own |= {"wte.weight": "model.embed_tokens.weight"}
        for name, theirs in own.items():
            self._makers[name] = self._plain(theirs)
        last = self._ones() if plain_norms else self._plain("model.norm.weight")
        self._makers["ln_f.weight"] = last
        for layer in range(shape.n_layer):
            a, b = f"h.{layer}.", f"model.layers.{layer}."
            for mine, theirs in ROTARY_NORMS.items():
                made = self._ones() if plain_norms else self._plain(f"{b}{theirs}.weight")
                self._makers[f"{a}{mine}.weight"] = made
            if shape.qk_norm_scale:
                for norm in ("q_norm", "k_norm"):
                    self._makers[f"{a}attn.{norm}.weight"] = self._plain(
                        f"{b}self_attn.{norm}.weight"
                    )
            self._add_layer(a, b)

    def _add_layer(self, a: str, b: str) -> None:
        """The linear layers of a layer whose names begin with `a` here and with `b` there."""
        for end in ("weight", "bias"):
            parts = [f"{b}self_attn.{part}.{end}" for part in QKV]
            if parts[0] in self._shapes:
                self._makers[f"{a}attn.qkv.{end}"] = self._joined(parts)
            for mine, theirs in self._outputs(b).items():
                if f"{theirs}.{end}" in self._shapes:
                    self._makers[f"{a}{mine}.{end}"] = self._plain(f"{theirs}.{end}")
            if f"{b}mlp.gate_proj.{end}" in self._shapes:
                self._makers[f"{a}mlp.up.{end}"] = self._gated(b, end)

    def _outputs(self, b: str) -> dict[str, str]:
        if self._family.model_type == "nanochat":
            parts = {"attn.proj": "self_attn.o_proj", "mlp.up": "mlp.fc1", "mlp.proj": "mlp.fc2"}
        else:
            parts = ROTARY_PARTS | ({} if self._family.gated else {"mlp.up": "mlp.up_proj"})
        return {mine: b + theirs for mine, theirs in parts.items()}

    def _ones(self) -> Make:
        return lambda: torch.ones(self._shape.n_embd)

    def _joined(self, names: list[str]) -> Make:
        if self._family.model_type != "nanochat":
            return lambda: torch.cat([self._get(name) for name in names])
        return lambda: torch.cat(
            [swap_halves(self._get(name), self._shape.head_size) for name in names[:2]]
            + [self._get(names[2])]
        )

    def _gated(self, b: str, end: str) -> Make:
        """Gate and value; a squared ReLU has both in one."""

        def make() -> Tensor:
            gate, value = (self._get(f"{b}mlp.{n}_proj.{end}") for n in ("gate", "up"))
            if self._shape.mlp == "swiglu":
                return torch.cat([gate, value])
            if not torch.equal(gate, value):
                raise RunError(
                    f'{b}mlp: hidden_act = "relu" with a gate that is not equal to up_proj',
                    hint="gptkit has ReLU only squared, which is that of equal matrices",
                )
            return value

        return make


class ToHf(_Lazy):
    """The weights of a model of transformers over those of a gptkit model.

    Args:
        options: of [model], with vocab_size and block_size.
        weights: by gptkit's names.

    Raises:
        UsageError: no model of transformers has these options.
    """

    def __init__(self, options: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._shape, self._weights = Shape.of(options), weights
        self._family = choose(self._shape)
        self._shapes = tensor_shapes(self._family, self._shape)
        for name in self._shapes:
            self._makers[name] = self._maker(name)

    def _maker(self, name: str) -> Make:
        return lambda: self._made(name).reshape(self._shapes[name]).contiguous()

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every tensor by name."""
        return dict(self._shapes)

    def _made(self, name: str) -> Tensor:
        if name == "lm_head.weight":
            return self._head()
        if self._family.model_type == "gpt2":
            return self._gpt2(name.removeprefix("transformer."))
        return self._rotary(name.removeprefix("model."))

    def _head(self) -> Tensor:
        head = self._weights["wte.weight" if self._shape.tie_embeddings else "lm_head.weight"]
        if self._family.model_type == "nanochat":  # which has no scales in its norms
            return head * self._weights["ln_f.weight"]
        return head

    def _gpt2(self, name: str) -> Tensor:
        if name == "wpe.weight":
            return self._weights["position.wpe.weight"]
        for mine, theirs in GPT2_PARTS.items():
            if f".{theirs}." in name:
                found = self._own(name.replace(theirs, mine))
                return found.T if name.endswith("weight") else found
        return self._own(name)

    def _own(self, name: str) -> Tensor:
        """A weight; a bias that this model does not have is zero."""
        if name in self._weights or not name.endswith(".bias"):
            return self._weights[name]
        sibling = self._weights[name.removesuffix("bias") + "weight"]
        return torch.zeros(len(sibling))

    def _rotary(self, name: str) -> Tensor:
        if name == "embed_tokens.weight":
            return self._embedding()
        if name == "norm.weight":
            return self._weights["ln_f.weight"]
        _, layer, *parts, end = name.split(".")
        a, part = f"h.{layer}.", parts[-1]
        if part in ("q_norm", "k_norm"):
            plain = torch.ones(self._shape.head_size)
            return self._weights.get(f"{a}attn.{part}.weight", plain)
        for mine, theirs in ROTARY_NORMS.items():
            if part == theirs:
                return self._weights[f"{a}{mine}.weight"]
        if part in QKV:
            return self._qkv(a, QKV.index(part), end)
        if part in ("o_proj", "down_proj", "fc2"):
            return self._own(f"{a}{'attn' if part == 'o_proj' else 'mlp'}.proj.{end}")
        return self._up(a, part, end)

    def _embedding(self) -> Tensor:
        found = self._weights["wte.weight"]
        if not self._shape.embed_norm or self._family.model_type == "nanochat":
            return found
        # The norm of a row depends on nothing else, so that it can be done once.
        mean = found.square().mean(dim=-1, keepdim=True)
        return found * torch.rsqrt(mean + self._shape.norm_eps)

    def _qkv(self, a: str, index: int, end: str) -> Tensor:
        sizes = [self._shape.query_size, self._shape.kv_size, self._shape.kv_size]
        found = torch.split(self._own(f"{a}attn.qkv.{end}"), sizes)[index]
        if self._family.model_type != "nanochat":
            return found
        found = found * self._weights[f"{a}ln_1.weight"]
        return found if index == 2 else swap_halves(found, self._shape.head_size)

    def _up(self, a: str, part: str, end: str) -> Tensor:
        found = self._own(f"{a}mlp.up.{end}")
        if self._family.model_type == "nanochat":
            return found * self._weights[f"{a}ln_2.weight"]
        if self._shape.mlp != "swiglu":  # gate and value of a squared ReLU are the same
            return found
        return found.chunk(2)[0 if part == "gate_proj" else 1]


def swap_halves(rows: Tensor, head_size: int) -> Tensor:
    """Rows of queries or keys whose rotation goes the other way: the halves of each head swapped.

    (heads * head_size, ...) to the same shape.
    """
    halves = rows.reshape(-1, 2, head_size // 2, *rows.shape[1:])
    return halves.flip(1).reshape(rows.shape)
