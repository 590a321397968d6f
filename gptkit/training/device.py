"""The device and precision that a model runs in, each choice with its reason."""

import re
import shutil
from dataclasses import dataclass
from importlib.util import find_spec

import torch
from torch import Tensor

from gptkit.errors import UsageError
from gptkit.memory import forget_peak as forget_peak_of_process
from gptkit.memory import peak, total
from gptkit.recipe.options import ModelOptions, TrainOptions
from gptkit.training import precision

WIDTH: int = ModelOptions.model_fields["n_embd"].default
"""Of a model whose recipe names none."""


@dataclass(frozen=True)
class RunDevice:
    """Device, precision and compilation of a run; `reasons` explains each, by name."""

    device: torch.device
    dtype: torch.dtype
    compile: bool
    reasons: dict[str, str]

    @property
    def dtype_name(self) -> str:
        """For example "float32"."""
        return str(self.dtype).removeprefix("torch.")

    def autocast(self, *, cache: bool = True) -> torch.autocast:
        """The context in which forward passes run.

        Args:
            cache: keep weights in the lower precision for further passes in the same context.
        """
        lower = self.dtype != torch.float32
        return torch.autocast(self.device.type, self.dtype, enabled=lower, cache_enabled=cache)

    def put(self, tensor: Tensor) -> Tensor:
        """Copy a batch to the device; to a GPU asynchronously."""
        if self.device.type == "cuda":
            return tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor.to(self.device)


def resolve_device(
    options: TrainOptions,
    *,
    width: int = WIDTH,
    before: str | None = None,
    local_rank: int | None = None,
) -> RunDevice:
    """Resolve every "auto" of the training options on this machine.

    Args:
        options: the recipe's.
        width: of the model, with which a CPU tries whether bfloat16 is faster.
        before: the precision that a resumed run was trained in on a CPU, if it was on one.
        local_rank: this process's number on its machine; None if it is the only one.

    Raises:
        UsageError: the device is missing, or there are fewer GPUs than processes.
    """
    if local_rank is None:
        device, why_device = pick_device(options.device)
    else:
        device, why_device = _pick_for_rank(options.device, local_rank)
    dtype, why_dtype = _pick_dtype(options.dtype, device, width=width, before=before)
    compiled, why_compile = _pick_compile(options.compile, device)
    reasons = {"device": why_device, "dtype": why_dtype, "compile": why_compile}
    return RunDevice(device, dtype, compiled, reasons)


def pick_device(name: str) -> tuple[torch.device, str]:
    """The device of that name, and the reason.

    Args:
        name: "auto", "cpu", "mps", "cuda" or "cuda:N".

    Raises:
        UsageError: it is missing, or there is no such name.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda"), f"{torch.cuda.get_device_name()} found"
        if torch.backends.mps.is_available():
            return torch.device("mps"), "Apple GPU found"
        return torch.device("cpu"), "no GPU found"
    if not re.fullmatch(r"cpu|mps|cuda(:\d{1,3})?", name):
        raise UsageError(f'no device named "{name}"', hint="auto, cpu, mps, cuda or cuda:N")
    device = torch.device(name)
    missing = None
    if device.type == "mps" and not torch.backends.mps.is_available():
        missing = f"torch {torch.__version__} finds no Apple GPU"
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        missing = _describe_cuda()
    if missing:
        raise UsageError(f'device "{name}" is not available: {missing}', hint='use device "auto"')
    return device, "asked for"


def memory(device: torch.device) -> int | None:
    """Bytes of memory of a device in all; None if that cannot be known."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return total()


def peak_memory(device: torch.device) -> int | None:
    """The most memory so far, in bytes: of tensors on a GPU, of this process on a CPU.

    None if that cannot be known.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type == "mps":
        return torch.mps.driver_allocated_memory()  # keeps what it once allocated
    return peak()


def forget_peak(device: torch.device) -> None:
    """Let `peak_memory` begin again with what is there now, where that is possible."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif device.type == "cpu":
        forget_peak_of_process()


def _pick_for_rank(name: str, local_rank: int) -> tuple[torch.device, str]:
    """The device of one of several processes: a GPU each, or the CPU for all."""
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu"), "asked for" if name == "cpu" else "no CUDA GPU found"
    if name not in ("auto", "cuda"):
        raise UsageError(
            f'several processes cannot train on device "{name}"',
            hint='"auto" or "cuda" takes a GPU for each, "cpu" the CPU for all',
        )
    if local_rank >= (count := torch.cuda.device_count()):
        raise UsageError(
            f"process {local_rank + 1} of this machine has no GPU: {_describe_cuda()}",
            hint=f"torchrun --nproc-per-node {max(count, 1)}, or --set train.device=cpu",
        )
    return torch.device("cuda", local_rank), f"one of {count} GPUs found, one for each process"


def _describe_cuda() -> str:
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    count = torch.cuda.device_count()
    return f"torch {torch.__version__} (CUDA {torch.version.cuda}) finds {count} GPUs"


def _pick_dtype(
    name: str, device: torch.device, *, width: int, before: str | None
) -> tuple[torch.dtype, str]:
    if name != "auto":
        return getattr(torch, name), "asked for"
    if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.bfloat16, "the GPU has bfloat16"
    if device.type == "cpu":
        return _try_dtypes(width, before)
    return torch.float32, f"bfloat16 is not fast on this {device.type}"


def _try_dtypes(width: int, before: str | None) -> tuple[torch.dtype, str]:
    """The clearly faster one by a trial; a run keeps what it began in, unless it is hopeless."""
    if before == "float32" or (before == "bfloat16" and not precision.hopeless()):
        return getattr(torch, before), "as before"
    faster = precision.speedup(width)
    if not faster:
        return torch.float32, "bfloat16 is not fast on this cpu"
    told = f"bfloat16 has {faster:.2g} times float32's speed in a trial"
    return torch.bfloat16 if faster >= precision.CLEARLY else torch.float32, told


def _pick_compile(choice: str | bool, device: torch.device) -> tuple[bool, str]:
    if isinstance(choice, bool):
        return choice, "asked for"
    if device.type == "cuda":
        compiler = any(map(shutil.which, ("cc", "gcc", "clang")))
        if compiler and find_spec("triton"):
            return True, "saves more time than it takes on a GPU"
        return False, "needs triton and a C compiler"
    return False, f"takes more time than it saves on {device.type}"
