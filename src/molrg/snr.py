r"""Class signal-to-noise ratio of a denoiser on MoLRG data: Theorem 1, the exact value, and Monte Carlo.

For class k with projection P_k = U_k U_k^T and denoiser output f,

    SNR_k = E||P_k f||^2 / E||f - P_k f||^2          denominator="residual" (NeurIPS version, "SNR")
    SNR_k = E||P_k f||^2 / sum_{l != k} E||P_l f||^2   denominator="classes" (ICLR version, "CSNR")

over x_0 of class k, where f sees x_sigma (`noisy_input=True`) or x_0 with sigma as conditioning alone
(`noisy_input=False`). The two choices are independent.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.linalg import eigh_tridiagonal
from scipy.special import expit, gammaln, log_expit, logsumexp
from torch import Tensor

from molrg.arguments import LOWEST, Levels, boolean, choice, fraction, integer, noise_levels
from molrg.devices import widest
from molrg.mixture import (
    BACKGROUNDS,
    Frame,
    LowRankMixture,
    MoLRG,
    class_priors,
    class_weights,
    energies,
    gaussian,
    row_chunks,
)

DENOMINATORS = ("residual", "classes")
AVERAGES = ("classes", "pooled", "none")


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
    num_classes, rank, delta = _model(num_classes, rank, delta)
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

    It lets the energies fluctuate, and closes over the rivals one by one. Take a single rival, with energies
    A = v_A chi^2_d and B = v_B chi^2_d and T = kappa (A - B); let h and h_2 be the means over B, for given A,
    of v = 1/(1 + e^T) and of v^2, and N = 1 + (K-2) h. For K - 1 rivals, given A,

        E[1 - w_k] = H = (K-1) h / N,  E[w_k (1 - w_k)] = H (1-H) - (K-1) (h_2 - h^2) / N^4,
        E[w_l] = h / N,  E[w_l^2] = h_2 / N^2,

    exact for two classes, and where the rivals' energies do not fluctuate. The factor A or B_l in an average
    raises the rank of that chi^2 to d+2. Averages over A and B are Gauss rules of 12 and 6 points, placed
    where the undecided points are: on chi^2 / (1 + 2 kappa v_A s) and chi^2 / (1 - 2 kappa v_B s), s = 1/2
    for noisy and s = min(1, (1+sigma^2)(delta^2+sigma^2) / (2 delta^2)) for clean input.

    For K from 2 to 1000, d from 1 to 200 and delta from .02 to .9 the peak's height is right to 4%; at high
    noise, beyond the peak, the values for noisy input are right to 25%. Both denominators (background
    `span`) give the same value.

    Raises ValueError unless num_classes >= 2, rank >= 1, 0 < delta < 1, sigma is in [1e-12, 1e12] and
    noisy_input is True or False. Source: not in the paper; derived on the page `theory/tightness`.
    """
    num_classes, rank, delta = _model(num_classes, rank, delta)
    noisy_input = boolean("noisy_input", noisy_input)
    levels, scalar = noise_levels(sigma)
    s2, d2 = levels.numpy()[:, None] ** 2, delta**2
    kappa = 0.5 * (1 - d2) / ((1 + s2) * (d2 + s2))
    own, other = (kappa * (1 + s2), kappa * (d2 + s2)) if noisy_input else (kappa, kappa * d2)
    tilt = np.full_like(s2, 0.5) if noisy_input else np.minimum(1, (1 + s2) * (d2 + s2) / (2 * d2))
    rivals = num_classes - 1
    gain = s2[:, 0] * (1 - d2) / (d2 * (1 + s2[:, 0]))  # (zeta - xi) / xi

    one, two, single = _pair_averages(rank + 2, rank, own, other, tilt, rank)
    spread = 1 + (rivals - 1) * single
    lost = rivals * single / spread
    undecided = (rivals * one / spread).sum(-1)
    variable = (rivals * one / spread * (1 - lost) - rivals * (two - one * single) / spread**4).sum(-1)
    signal = 1 + 2 * gain * (1 - undecided) + gain**2 * (1 - undecided - variable)
    if noisy_input:
        front = ((1 + s2) / (d2 + s2))[:, 0]
        noise = rivals + front * (2 * gain * undecided + gain**2 * variable)
    else:
        front = np.full_like(gain, 1 / d2)
        one, two, single = _pair_averages(rank, rank + 2, own, other, tilt, rank)
        spread = 1 + (rivals - 1) * single
        noise = rivals * (1 + 2 * gain * (one / spread).sum(-1) + gain**2 * (two / spread**2).sum(-1))
    value = torch.from_numpy(front * signal / noise)
    return value[0] if scalar else value


def exact(
    num_classes: int,
    rank: int,
    delta: float,
    sigma: Levels,
    noisy_input: bool = True,
    denominator: str = "residual",
    background: str = "span",
    dim: int | None = None,
) -> Tensor:
    r"""Return the exact SNR of the optimal denoiser for orthogonal, equally likely classes of one rank.

    Float64, () or (S,), relative error below 1e-9 for K from 2 to 1000, d from 1 to 200, delta .01 to
    .95, sigma 1e-3 to 50. `dim` n is needed only where it enters: `complement` with `residual`.

    Method. The denoised energies are beta_l^2 times block energies A = v_A chi^2_d (own class) and
    B_l = v_B chi^2_d (others), beta_l = xi + (zeta - xi) w_l, with softmax weights w_l = e^{kappa E_l}/S,
    S = e^{kappa A} + sum_l e^{kappa B_l}. With 1/S^m = 1/Gamma(m) int_0^inf u^{m-1} e^{-uS} du and u = e^v,
    the expectations factorise over the classes into one-dimensional integrals

        E[w_k^m A] = 1/Gamma(m) int psi_m(v) phi_B(v)^{K-1} dv,
        psi_m(v) = E[A g_m(v + kappa A)],  g_m(t) = e^{mt} e^{-e^t},  phi_B(v) = E[e^{-e^{v + kappa B}}],

    likewise for w_l and B_l, which are done by composite Gauss-Legendre rules.

    Raises ValueError for arguments outside their ranges, or if `dim` is missing or below K d.
    """
    noisy_input = boolean("noisy_input", noisy_input)
    _model(num_classes, rank, delta)
    levels, scalar = noise_levels(sigma)
    inputs = levels.tolist() if noisy_input else [0.0] * len(levels)
    value = _exact(num_classes, rank, delta, inputs, levels.tolist(), denominator, background, dim)
    return value[0] if scalar else value


def mismatched(
    num_classes: int,
    rank: int,
    delta: float,
    input_sigma: float,
    sigma: Levels,
    denominator: str = "residual",
    background: str = "span",
    dim: int | None = None,
) -> Tensor:
    r"""Return the exact SNR of the optimal denoiser for sigma on points with another noise, `input_sigma`.

    The denoiser is told sigma and given x_0 + input_sigma eps, input_sigma >= 0: its weights are those of
    sigma, while the block energies have v_A = 1 + input_sigma^2 and v_B = delta^2 + input_sigma^2. Clean
    input (`input_sigma=0`) and matched noise (`input_sigma=sigma`) are the two cases of `exact`. Otherwise as
    there: float64, () or (S,), by the same integrals.

    Raises ValueError for arguments outside their ranges.
    """
    _model(num_classes, rank, delta)
    levels, scalar = noise_levels(sigma)
    clean = isinstance(input_sigma, int | float) and input_sigma == 0
    given, one = noise_levels(LOWEST if clean else input_sigma)  # whose square is nothing beside delta^2
    if not one:
        raise ValueError(f"input_sigma must be one number >= 0, got {len(given)} of them")
    inputs = given.tolist() * len(levels)
    value = _exact(num_classes, rank, delta, inputs, levels.tolist(), denominator, background, dim)
    return value[0] if scalar else value


def exact_classes(
    ranks: Sequence[int],
    priors: Sequence[float] | np.ndarray | Tensor | None,
    delta: float,
    sigma: Levels,
    noisy_input: bool = True,
    denominator: str = "residual",
    background: str = "span",
    dim: int | None = None,
    average: str = "classes",
) -> Tensor:
    r"""Return the exact SNR of the optimal denoiser for orthogonal classes of any ranks and priors.

    Float64, () or (S,); with `average="none"` one value a class, K appended. `average` is that of
    `estimate`. For equal ranks and priors every average is `exact`.

    Method. As for `exact`, with weights w_l = e^{a_l + kappa E_l}/S, whose offsets
    a_l = log pi_l - d_l/2 log((1 + sigma^2)/(delta^2 + sigma^2)) shift the factors: for points of class k

        E[w_k^m E_k] = 1/Gamma(m) int psi_k(v + a_k) prod_{l != k} phi_l(v + a_l) dv,

    and likewise for E[w_l^m E_l]. Classes of the same rank and prior share their integrals.

    Raises ValueError for arguments outside their ranges: ranks K >= 2 integers >= 1, priors K positive
    numbers with sum 1 or None for equal ones.
    """
    ranks = [integer(f"ranks[{k}]", rank, 1) for k, rank in enumerate(ranks)]
    if len(ranks) < 2:
        raise ValueError(f"ranks must hold at least 2 classes, got {len(ranks)}")
    pi = class_priors(priors, len(ranks))
    noisy_input = boolean("noisy_input", noisy_input)
    choice("average", average, AVERAGES)
    delta = fraction("delta", delta)
    levels, scalar = noise_levels(sigma)
    room = _room(sum(ranks), denominator, background, dim)
    kinds = list(dict.fromkeys(zip(ranks, pi.tolist(), strict=True)))
    kind_of_class = [kinds.index(kind) for kind in zip(ranks, pi.tolist(), strict=True)]
    counts = np.bincount(kind_of_class)
    pairs = [_class_energies(kinds, counts, delta, noisy_input, s, room) for s in levels.tolist()]
    signal, noise = (torch.from_numpy(part)[:, kind_of_class] for part in np.stack(pairs, axis=1))
    if average == "pooled":
        value = (signal * pi).sum(-1) / (noise * pi).sum(-1)
    else:
        value = signal / noise if average == "none" else (signal / noise).mean(-1)
    return value[0] if scalar else value


class Estimate(NamedTuple):
    """A Monte Carlo value and its standard error, float64 tensors of one shape."""

    value: Tensor
    standard_error: Tensor


def estimate(
    denoiser: Callable[[Tensor, float], Tensor] | LowRankMixture,
    mixture: LowRankMixture,
    sigma: Levels,
    num_samples: int,
    noisy_input: bool = True,
    denominator: str = "residual",
    average: str = "classes",
    generator: torch.Generator | None = None,
) -> Estimate:
    """Estimate the SNR of `denoiser` on `mixture` from `num_samples` points of each class.

    Parameters
    ----------
    denoiser
        A callable (x, sigma) -> (N, n) with a float sigma, which returns the dtype of x; or a mixture,
        `mixture` or another one of its dimension, which stands for its posterior mean. That of a `MoLRG` is
        taken through block energies, without forming denoised vectors: all levels share the matrix products.
    sigma
        A level or (S,). Points and noise are shared by all levels (x_sigma = x_0 + sigma eps).
    average
        "classes": mean over classes of the ratio of means; "pooled": ratio of the prior-weighted means
        ("overall" in the paper); "none": one value a class, which appends K to the shape.

    Returns
    -------
    Estimate
        `value` and `standard_error` (delta method for the ratio), float64, () or (S,), with K appended
        for "none". Where denoised vectors have no energy in the denominator but that of their rounding
        (16 eps)^2, the value is infinite and its error nan.

    Raises
    ------
    ValueError
        For arguments outside their ranges, or a denoiser that returns anything but a tensor of the
        shape and dtype of x.
    """
    integer("num_samples", num_samples, 2)
    noisy_input = boolean("noisy_input", noisy_input)
    choice("denominator", denominator, DENOMINATORS)
    choice("average", average, AVERAGES)
    levels, scalar = noise_levels(sigma)
    if isinstance(denoiser, LowRankMixture) and denoiser.dim != mixture.dim:
        raise ValueError(
            f"the denoiser must be a mixture of the dimension of the data, {mixture.dim}, got {denoiser.dim}"
        )
    like = mixture.bases[0]
    frame = mixture.frame(like.dtype, like.device)
    optimal = denoiser is mixture and isinstance(mixture, MoLRG) and mixture.is_orthogonal
    width = max(mixture.dim, frame.blocks.shape[1], len(levels) * mixture.num_classes)
    sums = torch.zeros(5, len(levels), mixture.num_classes, dtype=torch.float64)
    with torch.no_grad():
        for k in range(mixture.num_classes):
            forms: list[_Form] = []
            if isinstance(denoiser, MoLRG) and not optimal:
                forms = _forms(denoiser, mixture, k, denominator)
            for rows in row_chunks(num_samples, width):
                labels = torch.full((rows.stop - rows.start,), k)
                x0, _ = mixture.sample(len(labels), generator=generator, labels=labels)
                noise = gaussian(x0.shape, like, generator) if noisy_input else None
                if optimal and isinstance(mixture, MoLRG):
                    pair = _optimal_energies(mixture, frame, x0, noise, levels, k, denominator)
                elif isinstance(denoiser, MoLRG):
                    pair = _mixture_energies(denoiser, forms, x0, noise, levels)
                else:
                    call = denoiser.posterior_mean if isinstance(denoiser, LowRankMixture) else denoiser
                    pair = _denoised_energies(call, frame, x0, noise, levels, k, denominator)
                sums[:, :, k] += _power_sums(*pair).cpu()
    if not optimal:  # what subtraction leaves of zero is rounding
        sums[1, sums[1] <= (16 * torch.finfo(like.dtype).eps) ** 2 * sums[0]] = 0
    return _ratios(sums / num_samples, num_samples, mixture.priors, average, scalar)


# --- exact ------------------------------------------------------------------------------------------


def _exact(
    num_classes: int,
    rank: int,
    delta: float,
    inputs: Sequence[float],
    levels: Sequence[float],
    denominator: str,
    background: str,
    dim: int | None,
) -> Tensor:
    """The exact SNR (S,) of the optimal denoisers for `levels`, on points with noise of levels `inputs`."""
    room = _room(num_classes * rank, denominator, background, dim)
    values = []
    for given, level in zip(inputs, levels, strict=True):
        s2, d2 = level**2, delta**2
        kappa = 0.5 * (1 - d2) / ((1 + s2) * (d2 + s2))
        xi, gap = d2 / (d2 + s2), s2 * (1 - d2) / ((1 + s2) * (d2 + s2))
        own, other = 1 + given**2, d2 + given**2
        moments = _weight_moments(num_classes, rank, kappa * own, kappa * other)
        signal = own * (xi**2 * rank + 2 * xi * gap * moments[0] + gap**2 * moments[1])
        noise = (num_classes - 1) * other * (xi**2 * rank + 2 * xi * gap * moments[2] + gap**2 * moments[3])
        values.append(signal / (noise + xi**2 * other * room))
    return torch.tensor(values, dtype=torch.float64)


def _room(filled: int, denominator: str, background: str, dim: int | None) -> int:
    """How many dimensions outside the `filled` ones of the classes hold background that counts as noise."""
    choice("denominator", denominator, DENOMINATORS)
    choice("background", background, BACKGROUNDS)
    counts = denominator == "residual" and background == "complement"
    if dim is not None:
        integer("dim", dim, filled)
    elif counts:
        raise ValueError("dim is needed with denominator='residual' and background='complement': pass dim=n")
    return dim - filled if counts and dim is not None else 0


def _class_energies(
    kinds: Sequence[tuple[int, float]],
    counts: np.ndarray,
    delta: float,
    noisy_input: bool,
    level: float,
    room: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Mean energies of denoised points of each kind of class, in the own subspace and in the rest, (T,).

    `kinds` are (rank, prior), of which there are `counts`.
    """
    s2, d2 = level**2, delta**2
    kappa = 0.5 * (1 - d2) / ((1 + s2) * (d2 + s2))
    xi, gap = d2 / (d2 + s2), s2 * (1 - d2) / ((1 + s2) * (d2 + s2))
    own, other = (1 + s2, d2 + s2) if noisy_input else (1.0, d2)
    ranks, priors = (np.array(part) for part in zip(*kinds, strict=True))
    offsets = np.log(priors) - 0.5 * ranks * (np.log1p(s2) - np.log(d2 + s2))
    v, weights = _outer_rule(ranks, offsets - offsets.max(), kappa * own, kappa * other)
    shifted = v + (offsets - offsets.max())[:, None]
    as_own = [_transforms(at, rank, kappa * own) for at, rank in zip(shifted, ranks, strict=True)]
    as_rival = [_transforms(at, rank, kappa * other) for at, rank in zip(shifted, ranks, strict=True)]
    signal, noise = np.empty(len(kinds)), np.full(len(kinds), xi**2 * other * room)
    kept = np.eye(len(kinds), dtype=int)

    def energy(rank: int, measure: np.ndarray, integrals: tuple[np.ndarray, ...]) -> float:
        """E[(xi + gap w)^2 Y] / scale, from the factors of the other classes in `measure`."""
        return xi**2 * rank + 2 * xi * gap * measure @ integrals[1] + gap**2 * measure @ integrals[2]

    def product(left: np.ndarray) -> np.ndarray:
        return weights * np.prod([phi**n for (phi, _, _), n in zip(as_rival, left, strict=True)], axis=0)

    for t, mine in enumerate(kept):
        signal[t] = own * energy(ranks[t], product(counts - mine), as_own[t])
        for u, rival in enumerate(kept):
            if number := (counts - mine)[u]:
                measure = product(counts - mine - rival) * as_own[t][0]
                noise[t] += number * other * energy(ranks[u], measure, as_rival[u])
    return signal, noise


_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(16)


def _panels(breaks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights of the composite 16-point rule on sorted breaks (..., P + 1): (..., 16 P)."""
    half = 0.5 * np.diff(breaks)
    middle = breaks[..., :-1] + half
    nodes = middle[..., None] + half[..., None] * _NODES
    weights = half[..., None] * _WEIGHTS
    return nodes.reshape(*breaks.shape[:-1], -1), weights.reshape(*breaks.shape[:-1], -1)


_ROWS = 64
"""Nodes in v that are done at a time: the arrays stay in a core's cache, and the allocator keeps them."""

# Where e^{-e^t} and e^{mt - e^t} change: from 1 - 1e-17 at t = -39 to 0 at t = 4.
_TRANSITION = np.array([-39.0, -24, -14, -8, -5, -3, -1.5, 0, 1, 2, 3, 4])


def _radii(rank: int, panels: int) -> np.ndarray:
    """Breaks over the support of the chi distribution, whose standard deviation is 0.7 for every rank."""
    return np.linspace(max(0.0, np.sqrt(rank) - 9), np.sqrt(rank) + 9, panels + 1)


def _outer_rule(
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
        energy = _radii(rank, 24) ** 2
        breaks += [-offset - own * energy, -offset - other * energy]
        lowest = min(lowest, -offset - max(own, other) * energy[-1] - 40)
    edges = np.unique(np.concatenate([*breaks, [lowest]]))
    return _panels(edges[(edges >= lowest) & (edges <= 4)])


def _weight_moments(
    num_classes: int | np.ndarray, rank: int, own: float, other: float, weighted: bool = True
) -> tuple[Any, Any, Any, Any]:
    """Return E[w_k Y], E[w_k^2 Y], E[w_l Z], E[w_l^2 Z]: Y, Z the chi^2_d of the own class and of another.

    Without the factors Y and Z unless `weighted`. Of several `num_classes` (C, 1), which share the integrals
    over one class, each is (C,).

    The logits are own * Y and other * Z_l.
    """
    v, weights = _outer_rule([rank], [0.0], own, other)
    phi_own, one_own, two_own = _transforms(v, rank, own, weighted)
    phi_other, one_other, two_other = _transforms(v, rank, other, weighted)
    rest = phi_other ** (num_classes - 2)
    own_measure, other_measure = weights * rest * phi_other, weights * rest * phi_own
    return (
        own_measure @ one_own,
        own_measure @ two_own,
        other_measure @ one_other,
        other_measure @ two_other,
    )


def _transforms(
    v: np.ndarray, rank: int, scale: float, weighted: bool = True
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return E[e^{-e^t}], E[Y e^{t - e^t}], E[Y e^{2t - e^t}] at t = v + scale * Y, Y ~ chi^2_rank.

    Without the factor Y unless `weighted`.

    The rule in r = sqrt(Y) has breaks on the density's scale and, for each v, at the transition
    Y = -v/scale of width 1/scale, which a fixed grid misses.
    """
    results = [np.empty_like(v) for _ in range(3)]
    density_breaks = _radii(rank, 12)
    log_norm = (rank / 2 - 1) * np.log(2) + gammaln(rank / 2)
    for start in range(0, len(v), _ROWS):
        rows = slice(start, start + _ROWS)
        at = v[rows, None]
        transition = np.sqrt(np.maximum((_TRANSITION - at) / scale, 0))
        fixed = np.broadcast_to(density_breaks, (len(at), len(density_breaks)))
        breaks = np.concatenate([fixed, transition.clip(density_breaks[0], density_breaks[-1])], axis=1)
        breaks.sort(axis=1)
        r, weights = _panels(breaks)
        with np.errstate(divide="ignore"):  # log 0 at the end of an empty panel
            log_density = (rank - 1) * np.log(r) if rank > 1 else 0.0
        y = r * r
        measure = weights * np.exp(log_density - 0.5 * y - log_norm)
        growth = np.exp(np.minimum(at + scale * y, 5.0))  # e^{-e^5} is 0 to 60 digits
        measure *= np.exp(-growth)
        results[0][rows] = measure.sum(1)
        measure *= y * growth if weighted else growth
        results[1][rows] = measure.sum(1)
        measure *= growth
        results[2][rows] = measure.sum(1)
    return results[0], results[1], results[2]


def _model(num_classes: int, rank: int, delta: float) -> tuple[int, int, float]:
    return integer("num_classes", num_classes, 2), integer("rank", rank, 1), fraction("delta", delta)


# --- refined ----------------------------------------------------------------------------------------

_OWN_POINTS, _RIVAL_POINTS = 12, 6


def _gauss(rank: int, points: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights (they sum to 1) of the Gauss rule for chi^2_rank: Laguerre's, by Golub and Welsch."""
    i = np.arange(points)
    nodes, vectors = eigh_tridiagonal(2 * i + rank / 2, np.sqrt(i[1:] * (i[1:] + rank / 2 - 1)))
    return 2 * nodes, vectors[0] ** 2


def _pair_averages(
    own_rank: int, rival_rank: int, own: np.ndarray, other: np.ndarray, tilt: np.ndarray, rank: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The summands of E[v] and E[v^2], v = 1/(1 + e^T), at the nodes of the own energy, and h there: (S, 12).

    T = own Y - other Z, with Y and Z chi^2 of ranks `own_rank` and `rival_rank`; h is the mean of v over a
    rival of rank `rank` alone. The levels' own, other and tilt are (S, 1). With e^{-tilt T} drawn into the
    densities what is left, e^{tilt T} v, is at most 1.
    """
    own_scale, other_scale = 1 / (1 + 2 * own * tilt), 1 / (1 - 2 * other * tilt)
    nodes, own_weights = _gauss(own_rank, _OWN_POINTS)
    y = own * own_scale * nodes

    def over_rival(degrees: int) -> tuple[np.ndarray, np.ndarray]:
        """Logarithms of the means of v and v^2 over a rival, times e^{tilt y}."""
        nodes, weights = _gauss(degrees, _RIVAL_POINTS)
        t = y[..., None] - (other * other_scale * nodes)[:, None]
        left = -np.logaddexp(-tilt[..., None] * t, (1 - tilt)[..., None] * t)
        front = degrees / 2 * np.log(other_scale)
        return (
            front + logsumexp(left, axis=-1, b=weights),
            front + logsumexp(left + log_expit(-t), axis=-1, b=weights),
        )

    one, two = over_rival(rival_rank)
    alone = one if rival_rank == rank else over_rival(rank)[0]
    front = own_rank / 2 * np.log(own_scale)
    single = np.exp(np.minimum(alone - tilt * y, 0))
    return own_weights * np.exp(front + one), own_weights * np.exp(front + two), single


# --- Monte Carlo ------------------------------------------------------------------------------------


def _denoised_energies(
    denoiser: Callable[[Tensor, float], Tensor],
    frame: Frame,
    x0: Tensor,
    noise: Tensor | None,
    levels: Tensor,
    k: int,
    denominator: str,
) -> tuple[Tensor, Tensor]:
    """Energies of a denoiser's output in class k and in the denominator, each (S, N)."""
    basis = frame.blocks.unflatten(1, (frame.num_classes, -1))[:, k]
    signal, rest = [], []
    for level in levels.tolist():
        x = x0 if noise is None else torch.add(x0, noise, alpha=level)
        f = denoiser(x, level)
        if not isinstance(f, Tensor) or f.dtype != x.dtype:
            kind = f.dtype if isinstance(f, Tensor) else type(f).__name__
            raise ValueError(f"the denoiser must return a tensor of {x.dtype}, the dtype of x, got {kind}")
        if f.shape != x.shape:
            raise ValueError(f"the denoiser must return shape {tuple(x.shape)}, got {tuple(f.shape)}")
        if denominator == "classes":
            energy = energies((f @ frame.blocks).unflatten(-1, (frame.num_classes, -1)))
            signal.append(energy[:, k])
            rest.append(_others(energy, k))
        else:
            z = f @ basis
            signal.append(z.square().sum(-1))
            rest.append((f - z @ basis.T).square().sum(-1))
    return torch.stack(signal), torch.stack(rest)


def _optimal_energies(
    mixture: MoLRG, frame: Frame, x0: Tensor, noise: Tensor | None, levels: Tensor, k: int, denominator: str
) -> tuple[Tensor, Tensor]:
    """The same for the optimal denoiser of orthogonal classes: energies beta_l^2 ||P_l x||^2."""
    points, powers = _points(x0, noise, levels)
    xi, gap = (c[:, None] for c in _shares(mixture, levels, x0))
    z = (points @ frame.blocks).unflatten(-1, (frame.num_classes, -1))
    energy = torch.tensordot(powers, _products(z, z), 1)
    weights = class_weights(mixture.class_logits(energy, levels))
    denoised = (xi[..., None] + gap[..., None] * weights).square() * energy
    rest = _others(denoised, k)
    if denominator == "residual" and frame.basis is None:
        outside = points - z.flatten(-2) @ frame.blocks.T
        rest = rest + xi**2 * torch.tensordot(powers, _products(outside, outside), 1)
    return denoised[..., k], rest


class _Form(NamedTuple):
    """An energy ||L f||^2 of a mixture's posterior mean f: L on rows, L U (K r, p), and U^T L^T L U."""

    operator: Callable[[Tensor], Tensor]
    blocks: Tensor
    gram: Tensor


def _forms(denoiser: MoLRG, mixture: LowRankMixture, k: int, denominator: str) -> list[_Form]:
    """The energies in class k of `mixture`, L = U_k^T, and in the denominator, for the mixture `denoiser`."""
    like = mixture.bases[0]
    bases = mixture.frame(like.dtype, like.device).blocks.unflatten(1, (mixture.num_classes, -1))
    own, others = bases[:, k], torch.cat([bases[:, :k], bases[:, k + 1 :]], dim=1).flatten(1)

    def residual(x: Tensor) -> Tensor:
        return x - x @ own @ own.T

    def projected(x: Tensor) -> Tensor:
        return x @ own

    def in_others(x: Tensor) -> Tensor:
        return x @ others

    blocks = denoiser.frame(like.dtype, like.device).blocks.T
    forms = []
    for operator in (projected, residual if denominator == "residual" else in_others):
        inside = operator(blocks)
        if operator is residual and denoiser is mixture:
            inside.unflatten(0, (mixture.num_classes, -1))[k] = 0  # P_k has no residual but its rounding
        forms.append(_Form(operator, inside, inside @ inside.T))
    return forms


def _mixture_energies(
    denoiser: MoLRG, forms: Sequence[_Form], x0: Tensor, noise: Tensor | None, levels: Tensor
) -> tuple[Tensor, Tensor]:
    """The same for any mixture's posterior mean, f = xi P_S x + (zeta - xi) sum_l w_l P_l x, by `_forms`.

    ||L f||^2 is a quadratic form in c = (xi, (zeta - xi) w_1, ..., (zeta - xi) w_K). Its matrix, the Gram
    matrix of L P_S x, L P_1 x, ..., L P_K x, is summed row by row, so that K^2 numbers are never held.
    """
    frame = denoiser.frame(x0.dtype, x0.device)
    num_classes = frame.num_classes
    points, powers = _points(x0, noise, levels)
    s = frame.coordinates(points)
    z = frame.project(s)
    energy = torch.tensordot(powers, _products(z, z), 1)
    weights = class_weights(denoiser.class_logits(energy, levels))
    xi, gap = _shares(denoiser, levels, x0)
    c = gap[:, None] * weights.transpose(0, 1)  # (N, S, K)

    def at_levels(products: Tensor, coefficients: Tensor) -> Tensor:
        """sum_l coefficients_l products_l for each level, (N, S), from products (P, N, K)."""
        return ((coefficients @ products.permute(1, 2, 0)) * powers).sum(-1)

    found = []
    for operator, blocks, gram in forms:
        whole = operator(frame.lift(s))
        first = (whole @ blocks.T).unflatten(-1, (num_classes, -1))
        value = xi**2 * torch.tensordot(powers, _products(whole, whole), 1).T
        value = value + 2 * xi * at_levels(_products(first, z), c)
        for each, row in enumerate(gram.unflatten(0, (num_classes, -1))):
            products = _products((z[..., each, :] @ row).unflatten(-1, (num_classes, -1)), z)
            value = value + c[..., each] * at_levels(products, c)
        found.append(value.T)
    return found[0], found[1]


def _shares(mixture: MoLRG, levels: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """xi and zeta - xi over zeta, (S,): no SNR depends on the scale of f, and float32 cannot hold every f."""
    xi, gap = mixture.coefficients(levels)
    return (xi / (xi + gap)).to(like.dtype).to(like.device), (gap / (xi + gap)).to(like.dtype).to(like.device)


def _points(x0: Tensor, noise: Tensor | None, levels: Tensor) -> tuple[Tensor, Tensor]:
    """x_0 (1, N, n), or x_0 and eps (2, N, n); and the powers of sigma in a product of two x_sigma.

    Powers are (S, 3) for noisy input, and (1, 1) for clean input, which is one for all levels.
    """
    if noise is None:
        return x0.unsqueeze(0), x0.new_ones(1, 1)
    level = levels.to(x0.dtype).to(x0.device)
    return torch.stack([x0, noise]), torch.stack([torch.ones_like(level), level, level**2], dim=1)


def _products(a: Tensor, b: Tensor) -> Tensor:
    """Coefficients, by powers of sigma, of <a, b> over the last axis, linear in x_sigma: (1 or 3, N, ...)."""
    if len(a) == 1:
        return (a * b).sum(-1)
    straight = (a * b).sum(-1)
    crossed = (a * b.flip(0)).sum(-1).sum(0)
    return torch.stack([straight[0], crossed, straight[1]])


def _others(energy: Tensor, k: int) -> Tensor:
    """Sum over all classes but k; not as a difference, which cancels where class k dominates."""
    return energy[..., :k].sum(-1) + energy[..., k + 1 :].sum(-1)


def _power_sums(signal: Tensor, rest: Tensor) -> Tensor:
    """Sums over samples of a, b, a^2, ab, b^2: (5, S), float64 except on devices without it."""
    wide = widest(signal.device)
    a, b = signal.to(wide), rest.to(wide)
    return torch.stack([t.sum(-1) for t in (a, b, a * a, a * b, b * b)])


def _ratios(means: Tensor, num_samples: int, priors: Tensor, average: str, scalar: bool) -> Estimate:
    """Ratios of means and their standard errors by the delta method, from means (5, S, K)."""
    a, b, aa, ab, bb = means

    def spread(ratio: Tensor) -> Tensor:
        """Variance of the mean of a - ratio b, (S, K)."""
        second = aa - 2 * ratio * ab + ratio**2 * bb
        return (second - (a - ratio * b) ** 2).clamp(min=0) / (num_samples - 1)

    if average == "pooled":
        noise = (priors * b).sum(-1)
        ratio = (priors * a).sum(-1) / noise
        error = (priors**2 * spread(ratio[:, None])).sum(-1).sqrt() / noise
    else:
        ratio = a / b
        error = spread(ratio).sqrt() / b
        if average == "classes":
            error = error.square().sum(-1).sqrt() / ratio.shape[-1]
            ratio = ratio.mean(-1)
    return Estimate(ratio[0], error[0]) if scalar else Estimate(ratio, error)
