"""A sharded model beside a whole one, on real ranks: weights, losses, updates, what is loaded."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, distributed, multiprocessing

from gptkit.model.gpt import GPT
from gptkit.recipe.options import GPTConfig, MuonOptions
from gptkit.runs.tensor_file import TensorFile
from gptkit.training.distributed import Ranks, leave
from gptkit.training.optimizer import load_state, make_optimizer, state_tensors
from gptkit.training.sharding import Sharded, full_tensor, local_tensor, parallelize, shard_like

SIZES: dict[str, Any] = {"vocab_size": 13, "block_size": 8, "n_layer": 2, "n_head": 2, "n_embd": 6}
SHAPES: list[dict[str, Any]] = [
    {},
    {"tie_embeddings": False, "position": "rotary", "n_embd": 20, "norm": "rmsnorm"},
]
"""Neither 13 nor 6 rows can be divided evenly among 4 ranks, and of 6 the last rank has none."""
SEED = 5


@pytest.mark.parametrize("size", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_a_sharded_model_is_a_whole_one(size: int, tmp_path: Path) -> None:
    multiprocessing.spawn(_compare, (size, tmp_path), size)  # type: ignore[no-untyped-call]


def _compare(rank: int, size: int, folder: Path) -> None:
    """What each process asserts."""
    torch.set_num_threads(1)
    rendezvous = (folder / "rendezvous").as_uri()
    distributed.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=size)
    for i, shape in enumerate(SHAPES):
        config = GPTConfig(**SIZES | shape)
        whole, sharded = GPT(config, seed=SEED), _sharded(config, rank, size)
        _assert_same_start(whole, sharded)
        _assert_same_updates(whole, sharded)
        _assert_same_loaded(whole, _sharded(config, rank, size), folder / f"{i}-{rank}")
    distributed.destroy_process_group()
    leave(0)  # gloo's threads may outlive their group


def _sharded(config: GPTConfig, rank: int, size: int) -> GPT:
    with torch.device("meta"):
        model = GPT(config, seed=None)
    ranks = Ranks(rank=rank, size=size, local_rank=rank)
    cpu = torch.device("cpu")
    parallelize(model, ranks, device=cpu, shard=True, compiled=False, seed=SEED)
    return model


def _assert_same_start(whole: GPT, sharded: GPT) -> None:
    """Every bit of the weights and of the loss is the same, and a rank has only its rows."""
    assert _differing(whole.weights(), sharded.weights(), atol=0) == []
    held = sum(local_tensor(weight).numel() for weight in sharded.parameters())
    assert held < whole.n_parameters()
    tied = whole.config.tie_embeddings
    assert (sharded.lm_head.weight is sharded.wte.weight) == tied
    tokens = torch.arange(24).view(3, 8) % 13
    assert sharded(tokens, tokens).item() == whole(tokens, tokens).item()


def _assert_same_updates(whole: GPT, sharded: GPT) -> None:
    """Muon gives each rank its rows of the update of whole matrices."""
    optimizers = [make_optimizer(model, MuonOptions()) for model in (whole, sharded)]
    generator = torch.Generator().manual_seed(1)
    parameters = dict(sharded.named_parameters())
    for _ in range(3):
        for name, parameter in whole.named_parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
            parameters[name].grad = shard_like(parameter.grad, parameters[name])
        for optimizer in optimizers:
            optimizer.step()
    before = GPT(whole.config, seed=SEED).weights()
    assert _differing(before, sharded.weights(), atol=1e-3) == [*before], "it hardly moved"
    assert _differing(whole.weights(), sharded.weights(), atol=1e-6) == []
    states = [
        state_tensors(optimizer, model)
        for optimizer, model in zip(optimizers, (whole, sharded), strict=True)
    ]
    assert _differing(*states, atol=1e-6) == []


def _assert_same_loaded(whole: GPT, sharded: GPT, path: Path) -> None:
    """Weights and moments of a file come back sharded; a rank keeps no more than its rows."""
    optimizer = make_optimizer(sharded, MuonOptions())
    moments = {f"{n}:momentum_buffer": w + 1 for n, w in whole.weights().items() if "mlp" in n}
    moments = {key: moment.detach() for key, moment in moments.items() if moment.dim() == 2}
    save_file({name: weight.detach() for name, weight in whole.weights().items()} | moments, path)
    read = Sharded(TensorFile(path), sharded)
    sharded.load_weights({name: read[name] for name in whole.weights()})
    load_state(optimizer, sharded, {key: read[key] for key in moments})
    assert _differing(whole.weights(), sharded.weights(), atol=0) == []
    found = state_tensors(optimizer, sharded)
    assert _differing(moments, found, atol=0) == []
    for moment in found.values():
        own = local_tensor(moment)
        assert own.untyped_storage().nbytes() == own.nbytes


def _differing(a: dict[str, Tensor], b: dict[str, Tensor], *, atol: float) -> list[str]:
    assert a.keys() == b.keys()
    gathered = {name: full_tensor(tensor.detach()) for name, tensor in b.items()}  # by all ranks
    return [n for n in a if not torch.allclose(a[n], gathered[n], atol=atol, rtol=0)]
