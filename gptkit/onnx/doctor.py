"""`gptkit doctor`: versions, devices, and a test run of onnxruntime on each device."""

import platform
from importlib.metadata import PackageNotFoundError, version

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import torch

from gptkit import __version__
from gptkit.errors import GptkitError
from gptkit.onnx.graphs.scope import FLOAT, Scope, declare, typed
from gptkit.onnx.runtime.providers import CPU, CUDA, driver_version, gpus, open_session, provider

PACKAGES = ("torchvision", "onnx", "onnx-ir", "onnxruntime", "onnxruntime-gpu", "numpy")


def examine() -> dict[str, str | None]:
    """What was found by name; None for what is missing."""
    found = {
        "gptkit": __version__,
        "python": f"{platform.python_version()} on {platform.platform()}",
        "torch": f"{torch.__version__}, built for CUDA {torch.version.cuda or 'none'}",
        "torch's GPUs": ", ".join(map(torch.cuda.get_device_name, range(torch.cuda.device_count())))
        or None,
        "NVIDIA driver": f"CUDA {driver_version()}, {gpus()} GPUs" if driver_version() else None,
        **{name: _version(name) for name in PACKAGES},
        "onnxruntime's providers": ", ".join(ort.get_available_providers()),
    }
    for device, name in (("cpu", CPU), ("cuda", CUDA)):
        found[f"session on {device}"] = run_session(device, name)
    return found


def run_session(device: str, name: str) -> str:
    """Multiply two matrices with onnxruntime; the outcome in words."""
    g, size = Scope(), 64
    x = declare("x", FLOAT, [size, size])
    with g.named("doctor"):
        y = typed(g.MatMul(x, x), FLOAT, [size, size], name="y")
    model = g.model("doctor", [x], [y], doc="The square of a matrix.", metadata={})
    values = np.random.default_rng(0).standard_normal((size, size)).astype(np.float32)
    try:
        session = open_session(ir.to_proto(model).SerializeToString(), device)
        (found,) = session.run(["y"], {"x": values})
    except GptkitError as error:
        return f"fails: {error}"
    right = provider(session) == name and np.allclose(found, values @ values, atol=1e-2)
    return f"works, {provider(session)}" if right else f"wrong, {provider(session)}"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
