r"""How tight Theorem 1 is: peaks of the exact SNR, of Theorem 1 and of `snr.refined` over a grid of models.

Theorem 1 puts weights that are constants, w_+ and w_-, in place of random ones. `terms` follows the way from
its value to the exact one in eight steps, each of which admits one more fluctuation.
"""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.interpolate import make_interp_spline
from scipy.special import expit

from compendium import resume
from molrg import snr
from molrg.model.coefficients import block_variances, coefficients
from molrg.snr import peaks, quadrature
from molrg.support.checks import boolean, fraction, integer, noise_levels

__all__ = ["FORMULAS", "INPUTS", "STEPS", "TERMS", "run", "terms"]

INPUTS = ("noisy", "clean")
FORMULAS = ("exact", "theorem", "refined")
STEPS = ("own energy", "rivals' energies", "spread of the weight", "weight with energy")
TERMS = tuple(f"{part}: {step}" for part in ("signal", "rest") for step in STEPS)

_HIGHEST = 4.0  # beyond the peaks of all models of the grid


def run(
    num_classes: Sequence[int], ranks: Sequence[int], deltas: Sequence[float], workdir: Path
) -> dict[str, Any]:
    """Find the peaks of the three formulas on a grid of models, and take the error apart at the exact peak.

    The levels scanned lie from min(delta, .1)/2 to 4, ten to a decade, and fifty around an exact peak. Its
    place is that of a spline of fifth degree through log SNR, its height the exact value there.

    Returns, with axes I = inputs, L = deltas, D = ranks, C = num_classes and F = formulas (FORMULAS):
    `place`, `height` (I, L, D, C, F), nan where the SNR is highest at the lowest level;
    `curve` (I, L, D, C, F) the largest relative error over the scanned levels;
    `terms` (I, L, D, C, 2, 8) of log(theorem / exact), see `terms`, at the exact peak and at Theorem 1's;
    and the lists `inputs`, `formulas`, `names` (of the terms), `num_classes`, `ranks`, `deltas`.

    Raises ValueError for arguments outside their ranges.
    """
    for count in num_classes:
        integer("num_classes", count, 2)
    for rank in ranks:
        integer("rank", rank, 1)
    for delta in deltas:
        fraction("delta", delta)
    found = np.array(
        [
            [
                resume.arrays(
                    Path(workdir) / f"{kind}-{delta:g}.npz", _part, num_classes, ranks, delta, kind == "noisy"
                )["figures"]
                for delta in deltas
            ]
            for kind in INPUTS
        ]
    )
    names = ("place", "height", "curve")
    return {
        **{name: found[..., 3 * i : 3 * i + 3] for i, name in enumerate(names)},
        "terms": found[..., 9:].reshape(*found.shape[:-1], 2, len(TERMS)),
        "inputs": list(INPUTS),
        "formulas": list(FORMULAS),
        "names": list(TERMS),
        "num_classes": list(num_classes),
        "ranks": list(ranks),
        "deltas": list(deltas),
    }


def terms(num_classes: int, rank: int, delta: float, sigma: float, noisy_input: bool = True) -> np.ndarray:
    """Return the eight terms (8,) of log(theorem / exact) at one level, in the order of TERMS.

    With beta(w) = xi + (zeta - xi) w, the signal of Theorem 1 is beta(w_+)^2 E[A]; the exact one is
    E[beta(w_k)^2 A]. On the way, w_+ becomes the mean of the weight with the own energy random and those of
    the others at their means, then E[w_k]; then E[beta^2] takes the place of beta(E[w_k])^2; then the energy
    comes into the average. The logarithm of each step's factor, with its sign in log(theorem / exact), is a
    term. Likewise, with the opposite sign, for the rest: w_-, w_l and B_l.

    Raises ValueError for arguments outside their ranges.
    """
    integer("num_classes", num_classes, 2)
    integer("rank", rank, 1)
    noisy_input = boolean("noisy_input", noisy_input)
    levels, _ = noise_levels(sigma)
    own, other, gain = _logit_scales(float(levels[0]), fraction("delta", delta), noisy_input)
    offset = np.log(num_classes - 1)
    gap = (own - other) * rank
    theorem = (expit(gap - offset), expit(offset - gap) / (num_classes - 1))
    own_only = _own_energy_alone(rank, own, offset + other * rank, num_classes)
    plain = quadrature.weight_moments(num_classes, rank, own, other, weighted=False)
    weighted = np.array(quadrature.weight_moments(num_classes, rank, own, other)) / rank
    values = []
    for i in (0, 1):
        means = np.array([theorem[i], own_only[i], plain[2 * i]])
        squares = [1 + 2 * gain * m[2 * i] + gain**2 * m[2 * i + 1] for m in (plain, weighted)]
        steps = np.diff(np.concatenate([2 * np.log1p(gain * means), np.log(squares)]))
        values.append(steps if i else -steps)
    return np.concatenate(values)


def _part(
    num_classes: Sequence[int], ranks: Sequence[int], delta: float, noisy: bool
) -> dict[str, np.ndarray]:
    """All of one delta and input, `figures` (D, C, 25): three of `run` for three formulas each, and terms."""
    low = min(delta, 0.1) / 2
    levels = np.geomspace(low, _HIGHEST, int(10 * np.log10(_HIGHEST / low)) + 1)
    found = np.full((len(ranks), len(num_classes), 9 + 2 * len(TERMS)), np.nan)
    for i, rank in enumerate(ranks):
        exact, exact_tops = _exact_tops(levels, num_classes, rank, delta, noisy)
        for j, count in enumerate(num_classes):
            model = (count, rank, delta)
            tops, curve = [exact_tops[j]], [0.0]
            for formula in (snr.theorem, snr.refined):
                approximation = functools.partial(formula, *model, noisy_input=noisy)
                top = peaks.find(approximation, low, _HIGHEST, len(levels))
                tops.append((top.sigma, top.height) if top.edge is None else (np.nan, np.nan))
                curve.append(abs(approximation(levels).numpy() / exact[:, j] - 1).max())
            found[i, j, :9] = np.concatenate([*np.transpose(tops), curve])
            for start, (place, _) in zip((9, 9 + len(TERMS)), tops, strict=False):
                if np.isfinite(place):
                    found[i, j, start : start + len(TERMS)] = terms(*model, place, noisy)
    return {"figures": found}


def _logit_scales(level: float, delta: float, noisy: bool) -> tuple[float, float, float]:
    """kappa v_A, kappa v_B, and (zeta - xi) / xi."""
    kappa, xi, gain = coefficients(level, delta)
    own, other = block_variances(level, delta, noisy)
    return kappa * own, kappa * other, gain / xi


def _exact_for_all(
    num_classes: Sequence[int], rank: int, delta: float, level: float, noisy: bool
) -> np.ndarray:
    """The exact SNR for several numbers of classes (C,), whose integrals over one class are the same."""
    own, other, gain = _logit_scales(level, delta, noisy)
    others = np.array(num_classes) - 1
    moments = np.array(quadrature.weight_moments(others[:, None] + 1, rank, own, other)) / rank
    signal, rest = (1 + 2 * gain * m[0] + gain**2 * m[1] for m in (moments[:2], moments[2:]))
    return own / other * signal / (others * rest)


def _exact_tops(
    levels: np.ndarray, num_classes: Sequence[int], rank: int, delta: float, noisy: bool
) -> tuple[np.ndarray, list[tuple[float, float]]]:
    """The exact SNR on the levels (S, C), and its peaks; nan where the highest value is at an end.

    Around each highest value the levels are made five times as dense, for all numbers of classes together.
    """
    dense = np.geomspace(levels[0], levels[-1], 5 * (len(levels) - 1) + 1)
    values = np.full((len(dense), len(num_classes)), np.nan)
    values[::5] = [_exact_for_all(num_classes, rank, delta, level, noisy) for level in dense[::5]]
    best = values[::5].argmax(0)
    inside = (best > 0) & (best < len(levels) - 1)
    windows = [range(5 * (i - 1), 5 * (i + 1) + 1) for i in best]
    for i in sorted(set().union(*(window for window, has in zip(windows, inside, strict=True) if has))):
        if i % 5:
            values[i] = _exact_for_all(num_classes, rank, delta, dense[i], noisy)
    tops = [(np.nan, np.nan)] * len(num_classes)
    for j in np.flatnonzero(inside).tolist():
        spline = make_interp_spline(np.log(dense[windows[j]]), np.log(values[windows[j], j]), k=5)
        fine = np.linspace(np.log(dense[windows[j][0]]), np.log(dense[windows[j][-1]]), 20_001)
        place = float(np.exp(fine[spline(fine).argmax()]))
        tops[j] = (place, float(_exact_for_all([num_classes[j]], rank, delta, place, noisy)[0]))
    return values[::5], tops


def _own_energy_alone(rank: int, own: float, shift: float, num_classes: int) -> tuple[float, float]:
    """The mean weights of the own class and of another where logit w_k = own * Y - shift, Y ~ chi^2_rank."""
    transition = np.sqrt(np.maximum(shift + np.linspace(-36, 36, 25), 0) / own)
    radii = quadrature.radii(rank, 24)
    r, weights = quadrature.panel_rule(np.sort(np.concatenate([radii, transition.clip(radii[0], radii[-1])])))
    density = weights * (r / np.sqrt(rank)) ** (rank - 1) * np.exp(-(r * r - rank) / 2)
    density /= density.sum()
    logit = own * r * r - shift
    return float(density @ expit(logit)), float(density @ expit(-logit)) / (num_classes - 1)
