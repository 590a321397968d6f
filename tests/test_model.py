import itertools
import math
from collections.abc import Callable
from functools import partial
from random import Random
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gptkit.errors import CheckpointError
from gptkit.model import initial
from gptkit.model.cache import KVCache
from gptkit.model.documents import Documents
from gptkit.model.gpt import GPT
from gptkit.recipe import sizes
from gptkit.recipe.options import GPTConfig, RopeScaling
from tests.support import LLAMA3, names_of, needs_cuda, options_of, pairwise

CHOICES: dict[str, tuple[Any, ...]] = {
    "norm": names_of("norm"),
    "position": names_of("position"),
    "mlp": names_of("mlp"),
    "embed_norm": (False, True),
    "qk_norms": ({}, {"qk_norm": True}, {"qk_norm": True, "qk_norm_scale": True}),
    "n_kv_head": (None, 2, 1),
    "head_dim": (None, 6, 10),
    "norm_eps": (1e-5, 0.1),
    "rope": ({}, {"rope_theta": 50.0}, {"position": "rotary", "rope_scaling": LLAMA3}),
    "windows": ({}, {"window": 3}, {"window": 5, "window_pattern": "LS"}, {"window": 40}),
    "bias": (True, False),
    "qkv_bias": (None, True, False),
    "tie_embeddings": (True, False),
    "logit_softcap": (None, 5.0),
}
"""Values of an option; what is no option's name has several of them."""
SIZES = {"vocab_size": 13, "block_size": 12, "n_layer": 2, "n_head": 4, "n_embd": 32}

Check = Callable[[GPT], None]

START = 0
"""The token that begins the documents in `documents`."""
PIECES = [
    *[(0, slice(0, 4)), (0, slice(4, 7)), (0, slice(7, 12))],
    *[(1, slice(0, 6)), (1, slice(6, 7)), (1, slice(7, 11)), (1, slice(11, 12))],
]
"""Where the documents are, by row; those at the beginning of row 1 and the ends are cut."""


def make(**options: Any) -> GPT:
    """A model in evaluation mode whose weights are large enough for every part to matter."""
    torch.manual_seed(3)
    model = GPT(GPTConfig(**SIZES | options_of(options))).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            is_scale = parameter.dim() == 1 and name.endswith("weight")
            parameter.normal_(mean=float(is_scale), std=0.25)
    return model


def tokens(*shape: int, seed: int = 0, vocab_size: int = SIZES["vocab_size"]) -> Tensor:
    return torch.randint(vocab_size, shape, generator=torch.Generator().manual_seed(seed))


def documents() -> tuple[Tensor, Tensor]:
    """Inputs and targets, both (2, 12), of several documents in a row."""
    x = tokens(2, 13) % (SIZES["vocab_size"] - 1) + 1
    for row, where in PIECES:
        if (row, where.start) != (1, 0):
            x[row, where.start] = START
    return x[:, :-1], x[:, 1:].contiguous()


@torch.no_grad()
def from_the_papers(model: GPT, x: Tensor) -> Tensor:
    """Logits by plain formulas in float64: rotation by complex numbers, a full mask."""
    config = model.config
    w = {name: value.double() for name, value in model.named_parameters()}
    w.setdefault("lm_head.weight", w["wte.weight"])

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", 0)

    def norm(name: str, x: Tensor) -> Tensor:
        if config.norm == "layernorm":
            x = x - x.mean(-1, keepdim=True)
        return rms(x) * w[f"{name}.weight"] + w.get(f"{name}.bias", 0)

    def rms(x: Tensor) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + config.norm_eps).sqrt()

    def turned(name: str, x: Tensor) -> Tensor:  # (B, T, heads, hs)
        if config.qk_norm:
            x = rms(x) * w.get(f"{name}.weight", 1)
        if config.position == "learned":
            return x
        half = config.head_size // 2
        speed = config.rope_theta ** (-torch.arange(half, dtype=torch.float64) / half)
        if config.rope_scaling:
            speed = torch.tensor([slowed(float(each), config.rope_scaling) for each in speed])
        angle = torch.arange(x.size(1))[:, None, None] * speed  # (T, 1, hs/2)
        pairs = torch.complex(x[..., :half], x[..., half:]) * (1j * angle).exp()
        return torch.cat((pairs.real, pairs.imag), -1)

    def attention(name: str, x: Tensor) -> Tensor:
        nh, kv, hs, length = config.n_head, config.kv_heads, config.head_size, x.size(1)
        parts = linear(f"{name}.qkv", x).split([nh * hs, kv * hs, kv * hs], -1)
        q, k, v = (part.unflatten(-1, (-1, hs)) for part in parts)  # each (B, T, heads, hs)
        q, k = turned(f"{name}.q_norm", q), turned(f"{name}.k_norm", k)
        k, v = (part.repeat_interleave(nh // kv, dim=2) for part in (k, v))
        scores = torch.einsum("bihd,bjhd->bhij", q, k) / math.sqrt(hs)
        back = torch.arange(length)[:, None] - torch.arange(length)
        layer = int(name.split(".")[1])
        pattern = config.window_pattern * config.n_layer
        window = config.window if pattern[layer] == "S" else None
        seen = (back >= 0) & (back < (window or length))
        p = scores.masked_fill(~seen, -math.inf).softmax(-1)
        return linear(f"{name}.proj", torch.einsum("bhij,bjhd->bihd", p, v).flatten(2))

    def mlp(name: str, x: Tensor) -> Tensor:
        x = linear(f"{name}.up", x)
        if config.mlp == "gelu":
            x = 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))
        elif config.mlp == "gelu_tanh":
            x = 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
        elif config.mlp == "relu2":
            x = x.clamp(min=0) ** 2
        else:
            gate, value = x.split(config.inner_size, -1)
            x = gate / (1 + torch.exp(-gate)) * value
        return linear(f"{name}.proj", x)

    h = w["wte.weight"][x]
    if config.position == "learned":
        h = h + w["position.wpe.weight"][: x.size(1)]
    if config.embed_norm:
        h = rms(h)
    for i in range(config.n_layer):
        h = h + attention(f"h.{i}.attn", norm(f"h.{i}.ln_1", h))
        h = h + mlp(f"h.{i}.mlp", norm(f"h.{i}.ln_2", h))
    logits = norm("ln_f", h) @ w["lm_head.weight"].T
    cap = config.logit_softcap
    return logits if cap is None else cap * torch.tanh(logits / cap)


def slowed(speed: float, scaling: RopeScaling) -> float:
    """A rotary frequency by Llama 3.1's rule, in wave lengths, as Meta's own code has it."""
    context, length = scaling.original_max_position_embeddings, 2 * math.pi / speed
    if length < context / scaling.high_freq_factor:
        return speed
    if length > context / scaling.low_freq_factor:
        return speed / scaling.factor
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    smooth = (context / length - low) / (high - low)
    return (1 - smooth) * speed / scaling.factor + smooth * speed


def computes_what_the_papers_say(model: GPT) -> None:
    x = tokens(2, 12)
    torch.testing.assert_close(
        model.logits(x).double(), from_the_papers(model, x), atol=1e-4, rtol=1e-4
    )


def computes_the_same_with_a_cache(model: GPT) -> None:
    x = tokens(2, 12)
    cache = KVCache(model.config, 2, like=model.wte.weight)
    parts = [model.logits(part, cache) for part in x.split([4, 3, 1, 1, 2, 1], dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), model.logits(x), atol=1e-5, rtol=0)
    assert cache.length == 12


def sees_no_later_token_and_no_other_row(model: GPT) -> None:
    x = tokens(2, 12)
    changed = x.clone()
    changed[0, 7] = (x[0, 7] + 1) % SIZES["vocab_size"]
    before, after = model.logits(x), model.logits(changed)
    torch.testing.assert_close(after[0, :7], before[0, :7], atol=1e-6, rtol=0)
    torch.testing.assert_close(after[1], before[1], atol=1e-6, rtol=0)
    difference = (after[0, 7:] - before[0, 7:]).abs().amax(dim=-1)
    assert (difference > 1e-4).all()  # it is seen at its own and at every later position


@pytest.fixture(params=[128, 5], ids=["whole", "parts"])
def queries(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention to documents for all queries at once, and for a few at a time."""
    monkeypatch.setattr("gptkit.model.documents.QUERIES", request.param)


def reads_each_document_as_if_it_were_alone(model: GPT) -> None:
    x, y = documents()
    alone = [model.logits(x[row : row + 1, where])[0] for row, where in PIECES]
    together = model.logits(x, Documents(x, START, windows=model.config.windows))
    for (row, where), logits in zip(PIECES, alone, strict=True):
        torch.testing.assert_close(together[row, where], logits, atol=1e-5, rtol=0)
    whole = x[1:, 1:6], y[1:, 1:6]  # in which no document begins
    torch.testing.assert_close(model(*whole, START), model(*whole), atol=1e-5, rtol=0)


def has_the_parameters_that_its_sizes_say(model: GPT) -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in model.weights().items()}
    assert sizes.parameter_shapes(model.config) == shapes
    assert sizes.n_parameters(model.config) == model.n_parameters()


CHECKS = [
    computes_what_the_papers_say,
    computes_the_same_with_a_cache,
    sees_no_later_token_and_no_other_row,
    reads_each_document_as_if_it_were_alone,
    has_the_parameters_that_its_sizes_say,
]


@pytest.mark.parametrize(
    "shape", pairwise(**CHOICES), ids=lambda shape: "-".join(map(str, shape.values()))
)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@torch.no_grad()
def test_a_model(check: Check, shape: dict[str, Any]) -> None:
    check(make(**shape))


@pytest.mark.slow
@torch.no_grad()
def test_a_sweep_over_models() -> None:
    random = Random(1)
    for _ in range(800):
        shape = {name: random.choice(values) for name, values in CHOICES.items()}
        model = make(**shape)
        for check in CHECKS:
            try:
                check(model)
            except AssertionError as error:
                error.add_note(f"{check.__name__}: {shape}")
                raise


@torch.no_grad()
def test_a_reset_cache_has_forgotten_everything() -> None:
    model = make(position="rotary")
    cache = KVCache(model.config, 1, like=model.wte.weight)
    model.logits(tokens(1, 12, seed=1), cache)
    cache.reset()
    x = tokens(1, 5, seed=2)
    torch.testing.assert_close(model.logits(x, cache), model.logits(x), atol=1e-5, rtol=0)


@torch.no_grad()
def test_next_logits_are_those_of_the_last_position() -> None:
    model, x = make(), tokens(3, 7)
    cache = KVCache(model.config, 3, like=model.wte.weight)
    torch.testing.assert_close(model.next_logits(x, cache), model.logits(x)[:, -1])


@torch.no_grad()
def test_positions_matter() -> None:
    x = tokens(1, 6)
    for position in CHOICES["position"]:
        model = make(position=position)
        first, second = model.logits(x), model.logits(x[:, [1, 0, 2, 3, 4, 5]])
        assert (first[0, -1] - second[0, -1]).abs().max() > 1e-3, position


@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        ("gpt2", 124_439_808),
        ("gpt2-medium", 354_823_168),
        ("gpt2-large", 774_030_080),
        ("gpt2-xl", 1_557_611_200),
    ],
)
def test_parameter_counts_are_the_published_ones(preset: Any, expected: int) -> None:
    config = GPTConfig(preset=preset, vocab_size=50257, block_size=1024)
    with torch.device("meta"):
        assert GPT(config, seed=None).n_parameters() == expected


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ({"n_layer": 32, "n_head": 32, "n_embd": 4096, "n_inner": 11008}, 6_738_415_616),
        (  # TinyLlama
            {"n_layer": 22, "n_head": 32, "n_embd": 2048, "n_inner": 5632, "n_kv_head": 4},
            1_100_048_384,
        ),
    ],
)
def test_llamas_parameter_counts(sizes: dict[str, Any], expected: int) -> None:
    config = GPTConfig(
        vocab_size=32000, block_size=2048, norm="rmsnorm", position="rotary", mlp="swiglu",
        bias=False, tie_embeddings=False, **sizes,
    )  # fmt: skip
    with torch.device("meta"):
        assert GPT(config, seed=None).n_parameters() == expected


@pytest.mark.parametrize("tied", [True, False])
def test_initial_weights_are_gpt2s(tied: bool) -> None:
    config = GPTConfig(
        vocab_size=500, block_size=128, n_layer=8, n_head=4, n_embd=128, tie_embeddings=tied
    )
    for name, weight in GPT(config).named_parameters():
        if weight.dim() < 2:
            is_scale = name.endswith("weight")
            assert torch.equal(weight, torch.ones_like(weight) * is_scale), name
        else:
            feeds_residual = name.endswith("proj.weight")
            std = 0.02 / math.sqrt(2 * 8) if feeds_residual else 0.02
            assert weight.std().item() == pytest.approx(std, rel=0.04), name
            assert abs(weight.mean().item()) < 5 * std / math.sqrt(weight.numel()), name


def test_initial_weights_are_a_function_of_seed_name_and_index_alone() -> None:
    draw = partial(initial.rows, n_layer=2)
    shape = (5, initial.CHUNK // 2 - 7)  # generators begin in the middle of rows
    weight = draw("wte.weight", shape, seed=1)
    for first, last in itertools.combinations(range(6), 2):
        part = draw("wte.weight", shape, seed=1, first=first, last=last)
        assert torch.equal(part, weight[first:last])
    assert draw("wte.weight", shape, seed=1, first=3, last=3).shape == (0, shape[1])
    others = [draw("wte.weight", shape, seed=2), draw("lm_head.weight", shape, seed=1)]
    rows = torch.cat([weight, *others])
    assert len(rows[:, :9].unique()) == rows[:, :9].numel(), "numbers are drawn twice"
    torch.manual_seed(5)
    a, b = (GPT(GPTConfig(**SIZES), seed=7).weights() for _ in range(2))
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("shape", [{}, {"mlp": "swiglu", "norm": "rmsnorm", "position": "rotary"}])
@torch.no_grad()
def test_a_fresh_model_knows_nothing(shape: dict[str, Any]) -> None:
    model = GPT(GPTConfig(vocab_size=65, block_size=32, n_layer=4, n_head=4, n_embd=64, **shape))
    x = tokens(8, 33, vocab_size=65)
    assert model(x[:, :-1], x[:, 1:]).item() == pytest.approx(math.log(65), abs=0.1)


@torch.no_grad()
def test_the_loss_is_the_mean_negative_log_probability() -> None:
    model, x, y = make(), tokens(2, 12), tokens(2, 12, seed=1)
    log_p = from_the_papers(model, x).log_softmax(-1)
    picked = [log_p[b, t, y[b, t]] for b in range(2) for t in range(12)]
    assert model(x, y).item() == pytest.approx(-sum(map(float, picked)) / 24, abs=1e-4)


def test_masked_targets_carry_no_loss() -> None:
    model, x, y = make(), tokens(2, 12), tokens(2, 12, seed=1)
    masked = y.clone()
    masked[0, 3:] = -100
    masked[1, :10] = -100
    kept = masked != -100
    with torch.no_grad():
        expected = F.cross_entropy(model.logits(x)[kept], y[kept])
        torch.testing.assert_close(model(x, masked), expected)
    model(x, masked).backward()
    unseen = model.position.wpe.weight.grad
    row_1_only = x.clone()
    row_1_only[0, 3:] = 0  # inputs whose targets are all masked and that no counted one sees
    other = make()
    other(row_1_only, masked).backward()
    torch.testing.assert_close(other.position.wpe.weight.grad, unseen)


def test_dropout_acts_in_training_only() -> None:
    plain, model, x = make(), make(dropout=0.4), tokens(1, 12)
    with torch.no_grad():
        assert torch.equal(model.logits(x), plain.logits(x))
        model.train()
        first, second = model.logits(x), model.logits(x)
        assert not torch.allclose(first, second)
        model.eval()
        assert torch.equal(model.logits(x), plain.logits(x))


@pytest.mark.parametrize("place", ["drop", "h.0.attn", "h.0.drop"])
@torch.no_grad()
def test_dropout_acts_on_embedding_attention_and_residual(place: str) -> None:
    model, x = make(dropout=0.5, n_layer=1), tokens(1, 12)
    assert torch.equal(model.logits(x), model.logits(x))
    model.get_submodule(place).training = True  # that module alone
    assert not torch.equal(model.logits(x), model.logits(x))


@pytest.mark.parametrize("norm", ["layernorm", "rmsnorm"])
def test_without_bias_no_part_has_one(norm: str) -> None:
    names = make(norm=norm, bias=False).weights()
    assert [name for name in names if name.endswith("bias")] == []


def test_weights_hold_a_tied_head_once() -> None:
    tied, free = make(tie_embeddings=True), make(tie_embeddings=False)
    assert free.weights().keys() - tied.weights().keys() == {"lm_head.weight"}
    assert tied.n_parameters() == sum(w.numel() for w in tied.weights().values())
    assert free.n_parameters() - tied.n_parameters() == 13 * 32


@pytest.mark.parametrize("tied", [True, False])
@torch.no_grad()
def test_weights_make_the_same_model(tied: bool) -> None:
    model, x = make(tie_embeddings=tied), tokens(1, 12)
    fresh = GPT(model.config).eval()
    fresh.load_weights({name: weight.clone() for name, weight in model.weights().items()})
    assert torch.equal(fresh.logits(x), model.logits(x))
    assert (fresh.lm_head.weight is fresh.wte.weight) == tied


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"ln_f.weight": None}, "ln_f.weight"),
        ({"h.9.ln_1.weight": torch.ones(32)}, "h.9.ln_1.weight"),
        ({"wte.weight": torch.ones(14, 32)}, "wte.weight"),
        ({"lm_head.weight": torch.ones(13, 32)}, "lm_head.weight"),
        ({"ln_f.weight": None, "ln_f.scale": torch.ones(32)}, "ln_f.scale, ln_f.weight"),
    ],
)
def test_weights_of_another_model_are_refused_whole(
    changes: dict[str, Tensor | None], named: str
) -> None:
    model = make()
    before = {name: weight.clone() for name, weight in model.weights().items()}
    changed = {name: torch.zeros_like(weight) for name, weight in before.items()} | changes
    with pytest.raises(CheckpointError, match=f"do not fit the model: {named}$"):
        model.load_weights({name: w for name, w in changed.items() if w is not None})
    for name, weight in model.weights().items():
        assert torch.equal(weight, before[name]), name


def copied(name: str, module: nn.Module, theirs: str, *, transposed: bool = False) -> Any:
    """Tensors of one of our modules under the names that transformers gives them."""
    return {
        f"{theirs}.{kind}": value.detach().T if transposed and value.dim() == 2 else value.detach()
        for kind, value in module.get_submodule(name).named_parameters()
    }


@pytest.mark.parametrize(("mlp", "activation"), [("gelu", "gelu"), ("gelu_tanh", "gelu_new")])
@torch.no_grad()
def test_the_default_model_equals_transformers_gpt2(mlp: str, activation: str) -> None:
    transformers = pytest.importorskip("transformers")
    ours, x = make(mlp=mlp), tokens(3, 12)
    config = transformers.GPT2Config(
        vocab_size=13, n_positions=12, n_embd=32, n_layer=2, n_head=4,
        attn_implementation="eager", bos_token_id=None, eos_token_id=None,
        activation_function=activation,
    )  # fmt: skip
    theirs = transformers.GPT2LMHeadModel(config).eval()
    weights = copied("wte", ours, "transformer.wte") | copied("wte", ours, "lm_head")
    weights |= copied("position.wpe", ours, "transformer.wpe")
    weights |= copied("ln_f", ours, "transformer.ln_f")
    for i in range(2):
        for name in ("ln_1", "ln_2"):
            weights |= copied(f"h.{i}.{name}", ours, f"transformer.h.{i}.{name}")
        for name, other in [
            ("attn.qkv", "attn.c_attn"),
            ("attn.proj", "attn.c_proj"),
            ("mlp.up", "mlp.c_fc"),
            ("mlp.proj", "mlp.c_proj"),
        ]:
            their_name = f"transformer.h.{i}.{other}"
            weights |= copied(f"h.{i}.{name}", ours, their_name, transposed=True)
    theirs.load_state_dict(weights)
    torch.testing.assert_close(ours.logits(x), theirs(x).logits, atol=1e-5, rtol=0)


@torch.no_grad()
def test_the_modern_model_equals_transformers_llama() -> None:
    transformers = pytest.importorskip("transformers")
    ours = make(
        norm="rmsnorm", position="rotary", mlp="swiglu", n_kv_head=2, bias=False,
        tie_embeddings=False,
    )  # fmt: skip
    inner = ours.config.inner_size
    config = transformers.LlamaConfig(
        vocab_size=13, max_position_embeddings=12, hidden_size=32, intermediate_size=inner,
        num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, rms_norm_eps=1e-5,
        tie_word_embeddings=False, attn_implementation="eager", bos_token_id=None,
        eos_token_id=None,
    )  # fmt: skip  # the rope theta is 10,000 unless told
    theirs, x = transformers.LlamaForCausalLM(config).eval(), tokens(3, 12)
    weights = copied("wte", ours, "model.embed_tokens") | copied("lm_head", ours, "lm_head")
    weights |= copied("ln_f", ours, "model.norm")
    for i, block in enumerate(ours.h):
        layer = f"model.layers.{i}"
        q, k, v = block.attn.qkv.weight.split([32, 16, 16])
        gate, up = block.mlp.up.weight.split(inner)
        weights |= {
            f"{layer}.self_attn.{name}_proj.weight": part
            for name, part in {"q": q, "k": k, "v": v}.items()
        }
        weights |= {f"{layer}.mlp.gate_proj.weight": gate, f"{layer}.mlp.up_proj.weight": up}
        weights |= copied(f"h.{i}.attn.proj", ours, f"{layer}.self_attn.o_proj")
        weights |= copied(f"h.{i}.mlp.proj", ours, f"{layer}.mlp.down_proj")
        weights |= copied(f"h.{i}.ln_1", ours, f"{layer}.input_layernorm")
        weights |= copied(f"h.{i}.ln_2", ours, f"{layer}.post_attention_layernorm")
    theirs.load_state_dict(weights)
    torch.testing.assert_close(ours.logits(x), theirs(x).logits, atol=1e-5, rtol=0)


@pytest.mark.usefixtures("queries")
@pytest.mark.parametrize("position", names_of("position"))
def test_a_change_in_one_document_moves_nothing_in_another(position: str) -> None:
    model = make(position=position)
    x, _ = documents()
    seen: list[Tensor] = []
    model.wte.register_forward_hook(lambda module, args, out: seen.append(out))
    logits = model.logits(x, Documents(x, START))
    for row, where in PIECES:
        (gradient,) = torch.autograd.grad(
            logits[row, where].square().sum(), seen, retain_graph=True
        )
        moved = gradient.abs().sum(-1) > 0  # (2, 12)
        own = torch.zeros_like(moved)
        own[row, where] = True
        assert torch.equal(moved, own)


@pytest.mark.usefixtures("queries")
@pytest.mark.parametrize("position", names_of("position"))
@pytest.mark.parametrize("recompute", [False, True])
def test_training_on_documents_is_training_on_each_alone(position: str, recompute: bool) -> None:
    x, y = documents()
    model = make(position=position).train()
    model.recompute = recompute
    model(x, y, START).backward()
    together = {name: p.grad for name, p in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    for row, where in PIECES:
        part = x[row : row + 1, where], y[row : row + 1, where]
        (model(*part) * part[0].numel() / x.numel()).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, together[name], atol=1e-6, rtol=1e-5)


def test_gradients_of_documents_are_the_same_in_any_run_of_two_threads() -> None:
    torch_threads = torch.get_num_threads()
    torch.set_num_threads(2)
    model = make(block_size=256, vocab_size=300, n_embd=64)
    x = tokens(64, 257, vocab_size=300)
    x[torch.rand(x.shape, generator=torch.Generator().manual_seed(1)) < 0.02] = START

    def gradients() -> list[Tensor | None]:
        model.zero_grad(set_to_none=True)
        model(x[:, :-1].contiguous(), x[:, 1:].contiguous(), START).backward()
        return [parameter.grad for parameter in model.parameters()]

    first = gradients()
    for _ in range(5):
        torch.testing.assert_close(gradients(), first, atol=0, rtol=0)
    torch.set_num_threads(torch_threads)


@pytest.mark.slow
@pytest.mark.parametrize("lower", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("recompute", [False, True])
def test_compiled_training_on_documents_is_the_same(recompute: bool, lower: bool) -> None:
    x, y = documents()
    model = make(position="rotary", n_kv_head=2, qk_norm=True)
    model.recompute = recompute
    compiled = torch.compile(model, fullgraph=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=lower):
        expected = model(x, y, START)
        found = compiled(x, y, START)
    found.backward()
    torch.testing.assert_close(found, expected, atol=0.05 if lower else 1e-5, rtol=0)


def larger_documents() -> tuple[GPT, Tensor, Tensor]:
    """A model, and inputs and targets, both (3, 300), with some documents of several blocks."""
    x = tokens(3, 301, vocab_size=40)
    model = make(position="rotary", n_kv_head=2, qk_norm=True, block_size=512, vocab_size=40)
    return model, x[:, :-1], x[:, 1:].contiguous()


@pytest.mark.parametrize("recompute", [False, True])
def test_flex_attention_trains_on_documents_alike(
    recompute: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gptkit.model.documents.FLEX", {"cpu"})
    # torch has no kernel for its gradients on a CPU, but the formulas of the compiled graph.
    monkeypatch.setattr("torch.nn.attention.flex_attention._validate_device", lambda *tensors: None)
    model, x, y = larger_documents()
    model.recompute = recompute
    expected = model(x, y, START)
    expected.backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    found = torch.compile(model, fullgraph=True, backend="aot_eager")(x, y, START)
    found.backward()
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], atol=1e-6, rtol=1e-5)


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("recompute", [False, True])
def test_a_gpu_trains_on_documents_alike(recompute: bool) -> None:
    model, x, y = larger_documents()
    model, x, y = model.cuda(), x.cuda(), y.cuda()
    model.recompute = recompute
    expected = model(x, y, START)
    expected.backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    compiled = torch.compile(model, fullgraph=True)
    found = compiled(x, y, START)
    found.backward()
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], atol=1e-3, rtol=0.01)
    with torch.autocast("cuda", torch.bfloat16):
        torch.testing.assert_close(compiled(x, y, START), expected, atol=0.05, rtol=0)


@pytest.mark.usefixtures("queries")
@pytest.mark.parametrize("qk_norm", [False, True])
def test_documents_in_bfloat16_are_nearly_those_in_float32(qk_norm: bool) -> None:
    x, y = documents()
    model = make(position="rotary", qk_norm=qk_norm)
    expected = model(x, y, START)
    with torch.autocast("cpu", torch.bfloat16):
        found = model(x, y, START)
    torch.testing.assert_close(found, expected, atol=0.05, rtol=0)
    with torch.no_grad():
        found = model.bfloat16()(x, y, START)
    torch.testing.assert_close(found.float(), expected, atol=0.1, rtol=0)
