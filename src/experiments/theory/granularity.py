"""Coarse and fine labels of nested classes: exact SNR, information and accuracy over the noise level."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.interpolate import make_interp_spline
from scipy.optimize import minimize_scalar

from experiments.theory import shared_subspaces
from molrg.support.checks import integer

__all__ = ["INPUTS", "LABELS", "curves", "peak_places"]

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
    model = shared_subspaces.Nested(num_superclasses, num_subclasses, shared_rank, private_rank, delta)
    snr = [model.snr(levels, kind == "noisy") for kind in INPUTS]
    draws = (torch.Generator().manual_seed(seed) for _ in INPUTS)
    read = [
        model.accuracies(levels, kind == "noisy", num_samples, generator)
        for kind, generator in zip(INPUTS, draws, strict=True)
    ]
    both = np.array([[[part.numpy() for part in each] for each in four] for four in read])
    value, error = np.moveaxis(both, 2, 0)
    return {
        "levels": np.round(levels, 9),
        "snr": np.array([[part.numpy() for part in pair] for pair in snr]),
        "information": np.array([part.numpy() for part in model.information(levels)]),
        "bayes": value[:, :2],
        "bayes_error": error[:, :2],
        "linear": value[:, 2:],
        "linear_error": error[:, 2:],
    }


def peak_places(cases: Sequence[Sequence[float]], num_levels: int, workdir: Path) -> dict[str, Any]:
    """Locate the peaks of the exact coarse and fine SNR of several nested mixtures.

    `cases` lists (S, M, c, d, delta). Each curve is computed at `num_levels` levels, evenly spaced in log
    sigma from 0.02 to 5. A spline through the logarithms tells about where its peak is; a parabola through
    three more levels around it, right to 0.5% or better from 21 levels on.

    Returns `place` and `height` (C, I, L), 0 and the curve's first value where it has no interior peak, and
    `maxima` (C, I, L), the number of interior maxima on the levels.
    """
    levels = np.geomspace(0.02, 5, integer("num_levels", num_levels, 6))
    found = []
    for s, m, c, d, delta in cases:
        for kind in INPUTS:
            model = shared_subspaces.Nested(int(s), int(m), int(c), int(d), delta)
            exact = partial(model.snr, noisy_input=kind == "noisy")
            for j, curve in enumerate(exact(levels)):
                found.append(_peak(levels, curve.numpy(), lambda at: exact(at)[j].numpy()))  # noqa: B023
    place, height, maxima = (
        np.array(found).reshape(len(cases), len(INPUTS), len(LABELS), 3).transpose(3, 0, 1, 2)
    )
    return {"place": np.round(place, 6), "height": np.round(height, 6), "maxima": maxima}


def _peak(
    levels: np.ndarray, curve: np.ndarray, function: Callable[[np.ndarray], np.ndarray]
) -> tuple[float, float, int]:
    """Place, height and number of maxima inside of a function that is `curve` on levels even in log sigma."""
    x, y = np.log(levels), np.log(curve)
    steps = np.diff(y)
    signs = np.sign(steps[np.abs(steps) > 1e-9])
    maxima = int((np.diff(signs) < 0).sum())
    i = int(y.argmax())
    if not 0 < i < len(y) - 1 or maxima == 0:
        return 0.0, float(curve[0]), maxima
    spline, step = make_interp_spline(x, y, k=5), 0.03
    near = minimize_scalar(lambda at: -spline(at), bounds=(x[i - 1], x[i + 1]), method="bounded").x
    low, top, high = np.log(function(np.exp(near + step * np.array([-1, 0, 1]))))
    shift = 0.5 * (low - high) / (low - 2 * top + high)
    return float(np.exp(near + shift * step)), float(np.exp(top - 0.25 * (low - high) * shift)), maxima
