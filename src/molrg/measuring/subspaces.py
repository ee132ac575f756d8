"""Class subspaces of features: their leading directions, and classification by energy in them."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from molrg.measuring.labelled import (
    binary_scale,
    check_features,
    check_labels,
    check_training,
    floating,
    share_correct,
)
from molrg.support.checks import boolean, choice, integer
from molrg.support.devices import widest

__all__ = ["ClassSubspaces", "class_subspaces", "unit_features"]


def unit_features(features: Tensor, mean: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return features (P, N, D) divided by their norms, less their mean; and that mean (P, 1, D).

    Pass the mean of the training features for other samples. A feature vector of norm 0 stays 0 before the
    mean is taken off. This is how the paper prepares features for the image SNR; `class_subspaces` does it on
    its own with `unit=True`.

    Raises ValueError for features or a mean that are not finite, or of wrong shapes or types.
    """
    features = check_features(features)
    if mean is not None:
        mean = floating("mean", mean)
        if mean.shape != (len(features), 1, features.shape[2]):
            raise ValueError(
                f"mean must be ({len(features)}, 1, {features.shape[2]}), got {tuple(mean.shape)}"
            )
    unit = features / binary_scale(features, (2,))
    unit = unit / unit.norm(dim=2, keepdim=True).clamp_min(torch.finfo(unit.dtype).tiny)
    if mean is None:
        mean = unit.mean(1, keepdim=True)
    return unit - mean, mean


@dataclass(frozen=True)
class ClassSubspaces:
    """Orthonormal class bases (P, K, D, r) of features: the leading singular vectors of each class.

    The methods take features as they are, like the fit: where `mean` (P, 1, D) is not None, they divide them
    by their norms and take off this mean, that of the training features. `fewest` is the number of samples
    in the smallest class of the fit.
    """

    bases: Tensor
    mean: Tensor | None
    fewest: int

    def energies(self, features: Tensor) -> Tensor:
        """Return the energies ||U_k^T x||^2 (P, N, K), float64, of features (P, N, D)."""
        scaled, scale = self._prepared(features)
        wide = widest(scaled.device)
        return self._energies(scaled, self.bases).to(wide) * scale.to(wide).square()

    def predict(self, features: Tensor) -> Tensor:
        """Return the class of largest energy, argmax_k ||U_k^T x||: (P, N)."""
        return self._energies(self._prepared(features)[0], self.bases).argmax(2)

    def accuracy(self, features: Tensor, labels: Tensor) -> Tensor:
        """Return the share of correct predictions (P,), float64."""
        return share_correct(self.predict(features), labels)

    def snr(self, features: Tensor, labels: Tensor, denominator: str = "residual") -> Tensor:
        r"""Return the class SNR (P,) of features (P, N, D), the mean over classes k of

            E||P_k x||^2 / E||x - P_k x||^2  ("residual")  or  E||P_k x||^2 / sum_{l != k} E||P_l x||^2
            ("classes"),

        expectations over the samples of class k, P_k = U_k U_k^T. It is infinite where the denominator is 0.
        The residual is computed as a vector, so that float32 resolves an SNR up to about 1e12.

        Raises ValueError for wrong arguments, a class without samples or without any energy, and, for the
        residual, subspaces that fill the space or were fitted to no more samples than they have directions:
        such samples lie in their subspace, and their SNR is rounding.

        Source: the paper's image experiments.
        """
        choice("denominator", denominator, ("residual", "classes"))
        _, classes, dim, rank = self.bases.shape
        if denominator == "residual" and min(dim, self.fewest) <= rank:
            raise ValueError(
                f"the class SNR of rank {rank} needs at least {rank + 1} samples in every class of the fit "
                f"and {rank + 1} dimensions, got {self.fewest} in the smallest class and {dim} dimensions: "
                "give more samples or a lower rank"
            )
        scaled, _ = self._prepared(features)
        labels = check_labels(labels, scaled.shape[:2], classes).to(scaled.device)
        ratios = scaled.new_empty(len(scaled), classes)
        for rows, label, samples in _by_class(scaled, labels, classes):
            basis = self.bases[rows]
            energies = self._energies(samples, basis).sum(1)
            if denominator == "residual":
                projected = samples @ basis[:, label]
                other = (samples - projected @ basis[:, label].mT).square().sum((1, 2))
            else:
                other = energies[:, [each for each in range(classes) if each != label]].sum(1)
            ratios[rows, label] = energies[:, label] / other
        if absent := ratios.isnan().any(0).nonzero().flatten().tolist():
            raise ValueError(
                f"the class SNR needs samples that are not all 0 of every class, not of {absent}"
            )
        return ratios.mean(1)

    def _prepared(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return the features as the bases take them, brought near 1, and the powers of two for that."""
        probes, _, dim, _ = self.bases.shape
        features = check_features(features, probes, dim)
        if self.mean is not None:
            features, _ = unit_features(features, self.mean)
        scale = binary_scale(features, (1, 2))
        return (features / scale).to(self.bases.dtype), scale

    def _energies(self, features: Tensor, bases: Tensor) -> Tensor:
        probes, classes, dim, rank = bases.shape
        flat = bases.transpose(1, 2).reshape(probes, dim, classes * rank)
        return (features @ flat).unflatten(2, (classes, rank)).square().sum(3)


def class_subspaces(
    features: Tensor, labels: Tensor, rank: int, num_classes: int | None = None, *, unit: bool = False
) -> ClassSubspaces:
    """Return per class the top `rank` right singular vectors of its features (P, N, D), not centred.

    Parameters
    ----------
    features
        (P, N, D), floating point; float16 is computed with in float32.
    labels
        Class numbers, (N,) or (P, N).
    rank
        Directions in a class, at most D and the samples of the smallest class; for the class SNR, less.
    num_classes
        K; by default the largest label plus one.
    unit
        Whether to divide the features by their norms and take off their mean first, as `unit_features` does
        and as the paper prepares features of images. Other features are later treated alike.

    Raises
    ------
    ValueError
        For wrong shapes, types or ranges, and for a class of fewer than `rank` samples, which it names.
    """
    features, labels, num_classes = check_training(features, labels, num_classes)
    rank = integer("rank", rank, 1, features.shape[2])
    counts = torch.nn.functional.one_hot(labels, num_classes).sum(-2).reshape(-1, num_classes)
    fewest, smallest = (int(each) for each in counts.amin(0).min(0))
    if fewest < rank:
        raise ValueError(
            f"rank {rank} needs at least {rank} samples in every class; "
            f"the smallest, class {smallest}, has {fewest}"
        )
    mean = None
    if boolean("unit", unit):
        features, mean = unit_features(features)
    features = features / binary_scale(features, (1, 2))
    probes, _, dim = features.shape
    bases = features.new_empty(probes, num_classes, dim, rank)
    for rows, label, samples in _by_class(features, labels, num_classes):
        bases[rows, label] = _leading_directions(samples, rank)
    return ClassSubspaces(bases, mean, fewest)


def _by_class(features: Tensor, labels: Tensor, classes: int) -> Iterator[tuple[slice, int, Tensor]]:
    """Yield (probes, class, its samples (p, n, D)), of all probes together where they share the labels."""
    alike = [slice(None)] if labels.ndim == 1 else [slice(probe, probe + 1) for probe in range(len(labels))]
    for rows, target in zip(alike, labels.reshape(len(alike), -1), strict=True):
        for label in range(classes):
            yield rows, label, features[rows, target == label]


def _leading_directions(samples: Tensor, rank: int) -> Tensor:
    """Leading right singular vectors (P, D, rank) of (P, N, D), from the smaller of the Gram matrices."""
    if samples.shape[1] >= samples.shape[2]:
        return torch.linalg.eigh(samples.mT @ samples).eigenvectors[..., -rank:].flip(2)
    vectors = torch.linalg.eigh(samples @ samples.mT).eigenvectors[..., -rank:].flip(2)
    # A QR step makes the images of the vectors orthonormal to rounding, whatever their lengths.
    return torch.linalg.qr(samples.mT @ vectors).Q
