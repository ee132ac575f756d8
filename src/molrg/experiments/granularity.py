"""Coarse and fine labels of nested classes: exact SNR, information and accuracy over the noise level."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from molrg import nested
from molrg.arguments import integer

INPUTS = ("noisy", "clean")
LABELS = ("coarse", "fine")


def curves(
    num_superclasses: int,
    num_subclasses: int,
    shared_rank: int,
    private_rank: int,
    delta: float,
    num_levels: int,
    num_samples: int,
    seed: int,
    workdir: Path,
) -> dict[str, Any]:
    """Compute all curves of one nested mixture at `num_levels` levels from 0.02 to 5.

    Returns, with I = inputs (INPUTS), L = labels (LABELS) and S = levels: `snr` (I, L, S) exact;
    `information` (L, S) of x_sigma in nats; `bayes`, `linear` (I, L, S) accuracies from `num_samples` points,
    and their standard errors `bayes_error`, `linear_error`; `levels`.
    """
    levels = np.geomspace(0.02, 5, integer("num_levels", num_levels, 2))
    model = (num_superclasses, num_subclasses, shared_rank, private_rank, delta, levels)
    snr = [nested.snr(*model, kind == "noisy") for kind in INPUTS]
    read = [
        nested.accuracies(
            *model, kind == "noisy", num_samples=num_samples, generator=torch.Generator().manual_seed(seed)
        )
        for kind in INPUTS
    ]
    bayes = [(each.bayes_coarse, each.bayes_fine) for each in read]
    linear = [(each.linear_coarse, each.linear_fine) for each in read]
    return {
        "levels": np.round(levels, 9),
        "snr": np.array([[part.numpy() for part in pair] for pair in snr]),
        "information": np.array([part.numpy() for part in nested.information(*model)]),
        "bayes": np.array([[part.value.numpy() for part in pair] for pair in bayes]),
        "bayes_error": np.array([[part.standard_error.numpy() for part in pair] for pair in bayes]),
        "linear": np.array([[part.value.numpy() for part in pair] for pair in linear]),
        "linear_error": np.array([[part.standard_error.numpy() for part in pair] for pair in linear]),
    }


def peak_places(cases: Sequence[Sequence[float]], num_levels: int, workdir: Path) -> dict[str, Any]:
    """Locate the peaks of the exact coarse and fine SNR of several nested mixtures.

    `cases` lists (S, M, c, d, delta). Each curve is computed at `num_levels` levels, evenly spaced in log
    sigma from 0.02 to 5; its peak is that of a parabola through the three highest points in the logarithms.

    Returns `place` and `height` (C, I, L), 0 and the curve's first value where it has no interior peak, and
    `maxima` (C, I, L), the number of interior maxima on the levels.
    """
    levels = np.geomspace(0.02, 5, integer("num_levels", num_levels, 5))
    found = []
    for s, m, c, d, delta in cases:
        for kind in INPUTS:
            pair = nested.snr(int(s), int(m), int(c), int(d), delta, levels, kind == "noisy")
            found += [_peak(levels, part.numpy()) for part in pair]
    place, height, maxima = (
        np.array(found).reshape(len(cases), len(INPUTS), len(LABELS), 3).transpose(3, 0, 1, 2)
    )
    return {"place": np.round(place, 6), "height": np.round(height, 6), "maxima": maxima}


def _peak(levels: np.ndarray, curve: np.ndarray) -> tuple[float, float, int]:
    """Place, height and number of interior maxima of a positive curve on levels even in log sigma."""
    x, y = np.log(levels), np.log(curve)
    steps = np.diff(y)
    signs = np.sign(steps[np.abs(steps) > 1e-9])
    maxima = int((np.diff(signs) < 0).sum())
    i = int(y.argmax())
    if not 0 < i < len(y) - 1 or maxima == 0:
        return 0.0, float(curve[0]), maxima
    low, top, high = y[i - 1 : i + 2]
    shift = 0.5 * (low - high) / (low - 2 * top + high)
    return (
        float(np.exp(x[i] + shift * (x[1] - x[0]))),
        float(np.exp(top - 0.25 * (low - high) * shift)),
        maxima,
    )
