import pytest
import torch

from gptkit.errors import UsageError
from gptkit.recipe.options import TrainOptions
from gptkit.training.device import pick_device, resolve_device

HAS_GPU = torch.cuda.is_available() or torch.backends.mps.is_available()
without_gpu = pytest.mark.skipif(HAS_GPU, reason="this machine has a GPU")


@without_gpu
def test_auto_takes_the_cpu_where_there_is_no_gpu_and_says_why() -> None:
    run_device = resolve_device(TrainOptions())
    assert run_device.device == torch.device("cpu")
    assert run_device.dtype == torch.float32
    assert run_device.compile is False
    assert run_device.reasons == {
        "device": "no GPU found",
        "dtype": "bfloat16 is not fast on this cpu",
        "compile": "takes more time than it saves on cpu",
    }


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
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
