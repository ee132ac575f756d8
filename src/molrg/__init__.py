"""How diffusion models learn representations, in low-dimensional models that can be solved exactly."""

from molrg import snr
from molrg.empirical import EmpiricalDenoiser
from molrg.mixture import LowRankMixture, MoLRG

__version__ = "0.1.0"

__all__ = ["EmpiricalDenoiser", "LowRankMixture", "MoLRG", "snr"]
