r"""The smallest possible denoising error on MoLRG data, exactly, beside that of simpler denoisers.

For orthogonal, equally likely classes of one rank d and a background inside an m-dimensional space,

    MMSE(sigma) = E||x_0 - E[x_0|x]||^2 = known(sigma) + ambiguity(sigma),
    known     = d sigma^2/(1 + sigma^2) + (m - d) delta^2 sigma^2/(delta^2 + sigma^2),
    ambiguity = (zeta - xi)^2 sum_l E[w_l (1 - w_l) ||U_l^T x||^2]:

the error given the class, and the price of not knowing it.
"""

import torch
from torch import Tensor

from molrg.model.coefficients import block_variances, coefficients
from molrg.snr.quadrature import weight_moments
from molrg.support.checks import Levels, fraction, integer, noise_levels

__all__ = ["ambiguity", "exact", "known_class", "linear"]


def known_class(num_classes: int, rank: int, delta: float, sigma: Levels, support_dim: int) -> Tensor:
    """Return the error of the optimal denoiser given the class, float64, () or (S,).

    `support_dim` m is K d for the background `span` and n for `complement`. Raises ValueError as `exact`.

    Statement: `prop-mmse`.
    """
    _check(num_classes, rank, delta, support_dim)
    levels, scalar = noise_levels(sigma)
    s2, d2 = levels**2, delta**2
    value = rank * s2 / (1 + s2) + (support_dim - rank) * d2 * s2 / (d2 + s2)
    return value[0] if scalar else value


def ambiguity(num_classes: int, rank: int, delta: float, sigma: Levels) -> Tensor:
    """Return (zeta - xi)^2 sum_l E[w_l (1 - w_l) ||U_l^T x_sigma||^2], float64, () or (S,).

    It is the same for both backgrounds, and computed by the quadrature of `snr.exact` as a difference: its
    error is below 1e-10 of the energies it is made of, (zeta - xi)^2 d. Raises ValueError as `exact`.

    Statement: `prop-mmse`.
    """
    _check(num_classes, rank, delta, num_classes * rank)
    levels, scalar = noise_levels(sigma)
    values = []
    for level in levels.tolist():
        kappa, _, gain = coefficients(level, delta)
        own, other = block_variances(level, delta)
        one_own, two_own, one_other, two_other = weight_moments(num_classes, rank, kappa * own, kappa * other)
        spread = own * (one_own - two_own) + (num_classes - 1) * other * (one_other - two_other)
        values.append(gain**2 * spread)
    value = torch.tensor(values, dtype=torch.float64)
    return value[0] if scalar else value


def exact(num_classes: int, rank: int, delta: float, sigma: Levels, support_dim: int | None = None) -> Tensor:
    """Return MMSE(sigma), the error of the optimal denoiser, float64, () or (S,).

    `support_dim` m is the dimension of the space that the data fill: K d (None) for the background `span`,
    n for `complement`. Raises ValueError unless num_classes >= 2, rank >= 1, 0 < delta < 1,
    support_dim >= K d and sigma is in [1e-12, 1e12].

    Statement: `prop-mmse`.
    """
    support_dim = num_classes * rank if support_dim is None else support_dim
    known = known_class(num_classes, rank, delta, sigma, support_dim)
    return known + ambiguity(num_classes, rank, delta, sigma)


def linear(num_classes: int, rank: int, delta: float, sigma: Levels) -> Tensor:
    """Return the error of the best linear denoiser for the background `span`, float64, () or (S,).

    The class-averaged covariance is lambda P_S with lambda = (1 + (K-1) delta^2)/K, so that the error is
    K d lambda sigma^2/(lambda + sigma^2). Raises ValueError as `exact`.
    """
    _check(num_classes, rank, delta, num_classes * rank)
    levels, scalar = noise_levels(sigma)
    variance = (1 + (num_classes - 1) * delta**2) / num_classes
    value = num_classes * rank * variance * levels**2 / (variance + levels**2)
    return value[0] if scalar else value


def _check(num_classes: int, rank: int, delta: float, support_dim: int) -> None:
    integer("num_classes", num_classes, 2)
    integer("rank", rank, 1)
    fraction("delta", delta)
    integer("support_dim", support_dim, num_classes * rank)
