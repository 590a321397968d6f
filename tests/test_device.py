from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from gptkit.errors import UsageError
from gptkit.recipe.options import TrainOptions
from gptkit.recipe.recipe import PluginSpec, Recipe
from gptkit.runs.run_folder import RunFolder
from gptkit.runs.setup import choose_device
from gptkit.runs.train import resume, train
from gptkit.training import precision
from gptkit.training.device import pick_device, resolve_device
from gptkit.training.distributed import Ranks
from tests.support import needs_cuda

HAS_GPU = torch.cuda.is_available() or torch.backends.mps.is_available()
without_gpu = pytest.mark.skipif(HAS_GPU, reason="this machine has a GPU")


CPU = TrainOptions(device="cpu")


def take(seconds: dict[torch.dtype, float], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every product and step of a trial take so long, by a clock that stands still else."""
    now = [0.0]

    def work(*arguments: object) -> None:
        now[0] += seconds[next(a for a in arguments if isinstance(a, torch.dtype))]

    monkeypatch.setattr(precision, "CLOCK", lambda: now[0])
    monkeypatch.setattr(precision, "_step", work)
    monkeypatch.setattr(precision, "_product", work)
    precision.speedup.cache_clear()


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    yield
    precision.speedup.cache_clear()


@without_gpu
def test_auto_takes_the_cpu_where_there_is_no_gpu_and_says_why(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    take({torch.float32: 1.0, torch.bfloat16: 100.0}, monkeypatch)
    run_device = resolve_device(TrainOptions())
    assert run_device.device == torch.device("cpu")
    assert run_device.dtype == torch.float32
    assert run_device.compile is False
    assert run_device.reasons == {
        "device": "no GPU found",
        "dtype": "bfloat16 is not fast on this cpu",
        "compile": "takes more time than it saves on cpu",
    }


@pytest.mark.gpu
@needs_cuda
def test_auto_takes_the_gpu_and_names_it() -> None:
    run_device = resolve_device(TrainOptions())
    assert run_device.device.type == "cuda"
    assert torch.cuda.get_device_name() in run_device.reasons["device"]
    assert run_device.compile is True


def test_what_is_asked_for_is_taken() -> None:
    run_device = resolve_device(TrainOptions(device="cpu", dtype="bfloat16", compile=True))
    assert run_device.device == torch.device("cpu")
    assert run_device.dtype == torch.bfloat16
    assert run_device.compile is True
    assert set(run_device.reasons.values()) == {"asked for"}


@pytest.mark.parametrize(
    ("seconds", "before", "dtype", "reason"),
    [
        (0.25, None, torch.bfloat16, "bfloat16 has 4 times float32's speed in a trial"),
        (0.75, None, torch.float32, "bfloat16 has 1.3 times float32's speed in a trial"),
        (1.25, "bfloat16", torch.bfloat16, "as before"),
        (99.0, "bfloat16", torch.float32, "bfloat16 is not fast on this cpu"),
        (0.25, "float32", torch.float32, "as before"),
        (0.25, "damaged", torch.bfloat16, "bfloat16 has 4 times float32's speed in a trial"),
    ],
)
def test_a_cpu_takes_bfloat16_where_a_trial_shows_that_it_is_clearly_faster(
    monkeypatch: pytest.MonkeyPatch,
    seconds: float,
    before: str | None,
    dtype: torch.dtype,
    reason: str,
) -> None:
    take({torch.float32: 1.0, torch.bfloat16: seconds}, monkeypatch)
    run_device = resolve_device(CPU, width=16, before=before)
    assert (run_device.dtype, run_device.reasons["dtype"]) == (dtype, reason)


def test_one_slow_step_in_float32_decides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    now, steps = [0.0], [0]

    def work(*arguments: object) -> None:
        steps[0] += 1
        now[0] += 50.0 if steps[0] in (5, 13) else 1.0  # one of a product, one of a step

    monkeypatch.setattr(precision, "CLOCK", lambda: now[0])
    monkeypatch.setattr(precision, "_product", work)
    monkeypatch.setattr(precision, "_step", work)
    precision.speedup.cache_clear()
    assert precision.speedup(16) == 1.0
    assert not precision.hopeless()


def test_a_clock_that_stands_still_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "CLOCK", lambda: 7.0)
    precision.speedup.cache_clear()
    assert precision.speedup(16) == 1.0


def test_a_trial_leaves_random_numbers_as_they_are_and_is_made_once() -> None:
    precision.speedup.cache_clear()
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    first = precision.speedup(16)
    assert torch.equal(torch.rand(3), expected)
    assert precision.speedup(16) == first  # two measured ones would differ


def test_a_resumed_run_keeps_the_precision_that_it_began_with(
    tiny_recipe: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_recipe(train={"device": "cpu"})
    monkeypatch.setattr(precision, "speedup", lambda width: 1.0)
    run = train(recipe, out=tmp_path / "r", report=print)
    monkeypatch.setattr(precision, "speedup", lambda width: 9.0)
    lines: list[str] = []
    resume(run.path, ["train.steps=60"], report=lines.append)
    assert " on cpu in float32, " in lines[-1]
    train(recipe, out=tmp_path / "new", report=lines.append)
    assert lines[-1].endswith(" on cpu in bfloat16")
    assert (
        RunFolder(tmp_path / "new")
        .read_environment()["reasons"]["dtype"]
        .startswith("bfloat16 has 9 times")
    )


def test_all_ranks_take_the_precision_that_the_first_one_chose(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Second(Ranks):
        def broadcast(self, text: str = "") -> str:
            return "bfloat16 two times as fast"

    monkeypatch.setattr(precision, "speedup", lambda width: 1.0)
    recipe = Recipe(dataset=PluginSpec(use="char-text"), train=CPU)
    found = choose_device(recipe, Second(rank=1, size=2, local_rank=1))
    assert (found.dtype, found.reasons["dtype"]) == (torch.bfloat16, "two times as fast")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_matrix_products_run_in_the_dtype(dtype: str) -> None:
    run_device = resolve_device(TrainOptions(device="cpu", dtype=dtype))  # type: ignore[arg-type]
    layer = torch.nn.Linear(2, 2)
    with run_device.autocast():
        assert layer(torch.ones(1, 2)).dtype == getattr(torch, dtype)
    assert layer.weight.dtype == torch.float32
    assert layer(torch.ones(1, 2)).dtype == torch.float32


@pytest.mark.parametrize(
    "name", ["", "gpu", "tpu", "CPU", "cuda:x", "cuda:-1", "cpu:", "meta", "xpu", "vulkan"]
)
def test_an_unknown_name_is_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(UsageError, match=f'"{name}"') as caught:
        pick_device(name)
    assert caught.value.hint == "auto, cpu, mps, cuda or cuda:N"


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "cuda:7"])
@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_a_missing_gpu_is_a_usage_error(name: str) -> None:
    with pytest.raises(UsageError, match=f'device "{name}" is not available: torch ') as caught:
        pick_device(name)
    assert caught.value.hint == 'use device "auto"'
    with pytest.raises(UsageError, match="is not available"):
        resolve_device(TrainOptions(device=name))


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="this machine has MPS")
def test_a_missing_apple_gpu_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match='device "mps" is not available'):
        pick_device("mps")


def test_a_gpu_number_beyond_the_last_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match='device "cuda:99" is not available'):
        pick_device("cuda:99")


def test_a_trial_runs_on_one_thread_and_leaves_the_others() -> None:
    """Two threads that wait for each other once made equal steps three times as fast."""
    seen, before = set[int](), torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        precision._ratios(lambda dtype: seen.add(torch.get_num_threads()))
        left = torch.get_num_threads()
    finally:
        torch.set_num_threads(before)
    assert (seen, left) == ({1}, 3)
