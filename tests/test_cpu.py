"""The linear layers of training on CPUs, and what a training step computes there, counted."""

import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call, grad, vmap
from torch.utils._python_dispatch import TorchDispatchMode

import gptkit
from gptkit.model import cpu
from gptkit.model.blocks import Linear
from gptkit.plugin import Data, TokenFile
from gptkit.testing import LetterCodec
from gptkit_grad_clip import GradClip
from tests.support import execute

pytestmark = pytest.mark.skipif(not cpu._has_onednn(), reason="an x86 CPU and oneDNN are needed")


class Counting(TorchDispatchMode):
    """Counts the operators that run, and those that copy a tensor of some size."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size, self.ran, self.copied = size, Counter[str](), Counter[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **kwargs or {})
        name = func.__name__.partition(".")[0]
        self.ran[name] += 1
        if name in ("clone", "copy_", "cat", "_to_copy", "contiguous") and isinstance(
            result, Tensor
        ):
            self.copied[name] += result.numel() >= self.size
        return result


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5, 24), (3, 4, 24), (2, 3, 1, 24)])
def test_results_and_gradients_are_torchs(shape: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(1)
    layer, x = Linear(24, 40, bias=bias), torch.randn(shape, requires_grad=True)
    needed = [x, *layer.parameters()]
    y, expected = layer(x), F.linear(x, layer.weight, layer.bias)
    assert "_Linear" in type(y.grad_fn).__name__
    torch.testing.assert_close(y, expected)
    to = torch.randn_like(y)
    torch.testing.assert_close(
        torch.autograd.grad(y, needed, to), torch.autograd.grad(expected, needed, to)
    )
    layer.weight.requires_grad_(False)
    (of_x,) = torch.autograd.grad(layer(x).sum(), x)
    torch.testing.assert_close(of_x, layer.weight.sum(0).expand_as(x))


def test_gradients_have_gradients() -> None:
    torch.manual_seed(1)
    layer, x = Linear(6, 4), torch.randn(3, 6, requires_grad=True)
    needed = [x, *layer.parameters()]

    def second(y: Tensor) -> tuple[Tensor, ...]:
        first = torch.autograd.grad(y.square().sum(), needed, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), needed)

    torch.testing.assert_close(second(layer(x)), second(F.linear(x, layer.weight, layer.bias)))


def test_elsewhere_torch_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without gradients, in bfloat16, in float64, in torch.func and in a compiled model."""
    layer, x = Linear(8, 8), torch.randn(2, 8, requires_grad=True)
    parameters = dict(layer.named_parameters())

    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(layer, parameters, (x,)).sum()

    per_sample = vmap(grad(loss), in_dims=(None, 0))(parameters, x.detach())
    torch.testing.assert_close(per_sample["weight"], x.detach()[:, None].expand(2, 8, 8))
    with Counting(0) as mode:
        with torch.no_grad():
            layer(x)
        with torch.autocast("cpu", torch.bfloat16):
            layer(x)
        with monkeypatch.context() as patch:
            patch.setattr(torch.backends.mkldnn, "enabled", False)
            layer(x)
        layer.double()(x.double())
    assert "_linear_pointwise" not in mode.ran
    layer.float()
    assert not torch.compile(lambda: cpu.trains(x), backend="eager", fullgraph=True)()


def test_what_a_step_computes(tmp_path: Path) -> None:
    """Nothing is copied but the gradients of queries, keys and values, into one tensor."""
    layers, batch, block, width = 3, 4, 16, 32
    (tmp_path / "tokens").write_bytes(bytes(i % 26 for i in range(500)))
    tokens = TokenFile(tmp_path / "tokens", "uint8", stop=500, block_size=block)
    trainer = gptkit.trainer(
        {
            "dataset": {"use": "char-text"},
            "model": {"n_layer": layers, "n_head": 2, "n_embd": width},
            "train": {"steps": 9, "batch_size": batch, "device": "cpu", "dtype": "float32"},
        },
        data=Data(tokens, tokens, LetterCodec(), 26, block),
        callbacks=[GradClip(max_norm=1.0)],
    )
    trainer.step()
    with Counting(batch * block * width) as mode:
        trainer.step()
    assert mode.copied == {"cat": layers}
    expected = {
        "_linear_pointwise": 8 * layers,  # four layers in a block, forward and backward
        "mm": 4 * layers + 3,  # gradients of weights, and the head
        "gelu": layers,
        "gelu_backward": layers,
        "native_layer_norm": 2 * layers + 1,
        "native_layer_norm_backward": 2 * layers + 1,
        "sum": 4 * layers + 3,  # gradients of biases and of positions; targets, counted twice
        "add": 4 * layers + 3,  # the residual stream and its gradient; position, head, loss
        "_foreach_norm": 1,  # serves the check of the gradients and their clipping
        "_fused_adamw_": 2,  # decayed or not
    }
    assert {name: mode.ran[name] for name in expected} == expected


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc is needed")
def test_the_memory_of_a_step_serves_the_next() -> None:
    """Page faults of tensors that are freed and made again, in a process of its own."""
    program = """
import torch
from resource import RUSAGE_SELF, getrusage
from gptkit.training import allocator
def faults():
    before = getrusage(RUSAGE_SELF).ru_minflt
    for _ in range(9):
        kept = [torch.ones(1 << 20) for _ in range(8)]  # 32 MiB in all
        del kept
    return getrusage(RUSAGE_SELF).ru_minflt - before
first = faults()
with allocator.for_training(torch.device("cpu"), sharded=False):
    faults()
    print(first, faults())
"""
    first, then = map(int, execute(sys.executable, "-c", program).split())
    assert first > 9 * 1000 > 9 * 100 > then
    for chosen in (  # the user's choice counts
        {"MALLOC_MMAP_THRESHOLD_": "1048576"},
        {"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=1048576"},
    ):
        env = os.environ | chosen
        first, then = map(int, execute(sys.executable, "-c", program, env=env).split())
        assert min(first, then) > 9 * 1000
