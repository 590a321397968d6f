"""Images through the same core: sampled, completed, evaluated, classified, probed."""

import hashlib
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from typer.testing import Result

from gptkit.recipe.options import TrainOptions
from gptkit.training.device import resolve_device
from gptkit.training.evaluate import evaluate
from gptkit_cifar10.dataset import Cifar10

ROOT = Path(__file__).parents[1]
SHAPES = {"use": "cifar10", "source": "shapes", "size": 4, "colors": 8}
QUICK = {"steps": 2, "eval_every": 2, "eval_batches": 1, "batch_size": 4, "device": "cpu"}


@pytest.fixture
def train(cli: Callable[..., Result], tiny_recipe: Callable[..., Path]) -> Callable[..., None]:
    """Trains a tiny model of shapes, with the data set's options changed, into the folder r."""

    def call(**options: Any) -> None:
        recipe = tiny_recipe(dataset=SHAPES | options, train=QUICK)
        result = cli("train", recipe, "--out", "r")
        assert result.exit_code == 0, result.output

    return call


def size(path: Path) -> tuple[int, int]:
    with Image.open(path) as picture:
        return picture.size


class Uniform(nn.Module):
    """Knows nothing but that a target is one of 256 values."""

    def forward(self, x: Tensor, y: Tensor, *documents: int | None) -> Tensor:
        return F.cross_entropy(torch.zeros(y.numel(), 256, dtype=torch.float64), y.flatten())


def test_a_model_that_knows_nothing_has_eight_bits_per_dimension() -> None:
    data = Cifar10(source="shapes", size=2, colors="rgb").load()
    run_device = resolve_device(TrainOptions(device="cpu"))
    result = evaluate(Uniform(), data.val, run_device=run_device, batch_size=64)
    assert data.codec.lossless
    assert result.tokens == 600 * 2 * 2 * 3
    assert result.bits_per_token == pytest.approx(8, abs=1e-12)


def test_only_a_lossless_model_has_bits_per_dimension(
    train: Callable[..., None], cli: Callable[..., Result]
) -> None:
    train()
    assert "bits_per_dim" not in json.loads(cli("eval", "r", "--json").stdout)
    assert "not comparable: the codec drops information" in cli("eval", "r").stdout


def test_bits_per_dimension_of_a_lossless_model(
    train: Callable[..., None], cli: Callable[..., Result]
) -> None:
    train(size=2, colors="rgb")
    found = json.loads(cli("eval", "r", "--json").stdout)
    assert found["bits_per_dim"] == found["bits_per_token"] == found["loss"] / math.log(2)


def test_samples_are_a_grid_and_prompts_are_completed(
    train: Callable[..., None], cli: Callable[..., Result], tmp_path: Path
) -> None:
    train(class_conditional=True)
    sheet = size(next((tmp_path / "r/samples").glob("*.png")))
    assert sheet == (10 * 160 + 32, 2 * 160 + 32)  # 16 samples, a class in each of ten columns
    for name in ("a.png", "b.png"):
        assert cli("sample", "r", "--samples", 4, "--seed", 3, "--out", name).exit_code == 0
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert size(tmp_path / "a.png") == (352, 352)  # 2 x 2, magnified 32 times, gaps of one pixel

    Image.new("RGB", (40, 20), "red").save(tmp_path / "photo.png")
    again = cli("sample", "r", "--prompt", "photo.png", "--keep", 0.5, "--out", "c.png")
    assert again.exit_code == 0
    assert size(tmp_path / "c.png")[0] == 3 * 128 + 4 * 32  # kept, completed, original


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompt", "photo.png"], "the prompt already fills the sample"),
        (["--prompt", "photo.png", "--keep", "1.5"], "keep should be between 0 and 1, got 1.5"),
        (["--keep", "-1"], "keep should be between 0 and 1, got -1"),
        (["--class", "rin"], 'did you mean "ring"?'),
        (["--prompt", "none.png"], "none.png: cannot be read"),
        (["--out", "no.jpg"], "no.jpg: samples are .png files\nhint:  --out no.png"),
    ],
)
def test_prompts_that_make_no_sense(
    train: Callable[..., None],
    cli: Callable[..., Result],
    tmp_path: Path,
    arguments: list[str],
    message: str,
) -> None:
    train(class_conditional=True)
    Image.new("RGB", (8, 8), "red").save(tmp_path / "photo.png")
    result = cli("sample", "r", "--out", "no.png", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert not list(tmp_path.glob("no.*"))


def test_text_knows_no_classes(
    cli: Callable[..., Result], tiny_recipe: Callable[..., Path]
) -> None:
    cli("train", tiny_recipe(), "--out", "r")
    for command in (["sample", "r", "--class", "cat"], ["probe", "r"], ["eval", "r", "--classify"]):
        result = cli(*command)
        assert result.exit_code == 2
        assert "class" in result.stderr or "labels" in result.stderr


def test_classifying_takes_a_start_token_per_class(
    train: Callable[..., None], cli: Callable[..., Result]
) -> None:
    train()
    result = cli("eval", "r", "--classify")
    assert result.exit_code == 2
    assert "class_conditional = true" in result.stderr


def test_the_probe_does_not_see_the_label_in_the_start_token(
    train: Callable[..., None], cli: Callable[..., Result], tmp_path: Path
) -> None:
    generator = np.random.default_rng(0)
    for i in range(60):  # the same images in both classes: nobody can tell them apart
        image = Image.fromarray(generator.integers(256, size=(4, 4, 3), dtype=np.uint8))
        for part in ("train", "val"):
            for name in ("left", "right"):
                folder = tmp_path / "photos" / part / name
                folder.mkdir(parents=True, exist_ok=True)
                image.save(folder / f"{i}.png")
    train(path="photos", class_conditional=True)
    found = json.loads(cli("probe", "r", "--json").stdout)
    assert found == json.loads((tmp_path / "r/probe.json").read_text())
    assert found["chance"] == 0.5
    assert len(found["layers"]) == 2
    assert all(accuracy == pytest.approx(0.5, abs=0.1) for accuracy in found["layers"])
    assert size(tmp_path / "r/probe.png")[0] > 300


def test_the_probe_reads_off_what_is_there(
    train: Callable[..., None], cli: Callable[..., Result], tmp_path: Path
) -> None:
    for i in range(40):
        for part in ("train", "val"):
            for name, color in (("dark", (i, 0, 0)), ("light", (255 - i, 255, 255))):
                folder = tmp_path / "photos" / part / name
                folder.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (4, 4), color).save(folder / f"{i}.png")
    train(path="photos")
    found = json.loads(cli("probe", "r", "--json").stdout)
    assert found["raw"] == 1.0
    assert found["layers"] == [1.0, 1.0]


def test_a_resumed_run_on_pixels_ends_with_the_same_weights(
    cli: Callable[..., Result], tiny_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    data = SHAPES | {"flip": True, "class_conditional": True}
    recipe = tiny_recipe(dataset=data, train=QUICK | {"steps": 6, "keep": 9})
    cli("train", recipe, "--out", "whole")
    cli("train", recipe, "--out", "cut")
    for step in (4, 6):
        folder = tmp_path / "cut/checkpoints" / f"step-{step:08}"
        folder.rename(tmp_path / folder.name)
    assert cli("resume", "cut").exit_code == 0
    digests = {
        hashlib.sha256(
            (tmp_path / run / "checkpoints/step-00000006/model.safetensors").read_bytes()
        ).hexdigest()
        for run in ("whole", "cut")
    }
    assert len(digests) == 1


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_page_from_nothing_to_a_grid(
    gptkit: Callable[..., CompletedProcess[str]], tmp_path: Path
) -> None:
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    for i in range(20):
        folder = tmp_path / "photos" / ("red" if i % 2 else "blue")
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30), (200 + i, 0, 0) if i % 2 else (0, 0, 200 + i)).save(
            folder / f"{i}.png"
        )
    page = (ROOT / "docs/pixels.md").read_text()
    outputs = {}
    for block in re.findall(r"^```sh\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL):
        for command in block.splitlines():
            program, *arguments = command.split()
            assert program == "gptkit"
            done = gptkit(*arguments, env={"OMP_NUM_THREADS": "2"}, timeout=1200)
            assert done.returncode == 0, done.stderr
            outputs[arguments[0]] = done.stdout
    accuracy = float(re.search(r"accuracy +([\d.]+)", outputs["eval"])[1])
    assert accuracy >= 95
    columns, rows = 10, 2
    assert size(tmp_path / "shapes.png") == ((columns * 13 + 1) * 11, (rows * 13 + 1) * 11)
    assert "after block 4" in outputs["probe"]
