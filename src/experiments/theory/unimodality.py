"""Does the exact clean-input SNR have one peak? Certificates for listed mixtures, and a scan of many."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from compendium import resume
from experiments.theory import one_peak
from molrg import snr
from molrg.snr import peaks
from molrg.support.checks import integer

__all__ = ["run", "scan"]


def run(mixtures: Sequence[Sequence[float]], workdir: Path) -> dict[str, Any]:
    """Certify the exact clean-input SNR of each mixture (K, d, delta) in `mixtures`.

    Returns, one row a mixture: `mixtures` (P, 3); `certified` (P,) whether exactly one peak is proved over
    all sigma in (0, inf); `sigma`, `height` (P, 2) the proved bounds of the peak (nan if not certified);
    `intervals`, `evaluations` (P,) the sizes of the proofs.

    Raises ValueError for parameters outside the ranges of `experiments.theory.one_peak.exact`.
    """
    rows = [
        resume.values(Path(workdir) / f"{num_classes}-{rank}-{delta}.json", _proof, num_classes, rank, delta)
        for num_classes, rank, delta in mixtures
    ]
    sigma, height, intervals, evaluations = (np.array(column) for column in zip(*rows, strict=True))
    return {
        "mixtures": np.array(mixtures, dtype=float),
        "certified": intervals > 0,
        "sigma": sigma,
        "height": height,
        "intervals": intervals,
        "evaluations": evaluations,
    }


def _proof(num_classes: float, rank: float, delta: float) -> list[Any]:
    """Bounds of the peak's level and height, numbers of intervals and evaluations; 0 without a proof."""
    try:
        proof = one_peak.exact(int(num_classes), int(rank), delta)
    except one_peak.NotCertified:
        return [(np.nan, np.nan), (np.nan, np.nan), 0, 0]
    return [proof.sigma, proof.height, len(proof.intervals), proof.evaluations]


def scan(
    num_classes: Sequence[int],
    ranks: Sequence[int],
    deltas: Sequence[float],
    low: float,
    high: float,
    points: int,
    workdir: Path,
) -> dict[str, Any]:
    """Look at the exact clean-input SNR of all combinations at `points` levels from `low` to `high`.

    Returns arrays over (classes, ranks, deltas): `maxima`, `minima`, the interior turns on the grid; and
    `margin`, by how much T = 1/(SNR/SNR_0 - 1) lies below its chords as a function of 1/sigma^2, where
    SNR_0 = 1/((K-1) delta^2): the least of chord/T - 1 over the triples of neighbouring levels, each in units
    of the rounding error of T, for which 1e-13 T is taken. Above 1 the curve is convex as far as the grid
    shows, between -1 and 1 the rounding hides it, and below -1 it is not convex.

    Raises ValueError for arguments outside the ranges of `molrg.snr.exact`, or fewer than 5 points.
    """
    levels = np.geomspace(low, high, integer("points", points, 5))
    y = levels**-2
    shares = (y[1:-1] - y[2:]) / (y[:-2] - y[2:])  # of the left neighbour in the chord
    maxima, minima, margins = [], [], []
    for k, d, delta in itertools.product(num_classes, ranks, deltas):
        excess = snr.exact(k, d, delta, levels, noisy_input=False).numpy() * (k - 1) * delta**2 - 1
        tops, bottoms = peaks.turns(1 + excess)
        maxima.append(len(tops))
        minima.append(len(bottoms))
        value = 1 / excess
        chord = shares * value[:-2] + (1 - shares) * value[2:]
        margins.append(((chord / value[1:-1] - 1) * excess[1:-1] / 1e-13).min())
    shape = (len(num_classes), len(ranks), len(deltas))
    found = {"maxima": maxima, "minima": minima, "margin": np.array(margins)}
    return {key: np.array(value).reshape(shape) for key, value in found.items()}
