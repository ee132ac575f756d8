"""How diffusion models learn representations, in low-dimensional models that can be solved exactly."""

from molrg import snr
from molrg.mixture import MoLRG

__version__ = "0.1.0"

__all__ = ["MoLRG", "snr"]
