r"""Real images: what a denoiser keeps of an image at each noise level, by spatial frequency and by class.

A denoiser f(x, sigma) is given the clean image x_0 or the noisy one x_0 + sigma eps. Image and output, less
the mean image, are cut into orthogonal pieces, and of each piece a we take the mean products

    clean = E||a x_0||^2,    power = E||a f||^2,    cross = E<a x_0, a f>.

Beside the network stand two denoisers of the same training images in closed form: that of a Gaussian with
their mean and covariance (Wiener's filter), and that of a mixture of low-rank Gaussians, one for each class.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from compendium import resume
from experiments.images import denoisers
from experiments.rounding import significant
from molrg import images
from molrg.measuring import features, probes
from molrg.model import noise
from molrg.model.mixture import LowRankMixture
from molrg.support.checks import integer, noise_levels

__all__ = [
    "BANDS",
    "BASELINES",
    "BLOCKS",
    "DIRECTIONS",
    "INPUTS",
    "LEVELS",
    "MIXTURE_RANK",
    "PARTS",
    "RANK",
    "Coordinates",
    "Denoiser",
    "Gaussian",
    "Pieces",
    "dct",
    "fine_first",
    "fit_mixture",
    "half_level",
    "principal",
    "run",
    "settings",
    "strip",
    "strip_settings",
]

INPUTS = ("clean", "noisy")
BASELINES = ("gaussian", "mixture")

LEVELS = noise.IMAGE_LEVELS + tuple(
    round(float(level), 3) for level in noise.edm_levels(18, 0.002, 80.0)[9:12]
)
"""The published noise levels, `noise.IMAGE_LEVELS`, and the next three of their schedule, up to 8.4."""

BANDS = (0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0)
"""Lower ends of the bands of radial frequency, in cycles per image."""

DIRECTIONS = (0, 1, 2, 4, 8, 16, 32)
"""Ends of the groups of a class's singular vectors: the first, the second, 3-4, 5-8, ..."""

PARTS = ("own class", "other classes", "outside")

BLOCKS = 5
"""Disjoint sets of test images, each with noise of its own: the spread over them is shown."""

RANK = 5  # of the class bases, as published for features
MIXTURE_RANK = 30  # of the classes of the mixture
_FITTED = 5000  # images for the fixed classifier
_SHOWN = 3  # images in the strip

Denoiser = Callable[[Tensor, float], Tensor]


def run(
    dataset: str,
    model: str,
    seed: int,
    levels: Sequence[float],
    test_samples: int,
    smoke: bool,
    workdir: Path,
) -> dict[str, Any]:
    """Denoise test images with a network and both baselines; return what is kept of each piece.

    dataset is a name or path for `images.load`; model one of `denoisers.MODELS`, trained from `seed` (in a
    tiny size where `smoke`), or a published checkpoint for `denoisers.get`. `test_samples` test images, or
    as many as there are, are cut into BLOCKS sets of equal size. Noise levels that a checkpoint was not made
    for are left out.

    Returns, with axes D = denoisers (the network, then BASELINES), B = blocks, I = inputs (INPUTS),
    S = levels, G = pieces: `power`, `cross` (D, B, I, S, G) and `clean` (B, G); `fixed` (D, B, I, S), the
    accuracy on denoised images of a linear classifier of clean ones, `fixed_clean` (B,) that on clean ones;
    `distance` (D, 2, B, I, S), E||f - g||^2 / E||x_0 - mean||^2 to each baseline g. The pieces are the bands
    of frequency, PARTS and the groups of class directions, whose numbers are `num_bands`, 3 and
    `num_directions`; `band_edges` and `direction_edges` bound them (the last band ends nowhere);
    `band_sizes` counts the coefficients in a band. Besides `levels`, `left_out` (levels), `test_images`,
    `train_images`, `num_classes`.

    Raises ValueError for arguments outside their ranges, FileNotFoundError for missing data.
    """
    integer("seed", seed, 0)
    integer("test_samples", test_samples, BLOCKS)
    noise_levels(list(levels))
    data, network, _ = denoisers.get(images.load(dataset), model, seed, smoke)
    folder = Path(workdir) / data.digest[:16]
    kept = [float(level) for level in denoisers.usable_levels(network, levels)]
    gaussian = Gaussian(data.train_images)
    rank = min(MIXTURE_RANK, data.dim // 2)
    mixture = fit_mixture(data.train_images, data.train_labels, data.num_classes, rank)
    pieces = Pieces(data, gaussian.mean)
    classifier = _classifier(data)
    # Drawn, since a file may have its classes one after the other.
    order = torch.randperm(len(data.test_images), generator=torch.Generator().manual_seed(0))
    size = min(test_samples, len(order)) // BLOCKS
    compared: list[nn.Module | Denoiser] = [network, gaussian, mixture.posterior_mean]
    blocks = [
        resume.arrays(folder / f"block-{i}.npz", _block, compared, pieces, classifier, data, rows, kept, i)
        for i, rows in enumerate(order[: BLOCKS * size].split(size))
    ]
    stacked = {key: np.stack([each[key] for each in blocks]) for key in blocks[0]}
    return {
        **{key: significant(np.moveaxis(stacked[key], 0, 1)) for key in ("power", "cross")},
        "clean": significant(stacked["clean"]),
        "fixed": np.moveaxis(stacked["fixed"], 0, 1),
        "fixed_clean": stacked["fixed_clean"],
        "distance": significant(np.moveaxis(stacked["distance"], 0, 2)),
        "num_bands": pieces.num_bands,
        "num_directions": pieces.num_directions,
        "band_edges": list(BANDS[: pieces.num_bands]),
        "band_sizes": pieces.band.bincount().tolist(),
        "direction_edges": list(DIRECTIONS[: pieces.num_directions + 1]),
        "levels": kept,
        "left_out": [float(level) for level in levels if level not in kept],
        "test_images": size * BLOCKS,
        "train_images": len(data.train_images),
        "num_classes": data.num_classes,
    }


def strip(
    dataset: str, model: str, seed: int, levels: Sequence[float], smoke: bool, workdir: Path
) -> dict[str, Any]:
    """Denoise one test image of each of a few classes far apart in number; arguments as `run`.

    Returns `images` (4, S, n, H, W, C) uint8: the noisy image, what the network makes of it, what it makes of
    the clean image, and what `Gaussian` makes of the clean image, and `levels`.
    """
    integer("seed", seed, 0)
    noise_levels(list(levels))
    data, network, _ = denoisers.get(images.load(dataset), model, seed, smoke)
    kept = [float(level) for level in denoisers.usable_levels(network, levels)]
    gaussian = Gaussian(data.train_images)
    labels = np.linspace(1, data.num_classes - 1, _SHOWN, dtype=int)
    pictures = data.test_images[[int((data.test_labels == label).nonzero()[0]) for label in labels]]
    eps = torch.randn(pictures.shape, generator=torch.Generator().manual_seed(0))
    rows = []
    for level in kept:
        noisy = pictures + level * eps
        outputs = [_denoise(network, noisy, level), _denoise(network, pictures, level)]
        rows.append(torch.stack([noisy, *outputs, gaussian(pictures, level)]))
    grid = torch.stack(rows, 1).unflatten(3, data.shape).movedim(3, -1)
    return {"images": ((grid.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).numpy(), "levels": kept}


def settings(dataset: str, model: str, seed: int, smoke: bool) -> dict[str, Any]:
    """Return the parameters of `run` that the page uses; `smoke` ones take seconds."""
    chosen: dict[str, Any] = {"levels": list(LEVELS), "test_samples": 500}
    if smoke:
        chosen = {"levels": [0.023, 0.296, 3.257], "test_samples": 100}
    return {"dataset": dataset, "model": model, "seed": seed, **chosen, "smoke": smoke}


def strip_settings(dataset: str, model: str, smoke: bool) -> dict[str, Any]:
    """Return the parameters of `strip` that the page uses; `smoke` ones take seconds."""
    levels = [0.296, 3.257] if smoke else [0.14, 0.585, 1.088, 1.923, 5.315]
    return {"dataset": dataset, "model": model, "seed": 0, "levels": levels, "smoke": smoke}


class Gaussian:
    r"""The optimal denoiser of N(mean, C), mean + C (C + sigma^2 I)^{-1} (x - mean): Wiener's filter.

    Made from points (N, n), whose mean and covariance it takes; `variances` (r,) are the eigenvalues of C,
    falling, `vectors` (n, r) its eigenvectors in columns, r = min(N, n).
    """

    def __init__(self, points: Tensor) -> None:
        self.mean = points.mean(0)
        variances, vectors = principal(points - self.mean, min(points.shape))
        self.variances, self.vectors = variances.float(), vectors.float()

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        """Return the denoised x, (N, n)."""
        shrink = self.variances / (self.variances + sigma**2)
        return self.mean + ((x - self.mean) @ self.vectors * shrink) @ self.vectors.T


def fit_mixture(points: Tensor, labels: Tensor, num_classes: int, rank: int) -> LowRankMixture:
    """Return the mixture with each class's mean, its `rank` leading principal components and their variances,
    and one variance for all other directions, the mean one. Raises ValueError for classes of under 2 points.
    """
    means, bases, variances, rest = [], [], [], []
    for label in range(num_classes):
        members = points[labels == label]
        if len(members) < 2:
            raise ValueError(f"class {label} needs 2 points or more to fit a Gaussian, it has {len(members)}")
        means.append(members.mean(0))
        centred = members - means[-1]
        kept = min(rank, len(members) - 1, points.shape[1] - 1)
        values, vectors = principal(centred, kept)
        bases.append(vectors)
        variances.append(values)
        total = centred.double().square().sum() / len(members)
        rest.append((total - values.sum()) / (points.shape[1] - kept))
    priors = labels.bincount(minlength=num_classes).double() / len(labels)
    delta = float((torch.stack(rest).clamp_min(0) * priors).sum().sqrt())
    return LowRankMixture(bases, delta, variances, torch.stack(means).double(), priors, "complement")


def principal(points: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return the `rank` largest eigenvalues (r,) of X^T X / N for points X (N, n), falling, and their
    eigenvectors in columns (n, r), both float64. Of two Gram matrices it takes the smaller.
    """
    samples, dim = points.shape
    gram = torch.zeros(min(points.shape), min(points.shape), dtype=torch.float64)
    if samples < dim:
        for columns in points.split(4096, 1):
            gram += columns.double() @ columns.double().T
    else:
        for rows in points.split(4096):
            gram += rows.double().T @ rows.double()
    values, vectors = torch.linalg.eigh(gram / samples)
    values, vectors = values.flip(0)[:rank].clamp_min(0), vectors.flip(1)[:, :rank]
    if samples < dim:  # vectors without variance become directions of rounding: QR makes them orthonormal
        vectors = torch.linalg.qr(points.double().T @ vectors).Q
    return values, vectors


def dct(side: int) -> Tensor:
    """Return the orthonormal cosine transform (DCT-II), (side, side) float64: row u has u half waves."""
    u, x = torch.arange(side, dtype=torch.float64)[:, None], torch.arange(side, dtype=torch.float64)
    matrix = torch.cos(math.pi * (2 * x + 1) * u / (2 * side)) * math.sqrt(2 / side)
    matrix[0] /= math.sqrt(2)
    return matrix


class Coordinates(NamedTuple):
    """Images (N, n) less the mean in the three systems that `Pieces` measures in."""

    waves: Tensor  # (N, n), cosine transform
    own: Tensor  # (N, r), singular vectors of the own class
    span: Tensor  # (N, m), span of the class bases


class Pieces:
    """The orthogonal pieces into which images are cut, and the products of two images in each.

    Bands collect the coefficients of the cosine transform of each channel by radial frequency. The class
    bases are the `RANK` leading singular vectors of the class's training images less the mean of all;
    `own class` is the part in the own basis, `other classes` the rest of the span of all bases, `outside`
    what is left. Directions are singular vectors of the own class, grouped by their place.
    """

    def __init__(self, data: images.Images, mean: Tensor) -> None:
        channels, height, width = data.shape
        self.mean, self._shape = mean, data.shape
        self._waves = dct(height).float(), dct(width).float()
        rows, columns = torch.arange(height)[:, None] / height, torch.arange(width) / width
        radius = (rows**2 + columns**2).sqrt() * max(height, width) / 2
        band = torch.bucketize(radius, torch.tensor(BANDS[1:]), right=True)
        self.num_bands = int(band.max()) + 1
        self.band = band.expand(channels, -1, -1).flatten()
        centred = data.train_images - mean
        fewest = int(data.train_labels.bincount(minlength=data.num_classes).min())
        groups = [edge for edge in DIRECTIONS if edge <= min(fewest, data.dim)]
        self.num_directions = len(groups) - 1
        self._starts = groups
        members = [centred[data.train_labels == label] for label in range(data.num_classes)]
        self.bases = torch.stack([principal(each, groups[-1])[1].float() for each in members])  # (K, n, r)
        self._rank = min(RANK, groups[-1])
        together = self.bases[..., : self._rank].movedim(0, 1).flatten(1).double()
        left, singular, _ = torch.linalg.svd(together, full_matrices=False)
        self.span = left[:, singular > 1e-5 * singular[0]].float()

    def coordinates(self, points: Tensor, labels: Tensor) -> Coordinates:
        """Return the coordinates of images (N, n) of classes (N,)."""
        centred = points - self.mean
        maps = centred.unflatten(1, self._shape)
        waves = (self._waves[0] @ maps @ self._waves[1].T).flatten(1)
        own = centred.new_empty(len(points), self.bases.shape[2])
        for label in labels.unique().tolist():
            own[labels == label] = centred[labels == label] @ self.bases[label]
        return Coordinates(waves, own, centred @ self.span)

    def products(self, a: Coordinates, b: Coordinates) -> Tensor:
        """Return the mean over images of the products in each piece, (G,) float64."""
        each = (a.waves * b.waves).double().mean(0)
        bands = each.new_zeros(self.num_bands).index_add_(0, self.band, each)
        own = (a.own * b.own).double().mean(0)
        inside = (a.span * b.span).double().mean(0).sum()
        parts = [own[: self._rank].sum(), inside - own[: self._rank].sum(), each.sum() - inside]
        groups = [
            own[start:stop].sum() for start, stop in zip(self._starts[:-1], self._starts[1:], strict=True)
        ]
        return torch.cat([bands, torch.stack(parts + groups)])


def half_level(kept: np.ndarray, levels: Sequence[float] | np.ndarray) -> np.ndarray:
    """Return the noise level at which kept (..., S), a share over rising levels, first falls to a half.

    Between two levels the share is taken to be linear in log sigma. Infinite where it stays above, 0 where
    it is below from the first level on.
    """
    logs, found = np.log(np.asarray(levels)), []
    for row in kept.reshape(-1, kept.shape[-1]):
        below = np.flatnonzero(row <= 0.5)
        if not len(below) or below[0] == 0:
            found.append(0.0 if len(below) else np.inf)
            continue
        last, first = below[0] - 1, below[0]
        part = (row[last] - 0.5) / (row[last] - row[first])
        found.append(np.exp(logs[last] + part * (logs[first] - logs[last])))
    return np.reshape(found, kept.shape[:-1])


def fine_first(halves: np.ndarray) -> np.ndarray:
    """Return how strictly finer pieces go first, from half levels (..., G), coarse to fine.

    Of all pairs of pieces, the share in which the finer one has the lower half level, less the share in which
    it has the higher one (minus Kendall's tau): 1 if every piece goes before all coarser ones.
    """
    pieces = halves.shape[-1]
    signs = [
        (halves[..., i] > halves[..., j]).astype(float) - (halves[..., i] < halves[..., j])
        for i in range(pieces)
        for j in range(i + 1, pieces)
    ]
    return np.mean(signs, 0)


def _classifier(data: images.Images) -> probes.LogisticProbes:
    """A linear classifier of clean images, its penalty chosen on held-out ones."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randperm(len(data.train_images), generator=generator)[:_FITTED]
    return probes.select_logistic(
        data.train_images[rows][None],
        data.train_labels[rows],
        l2_grid=(1.0, 1e-1, 1e-2),
        num_classes=data.num_classes,
        tolerance=1e-3,
        generator=generator,
    )


def _denoise(denoiser: nn.Module | Denoiser, x: Tensor, level: float) -> Tensor:
    if isinstance(denoiser, nn.Module):
        return features.extract(denoiser, x, level, [features.DENOISED], batch_size=64)[features.DENOISED]
    return denoiser(x, level)


def _block(
    compared: Sequence[nn.Module | Denoiser],
    pieces: Pieces,
    classifier: probes.LogisticProbes,
    data: images.Images,
    rows: Tensor,
    levels: Sequence[float],
    block: int,
) -> dict[str, np.ndarray]:
    """All figures of one block of test images, without the axis B."""
    x0, labels = data.test_images[rows], data.test_labels[rows]
    eps = torch.randn(x0.shape, generator=torch.Generator().manual_seed(1 + block))
    truth = pieces.coordinates(x0, labels)
    clean = pieces.products(truth, truth)
    total = clean[: pieces.num_bands].sum()
    power, cross, fixed, distance = [], [], [], []
    for kind in INPUTS:
        for level in levels:
            x = x0 + level * eps if kind == "noisy" else x0
            outputs = [_denoise(denoiser, x, level) for denoiser in compared]
            found = [pieces.coordinates(output, labels) for output in outputs]
            power.append(torch.stack([pieces.products(each, each) for each in found]))
            cross.append(torch.stack([pieces.products(truth, each) for each in found]))
            fixed.append([classifier.accuracy(output[None], labels)[0].item() for output in outputs])
            distance.append(
                [
                    [
                        ((output - other).double().square().sum(1).mean() / total).item()
                        for other in outputs[-2:]
                    ]
                    for output in outputs
                ]
            )
    grid = (len(INPUTS), len(levels))
    return {
        "clean": clean.numpy(),
        "power": np.moveaxis(torch.stack(power).unflatten(0, grid).numpy(), 2, 0),
        "cross": np.moveaxis(torch.stack(cross).unflatten(0, grid).numpy(), 2, 0),
        "fixed": np.moveaxis(np.reshape(fixed, (*grid, -1)), 2, 0),
        "distance": np.moveaxis(np.reshape(distance, (*grid, len(compared), 2)), (2, 3), (0, 1)),
        "fixed_clean": np.array(classifier.accuracy(x0[None], labels)[0].item()),
    }
