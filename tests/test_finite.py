"""What is not finite is found: on a CPU at once, on a GPU a step later, without waiting for it."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gptkit.errors import DivergedError
from gptkit.model.gpt import GPT
from gptkit.plugin import Data, Split
from gptkit.recipe.options import GPTConfig, TrainOptions
from gptkit.runs import checkpoint
from gptkit.sampling.rule import SamplingOptions, choose
from gptkit.testing import LetterCodec
from gptkit.training.device import resolve_device
from gptkit.training.finite import FiniteCheck
from gptkit.training.trainer import Trainer
from tests.support import needs_cuda, stir

GOOD = torch.tensor(1.0)


class Letters(Split):
    """Thirty windows of random letters."""

    def __len__(self) -> int:
        return 30

    def __getitem__(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        letters = torch.randint(26, (30, 9), generator=torch.Generator().manual_seed(1))
        windows = letters[indices]
        return windows[:, :-1], windows[:, 1:]


def trainer(**options: Any) -> Trainer:
    torch.manual_seed(0)
    model = GPT(GPTConfig(n_layer=1, n_head=2, n_embd=16, vocab_size=26, block_size=8))
    data = Data(Letters(), Letters(), LetterCodec(), vocab_size=26, block_size=8)
    chosen = TrainOptions(**{"steps": 6, "batch_size": 4} | options)
    return Trainer(model, data, options=chosen, run_device=resolve_device(chosen), seed=1)


@pytest.mark.parametrize("value", [math.inf, math.nan])
@pytest.mark.parametrize(
    ("bad", "fault"),
    [
        (0, "step 3: the loss is not finite"),
        (1, "step 3: the norm of the gradients is not finite"),
    ],
)
def test_a_bad_step_is_named(value: float, bad: int, fault: str) -> None:
    values = [GOOD, GOOD]
    values[bad] = torch.tensor(value)
    with pytest.raises(DivergedError, match=f"^{fault}$") as caught:
        FiniteCheck(nn.Linear(2, 2)).after_step(3, *values)
    assert caught.value.exit_code == 3


def test_good_steps_and_weights_pass() -> None:
    watch = FiniteCheck(nn.Linear(2, 2))
    watch.after_step(1, GOOD, torch.tensor(3e38))
    watch.before_save(1)


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_bad_weights_are_neither_evaluated_nor_saved(value: float) -> None:
    layer = nn.Linear(2, 2)
    layer.weight.data[1, 1] = value
    with pytest.raises(DivergedError, match=r"^step 4: a weight is not finite$"):
        FiniteCheck(layer).before_save(4)


def test_huge_weights_are_finite() -> None:
    layer = nn.Linear(2, 2)
    layer.weight.data.fill_(3e38)  # the sum of their squares is not
    FiniteCheck(layer).before_save(4)


def test_an_update_that_goes_wrong_leaves_no_checkpoint(
    tiny_recipe: Callable[..., Path], cli: Callable[..., Any], tmp_path: Path
) -> None:
    recipe = tiny_recipe(
        train={"optimizer": {"learning_rate": 1e40, "weight_decay": 0.0}}, callbacks=[]
    )
    result = cli("train", recipe, "--set", "train.eval_every=1", "--out", tmp_path / "run")
    assert result.exit_code == 3
    assert "error: step 1: a weight is not finite\n" in result.stderr
    assert checkpoint.step_folders(tmp_path / "run/checkpoints") == []


@pytest.mark.parametrize("every", [{}, {"eval_every": 100, "save_every": 1}])
def test_a_last_update_whose_loss_is_not_finite_is_neither_saved_nor_logged(
    every: dict[str, int], tiny_recipe: Callable[..., Path], cli: Callable[..., Any], tmp_path: Path
) -> None:
    train = {"steps": 1 if not every else 3, "optimizer": {"learning_rate": 1e10}}
    recipe = tiny_recipe(train=train | every, callbacks=[{"use": "log", "every": 1}])
    result = cli("train", recipe, "--out", tmp_path / "run")
    assert result.exit_code == 3
    assert re.search(r"^error: step 1: the (validation )?loss is not finite$", result.stderr, re.M)
    assert checkpoint.step_folders(tmp_path / "run/checkpoints") == []
    metrics = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    assert all("val_loss" not in json.loads(line) for line in metrics)


@pytest.mark.parametrize(("scale", "fault"), [(math.nan, "a weight"), (1e25, "the loss")])
def test_a_model_that_diverged_is_not_used(
    scale: float,
    fault: str,
    tiny_recipe: Callable[..., Path],
    cli: Callable[..., Any],
    tmp_path: Path,
) -> None:
    folder = tmp_path / "run"
    assert (
        cli("train", tiny_recipe(train={"steps": 1}, callbacks=[]), "--out", folder).exit_code == 0
    )
    stir(folder, scale=scale)
    for command in (["sample"], ["eval"], ["export", "--onnx"]):
        result = cli(command[0], folder, *command[1:])
        assert result.exit_code == 3, (command, result.output)
        place = folder / "checkpoints/step-00000001"
        assert result.stderr.startswith(f"error: {place}: {fault} is not finite\n")
    result = cli("train", folder / "recipe.toml", "--from", folder, "--out", tmp_path / "other")
    assert (result.exit_code, (tmp_path / "other").exists()) == (3, False)
    result = cli("resume", folder, "--set", "train.steps=3")
    assert result.exit_code == 3
    assert [p.name for p in checkpoint.step_folders(folder / "checkpoints")] == ["step-00000001"]


def test_logits_that_are_not_finite_draw_nothing() -> None:
    for value in (math.nan, math.inf):
        logits = np.array([[0, 1], [value, 0]], np.float32)
        with pytest.raises(DivergedError, match="not finite"):
            choose(logits, np.full(2, 0.5, np.float32), SamplingOptions())


@pytest.mark.gpu
@needs_cuda
def test_on_a_gpu_a_bad_step_is_found_one_step_later() -> None:
    watch = FiniteCheck(nn.Linear(2, 2).cuda())
    bad, good = torch.tensor(math.nan, device="cuda"), GOOD.cuda()
    watch.after_step(1, good, good)
    watch.after_step(2, bad, good)
    with pytest.raises(DivergedError, match=r"^step 2: the loss is not finite$"):
        watch.after_step(3, good, good)
    watch.after_step(4, good, bad)
    with pytest.raises(DivergedError, match=r"^step 4: the norm of the gradients is not"):
        watch.before_save(4)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_on_a_gpu_that_is_not_the_current_one_the_check_waits_for_the_copy() -> None:
    watch = FiniteCheck(nn.Linear(2, 2).to("cuda:1"))
    bad, good = torch.tensor(math.nan, device="cuda:1"), GOOD.to("cuda:1")
    with torch.cuda.device(1):
        torch.cuda._sleep(10**9)
    watch.after_step(1, bad, good)
    with pytest.raises(DivergedError, match=r"^step 1: the loss is not finite$"):
        watch.before_save(1)


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("micro_batch_size", [4, 2])
def test_on_a_gpu_no_step_waits_for_the_device(micro_batch_size: int) -> None:
    made = trainer(device="cuda", compile=False, micro_batch_size=micro_batch_size)
    made.step()  # what is only done once may wait
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(4):
            made.step()
    finally:
        torch.cuda.set_sync_debug_mode(before)
    made.evaluate()
    assert made.state.val_loss is not None
