"""The exact SNR over the denoiser's noise level, on inputs with a noise of their own, for many models."""

from collections.abc import Sequence
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np

from molrg import snr
from molrg.snr import peaks

__all__ = ["run"]


def run(
    num_classes: Sequence[int],
    ranks: Sequence[int],
    deltas: Sequence[float],
    inputs: Sequence[float],
    points: int,
    workdir: Path,
) -> dict[str, Any]:
    """Find, for every model (K, d, delta) and input noise s, the peak of `snr.mismatched` over sigma.

    The curve is scanned at `points` levels from 1e-3 to 1e3. `workdir` is not used: each model takes seconds.

    Returns, with axes M = models and I = inputs: `models` (M, 3); `inputs` (I,); `place`, `height` (M, I) of
    the peak, `num_maxima` (M, I) interior maxima, `matched` (M, I) the SNR at sigma = s (nan for s = 0), and
    `growth` (M,), the largest ratio, over sigma, of the SNR at one input noise to that at the next smaller
    one: below 1 where more noise in the input always gives less.
    """
    models = list(product(num_classes, ranks, deltas))
    shape = (len(models), len(inputs))
    place, height, matched = (np.full(shape, np.nan) for _ in range(3))
    num_maxima, growth = np.zeros(shape, dtype=int), np.zeros(len(models))
    for m, model in enumerate(models):
        curves = []
        for i, given in enumerate(inputs):

            def curve(
                sigma: np.ndarray, model: tuple[int, int, float] = model, given: float = given
            ) -> np.ndarray:
                return snr.mismatched(*model, given, sigma).numpy()

            found = peaks.find(curve, 1e-3, 1e3, points)
            place[m, i], height[m, i], num_maxima[m, i] = found.sigma, found.height, found.num_maxima
            if given:
                matched[m, i] = snr.exact(*model, given)
            curves.append(curve(np.geomspace(1e-2, 1e2, 9)))
        growth[m] = max(float((after / before).max()) for before, after in pairwise(curves))
    return {
        "models": np.array(models, dtype=float),
        "inputs": np.array(inputs, dtype=float),
        "place": np.round(place, 6),
        "height": np.round(height, 6),
        "num_maxima": num_maxima,
        "matched": np.round(matched, 6),
        "growth": np.round(growth, 6),
    }
