"""The exact SNR over the denoiser's noise level, on inputs with a noise of their own, for many models."""

from collections.abc import Sequence
from functools import partial
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

    Returns, with axes M = models and I = inputs: `models` (M, 3); `inputs` (I,); `place` and `height` (M, I),
    level and height of the peak; `num_maxima` (M, I), interior ones; `matched` (M, I), the SNR at sigma = s,
    nan for s = 0; and `growth` (M,), the largest ratio, over sigma, of the SNR at one input noise to that at
    the next smaller one: below 1 where more noise in the input always gives less.
    """
    models = list(product(num_classes, ranks, deltas))
    tops, matched, growth = [], [], []
    for model in models:
        curves = [partial(snr.mismatched, *model, given) for given in inputs]
        found = [peaks.find(curve, 1e-3, 1e3, points) for curve in curves]
        tops.append([(peak.sigma, peak.height, peak.num_maxima) for peak in found])
        matched.append([float(snr.exact(*model, given)) if given else np.nan for given in inputs])
        values = [curve(np.geomspace(1e-2, 1e2, 9)).numpy() for curve in curves]
        growth.append(max(float((after / before).max()) for before, after in pairwise(values)))
    sigma, height, num_maxima = np.moveaxis(np.array(tops), -1, 0)
    return {
        "models": np.array(models, dtype=float),
        "inputs": np.array(inputs, dtype=float),
        "place": np.round(sigma, 6),
        "height": np.round(height, 6),
        "num_maxima": num_maxima.astype(int),
        "matched": np.round(matched, 6),
        "growth": np.round(growth, 6),
    }
