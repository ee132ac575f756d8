"""Quadrature rules in which averages over softmax weights of chi^2 energies are exact to nine digits."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.special import gammaln, ive

__all__ = [
    "ROWS",
    "TRANSITION",
    "chi_density",
    "moving_rule",
    "outer_rule",
    "panel_rule",
    "radii",
    "scaled_bessel",
    "transforms",
    "weight_moments",
]

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(16)


def panel_rule(breaks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights of the composite 16-point rule on sorted breaks (..., P + 1): (..., 16 P)."""
    half = 0.5 * np.diff(breaks)
    middle = breaks[..., :-1] + half
    nodes = middle[..., None] + half[..., None] * _NODES
    weights = half[..., None] * _WEIGHTS
    return nodes.reshape(*breaks.shape[:-1], -1), weights.reshape(*breaks.shape[:-1], -1)


ROWS = 64
"""Nodes in v that are done at a time: the arrays stay in a core's cache, and the allocator keeps them."""
# Where e^{-e^t} and e^{mt - e^t} change: from 1 - 1e-17 at t = -39 to 0 at t = 4.
TRANSITION = np.array([-39.0, -24, -14, -8, -5, -3, -1.5, 0, 1, 2, 3, 4])


def radii(rank: int, panels: int) -> np.ndarray:
    """Breaks over the support of the chi distribution, whose standard deviation is 0.7 for every rank."""
    return np.linspace(max(0.0, np.sqrt(rank) - 9), np.sqrt(rank) + 9, panels + 1)


def chi_density(rank: int, r: np.ndarray) -> np.ndarray:
    """Density of r = sqrt(chi^2_rank)."""
    with np.errstate(divide="ignore"):  # log 0 at the end of an empty panel
        log_power = (rank - 1) * np.log(r) if rank > 1 else 0.0
    return np.exp(log_power - 0.5 * (r * r) - ((rank / 2 - 1) * np.log(2) + gammaln(rank / 2)))


def moving_rule(
    fixed: np.ndarray, at: np.ndarray, turns: np.ndarray, scale: float
) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights (N, P) in r: breaks `fixed`, and where at + scale r^2, at (N, 1), is in `turns`."""
    moving = np.sqrt(np.maximum((turns - at) / scale, 0)).clip(fixed[0], fixed[-1])
    breaks = np.concatenate([np.broadcast_to(fixed, (len(at), len(fixed))), moving], axis=1)
    breaks.sort(axis=1)
    return panel_rule(breaks)


def outer_rule(
    ranks: Sequence[int] | np.ndarray, offsets: Sequence[float] | np.ndarray, own: float, other: float
) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights in v for classes with logits offset + own Y or offset + other Z, Y, Z ~ chi^2_rank.

    The largest offset must be 0. Breaks: where the densities of -offset - own Y and -offset - other Z live,
    and from 4 downwards in growing steps, since on the scale of 1 the integrand is smooth. What is above 4
    is below e^{-e^4} of the integral, since the sum of the exponentials of the logits is at least 1.
    """
    breaks = [np.array([4.0, 3, 2, 1, 0]), -(2.0 ** np.arange(0, 40, 0.5))]
    lowest = 0.0
    for rank, offset in zip(ranks, offsets, strict=True):
        energy = radii(rank, 24) ** 2
        breaks += [-offset - own * energy, -offset - other * energy]
        lowest = min(lowest, -offset - max(own, other) * energy[-1] - 40)
    edges = np.unique(np.concatenate([*breaks, [lowest]]))
    return panel_rule(edges[(edges >= lowest) & (edges <= 4)])


def weight_moments(
    num_classes: int | np.ndarray, rank: int, own: float, other: float, weighted: bool = True
) -> tuple[Any, Any, Any, Any]:
    """Return E[w_k Y], E[w_k^2 Y], E[w_l Z], E[w_l^2 Z]: Y, Z the chi^2_d of the own class and of another.

    Without the factors Y and Z unless `weighted`. Of several `num_classes` (C, 1), which share the integrals
    over one class, each is (C,).

    The logits are own * Y and other * Z_l.

    Statement: `thm-exact`.
    """
    v, weights = outer_rule([rank], [0.0], own, other)
    phi_own, one_own, two_own = transforms(v, rank, own, weighted)
    phi_other, one_other, two_other = transforms(v, rank, other, weighted)
    rest = phi_other ** (num_classes - 2)
    own_measure, other_measure = weights * rest * phi_other, weights * rest * phi_own
    return (
        own_measure @ one_own,
        own_measure @ two_own,
        other_measure @ one_other,
        other_measure @ two_other,
    )


def transforms(
    v: np.ndarray, rank: int, scale: float, weighted: bool = True
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return E[e^{-e^t}], E[Y e^{t - e^t}], E[Y e^{2t - e^t}] at t = v + scale * Y, Y ~ chi^2_rank.

    Without the factor Y unless `weighted`.

    The rule in r = sqrt(Y) has breaks on the density's scale and, for each v, at the transition
    Y = -v/scale of width 1/scale, which a fixed grid misses.
    """
    results = [np.empty_like(v) for _ in range(3)]
    density_breaks = radii(rank, 12)
    for start in range(0, len(v), ROWS):
        rows = slice(start, start + ROWS)
        at = v[rows, None]
        r, weights = moving_rule(density_breaks, at, TRANSITION, scale)
        y = r * r
        measure = weights * chi_density(rank, r)
        growth = np.exp(np.minimum(at + scale * y, 5.0))  # e^{-e^5} is 0 to 60 digits
        measure *= np.exp(-growth)
        results[0][rows] = measure.sum(1)
        measure *= y * growth if weighted else growth
        results[1][rows] = measure.sum(1)
        measure *= growth
        results[2][rows] = measure.sum(1)
    return results[0], results[1], results[2]


def scaled_bessel(order: float, at: np.ndarray) -> np.ndarray:
    """e^{-z} I_order(z), by its expansion where z is too large for scipy's."""
    square = 4 * order**2
    large = np.maximum(at, 1e7)
    series = 1 - (square - 1) / (8 * large) * (1 - (square - 9) / (16 * large))
    return np.where(at < 1e7, ive(order, np.minimum(at, 1e7)), series / np.sqrt(2 * np.pi * large))
