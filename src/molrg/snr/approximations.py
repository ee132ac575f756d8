"""Approximations of the SNR of the optimal denoiser: Theorem 1, and a better one."""

import numpy as np
import torch
from scipy.linalg import eigh_tridiagonal
from scipy.special import expit, log_expit, logsumexp
from torch import Tensor

from molrg.model.coefficients import block_variances, coefficients
from molrg.support.checks import Levels, boolean, mixture_sizes, noise_levels

__all__ = ["refined", "theorem"]


def theorem(num_classes: int, rank: int, delta: float, sigma: Levels, noisy_input: bool = True) -> Tensor:
    r"""Return Theorem 1's approximation of the SNR of the optimal denoiser, float64, () or (S,).

        C/(K-1) [ (1 + sigma^2/delta^2 h(w+)) / (1 + sigma^2/delta^2 h(w-)) ]^2,
        h(w) = (1-delta^2) w + delta^2,  w+ = 1/(1 + (K-1) e^-D),  w- = 1/((K-1) + e^D),
        D = d (1-delta^2)^2 / (2 (1+sigma^2) (delta^2+sigma^2)),

    with C = (1+sigma^2)/(delta^2+sigma^2) for noisy and 1/delta^2 for clean input. It puts the softmax
    of the mean energies in place of the mean of the softmax; both denominators give the same value.

    Raises ValueError unless num_classes >= 2, rank >= 1, 0 < delta < 1, sigma is in [1e-12, 1e12] and
    noisy_input is True or False. Source: Theorem 1 of the paper.
    """
    num_classes, rank, delta = mixture_sizes(num_classes, rank, delta)
    noisy_input = boolean("noisy_input", noisy_input)
    levels, scalar = noise_levels(sigma)
    s2, d2 = levels.numpy() ** 2, delta**2
    gap = rank * (1 - d2) ** 2 / (2 * (1 + s2) * (d2 + s2))
    own = expit(gap - np.log(num_classes - 1))
    other = expit(np.log(num_classes - 1) - gap) / (num_classes - 1)
    rate = s2 / d2
    ratio = (1 + rate * ((1 - d2) * own + d2)) / (1 + rate * ((1 - d2) * other + d2))
    front = (1 + s2) / (d2 + s2) if noisy_input else 1 / d2
    value = torch.from_numpy(front / (num_classes - 1) * ratio**2)
    return value[0] if scalar else value


def refined(num_classes: int, rank: int, delta: float, sigma: Levels, noisy_input: bool = True) -> Tensor:
    r"""Return a better approximation of the SNR than Theorem 1, a sum of 12 x 6 terms: float64, () or (S,).

    It lets the energies fluctuate, and closes over the competing classes one by one. For a single one, with
    energies A = v_A chi^2_d and B = v_B chi^2_d and T = kappa (A - B), let h and h_2 be the means over B, for
    given A, of v = 1/(1 + e^T) and of v^2, and N = 1 + (K-2) h. For K - 1 of them, given A,

        E[1 - w_k] = H = (K-1) h / N,  E[w_k (1 - w_k)] = H (1-H) - (K-1) (h_2 - h^2) / N^4,
        E[w_l] = h / N,  E[w_l^2] = h_2 / N^2,

    exact for two classes, and where the B_l do not fluctuate. The factor A or B_l in an average raises the
    rank of that chi^2 to d+2. Averages over A and B are Gauss rules of 12 and 6 points, placed where the
    undecided points are: on chi^2 / (1 + 2 kappa v_A s) and chi^2 / (1 - 2 kappa v_B s), s = 1/2 for noisy,
    s = min(1, (1+sigma^2)(delta^2+sigma^2) / (2 delta^2)) for clean input.

    For K from 2 to 1000, d from 1 to 200 and delta from .02 to .9 the peak's height is right to 4%; at high
    noise, beyond the peak, the values for noisy input are right to 25%. Both denominators (background
    `span`) give the same value.

    Raises ValueError unless num_classes >= 2, rank >= 1, 0 < delta < 1, sigma is in [1e-12, 1e12] and
    noisy_input is True or False. Source: not in the paper; derived on the page `theory/tightness`.
    """
    num_classes, rank, delta = mixture_sizes(num_classes, rank, delta)
    noisy_input = boolean("noisy_input", noisy_input)
    levels, scalar = noise_levels(sigma)
    column = levels.numpy()[:, None]
    s2, d2, kappa = column**2, delta**2, coefficients(column, delta).kappa
    own, other = (kappa * variance for variance in block_variances(column, delta, noisy_input))
    tilt = np.full_like(s2, 0.5) if noisy_input else np.minimum(1, (1 + s2) * (d2 + s2) / (2 * d2))
    others = num_classes - 1
    gain = s2[:, 0] * (1 - d2) / (d2 * (1 + s2[:, 0]))  # (zeta - xi) / xi

    one, two, single = _pair_averages(rank + 2, rank, own, other, tilt, rank)
    spread = 1 + (others - 1) * single
    lost = others * single / spread
    undecided = (others * one / spread).sum(-1)
    variable = (others * one / spread * (1 - lost) - others * (two - one * single) / spread**4).sum(-1)
    signal = 1 + 2 * gain * (1 - undecided) + gain**2 * (1 - undecided - variable)
    if noisy_input:
        front = ((1 + s2) / (d2 + s2))[:, 0]
        noise = others + front * (2 * gain * undecided + gain**2 * variable)
    else:
        front = np.full_like(gain, 1 / d2)
        one, two, single = _pair_averages(rank, rank + 2, own, other, tilt, rank)
        spread = 1 + (others - 1) * single
        noise = others * (1 + 2 * gain * (one / spread).sum(-1) + gain**2 * (two / spread**2).sum(-1))
    value = torch.from_numpy(front * signal / noise)
    return value[0] if scalar else value


_OWN_POINTS, _OTHER_POINTS = 12, 6


def _gauss(rank: int, points: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights (they sum to 1) of the Gauss rule for chi^2_rank: Laguerre's, by Golub and Welsch."""
    i = np.arange(points)
    nodes, vectors = eigh_tridiagonal(2 * i + rank / 2, np.sqrt(i[1:] * (i[1:] + rank / 2 - 1)))
    return 2 * nodes, vectors[0] ** 2


def _pair_averages(
    own_rank: int, other_rank: int, own: np.ndarray, other: np.ndarray, tilt: np.ndarray, rank: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The summands of E[v] and E[v^2], v = 1/(1 + e^T), at the nodes of the own energy, and h there: (S, 12).

    T = own Y - other Z, with Y and Z chi^2 of ranks `own_rank` and `other_rank`; h is the mean of v over a
    competitor of rank `rank` alone. The levels' own, other and tilt are (S, 1). With e^{-tilt T} in the
    densities what is left, e^{tilt T} v, is at most 1.
    """
    own_scale, other_scale = 1 / (1 + 2 * own * tilt), 1 / (1 - 2 * other * tilt)
    nodes, own_weights = _gauss(own_rank, _OWN_POINTS)
    y = own * own_scale * nodes

    def over_competitor(degrees: int) -> tuple[np.ndarray, np.ndarray]:
        """Logarithms of the means of v and v^2 over a competitor, times e^{tilt y}."""
        nodes, weights = _gauss(degrees, _OTHER_POINTS)
        t = y[..., None] - (other * other_scale * nodes)[:, None]
        left = -np.logaddexp(-tilt[..., None] * t, (1 - tilt)[..., None] * t)
        front = degrees / 2 * np.log(other_scale)
        return (
            front + logsumexp(left, axis=-1, b=weights),
            front + logsumexp(left + log_expit(-t), axis=-1, b=weights),
        )

    one, two = over_competitor(other_rank)
    alone = one if other_rank == rank else over_competitor(rank)[0]
    front = own_rank / 2 * np.log(own_scale)
    single = np.exp(np.minimum(alone - tilt * y, 0))
    return own_weights * np.exp(front + one), own_weights * np.exp(front + two), single
