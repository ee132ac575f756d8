r"""What a classifier can read from a noisy or a denoised point: Bayes, mutual information, moment readouts.

All functions are for K orthogonal, equally likely classes of one rank d, and depend on the K block energies
alone. `noisy_input=True` reads x_sigma; `noisy_input=False` reads x_0, with sigma as conditioning of the
denoiser. The energies are v_A chi^2_d in the own block and v_B chi^2_d in the others.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from scipy.special import gammainc, gammaincinv, softmax
from scipy.stats import norm
from torch import Tensor

from molrg import snr
from molrg.model.coefficients import block_variances, coefficients
from molrg.snr import Estimate, quadrature
from molrg.support.checks import Levels, boolean, fraction, integer, noise_levels

__all__ = [
    "bayes_accuracy",
    "contrast",
    "linear_accuracy",
    "linear_accuracy_of_snr",
    "moment_accuracy",
    "mutual_information",
]


def contrast(delta: float, sigma: Levels, noisy_input: bool = True) -> Tensor:
    r"""Return rho = v_A / v_B, float64, () or (S,): all that a classifier sees of the noise.

    (1 + sigma^2)/(delta^2 + sigma^2) for noisy and 1/delta^2 for clean input. The posterior's logits are
    (rho - 1)/2 chi^2 in the own block and (1 - 1/rho)/2 chi^2 in the others.

    Raises ValueError unless 0 < delta < 1 and sigma is in [1e-12, 1e12].
    """
    delta = fraction("delta", delta)
    noisy_input = boolean("noisy_input", noisy_input)
    levels, scalar = noise_levels(sigma)
    s2 = levels**2 if noisy_input else torch.zeros_like(levels)
    value = (1 + s2) / (delta**2 + s2)
    return value[0] if scalar else value


def bayes_accuracy(
    num_classes: int, rank: int, delta: float, sigma: Levels, noisy_input: bool = True
) -> Tensor:
    r"""Return the accuracy of the Bayes classifier of x_sigma (of x_0 for clean input), float64, () or (S,).

    It names the block of largest energy: P(A > max_l B_l) = E[F(rho Y)^{K-1}], Y ~ chi^2_d with distribution
    function F. It is also the accuracy of the nearest subspace on E[x_0 | x]. Error below 1e-12.

    Raises ValueError unless num_classes >= 2, rank >= 1, 0 < delta < 1 and sigma is in [1e-12, 1e12].

    Statement: `thm-information`.
    """
    integer("num_classes", num_classes, 2)
    integer("rank", rank, 1)
    rho = contrast(delta, sigma, noisy_input)
    values = [_largest(num_classes, rank, value) for value in rho.reshape(-1).tolist()]
    return torch.tensor(values, dtype=torch.float64).reshape(rho.shape)


def mutual_information(
    num_classes: int, rank: int, delta: float, sigma: Levels, noisy_input: bool = True
) -> Tensor:
    r"""Return I(y; x_sigma) (I(y; x_0) for clean input) in nats, float64, () or (S,). Error below 1e-10.

    log K - int phi_A(v) (1 - phi_B(v)^{K-1}) dv, with phi_A(v) = E exp(-e^{v + kappa A}) and phi_B likewise.
    It follows from log S = int (e^{-e^v} - e^{-e^v S}) dv, and is also I(y; E[x_0 | x]).

    Raises ValueError unless num_classes >= 2, rank >= 1, 0 < delta < 1 and sigma is in [1e-12, 1e12].

    Statement: `thm-information`.
    """
    integer("num_classes", num_classes, 2)
    integer("rank", rank, 1)
    rho = contrast(delta, sigma, noisy_input)
    values = [_information(num_classes, rank, value) for value in rho.reshape(-1).tolist()]
    return torch.tensor(values, dtype=torch.float64).reshape(rho.shape)


def linear_accuracy(
    num_classes: int,
    rank: int,
    delta: float,
    sigma: Levels,
    noisy_input: bool = True,
    denoised: bool = True,
    outside: int = 0,
    num_samples: int = 20_000,
    generator: torch.Generator | None = None,
) -> Estimate:
    r"""Return the accuracy that a fitted linear probe tends to as its training set grows, () or (S,).

    Class means vanish, so that a fitted logistic regression is made of the sampling noise of the class means:
    weights N(0, C_k). Given the energies T_l of the point to classify, its logits are independent N(0, V_k),

        V_k = [T_1 + ... + T_K + (R - 1) T_k] / c^2 + chi^2_outside,

    with T_l in units of the mean of another block's direction, R the ratio of the own block's mean energy to
    another's and c the mean over blocks. The accuracy is the probability that the own logit is the largest.

    `denoised=True` reads E[x_0 | x] and `False` x itself. `outside` is the number of directions outside the
    span that the features fill: n - K d for x_sigma in R^n. All levels share the `num_samples` points.

    Raises ValueError for arguments outside their ranges.

    Statement: `thm-linear`.
    """

    def own_is_largest(ratios: np.ndarray, uniform: np.ndarray) -> np.ndarray:
        slope = np.sqrt(ratios) * norm.ppf(uniform)[:, None]
        return (norm.cdf(slope).prod(1) + norm.cdf(-slope).prod(1)) / 2

    return _moment_readout(
        own_is_largest,
        True, num_classes, rank, delta, sigma, noisy_input, denoised, outside, num_samples, generator,
    )  # fmt: skip


def moment_accuracy(
    shots: int,
    num_classes: int,
    rank: int,
    delta: float,
    sigma: Levels,
    noisy_input: bool = True,
    denoised: bool = True,
    outside: int = 0,
    num_samples: int = 20_000,
    generator: torch.Generator | None = None,
) -> Estimate:
    r"""Return the accuracy of the second-moment readout with `shots` labelled points a class, () or (S,).

    It names argmax_k sum_i (f . f_{k,i})^2 over the labelled points f_{k,i} of class k. For Gaussian labelled
    points with the classes' second moments (exact for `denoised=False`, else an approximation) the sums are
    V_k chi^2_shots with V_k as in `linear_accuracy`, without the division by c^2. As shots grows, the
    readout becomes the largest V_k, which is the largest energy: the Bayes classifier.

    `outside` counts directions outside the span as in `linear_accuracy`; only for `denoised=False`.

    Raises ValueError for arguments outside their ranges.

    Statement: `thm-few`.
    """
    integer("shots", shots, 1)
    if outside and denoised:
        raise ValueError(
            "outside must be 0 with denoised=True: E[x_0 | x] of a `span` mixture lies in the span"
        )

    def own_is_largest(ratios: np.ndarray, uniform: np.ndarray) -> np.ndarray:
        half = gammaincinv(shots / 2, uniform)[:, None]
        return gammainc(shots / 2, ratios * half).prod(1)

    return _moment_readout(
        own_is_largest,
        False, num_classes, rank, delta, sigma, noisy_input, denoised, outside, num_samples, generator,
    )  # fmt: skip


def linear_accuracy_of_snr(num_classes: int, value: float | np.ndarray | Tensor) -> Tensor:
    r"""Return G_K(SNR) = int phi(t) Phi(t sqrt(q))^{K-1} dt, float64: the linear probe by the SNR alone.

    It is `linear_accuracy` with all energies at their means, q = V_y / V_k = (R^2 + K - 1)/(2R + K - 2) and
    R = (K - 1) SNR, and increases from 1/K at SNR = 1/(K-1) to 1/2. Raises ValueError unless the SNR is
    positive.

    Statement: `cor-snr-accuracy`.
    """
    r = (integer("num_classes", num_classes, 2) - 1) * torch.as_tensor(value, dtype=torch.float64)
    if not (r > 0).all():
        raise ValueError(f"the SNR must be positive, got {r.min().item() / (num_classes - 1):g}")
    q = (r**2 + num_classes - 1) / (2 * r + num_classes - 2)
    t, weights = quadrature.panel_rule(
        np.sort(np.concatenate([np.linspace(-9, 9, 37), [-0.1, -0.02, 0.02, 0.1]]))
    )
    mass = weights * norm.pdf(t)
    values = [float(mass @ norm.cdf(t * math.sqrt(x)) ** (num_classes - 1)) for x in q.reshape(-1).tolist()]
    return torch.tensor(values, dtype=torch.float64).reshape(q.shape)


# --- one-dimensional integrals ----------------------------------------------------------------------


def _largest(num_classes: int, rank: int, rho: float) -> float:
    """P(rho Y > max of K - 1 others), all chi^2_rank: breaks where either density lives."""
    radii = quadrature.radii(rank, 24)
    r, weights = quadrature.panel_rule(
        np.unique(np.concatenate([radii, (radii / math.sqrt(rho)).clip(radii[0])]))
    )
    return float(
        (weights * quadrature.chi_density(rank, r)) @ gammainc(rank / 2, rho * r * r / 2) ** (num_classes - 1)
    )


def _information(num_classes: int, rank: int, rho: float) -> float:
    """log K less int phi_A (1 - phi_B^{K-1}) dv, which is positive throughout: nothing cancels."""
    own, other = (rho - 1) / 2, (1 - 1 / rho) / 2
    v, weights = quadrature.outer_rule([rank], [0.0], own, other)
    phi_own = quadrature.transforms(v, rank, own)[0]
    with np.errstate(divide="ignore"):  # log 0 where phi_B is 0
        log_phi = np.log1p(-_complement(v, rank, other).clip(max=1))
    lost = -np.expm1((num_classes - 1) * log_phi)
    return math.log(num_classes) - float(weights @ (phi_own * lost))


_FALL = np.concatenate([quadrature.TRANSITION, [6.0, 9, 14, 22, 39]])
"""Breaks in t = v + scale Y: beyond the transition the density still falls, as e^{-t} for scale near 1/2."""


def _complement(v: np.ndarray, rank: int, scale: float) -> np.ndarray:
    """1 - E exp(-e^{v + scale Y}), Y ~ chi^2_rank and scale < 1/2, to full relative precision.

    E e^{scale Y} comes from energies larger by 1/(1 - 2 scale) than those of the density.
    """
    result = np.empty_like(v)
    radii = quadrature.radii(rank, 24)
    fixed = np.unique(np.concatenate([radii, radii / math.sqrt(1 - 2 * scale)]))
    for start in range(0, len(v), quadrature.ROWS):
        rows = slice(start, start + quadrature.ROWS)
        at = v[rows, None]
        r, weights = quadrature.moving_rule(fixed, at, _FALL, scale)
        growth = np.exp(np.minimum(at + scale * r * r, 5.0))  # e^{-e^5} is 0 to 60 digits
        result[rows] = (weights * quadrature.chi_density(rank, r) * -np.expm1(-growth)).sum(1)
    return result


# --- Monte Carlo over block energies ----------------------------------------------------------------


def _moment_readout(
    own_is_largest: Callable[[np.ndarray, np.ndarray], np.ndarray],
    whiten: bool,
    num_classes: int,
    rank: int,
    delta: float,
    sigma: Levels,
    noisy_input: bool,
    denoised: bool,
    outside: int,
    num_samples: int,
    generator: torch.Generator | None,
) -> Estimate:
    """Mean and standard error of own_is_largest(V_y / V_k, uniform) over points; levels share the draws.

    `own_is_largest` is given the ratios (N, K - 1) and a stratified uniform number for each point.
    """
    integer("num_classes", num_classes, 2)
    integer("rank", rank, 1)
    integer("outside", outside, 0)
    integer("num_samples", num_samples, 2)
    boolean("denoised", denoised)
    rho = contrast(delta, sigma, noisy_input)
    levels, scalar = noise_levels(sigma)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).square().sum(-1)

    chi = draw(num_samples, num_classes, rank).numpy()  # the own block first
    beyond = draw(num_samples, 1, outside).numpy()
    order = torch.randperm(num_samples, generator=generator).numpy()
    uniform = (order + 0.5) / num_samples
    means, errors = [], []
    for level, ratio in zip(levels.tolist(), rho.reshape(-1).tolist(), strict=True):
        energy = chi.copy()  # in units of v_B
        energy[:, 0] *= ratio
        signal = ratio
        if denoised:
            kappa, xi, gain = coefficients(level, delta)
            logits = kappa * block_variances(level, delta, noisy_input)[1] * energy
            energy *= (xi + gain * softmax(logits, 1)) ** 2
            signal = (num_classes - 1) * float(snr.exact(num_classes, rank, delta, level, noisy_input))
            energy *= rank / energy[:, 1:].mean()
        variance = energy.sum(1, keepdims=True) + (signal - 1) * energy
        scale = ((signal + num_classes - 1) / num_classes) ** 2 if whiten else 1.0
        variance = variance / scale + beyond
        value = own_is_largest(variance[:, :1] / variance[:, 1:], uniform)
        means.append(value.mean())
        errors.append(value.std(ddof=1) / math.sqrt(num_samples))
    mean, error = (torch.tensor(np.array(part)) for part in (means, errors))
    return Estimate(mean[0], error[0]) if scalar else Estimate(mean, error)
