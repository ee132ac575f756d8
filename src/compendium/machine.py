"""On what a result was computed: the device, the versions of what computes, the day."""

import contextlib
import datetime
import importlib.metadata
import os
import platform
from collections.abc import Sequence
from pathlib import Path

__all__ = ["cuda_allocations", "device", "today", "versions"]


def cuda_allocations() -> list[int]:
    """Return how often memory was allocated on each CUDA device since this process began."""
    import torch

    if not torch.cuda.is_initialized():
        return []
    devices = range(torch.cuda.device_count())
    return [torch.cuda.memory_stats(each).get("allocation.all.allocated", 0) for each in devices]


def device(before: Sequence[int]) -> str:
    """Return the name of the device that was used since `before`, an answer of `cuda_allocations`.

    A CUDA device may be there without a run that asks for it.
    """
    for index, count in enumerate(cuda_allocations()):
        if count > (before[index] if before else 0):
            import torch

            return torch.cuda.get_device_name(index)
    model = platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next(line for line in lines if line.startswith("model name")).partition(":")[2].strip()
    return f"CPU ({model}, {os.cpu_count()} cores)"


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that compute."""
    import torch

    found = {"python": platform.python_version(), "torch": torch.__version__}
    for name in ("numpy", "scipy", "scikit-learn", "diffusers", "python-flint"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def today() -> str:
    """Return date and time in UTC, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
