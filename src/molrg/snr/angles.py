"""The exact SNR of the optimal denoiser for two classes whose subspaces are not orthogonal."""

import numpy as np
import torch
from scipy.special import gammaln
from torch import Tensor

from molrg.model.coefficients import block_variances, coefficients
from molrg.snr.integrals import DENOMINATORS
from molrg.snr.quadrature import panel_rule, radii, scaled_bessel
from molrg.support.checks import Levels, boolean, choice, finite, mixture_sizes, noise_levels

__all__ = ["exact_angle"]

_TURNS = np.array([-38.0, -24, -14, -8, -5, -3, -1.5, 0, 1.5, 3, 5, 8, 14, 24, 38])

_SMALL = 1e-3  # of z, below which two terms of the Bessel functions' series do


def exact_angle(
    rank: int,
    delta: float,
    degrees: float,
    sigma: Levels,
    noisy_input: bool = True,
    denominator: str = "residual",
) -> Tensor:
    r"""Return the exact SNR for two classes with d principal angles of `degrees`, float64, () or (S,).

    Equally likely classes of rank d, background `span`. With c = cos and s = sin of the angle, a point of
    class 1 has p = U_1^T x ~ N(0, v_A I) and y = U_2^T x = c p + s q, q ~ N(0, v_B I) independent. The
    weights depend on the two lengths alone, w_1 = 1/(1 + e^{kappa (|y|^2 - |p|^2)}), and given them <p, y>
    has the mean

        |p| |y| I_{d/2}(z) / I_{d/2-1}(z),    z = c |p| |y| / (s^2 v_B),

    so that a rule over two radii does: |p| is chi, |y| given |p| noncentral chi, with nodes that follow the
    transition at |y| = |p|. Relative error below 1e-8 for d from 1 to 100, delta .02 to .9, angles 5 to 90
    degrees, sigma .001 to 20; 90 degrees is `snr.exact` with two classes.

    Raises ValueError unless rank >= 1, 0 < delta < 1, 1 <= degrees <= 90, sigma is in [1e-12, 1e12] and the
    others are as in `molrg.snr.exact`.

    Statement: `thm-angle`.
    """
    _, rank, delta = mixture_sizes(2, rank, delta)
    noisy_input = boolean("noisy_input", noisy_input)
    choice("denominator", denominator, DENOMINATORS)
    if not 1 <= finite("degrees", degrees) <= 90:
        raise ValueError(f"degrees must be from 1 to 90, got {degrees}")
    angle = np.deg2rad(degrees)
    levels, scalar = noise_levels(sigma)
    values = [_ratio(rank, delta, angle, level, noisy_input, denominator) for level in levels.tolist()]
    value = torch.tensor(values, dtype=torch.float64)
    return value[0] if scalar else value


def _ratio(rank: int, delta: float, angle: float, level: float, noisy: bool, denominator: str) -> float:
    kappa, xi, gain = coefficients(level, delta)
    own, other = block_variances(level, delta, noisy)
    c, s = np.cos(angle), np.sin(angle)
    width = s * np.sqrt(other)

    p, outer = panel_rule(np.sqrt(own) * radii(rank, 12))
    outer = outer * np.exp(_log_chi(rank, p / np.sqrt(own))) / np.sqrt(own)
    p = p[:, None]
    middle = np.sqrt((c * p) ** 2 + rank * width**2)
    low, high = np.maximum(middle - 10 * width, 0), middle + 10 * width
    turns = np.sqrt(np.maximum(p**2 + _TURNS / kappa, 0)).clip(low, high)
    y, inner = panel_rule(np.sort(np.hstack([low + (high - low) * np.linspace(0, 1, 7), turns]), axis=1))
    z = c * p * y / width**2
    measure = outer[:, None] * inner * _noncentral(rank, c * p / width, y / width) / width

    scalar = p * y * _mean_cosine(rank, z)
    first = np.exp(-np.logaddexp(0, kappa * (y**2 - p**2)))
    second = np.exp(-np.logaddexp(0, kappa * (p**2 - y**2)))

    def energy(of_p: np.ndarray, of_y: np.ndarray) -> float:
        """E||of_p p + of_y y||^2."""
        return float((measure * (of_p**2 * p**2 + of_y**2 * y**2 + 2 * of_p * of_y * scalar)).sum())

    signal = energy(xi + gain * first, gain * c * second)
    if denominator == "classes":
        return signal / energy(gain * c * first, xi + gain * second)
    return signal / energy(-xi * c / s + 0 * first, xi / s + gain * s * second)


def _log_chi(rank: int, r: np.ndarray) -> np.ndarray:
    return (rank - 1) * np.log(r) - r * r / 2 - (rank / 2 - 1) * np.log(2) - gammaln(rank / 2)


def _noncentral(rank: int, shift: np.ndarray, r: np.ndarray) -> np.ndarray:
    """The density of |N(shift e, I_rank)| at r; chi's where the shift is 0."""
    r = np.maximum(r, 1e-100)  # an empty panel at 0
    order, z = rank / 2 - 1, shift * r
    large = np.maximum(z, _SMALL)
    ratio = np.log(r) - np.log(np.maximum(shift, _SMALL / r))
    shifted = np.log(r) + order * ratio - (r - shift) ** 2 / 2 + np.log(scaled_bessel(order, large))
    central = _log_chi(rank, r) - shift**2 / 2 + np.log1p(z * z / (2 * rank))
    return np.exp(np.where(z > _SMALL, shifted, central))


def _mean_cosine(rank: int, z: np.ndarray) -> np.ndarray:
    """I_{d/2}(z) / I_{d/2-1}(z)."""
    large = np.maximum(z, _SMALL)
    ratio = scaled_bessel(rank / 2, large) / scaled_bessel(rank / 2 - 1, large)
    return np.where(z > _SMALL, ratio, z / rank)
