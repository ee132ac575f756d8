"""Measured peaks over the noise level, and how near the predictions of `explanations` come to them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy import stats

from compendium import results
from experiments.images import explanations, image_data, probe_sets, readings
from molrg.images import zoo
from molrg.measuring import curves, features
from molrg.measuring.discriminants import fit_discriminants

__all__ = [
    "BLOCKS",
    "DATASETS",
    "KINDS",
    "Measured",
    "Score",
    "linear_rise",
    "measured",
    "networks",
    "read",
    "score",
    "trained_gain",
]

_OVER = tuple(f"garments+{kind}-{delta:g}" for kind, delta in image_data.BACKGROUNDS)
DATASETS: dict[str, tuple[str, int]] = {
    "natural-16": ("unet-32-64-96", 500_000),
    "garments": ("unet-32-48", 120_000),
    **dict.fromkeys(_OVER, ("unet-32-48", 120000)),
    "digits": ("unet-32-48", 20_000),
}
"""By data set the networks of the contest: their kind, and how many images they have seen."""

BLOCKS = ("mid_block", "up_blocks.0")
"""The middle and the first decoder block; validation images choose between them."""

KINDS = (
    "noisy pixels",
    "Wiener filter",
    "Wiener filter, pooled",
    "Wiener filter, random ReLU filters, pooled",
)


def networks(dataset: str) -> list[dict[str, Any]]:
    """Return the records of the contest's networks of a data set that are in the zoo, one a seed."""
    wanted = (dataset, *DATASETS.get(dataset, ()))
    return [each for each in zoo.listed() if (each["data"], each["network"], each["images"]) == wanted]


def read(dataset: str) -> list[results.Record]:
    """Return what is read out of each of these networks; what is not stored is computed, in minutes."""
    return [
        readings.stored(
            dataset,
            each["images"],
            each["seed"],
            channels=zoo.CHANNELS[each["network"]],
            smoke=dataset == "digits",
        )
        for each in networks(dataset)
    ]


def trained_gain(dataset: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the levels and the gain of the trained networks over the Wiener filter, mean over seeds."""
    found = networks(dataset)
    if not found:
        return None
    return np.array(found[0]["levels"]), np.mean([each["gain"] for each in found], 0)


class Measured(NamedTuple):
    """The curve of one data set and input, of R networks at one block.

    `curve` (R, N, L) holds whether each of N images is read rightly; `level` is that of the highest point of
    the mean, None where this is the lowest level, `low` and `high` its 90% interval over networks and images;
    `rise` the height at the level that validation images chose over that at the lowest level, and its 90%
    interval over images, all in points; `shapes` the verdict on each network.
    """

    block: str
    curve: np.ndarray
    level: float | None
    low: float
    high: float
    rise: tuple[float, float, float]
    shapes: tuple[curves.Shape, ...]

    @property
    def rises(self) -> bool:
        """Whether the rise is seen in more than half of the networks."""
        return sum(shape.verdict in ("peak", "rises") for shape in self.shapes) > len(self.shapes) / 2


def measured(found: Sequence[Mapping[str, Any]], readout: int = 0) -> dict[str, Measured]:
    """Return what `readings.run` found for the networks of one data set, by input.

    Each network is judged by its test images at the level that its own validation images choose, the block
    being that of highest accuracy, at any level, on the validation images of all networks.
    """
    first = found[0]
    right = np.stack([readings.right(dict(each))[readout] for each in found]).swapaxes(-1, -2)
    chosen = np.stack([each["validation"][readout] for each in found])
    levels = np.array(first["levels"])
    result = {}
    for i, kind in enumerate(readings.INPUTS):
        places = [first["blocks"].index(name) for name in BLOCKS]
        place = max(places, key=lambda b: chosen[:, i, b].mean(0).max())
        scores, basis = right[:, i, place].astype(np.float64), chosen[:, i, place]
        shapes = tuple(
            curves.judge(scores[r : r + 1], levels, curves.choose(basis[r : r + 1]))
            for r in range(len(scores))
        )
        drawn = levels[_resampled(scores).argmax(1)]
        over_images = scores.mean(0)[:, curves.choose(basis)] - scores.mean(0)[:, 0]
        mean, error = over_images.mean(), over_images.std(ddof=1) / len(over_images) ** 0.5
        rise = tuple(100 * float(mean + side * stats.norm.isf(0.05) * error) for side in (0, -1, 1))
        best = int(scores.mean((0, 1)).argmax())
        result[kind] = Measured(
            first["blocks"][place],
            scores,
            float(levels[best]) if best else None,
            float(np.quantile(drawn, 0.05, method="nearest")),
            float(np.quantile(drawn, 0.95, method="nearest")),
            (rise[0], rise[1], rise[2]),
            shapes,
        )
    return result


class Score(NamedTuple):
    """How an entry does over data sets.

    `factor`: the median factor between predicted and measured level, where both are there; `compared`: how
    many these are; `signs`: share of data sets where both rise or neither does; `order`: rank correlation of
    predicted heights with measured rises, NaN for less than four.
    """

    factor: float
    compared: int
    signs: float
    order: float


def score(entry: str, levels: np.ndarray, predicted: Sequence[np.ndarray], seen: Sequence[Measured]) -> Score:
    """Return the score of an entry's predicted curves, one (L,) for each of the data sets `seen`."""
    tops = [explanations.peak(levels, curve) for curve in predicted]
    factors = [
        abs(np.log(top / each.level))
        for top, each in zip(tops, seen, strict=True)
        if top is not None and each.level is not None and each.rises
    ]
    signs = [(top is not None) == each.rises for top, each in zip(tops, seen, strict=True)]
    heights = [explanations.height(entry, curve) for curve in predicted]
    order = np.nan
    if len(seen) >= 4 and np.ptp(heights) > 0:
        order = float(stats.spearmanr(heights, [each.rise[0] for each in seen]).statistic)
    factor = float(np.exp(np.median(factors))) if factors else np.nan
    return Score(factor, len(factors), float(np.mean(signs)), order)


@torch.no_grad()
def linear_rise(dataset: str, labels: Sequence[int], tests: int, *, workdir: Path) -> dict[str, Any]:
    """Read classes out of images denoised by the Wiener filter, which is linear, and out of what is lossy.

    `labels` are numbers of labelled images of each class, `tests` that of test images; nothing is kept in
    `workdir`. Returns `accuracy` (labels, KINDS, L) of linear discriminants at `readings.LEVELS`: of noisy
    pixels, of the denoised ones, of means of these over a 3 x 3 grid, and of 64 random 3 x 3 filters of these
    with ReLU, averaged over all positions.
    """
    data = image_data.get(dataset)
    found = explanations.spectrum(data)
    generator = torch.Generator().manual_seed(0)
    filters = torch.randn(64, data.shape[0], 3, 3, generator=generator) / (9 * data.shape[0]) ** 0.5
    bias = 0.5 * torch.randn(64, generator=generator)
    accuracy = np.zeros((len(labels), len(KINDS), len(readings.LEVELS)))
    for i, each in enumerate(labels):
        counts = probe_sets.equal(data.train_labels, each * data.num_classes, data.class_names)
        known = probe_sets.draw(data.train_labels, counts, torch.Generator().manual_seed(0))
        fit, judge = data.train_labels[known], data.test_labels[:tests]
        x0 = torch.cat([data.train_images[known], data.test_images[:tests]]).double()
        eps = torch.randn(x0.shape, generator=torch.Generator().manual_seed(1), dtype=x0.dtype)
        for j, sigma in enumerate(readings.LEVELS):
            x = x0 + sigma * eps
            gain = found.variances / (found.variances + sigma**2)
            denoised = found.mean + ((x - found.mean) @ found.vectors * gain) @ found.vectors.T
            maps = denoised.float().unflatten(1, data.shape)
            random = torch.nn.functional.conv2d(maps, filters, bias, padding=1).relu().mean((2, 3))
            for k, z in enumerate((x, denoised, features.grid_mean(3)(maps), random)):
                train, test = z[None].tensor_split([len(fit)], dim=1)
                fitted = fit_discriminants(train, fit, readings.RIDGE, data.num_classes)
                accuracy[i, k, j] = float(fitted.accuracy(test, judge))
    return {"accuracy": accuracy}


def _resampled(scores: np.ndarray, draws: int = 400) -> np.ndarray:
    """Mean curves (draws, L) over networks and images drawn with replacement from scores (R, N, L)."""
    generator = np.random.default_rng(0)
    networks, images, _ = scores.shape
    share = generator.multinomial(networks, [1 / networks] * networks, draws) / networks
    weight = generator.multinomial(images, [1 / images] * images, draws) / images
    return np.einsum("dr,drl->dl", share, np.tensordot(weight, scores, (1, 1)))
