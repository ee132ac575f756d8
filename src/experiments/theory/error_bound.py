"""Theorem 1 with an error bound: an enclosure of the exact SNR in elementary functions."""

import numpy as np
from scipy.special import expit, xlogy

from molrg import snr
from molrg.model.coefficients import block_variances, coefficients
from molrg.support.checks import Levels, boolean, mixture_sizes, noise_levels

__all__ = ["bound", "enclosure"]

_EXPONENTS = np.linspace(0.05, 1.95, 39)  # any will do: the proof holds for each


def enclosure(
    num_classes: int, rank: int, delta: float, sigma: Levels, noisy_input: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    r"""Return lower (3, S) and upper (2, S) bounds of the exact SNR, in float64; all of them hold.

    In units of C/(K-1), with lambda = zeta/xi, mu = lambda - 1, a = 2 kappa v_A, b = 2 kappa v_B, the lower
    ones are

        1,  (lambda - mu q)_+^2 / (1 + 2 mu r_1 + mu^2 r_2),  ((1 + mu w_+)^2 - e_+) / ((1 + mu w_-)^2 + e_-),

    and the upper ones lambda^2 and the last with both signs turned, infinite where its denominator is not
    positive. q, r_1, r_2 bound what undecided points do, by the best of 39 exponents; e_+ and e_- bound how
    far a mean of softmax weights is from the weights of mean energies.

    Raises ValueError unless num_classes >= 2, rank >= 1, 0 < delta < 1, sigma is in [1e-12, 1e12] and
    noisy_input is True or False. Source: not in the paper.

    Statement: `thm-error-bound`.
    """
    num_classes, rank, delta = mixture_sizes(num_classes, rank, delta)
    level = noise_levels(sigma)[0].numpy()
    own, other = block_variances(level, delta, boolean("noisy_input", noisy_input))
    kappa, xi, gain = coefficients(level, delta)
    mu = gain / xi
    a, b, gap = 2 * kappa * own, 2 * kappa * other, rank * kappa * (own - other)

    q, r_1, r_2 = _undecided(num_classes, rank, a, b)
    undecided = np.maximum(1 + mu * (1 - q), 0) ** 2 / (1 + 2 * mu * r_1 + mu**2 * r_2)

    others = num_classes - 1
    with np.errstate(divide="ignore"):  # log 0 where there is one competitor
        signal = (1 + mu * expit(gap + a - np.log(others))) ** 2
        noise = (1 + mu * expit(b - np.logaddexp(gap, np.log(others - 1)))) ** 2
    front = mu * (1 + mu) / 20
    above = front * ((rank + 2) * a**2 + others * rank * b**2)
    below = front * ((rank + 2) * b**2 + rank * a**2 + (others - 1) * rank * b**2)
    highest = np.divide(signal + above, noise - below, out=np.full_like(mu, np.inf), where=noise > below)

    unit = own / other / others
    low = np.stack([np.ones_like(mu), undecided, (signal - above) / (noise + below)])
    return unit * low, unit * np.stack([(1 + mu) ** 2, highest])


def bound(num_classes: int, rank: int, delta: float, sigma: Levels, noisy_input: bool = True) -> np.ndarray:
    """Return a bound of |log(Theorem 1 / exact)|, (S,), from `enclosure`. Raises ValueError as there.

    Statement: `thm-error-bound`.
    """
    low, high = enclosure(num_classes, rank, delta, sigma, noisy_input)
    formula = snr.theorem(num_classes, rank, delta, sigma, noisy_input).numpy()
    return np.log(np.maximum(formula / low.max(0), high.min(0) / formula))


def _undecided(
    num_classes: int, rank: int, a: np.ndarray, b: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Bounds q, r_1, r_2 of E[1 - w_k] and of E[w_l], E[w_l^2], each counted by the energy of its block."""
    s = _EXPONENTS[:, None]
    inside = b * s < 1
    own, other = np.log1p(a * s), np.log1p(-np.where(inside, b * s, 0))
    one, two = _height(np.minimum(s, 1)), 2 * _height(s / 2)
    others, half = np.log(num_classes - 1), rank / 2
    each = others - half * other
    together = s * (others - half * np.log1p(-b))
    lost = one - (half + 1) * own + np.minimum(np.where(inside, each, np.inf), together)
    won = np.where(inside, -half * own - (half + 1) * other, np.inf)
    first = np.where(s <= 1, one, np.inf)
    logs = np.where(s <= 1, lost, np.inf), first + won, two + won
    q, r_1, r_2 = (np.exp(np.minimum(each.min(0), 0)) for each in logs)
    return q, r_1, r_2


def _height(s: np.ndarray) -> np.ndarray:
    """Logarithm of the largest value s^s (1-s)^(1-s) of e^{st}/(1 + e^t) over t."""
    return xlogy(s, s) + xlogy(1 - s, 1 - s)
