r"""The invariant contamination ratio (ICR) of the optimal denoiser on MoLRG data, exactly.

Two views of one content, U_k a with its class k, have features f and f'. Part of f depends on the content
alone, s = E[f | content]; the other part is contamination. With the covariances Sigma_s of s and Sigma_xi of
f - s, on D dimensions,

    ICR = D / (D + tr(Sigma_xi^{-1} Sigma_s)).

Source: Li, Jia et al., Evaluating the Representation Space of Diffusion Models via Self-Supervised Principles
(2026).
"""

import numpy as np
import torch
from scipy.interpolate import make_interp_spline
from scipy.special import gammaln
from torch import Tensor

from molrg.model.coefficients import block_variances, coefficients
from molrg.snr.quadrature import TRANSITION, panel_rule, radii, scaled_bessel, transforms, weight_moments
from molrg.support.checks import Levels, boolean, mixture_sizes, noise_levels

__all__ = ["exact"]


def exact(num_classes: int, rank: int, delta: float, sigma: Levels, noisy_input: bool = True) -> Tensor:
    r"""Return the ICR of the optimal denoiser, views that redraw the background, float64, () or (S,).

    Each view has a background of its own and, with `noisy_input`, noise of its own; without it the views are
    clean, and sigma is the conditioning alone. Orthogonal, equally likely classes of rank d, background
    `span`: by symmetry both covariances are multiples of the identity on the K d dimensions, so that

        ICR = 1 - E<f, f'>/E||f||^2,    E<f, f'> = d E[(xi + (zeta - xi) g(R))^2],    R^2 ~ chi^2_{d+2},

    where g(R) is the mean of E[w_k | A] over A = sigma^2 chi'^2_{d+2}(R^2/sigma^2), for clean input A = R^2.
    Absolute error below 1e-9 for K from 2 to 1000, d from 1 to 100, delta .02 to .9, sigma .01 to 20.

    Raises ValueError for arguments outside the ranges of `molrg.snr.exact`.

    Statement: `thm-icr`.
    """
    num_classes, rank, delta = mixture_sizes(num_classes, rank, delta)
    noisy_input = boolean("noisy_input", noisy_input)
    levels, scalar = noise_levels(sigma)
    values = []
    for level in levels.tolist():
        kappa, xi, gain = coefficients(level, delta)
        own, other = block_variances(level, delta, noisy_input)
        one, two, lost, gone = weight_moments(num_classes, rank, kappa * own, kappa * other)
        energy = own * (xi**2 * rank + 2 * xi * gain * one + gain**2 * two)
        energy += (num_classes - 1) * other * (xi**2 * rank + 2 * xi * gain * lost + gain**2 * gone)
        shared = rank * _shared(num_classes, rank, kappa, other, xi, gain, level if noisy_input else 0.0)
        values.append(1 - shared / energy)
    value = torch.tensor(values, dtype=torch.float64)
    return value[0] if scalar else value


def _shared(
    num_classes: int, rank: int, kappa: float, other: float, xi: float, gain: float, noise: float
) -> float:
    """E[(xi + gain g(R))^2] for an input with noise of level `noise`."""
    highest = np.sqrt(rank + 2) + 10 + noise * (np.sqrt(rank + 2) + 10)
    smallest = kappa**-0.5
    grid = smallest * np.sinh(np.linspace(0, np.arcsinh(highest / smallest), 800))
    weight = make_interp_spline(grid, _mean_weight(num_classes, rank, kappa, other, grid**2), k=5)
    turns = smallest * np.sqrt([0.1, 0.3, 1, 3, 6, 12, 20, 40])
    r, measure = panel_rule(np.unique([*radii(rank + 2, 12), *turns[turns < radii(rank + 2, 1)[1]]]))
    measure = measure * np.exp(
        (rank + 1) * np.log(r) - r * r / 2 - (rank / 2) * np.log(2) - gammaln(rank / 2 + 1)
    )
    if not noise:
        return float(measure @ (xi + gain * weight(r)) ** 2)
    middle = np.sqrt(r * r + noise**2 * (rank + 1))[:, None]
    x, inner = panel_rule(np.maximum(middle + noise * np.linspace(-9.5, 9.5, 11), 0))
    r = r[:, None]
    at = x * r / noise**2
    log_density = np.log(np.maximum(x, 1e-300)) + rank / 2 * (np.log(np.maximum(x, 1e-300)) - np.log(r))
    density = np.exp(log_density - ((x - r) / noise) ** 2 / 2) * scaled_bessel(rank / 2, at) / noise**2
    mean = (inner * density * weight(np.minimum(x, grid[-1]))).sum(1)
    return float(measure @ (xi + gain * mean) ** 2)


def _mean_weight(num_classes: int, rank: int, kappa: float, other: float, energy: np.ndarray) -> np.ndarray:
    """E[w_k | A] at own energies A: the integral of e^t e^{-e^t} phi_B(t - kappa A)^{K-1} over t."""
    step = 0.2  # with which this sum is exact to 18 digits
    t = np.arange(-45, TRANSITION[-1], step)
    lowest = -kappa * other * radii(rank, 1)[-1] ** 2 - 45
    v = np.arange(lowest, t[-1] + 0.5, 0.1)
    phi = make_interp_spline(v, transforms(v, rank, kappa * other, False)[0] ** (num_classes - 1), k=5)
    at = t - kappa * energy[:, None]
    return step * np.where(at > lowest, phi(np.maximum(at, lowest)), 1) @ np.exp(t - np.exp(t))
