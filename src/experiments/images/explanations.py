r"""What explanations of the peak over the noise level predict for a data set, before any probe is read.

    record = results.load_or_compute(explanations.predict, {"dataset": "garments"}, witness=...)
    explanations.peak(record.value["levels"], record.value["curves"]["Wiener filter"][0])

An entry's prediction is a curve over the noise level, for noisy and for clean input; where it is highest the
features are to be best. Labels enter as statistics of the images; no network and no readout does.

A scatter ratio is that of between-class over within-class variance of denoised images. Its numerator comes
from products of class means over two halves of the images, so that the noise of means adds nothing to it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from experiments.images import image_data
from experiments.images.gaussian_mixtures import GaussianMixture, fitted
from molrg import snr
from molrg.images import Images
from molrg.measuring import subspaces

__all__ = [
    "COMPONENTS",
    "DIRECTIONS",
    "ENTRIES",
    "IMAGES",
    "LEVELS",
    "OWN",
    "PATCH",
    "PATCHES",
    "RANK",
    "STEPS",
    "Isotropic",
    "Spectrum",
    "class_mixture",
    "height",
    "isotropic",
    "patch_gain",
    "peak",
    "predict",
    "spectrum",
]

LEVELS = np.geomspace(0.002, 5, 21)
RANK = 5
"""Directions of a class subspace, as published."""
ENTRIES = (
    "MoLRG, δ from other classes",
    "MoLRG, δ from the rest of the space",
    "Wiener filter",
    "class Gaussians, scatter",
    "class Gaussians, posterior",
    "gain of a mixture over patches",
)
"""In the order of the curves that `predict` returns."""

DIRECTIONS, IMAGES = 128, 2000
"""Leading principal directions in which classes have covariances of their own; images that are denoised."""
COMPONENTS, PATCH, PATCHES, STEPS = 20, 4, 6000, 30
"""Of the mixture over patches, PATCH pixels wide, small enough for its covariances to be known."""
OWN = 0.9
"""Share of a class's own covariance; the other tenth is the mean covariance within classes."""


class Isotropic(NamedTuple):
    """Noisy MoLRG fitted to images: they are `scale` times points of it; delta by either reading."""

    scale: float
    others: float
    rest: float


def isotropic(data: Images) -> Isotropic:
    r"""Fit the isotropic model by the energies of one half of the images in class subspaces of the other.

    With U_k the RANK leading directions of class k, images x of mean 0,

        scale^2  = E||U_k^T x||^2 / RANK,          x of class k,
        others^2 = E||U_l^T x||^2 / RANK / scale^2,                         l other than k,
        rest^2   = E||x - U_k U_k^T x||^2 / (n - RANK) / scale^2.
    """
    x, labels = (data.train_images - data.train_images.mean(0)).double(), data.train_labels
    first, second = _halves(labels)
    spaces = subspaces.class_subspaces(x[first][None], labels[first], RANK, data.num_classes)
    energy = spaces.energies(x[second][None])[0]
    own = torch.nn.functional.one_hot(labels[second], data.num_classes).bool()
    signal, others = float(energy[own].mean()) / RANK, float(energy[~own].mean()) / RANK
    whole = float(x[second].square().sum(1).mean())
    rest = (whole - RANK * signal) / (data.dim - RANK)
    return Isotropic(signal**0.5, (others / signal) ** 0.5, (rest / signal) ** 0.5)


class Spectrum(NamedTuple):
    """Principal directions of images: mean (n,), vectors (n, n), variances s and class scatters b, (n,)."""

    mean: Tensor
    vectors: Tensor
    variances: Tensor
    scatters: Tensor

    def ratio(self, levels: Sequence[float] | np.ndarray, noisy: bool) -> np.ndarray:
        r"""Return the scatter ratio B / (T - B) of images denoised by the Wiener filter, (L,).

        With g_i = s_i / (s_i + sigma^2), B = sum_i g_i^2 b_i, and T = sum_i g_i^2 (s_i + sigma^2) for noisy,
        sum_i g_i^2 s_i for clean input.
        """
        s, b = self.variances, self.scatters
        noise = torch.as_tensor(np.asarray(levels))[:, None] ** 2
        gain = (s / (s + noise)).square()
        between = (gain * b).sum(1)
        total = (gain * (s + noise if noisy else s)).sum(1)
        return (between / (total - between)).numpy()

    def steepness(self) -> float:
        r"""Return q = (sum_i b_i / s_i / sum_i b_i) / (n / (2 sum_i s_i)), n the directions with s_i > 0.

        The ratio rises from sigma = 0 iff q < 1 for noisy, iff q < 2 for clean input.
        """
        s, b = self.variances, self.scatters
        there = s > 1e-9 * s.max()
        weighed = float((b[there] / s[there]).sum() / b[there].sum())
        return weighed * 2 * float(s.sum()) / int(there.sum())


def spectrum(data: Images) -> Spectrum:
    """Return principal directions of the training images, the leading one first."""
    x = data.train_images.double()
    mean = x.mean(0)
    x = x - mean
    variances, vectors = torch.linalg.eigh(x.T @ x / len(x))
    variances, vectors = variances.flip(0).clamp(min=0), vectors.flip(1)
    return Spectrum(mean, vectors, variances, _scatter(x @ vectors, data.train_labels))


def predict(dataset: str, *, workdir: Path) -> dict[str, Any]:
    """Return the predictions for a data set, a name of `image_data`; it keeps nothing in `workdir`.

    Returns
    -------
    dict
        `levels` (L,); `curves` (E, 2, L), of each of ENTRIES, for noisy and for clean input: exact SNR,
        scatter ratio, accuracy or gain; `fit`: the three numbers of `Isotropic`; `steepness` of `Spectrum`.
    """
    data = image_data.get(dataset)
    fit, found = isotropic(data), spectrum(data)
    sigma = torch.from_numpy(LEVELS / fit.scale)
    curves = []
    for delta, background in ((fit.others, "span"), (fit.rest, "complement")):
        values = [
            snr.exact(
                data.num_classes, RANK, delta, sigma, noisy, background=background, dim=data.dim
            ).numpy()
            for noisy in (True, False)
        ]
        curves.append(values)
    curves.append([found.ratio(LEVELS, noisy) for noisy in (True, False)])
    curves.extend(np.stack([_class_gaussians(data, found, noisy) for noisy in (True, False)], 1))
    curves.append([patch_gain(data)] * 2)
    return {
        "levels": LEVELS,
        "curves": np.stack([np.stack(each) for each in curves]),
        "fit": list(fit),
        "steepness": found.steepness(),
    }


def peak(levels: np.ndarray, curve: np.ndarray) -> float | None:
    """Return the level of the highest point, by a parabola in log sigma.

    It is None where the curve never rises, and the highest level where it has not fallen there.
    """
    i = int(curve.argmax())
    if i in (0, len(curve) - 1):
        return float(levels[i]) if i else None
    left, top, right = curve[i - 1 : i + 2]
    shift = (right - left) / (2 * (2 * top - left - right))
    return float(levels[i] * (levels[i + 1] / levels[i]) ** shift)


def height(entry: str, curve: np.ndarray) -> float:
    """Return the highest value over the first for SNRs and scatter ratios, their difference for others."""
    return float(curve.max() / curve[0]) if entry in ENTRIES[:4] else float(curve.max() - curve[0])


def class_mixture(data: Images, directions: Spectrum) -> GaussianMixture:
    """Return one Gaussian a class, in the leading principal directions."""
    x = (data.train_images.double() - directions.mean) @ directions.vectors[:, :DIRECTIONS]
    groups = [x[data.train_labels == k] for k in range(data.num_classes)]
    own = torch.stack([torch.cov(group.T, correction=0) for group in groups])
    priors = torch.tensor([len(group) / len(x) for group in groups], dtype=torch.float64)
    common = torch.einsum("k,kij->ij", priors, own)
    means = torch.stack([group.mean(0) for group in groups])
    return GaussianMixture(means, OWN * own + (1 - OWN) * common, priors)


def _class_gaussians(data: Images, directions: Spectrum, noisy: bool) -> np.ndarray:
    """Scatter ratio of denoised held-out images, and accuracy of the posterior, (2, L).

    In the trailing directions all classes are alike, and the mixture's denoiser is the Wiener filter.
    """
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randperm(len(data.test_images), generator=generator)[:IMAGES]
    labels = data.test_labels[chosen]
    x0 = (data.test_images[chosen].double() - directions.mean) @ directions.vectors[:, :DIRECTIONS]
    eps = torch.randn(x0.shape, generator=generator, dtype=torch.float64) if noisy else None
    trailing = Spectrum(*directions[:2], *(each[DIRECTIONS:] for each in directions[2:]))
    found = []
    mixture = class_mixture(data, directions)
    for sigma, (weights, y) in zip(LEVELS, mixture.denoised(x0, eps, LEVELS.tolist()), strict=True):
        between, total = float(_scatter(y, labels).sum()), float(y.var(0, correction=0).sum())
        gain = (trailing.variances / (trailing.variances + sigma**2)).square()
        between += float((gain * trailing.scatters).sum())
        total += float((gain * (trailing.variances + noisy * sigma**2)).sum())
        right = float((weights.argmax(1) == labels).double().mean())
        found.append((between / (total - between), right))
    return np.array(found).T


def patch_gain(data: Images) -> np.ndarray:
    """Return G = 1 - MSE / MSE of the Wiener filter for a mixture over patches, on held-out ones, (L,)."""
    generator = torch.Generator().manual_seed(0)
    train, test = (
        _patches(x.unflatten(1, data.shape), count, generator)
        for x, count in ((data.train_images, PATCHES), (data.test_images, IMAGES))
    )
    eps = torch.randn(test.shape, generator=generator, dtype=torch.float64)
    one = GaussianMixture(train.mean(0)[None], torch.cov(train.T)[None], torch.ones(1))
    errors = [
        np.array([float((y - test).square().mean()) for _, y in each.denoised(test, eps, LEVELS.tolist())])
        for each in (fitted(train, COMPONENTS, STEPS, 1e-4, generator), one)
    ]
    return 1 - errors[0] / errors[1]


def _patches(images: Tensor, count: int, generator: torch.Generator) -> Tensor:
    windows = images.unfold(2, PATCH, 1).unfold(3, PATCH, 1)  # (N, C, rows, columns, PATCH, PATCH), a view
    n, r, c = (torch.randint(windows.shape[axis], (count,), generator=generator) for axis in (0, 2, 3))
    return windows[n, :, r, c].flatten(1).double()


def _scatter(x: Tensor, labels: Tensor) -> Tensor:
    """Variance of class means along each axis, (n,), free of the noise of means."""
    classes = int(labels.max()) + 1
    means = []
    for half in _halves(labels):
        member = torch.nn.functional.one_hot(labels[half], classes).to(x.dtype)
        means.append(member.T @ x[half] / member.sum(0)[:, None])
    shares = labels.bincount().to(x.dtype) / len(labels)
    first, second = (each - shares @ each for each in means)
    return shares @ (first * second)


def _halves(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Two halves, each with half of every class."""
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    by_class = shuffled[labels[shuffled].argsort(stable=True)]
    return by_class[::2], by_class[1::2]
