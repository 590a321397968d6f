"""The devices that onnxruntime runs a graph on. Imports no torch.

CUDA that was asked for and is not available is an error: onnxruntime itself falls back to the CPU
with just a log line if CUDA's libraries are missing (microsoft/onnxruntime#23372), so the provider
that a session got is checked.
"""

import ctypes
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import onnxruntime as ort
from numpy.typing import NDArray

from gptkit.errors import ModelFileError, UsageError
from gptkit.memory import TOO_LITTLE
from gptkit.sampling.threads import for_drawing

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
WEIGHTS_FILE: Literal["model.safetensors"] = "model.safetensors"
"""The weights of a bundle, which its graphs share."""
WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"
"""onnxruntime's name of that setting."""
AGAIN = "copy the file again, or export the model again"
"""The hint where an exported file cannot be used."""
MOST_SHOWN = 400
"""Characters of a message of onnxruntime's that are shown."""
FATAL_ONLY = 4
"""onnxruntime's log level for nothing but fatal errors; all others are raised as exceptions."""


def open_session(
    graph: Path | bytes,
    device: str,
    *,
    weights_folder: Path | None = None,
    weights: Mapping[str, NDArray[Any]] | None = None,
    **cuda: str,
) -> ort.InferenceSession:
    """An onnxruntime session, on the CPU with the threads of `sampling.threads`.

    Args:
        graph: the file, or its bytes.
        device: "cpu", "cuda", "cuda:N" or "auto", which takes a GPU if there is one.
        weights_folder: where the weight files of a graph in bytes are.
        weights: tensors of a graph in bytes that are in no file; keep them as long as the session.
        cuda: options of the CUDA provider.

    Raises:
        UsageError: the device is unknown or not available.
        ModelFileError: onnxruntime cannot load the graph.
    """
    number = _cuda_number(device)
    options = ort.SessionOptions()
    options.intra_op_num_threads = for_drawing(_weight_bytes(graph, weights)) or 0
    options.log_severity_level = FATAL_ONLY
    if weights_folder:
        options.add_session_config_entry(WEIGHTS_FOLDER, str(weights_folder.absolute()))
    if weights:
        values = [ort.OrtValue.ortvalue_from_numpy(array) for array in weights.values()]
        options.add_external_initializers([*weights], values)
    providers: list[Any] = [CPU]
    if number is not None:
        ort.preload_dlls()
        providers.insert(0, (CUDA, {"device_id": str(number), **cuda}))
    try:
        source = graph if isinstance(graph, bytes) else str(graph)
        session = ort.InferenceSession(source, options, providers=providers)
    except Exception as error:  # onnxruntime's exceptions have no common base class
        name = "the graph" if isinstance(graph, bytes) else str(graph)
        raise ModelFileError(
            f"{name}: onnxruntime cannot load it: {first_line(error)}", hint=AGAIN
        ) from error
    if number is not None and session.get_providers()[0] != CUDA:
        raise _no_cuda(f"onnxruntime took {', '.join(session.get_providers())}")
    return session


@contextmanager
def running(path: Path | str) -> Iterator[None]:
    """Say what it means if onnxruntime fails in the block, which runs the graph of a file.

    Raises:
        MemoryError: there is too little memory.
        ModelFileError: it cannot run the graph.
    """
    try:
        yield
    except Exception as error:  # onnxruntime's exceptions have no common base class
        if TOO_LITTLE.search(str(error)):
            raise MemoryError(first_line(error)) from error
        raise ModelFileError(
            f"{path}: onnxruntime cannot run it: {first_line(error)}", hint=AGAIN
        ) from error


def provider(session: ort.InferenceSession) -> str:
    """The name of the execution provider that a session got."""
    return str(session.get_providers()[0])


def gpus() -> int:
    """Number of GPUs that the NVIDIA driver sees; 0 without a driver."""
    return _ask_driver("cuDeviceGetCount") or 0


def driver_version() -> str | None:
    """The newest CUDA version that the NVIDIA driver supports; None without a driver."""
    number = _ask_driver("cuDriverGetVersion")
    return f"{number // 1000}.{number % 1000 // 10}" if number else None


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, without onnxruntime's error number."""
    line = (str(error).splitlines() or [type(error).__name__])[0]
    return re.sub(r"^\[ONNXRuntimeError\] : \d+ : ", "", line)[:MOST_SHOWN]


def _weight_bytes(graph: Path | bytes, weights: Mapping[str, NDArray[Any]] | None) -> int:
    """Bytes of weights of a graph: in memory, in its file, or in the file that a bundle shares."""
    if isinstance(graph, bytes):
        return sum(array.nbytes for array in (weights or {}).values()) or len(graph)
    files = (graph, graph.with_name(WEIGHTS_FILE))
    return sum(path.stat().st_size for path in files if path.is_file())


def _cuda_number(device: str) -> int | None:
    """The number of the GPU, or None for the CPU."""
    if device == "auto":
        return 0 if CUDA in ort.get_available_providers() and gpus() else None
    if device == "cpu":
        return None
    if not re.fullmatch(r"cuda(:\d{1,3})?", device):
        raise UsageError(
            f'unknown device for an exported model: "{device}"', hint="auto, cpu, cuda or cuda:N"
        )
    number = int(device.partition(":")[2] or 0)
    if CUDA not in ort.get_available_providers():
        raise _no_cuda(f"onnxruntime {ort.__version__} is built without CUDA")
    if number >= gpus():
        raise _no_cuda(f"the NVIDIA driver sees {gpus()} GPUs")
    return number


def _no_cuda(reason: str) -> UsageError:
    available = ", ".join(ort.get_available_providers())
    return UsageError(
        f"CUDA is not available: {reason} (providers: {available})",
        hint='it needs pip install "onnxruntime-gpu[cuda,cudnn]" and an NVIDIA driver; '
        "gptkit doctor shows what is installed; --device cpu works everywhere",
    )


def _ask_driver(function: str) -> int | None:
    """A number from a function of the driver's library; None without a driver."""
    try:
        loader: Callable[[str], ctypes.CDLL] = ctypes.CDLL
        driver = loader("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        answer = ctypes.c_int()
        if driver.cuInit(0) or getattr(driver, function)(ctypes.byref(answer)):
            return None
    except (OSError, AttributeError):
        return None
    return answer.value
