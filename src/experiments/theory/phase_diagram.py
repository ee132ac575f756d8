"""The phase diagram of the exact noisy-input SNR, and its peaks far out in each regime."""

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from compendium import resume
from experiments.rounding import significant
from experiments.theory import peak_boundary
from molrg import snr
from molrg.snr import peaks

__all__ = ["diagram", "exact_peak", "laws"]


def diagram(
    classes: Sequence[int], ranks: Sequence[int], deltas: Sequence[float], workdir: Path
) -> dict[str, Any]:
    """Boundary and peaks of the exact noisy-input SNR for every K, d and delta >= .01.

    Returns, with axes K, d (and delta):
    `boundary` (K, d) delta_c by `peak_boundary.exact_boundary`;
    `boundary_slope` (K, d) the same by a second route: differences of `snr.exact` at two small sigma give the
    slope of log SNR in sigma^2 at 0, whose sign change is interpolated;
    `steepest` (K, d) the largest d log SNR / d log sigma over sigma at 1.001 delta_c: negative where the
    curve falls throughout;
    `near` (K, d, 2) the number of maxima at .99 and at 1.01 delta_c;
    `maxima`, `minima` (K, d, delta) the number of interior turns;
    `sigma`, `height` (K, d, delta) place and height of the highest, nan where there is none.
    """
    cells = [
        resume.values(Path(workdir) / f"{num_classes}-{rank}.json", _cell, num_classes, rank, deltas)
        for num_classes, rank in product(classes, ranks)
    ]
    shape = (len(classes), len(ranks))
    return {
        key: np.array([cell[key] for cell in cells]).reshape(*shape, *np.shape(cells[0][key]))
        for key in cells[0]
    }


def laws(
    small: Sequence[Sequence[int]],
    small_deltas: Sequence[float],
    wide: Sequence[Sequence[float]],
    wide_ranks: Sequence[int],
    joint: Sequence[Sequence[float]],
    joint_ranks: Sequence[int],
    workdir: Path,
) -> dict[str, Any]:
    """Peaks (sigma, height) of the exact SNR, noisy and clean input, far out in three regimes.

    `small` (K, d) with delta = `small_deltas`: array (model, delta, input, 2);
    `wide` (K, delta) with d = `wide_ranks`: (model, rank, input, 2);
    `joint` (load, delta) with d = `joint_ranks`, K = round(e^(load d)), noisy input only: (model, rank, 2).
    """

    def both(num_classes: int, rank: int, delta: float) -> list[list[float]]:
        file = Path(workdir) / f"{num_classes}-{rank}-{delta:g}.json"
        return resume.values(file, _both_peaks, num_classes, rank, delta)

    return {
        "small": np.array([[both(k, d, delta) for delta in small_deltas] for k, d in small]),
        "wide": np.array([[both(int(k), d, delta) for d in wide_ranks] for k, delta in wide]),
        "joint": np.array(
            [
                [exact_peak(round(np.exp(load * d)), d, delta, True) for d in joint_ranks]
                for load, delta in joint
            ]
        ),
    }


def _both_peaks(num_classes: int, rank: int, delta: float) -> list[list[float]]:
    return [exact_peak(num_classes, rank, delta, noisy) for noisy in (True, False)]


def exact_peak(num_classes: int, rank: int, delta: float, noisy_input: bool) -> list[float]:
    """Level and height of the highest interior maximum, nan where there is none.

    It is looked for from half of the least to twice the largest level that the laws and Theorem 1 give.
    """
    places = (
        [peak_boundary.small_delta_law(num_classes, rank, delta, noisy_input).sigma] if rank <= 100 else []
    )
    if (by_theorem := peak_boundary.theorem_peak(num_classes, rank, delta, noisy_input)) is not None:
        places += [by_theorem.sigma, by_theorem.sigma / 2]
    found = peaks.find(
        lambda sigma: snr.exact(num_classes, rank, delta, sigma, noisy_input).numpy(),
        min(places) / 2,
        max(places) * 2,
        points=13,
    )
    return [float("nan")] * 2 if found.edge else _rounded([found.sigma, found.height])


def _cell(num_classes: int, rank: int, deltas: Sequence[float]) -> dict[str, Any]:
    boundary = peak_boundary.exact_boundary(num_classes, rank)
    curve = peak_boundary.ExactCurve(num_classes, rank, min(*deltas, 0.9 * boundary))
    beyond = 1.001 * boundary
    eta = min(curve.high, -2 * np.log(beyond)) * np.linspace(0, 1, 502)[1:-1] ** 2
    found = [curve.peaks(delta) for delta in deltas]
    best = [max(each, key=lambda peak: peak.height) if each else None for each in found]
    return {
        "boundary": _rounded([boundary])[0],
        "boundary_slope": _rounded([_boundary_by_slope(num_classes, rank, boundary)])[0],
        "steepest": _rounded([float(curve.slope(beyond, eta).max())])[0],
        "near": [len(curve.peaks(factor * boundary)) for factor in (0.99, 1.01)],
        "maxima": [len(each) for each in found],
        "minima": [each[0].num_minima if each else 0 for each in found],
        "sigma": _rounded([peak.sigma if peak else float("nan") for peak in best]),
        "height": _rounded([peak.height if peak else float("nan") for peak in best]),
    }


def _boundary_by_slope(num_classes: int, rank: int, near: float) -> float:
    """Where d log SNR / d sigma^2 at 0 changes sign, from values of the SNR near delta = `near`."""

    def slope(delta: float) -> float:
        step = 2e-4 * delta**2  # in sigma^2; SNR = 1/((K-1) delta^2) at 0
        levels = np.sqrt([step, 2 * step])
        rise = np.log(snr.exact(num_classes, rank, delta, levels).numpy() * (num_classes - 1) * delta**2)
        return float(4 * rise[0] - rise[1])

    ends = near * np.array([0.998, 1.002])
    low, high = (slope(delta) for delta in ends)
    return float(ends[0] + (ends[1] - ends[0]) * low / (low - high))


def _rounded(values: Sequence[float]) -> list[float]:
    return significant(np.array(values), 9).tolist()
