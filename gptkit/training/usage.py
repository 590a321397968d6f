"""How much of its device a training uses: the share of its peak speed, and peak memory.

The share is the model FLOPs utilisation of PaLM (Chowdhery et al. 2022, appendix B).
"""

from functools import cached_property
from time import perf_counter

import torch

from gptkit.recipe import sizes
from gptkit.recipe.options import GPTConfig
from gptkit.training.device import RunDevice, peak_memory

PEAKS = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "5090": 209e12,
    "4090": 165e12,
    "3090": 71e12,
}
"""Dense bfloat16 FLOP/s that the makers name, by a part of the GPU's name; the first that fits."""
SMALLEST, LARGEST = 256, 8192
"""Rows and columns of the square product that is measured where no peak is known."""
LONG = 2e-3
"""Seconds that such a product takes at least, so that starting it does not count."""
REPEATS = 5


class Usage:
    """Measures what a training uses, for `Recorder`.

    Args:
        config: of the model.
        run_device: where it is trained.
        processes: that train together, each on a device, or a share of the CPU, of its own.
        trained: how much of the model is trained; None: all of it.
    """

    def __init__(
        self,
        config: GPTConfig,
        run_device: RunDevice,
        *,
        processes: int = 1,
        trained: sizes.Trained | None = None,
    ) -> None:
        self.flops = sizes.flops_per_token(config, trained)
        self.run_device, self.processes = run_device, processes

    def __call__(self, rate: float | None) -> dict[str, float]:
        """`mfu` at a rate in tokens per second over all processes, and `memory_mb` of this one."""
        memory = peak_memory(self.run_device.device)
        used = {} if rate is None else {"mfu": round(self.share(rate), 4)}
        return used | ({} if memory is None else {"memory_mb": round(memory / 1e6, 1)})

    def share(self, rate: float) -> float:
        """The share of the peak speed at that rate."""
        return rate * self.flops / (self.peak * self.processes)

    @cached_property
    def peak(self) -> float:
        """FLOP/s of this process's device; measured in a few milliseconds where none is known."""
        device, dtype = self.run_device.device, self.run_device.dtype
        if device.type == "cuda" and dtype == torch.bfloat16:
            name = torch.cuda.get_device_name(device)
            known = next((flops for part, flops in PEAKS.items() if part in name), None)
            if known and "Laptop" not in name:
                return known
        return measure_peak(device, dtype)


def measure_peak(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of the fastest of a few square matrix products on the device, at its threads."""
    side = SMALLEST
    while True:
        matrix = torch.ones(side, side, device=device, dtype=dtype)
        seconds = min([_seconds(matrix) for _ in range(1 + REPEATS)][1:])
        if seconds >= LONG or side >= LARGEST:
            return 2 * side**3 / seconds
        side *= 2


def _seconds(matrix: torch.Tensor) -> float:
    begin = perf_counter()
    _ = matrix @ matrix
    if matrix.device.type != "cpu":
        torch.accelerator.synchronize(matrix.device)
    return perf_counter() - begin
