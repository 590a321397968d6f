import itertools
from typing import Any

import numpy as np
import pytest
import torch

from gptkit.model.cache import KVCache, StaticKVCache
from gptkit.model.gpt import GPT, evaluating
from gptkit.recipe.options import GPTConfig
from gptkit.sampling.generate import generate, restart_length
from gptkit.sampling.rule import SamplingOptions, choose, uniforms
from gptkit.sampling.torch_decoder import GraphDecoder, TorchDecoder
from tests.support import needs_cuda, pairwise

VOCAB = 9
SHAPES: list[dict[str, Any]] = [
    {},
    {"position": "rotary", "norm": "rmsnorm", "mlp": "swiglu", "n_kv_head": 1, "bias": False},
    {"position": "rotary", "window": 3, "window_pattern": "SL", "logit_softcap": 5.0},
]


def make(block_size: int = 8, **shape: Any) -> GPT:
    torch.manual_seed(4)
    sizes = {"vocab_size": VOCAB, "n_layer": 2, "n_head": 2, "n_embd": 16}
    model = GPT(GPTConfig(block_size=block_size, **sizes | shape)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.4)
    return model


def draw(
    model: GPT, prompt: list[Any], *, tokens: int = 30, samples: int = 1, **options: Any
) -> list[list[int]]:
    """The drawn tokens, a list per row."""
    drawn = generate(
        TorchDecoder(model, samples),
        prompt,
        tokens=tokens,
        sampling=SamplingOptions(**options),
        samples=samples,
    )
    return np.stack(list(drawn), axis=1).tolist()


@torch.no_grad()
def slowly(
    model: GPT, prompt: list[int], *, tokens: int = 30, samples: int = 1, **options: Any
) -> list[list[int]]:
    """The same rule without a cache: every token anew from the whole window it may see."""
    sampling, block_size = SamplingOptions(**options), model.config.block_size
    rows = []
    for b in range(samples):
        seen = list(prompt)
        window = min(len(seen), block_size)
        for i in range(tokens):
            logits = model.logits(torch.tensor([seen[-window:]]))[:, -1].numpy()
            u = uniforms(sampling.seed, 0, samples * tokens)[i * samples + b]
            seen.append(int(choose(logits, u[None], sampling)[0]))
            window = window + 1 if window < block_size else max(1, block_size // 2)
        rows.append(seen[len(prompt) :])
    return rows


@pytest.mark.parametrize(
    "case", pairwise(shape=SHAPES, prompt=([3], [1] * 7, [7, 1, 2] * 5), block_size=(1, 2, 7, 8))
)
def test_past_the_block_size_sampling_restarts_from_its_half(case: dict[str, Any]) -> None:
    model, prompt = make(case["block_size"], **case["shape"]), case["prompt"]
    expected = slowly(model, prompt, samples=2, seed=11)
    assert draw(model, prompt, samples=2, seed=11) == expected


def test_a_restart_keeps_at_least_one_token() -> None:
    assert [restart_length(block_size) for block_size in (1, 2, 7, 8)] == [1, 1, 3, 4]


@pytest.mark.parametrize("shape", SHAPES)
def test_greedy_with_cache_equals_greedy_without(shape: dict[str, Any]) -> None:
    model = make(**shape)
    assert draw(model, [2, 5], temperature=0) == slowly(model, [2, 5], temperature=0)


@pytest.mark.parametrize("options", [{"top_k": 3}, {"top_p": 0.7}, {"temperature": 0.6}])
def test_every_rule_of_sampling_applies(options: dict[str, Any]) -> None:
    model = make()
    assert draw(model, [2], seed=5, **options) == slowly(model, [2], seed=5, **options)


def test_the_same_seed_draws_the_same_tokens() -> None:
    model = make()
    first = draw(model, [1], seed=1, samples=3)
    torch.manual_seed(8)  # the generators of torch and numpy play no part
    np.random.seed(8)
    assert draw(model, [1], seed=1, samples=3) == first
    assert draw(model, [1], seed=2, samples=3) != first


def test_rows_draw_random_numbers_of_their_own() -> None:
    model = make()
    rows = draw(model, [1], samples=4, seed=3)
    assert len(set(map(tuple, rows))) == 4
    assert rows == slowly(model, [1], samples=4, seed=3)


@pytest.mark.parametrize("length", [5, 11])
def test_every_row_may_have_a_prompt_of_its_own(length: int) -> None:
    model = make()
    prompts = torch.randint(VOCAB, (3, length)).tolist()
    expected = [slowly(model, p, samples=3, seed=6)[b] for b, p in enumerate(prompts)]
    assert draw(model, prompts, samples=3, seed=6) == expected


def test_fewer_tokens_are_the_beginning_of_more() -> None:
    model = make()
    (long,) = draw(model, [1], tokens=30, seed=3)
    for tokens in (1, 7, 8, 9, 20):
        assert draw(model, [1], tokens=tokens, seed=3) == [long[:tokens]]


def test_of_a_long_prompt_the_last_block_counts() -> None:
    model = make()
    long = [4, 4, 4, 1, 2, 3, 4, 5, 6, 7, 8]
    assert draw(model, long, seed=3) == draw(model, long[-8:], seed=3)
    assert draw(model, long, seed=3) != draw(model, long[-4:], seed=3)


def test_tokens_come_one_by_one() -> None:
    decoder = TorchDecoder(make(), 2)
    drawn = generate(decoder, [1], tokens=10**12, sampling=SamplingOptions(), samples=2)
    for chosen in itertools.islice(drawn, 5):
        assert (chosen.dtype, chosen.shape) == (np.int64, (2,))
    assert decoder.length == 5  # the prompt and four drawn tokens; the fifth was not fed


def test_no_tokens() -> None:
    nothing = generate(TorchDecoder(make(), 1), [1], tokens=0, sampling=SamplingOptions())
    assert list(nothing) == []


def test_a_new_prompt_forgets_the_old_one() -> None:
    model = make()
    decoder = TorchDecoder(model, 1)
    list(generate(decoder, [1, 2, 3], tokens=3, sampling=SamplingOptions(seed=1)))
    again = generate(decoder, [4], tokens=12, sampling=SamplingOptions(seed=1))
    assert [int(chosen[0]) for chosen in again] == draw(model, [4], tokens=12, seed=1)[0]


@pytest.mark.parametrize("shape", SHAPES)
@torch.inference_mode()
def test_a_step_of_fixed_shapes_gives_the_logits_of_a_growing_one(shape: dict[str, Any]) -> None:
    model = make(**shape)
    tokens = torch.randint(VOCAB, (3, 8))
    growing, held = (KVCache(model.config, 3, like=model.wte.weight) for _ in range(2))
    position = torch.zeros(1, dtype=torch.int64)
    fixed = StaticKVCache(held, position)
    for start, stop in ((0, 3), (3, 4), (4, 5), (5, 6), (6, 7), (7, 8)):
        expected = model.next_logits(tokens[:, start:stop], growing)
        if stop - start > 1:
            found = model.next_logits(tokens[:, start:stop], held)
        else:  # the host tells it nothing but the contents of two buffers
            position.fill_(start)
            found = model.next_logits(tokens[:, start:stop], fixed)
        assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("shape", SHAPES)
def test_a_recorded_graph_draws_what_single_kernels_draw(shape: dict[str, Any]) -> None:
    model = make(**shape).cuda()
    sampling = SamplingOptions(temperature=0)
    drawn = [
        [chosen.tolist() for chosen in generate(decoder, [1], tokens=30, sampling=sampling)]
        for decoder in (TorchDecoder(model, 1), GraphDecoder(model, 1))
    ]
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize("training", [True, False])
def test_evaluating_gives_the_mode_back(training: bool) -> None:
    model = make(dropout=0.5).train(training)
    with evaluating(model):
        assert not model.h[1].mlp.training
        assert not model.logits(torch.tensor([[1]])).requires_grad
    assert model.h[1].mlp.training == training
    assert model.logits(torch.tensor([[1]])).requires_grad


def test_evaluating_gives_the_mode_back_after_an_error() -> None:
    model = make().train()
    with pytest.raises(IndexError), evaluating(model):
        model.logits(torch.tensor([[VOCAB]]))
    assert model.training
    assert torch.is_grad_enabled()
