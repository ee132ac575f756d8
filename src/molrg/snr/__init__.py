r"""Class signal-to-noise ratio of a denoiser on MoLRG data: Theorem 1, the exact value, and Monte Carlo.

For class k with projection P_k = U_k U_k^T and denoiser output f,

    SNR_k = E||P_k f||^2 / E||f - P_k f||^2          denominator="residual" (NeurIPS version, "SNR")
    SNR_k = E||P_k f||^2 / sum_{l != k} E||P_l f||^2   denominator="classes" (ICLR version, "CSNR")

over x_0 of class k, where f sees x_sigma (`noisy_input=True`) or x_0 with sigma as conditioning alone
(`noisy_input=False`). The two choices are independent.
"""

from molrg.snr.angles import exact_angle
from molrg.snr.approximations import refined, theorem
from molrg.snr.integrals import AVERAGES, DENOMINATORS, exact, exact_classes, mismatched
from molrg.snr.simulation import Estimate, estimate

__all__ = [
    "AVERAGES",
    "DENOMINATORS",
    "Estimate",
    "estimate",
    "exact",
    "exact_angle",
    "exact_classes",
    "mismatched",
    "refined",
    "theorem",
]
