"""Where to compute, and how precisely one can there."""

import torch

__all__ = ["best", "widest"]


def best() -> torch.device:
    """Return CUDA or MPS if it is there, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def widest(device: torch.device) -> torch.dtype:
    """Return float64, or float32 on MPS, which has no float64."""
    return torch.float32 if device.type == "mps" else torch.float64
