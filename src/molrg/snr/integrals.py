"""The exact SNR of the optimal denoiser, by one-dimensional integrals."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from molrg.model.coefficients import block_variances, coefficients
from molrg.model.mixture import BACKGROUNDS, class_priors
from molrg.snr.quadrature import outer_rule, transforms, weight_moments
from molrg.support.checks import (
    LOWEST,
    Levels,
    boolean,
    choice,
    fraction,
    integer,
    mixture_sizes,
    noise_levels,
)

__all__ = ["AVERAGES", "DENOMINATORS", "exact", "exact_classes", "mismatched"]

DENOMINATORS = ("residual", "classes")
AVERAGES = ("classes", "pooled", "none")


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

    Statement: `thm-exact`.
    """
    noisy_input = boolean("noisy_input", noisy_input)
    mixture_sizes(num_classes, rank, delta)
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

    The denoiser is conditioned on sigma and takes x_0 + input_sigma eps, input_sigma >= 0: its weights are
    those of sigma, while the block energies have v_A = 1 + input_sigma^2 and v_B = delta^2 + input_sigma^2.
    Clean input (`input_sigma=0`) and matched noise (`input_sigma=sigma`) are the two cases of `exact`. As
    there: float64, () or (S,), by the same integrals.

    Raises ValueError for arguments outside their ranges.

    Statement: `thm-conditioning`.
    """
    mixture_sizes(num_classes, rank, delta)
    levels, scalar = noise_levels(sigma)
    clean = not isinstance(input_sigma, bool) and isinstance(input_sigma, int | float) and input_sigma == 0
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

    Statement: `thm-exact-classes`.
    """
    ranks = [integer(f"ranks[{k}]", rank, 1) for k, rank in enumerate(ranks)]
    if len(ranks) < 2:
        raise ValueError(f"ranks must hold at least 2 classes, got {len(ranks)}")
    pi = class_priors(priors, len(ranks))
    noisy_input = boolean("noisy_input", noisy_input)
    choice("average", average, AVERAGES)
    delta = fraction("delta", delta)
    levels, scalar = noise_levels(sigma)
    extra = _extra_dims(sum(ranks), denominator, background, dim)
    kinds = list(dict.fromkeys(zip(ranks, pi.tolist(), strict=True)))
    kind_of_class = [kinds.index(kind) for kind in zip(ranks, pi.tolist(), strict=True)]
    counts = np.bincount(kind_of_class)
    pairs = [_class_energies(kinds, counts, delta, noisy_input, s, extra) for s in levels.tolist()]
    signal, noise = (torch.from_numpy(part)[:, kind_of_class] for part in np.stack(pairs, axis=1))
    if average == "pooled":
        value = (signal * pi).sum(-1) / (noise * pi).sum(-1)
    else:
        value = signal / noise if average == "none" else (signal / noise).mean(-1)
    return value[0] if scalar else value


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
    extra = _extra_dims(num_classes * rank, denominator, background, dim)
    values = []
    for given, level in zip(inputs, levels, strict=True):
        kappa, xi, gain = coefficients(level, delta)
        own, other = block_variances(given, delta)
        moments = weight_moments(num_classes, rank, kappa * own, kappa * other)
        signal = own * (xi**2 * rank + 2 * xi * gain * moments[0] + gain**2 * moments[1])
        noise = (num_classes - 1) * other * (xi**2 * rank + 2 * xi * gain * moments[2] + gain**2 * moments[3])
        values.append(signal / (noise + xi**2 * other * extra))
    return torch.tensor(values, dtype=torch.float64)


def _extra_dims(filled: int, denominator: str, background: str, dim: int | None) -> int:
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
    extra: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Mean energies of denoised points of each kind of class, in the own subspace and in the rest, (T,).

    `kinds` are (rank, prior), of which there are `counts`.
    """
    kappa, xi, gain = coefficients(level, delta)
    own, other = block_variances(level, delta, noisy_input)
    ranks, priors = (np.array(part) for part in zip(*kinds, strict=True))
    offsets = np.log(priors) - 0.5 * ranks * (np.log1p(level**2) - np.log(delta**2 + level**2))
    v, weights = outer_rule(ranks, offsets - offsets.max(), kappa * own, kappa * other)
    shifted = v + (offsets - offsets.max())[:, None]
    as_own = [transforms(at, rank, kappa * own) for at, rank in zip(shifted, ranks, strict=True)]
    as_other = [transforms(at, rank, kappa * other) for at, rank in zip(shifted, ranks, strict=True)]
    signal, noise = np.empty(len(kinds)), np.full(len(kinds), xi**2 * other * extra)
    kept = np.eye(len(kinds), dtype=int)

    def energy(rank: int, measure: np.ndarray, integrals: tuple[np.ndarray, ...]) -> float:
        """E[(xi + gain w)^2 Y] / scale, from the factors of the other classes in `measure`."""
        return xi**2 * rank + 2 * xi * gain * measure @ integrals[1] + gain**2 * measure @ integrals[2]

    def product(left: np.ndarray) -> np.ndarray:
        return weights * np.prod([phi**n for (phi, _, _), n in zip(as_other, left, strict=True)], axis=0)

    for t, mine in enumerate(kept):
        signal[t] = own * energy(ranks[t], product(counts - mine), as_own[t])
        for u, competitor in enumerate(kept):
            if number := (counts - mine)[u]:
                measure = product(counts - mine - competitor) * as_own[t][0]
                noise[t] += number * other * energy(ranks[u], measure, as_other[u])
    return signal, noise
