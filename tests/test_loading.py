"""`gptkit.load`: one call for checkpoints and exported models."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

import gptkit
from gptkit.errors import UsageError
from gptkit.sampling.rule import SamplingOptions
from gptkit.sampling.samples import SampleRequest

DATA = Path(__file__).parent / "data/v0.1"
REQUEST = SampleRequest("thou", tokens=40, samples=2)


def test_a_checkpoint_and_its_exported_file_are_used_alike(
    cli: Callable[..., Result], tmp_path: Path
) -> None:
    assert cli("export", DATA / "text", "--out", "text.onnx").exit_code == 0
    sampling = SamplingOptions(temperature=0.8, top_k=9, seed=3)
    drawn = [
        gptkit.load(path, device="cpu").draw(REQUEST, sampling).token_ids()
        for path in (DATA / "text", str(tmp_path / "text.onnx"))
    ]
    assert drawn[0] == drawn[1]
    options = "--prompt thou --tokens 40 --samples 2 --top-k 9 --seed 3 --ids"
    said = cli("sample", DATA / "text", *options.split()).stdout
    assert [list(map(int, line.split())) for line in said.splitlines()] == drawn[0]


def test_models_tell_their_codec_temperature_and_provider() -> None:
    checkpoint, exported = gptkit.load(DATA / "text"), gptkit.load(DATA / "text.onnx", device="cpu")
    assert checkpoint.codec == exported.codec
    assert checkpoint.temperature == exported.temperature == 0.8
    assert (checkpoint.provider, exported.provider) == (None, "CPUExecutionProvider")


def test_an_exported_model_is_loaded_without_torch() -> None:
    load = f"gptkit.load({str(DATA / 'text.onnx')!r})"
    program = f"import sys, gptkit; {load}; print('torch' in sys.modules)"
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_what_cannot_be_loaded_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such run folder"):
        gptkit.load(tmp_path / "nothing")
    with pytest.raises(UsageError, match="has no checkpoints to choose from"):
        gptkit.load(DATA / "text.onnx", checkpoint="best")
    (tmp_path / "model.onnx").touch()
    with pytest.raises(UsageError, match="not a run folder or a bundle"):
        gptkit.load(tmp_path)
    with pytest.raises(AttributeError, match="'gptkit' has no attribute 'lode'"):
        gptkit.lode  # noqa: B018
