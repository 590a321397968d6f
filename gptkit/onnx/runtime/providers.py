"""Where onnxruntime runs a graph; asked for CUDA and not getting it is an error. No torch.

onnxruntime falls back to the CPU with no more than a log line where CUDA's libraries are missing
(microsoft/onnxruntime#23372), so what a session took is checked.
"""

import ctypes
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime as ort

from gptkit.errors import ModelFileError, UsageError

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
FATAL_ONLY = 4
"""onnxruntime's log level; what goes wrong is raised as well, and said in our words."""


def open_session(
    graph: Path | bytes, device: str, *, threads: int | None = None, **cuda: str
) -> ort.InferenceSession:
    """A session on a device.

    Args:
        graph: the file, or its bytes.
        device: "cpu", "cuda", "cuda:N" or "auto", which takes a GPU if there is one.
        threads: of the CPU; None takes OMP_NUM_THREADS, or one per core.
        cuda: options of the CUDA provider.

    Raises:
        UsageError: the device is not there, or has another name.
        ModelFileError: onnxruntime cannot load the graph.
    """
    number = _cuda_number(device)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or _asked_threads()
    options.log_severity_level = FATAL_ONLY
    providers: list[Any] = [CPU]
    if number is not None:
        ort.preload_dlls()
        providers.insert(0, (CUDA, {"device_id": str(number), **cuda}))
    try:
        source = graph if isinstance(graph, bytes) else str(graph)
        session = ort.InferenceSession(source, options, providers=providers)
    except Exception as error:  # onnxruntime's own have no common class
        name = "the graph" if isinstance(graph, bytes) else str(graph)
        raise ModelFileError(
            f"{name}: onnxruntime cannot load it: {first_line(error)}",
            hint="export the model again, or copy the file again",
        ) from error
    if number is not None and session.get_providers()[0] != CUDA:
        raise _no_cuda(f"onnxruntime took {', '.join(session.get_providers())}")
    return session


def provider(session: ort.InferenceSession) -> str:
    """The name of what a session runs on."""
    return str(session.get_providers()[0])


def gpus() -> int:
    """How many GPUs the NVIDIA driver sees; 0 without a driver."""
    return _ask_driver("cuDeviceGetCount") or 0


def driver_version() -> str | None:
    """The newest CUDA version that the NVIDIA driver knows; None without a driver."""
    number = _ask_driver("cuDriverGetVersion")
    return f"{number // 1000}.{number % 1000 // 10}" if number else None


def first_line(error: BaseException) -> str:
    """What an exception says, without its tail and onnxruntime's numbers."""
    line = (str(error).splitlines() or [type(error).__name__])[0]
    return re.sub(r"^\[ONNXRuntimeError\] : \d+ : ", "", line)


def _asked_threads() -> int:
    """What OMP_NUM_THREADS says, as torch heeds it; 0 lets onnxruntime choose."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return int(asked) if asked.isdecimal() else 0


def _cuda_number(device: str) -> int | None:
    """The GPU that is meant, or None for the CPU."""
    if device == "auto":
        return 0 if CUDA in ort.get_available_providers() and gpus() else None
    if device == "cpu":
        return None
    if not re.fullmatch(r"cuda(:\d{1,3})?", device):
        raise UsageError(
            f'an exported model does not run on "{device}"', hint="auto, cpu, cuda or cuda:N"
        )
    number = int(device.partition(":")[2] or 0)
    if CUDA not in ort.get_available_providers():
        raise _no_cuda(f"onnxruntime {ort.__version__} is built without CUDA")
    if number >= gpus():
        raise _no_cuda(f"the NVIDIA driver sees {gpus()} GPUs")
    return number


def _no_cuda(reason: str) -> UsageError:
    there = ", ".join(ort.get_available_providers())
    return UsageError(
        f"CUDA is not available: {reason} (providers: {there})",
        hint='pip install "onnxruntime-gpu[cuda,cudnn]" and an NVIDIA driver; '
        "gptkit doctor shows what is there; --device cpu works everywhere",
    )


def _ask_driver(question: str) -> int | None:
    """A number from the driver's own library."""
    try:
        loader: Callable[[str], ctypes.CDLL] = ctypes.CDLL
        driver = loader("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        answer = ctypes.c_int()
        if driver.cuInit(0) or getattr(driver, question)(ctypes.byref(answer)):
            return None
    except (OSError, AttributeError):
        return None
    return answer.value
