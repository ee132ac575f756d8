"""Class subspaces of features: their leading directions, and classification by energy in them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from molrg.measuring.labelled import check_features, check_labels, check_training, share_correct
from molrg.support.checks import choice, integer

__all__ = ["ClassSubspaces", "class_subspaces", "unit_features"]


def unit_features(features: Tensor, mean: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return features (P, N, D) divided by their norms, less their mean; and that mean (P, 1, D).

    Pass the mean of the training features for other samples. A feature vector of norm 0 stays 0 before the
    mean is taken off. This is how the paper prepares features for the image SNR.
    """
    check_features(features)
    unit = features / features.norm(dim=2, keepdim=True).clamp_min(torch.finfo(features.dtype).tiny)
    if mean is None:
        mean = unit.mean(1, keepdim=True)
    return unit - mean, mean


@dataclass(frozen=True)
class ClassSubspaces:
    """Orthonormal class bases (P, K, D, r) of features: the leading singular vectors of each class."""

    bases: Tensor

    def energies(self, features: Tensor) -> Tensor:
        """Return the energies ||U_k^T x||^2 (P, N, K) of features (P, N, D)."""
        probes, classes, dim, rank = self.bases.shape
        check_features(features, probes, dim)
        flat = self.bases.transpose(1, 2).reshape(probes, dim, classes * rank)
        return (features @ flat).unflatten(2, (classes, rank)).square().sum(3)

    def predict(self, features: Tensor) -> Tensor:
        """Return the class of largest energy, argmax_k ||U_k^T x||: (P, N)."""
        return self.energies(features).argmax(2)

    def accuracy(self, features: Tensor, labels: Tensor) -> Tensor:
        """Return the share of correct predictions (P,), float64."""
        return share_correct(self.predict(features), labels)

    def snr(self, features: Tensor, labels: Tensor, denominator: str = "residual") -> Tensor:
        r"""Return the class SNR (P,) of features (P, N, D), the mean over classes k of

            E||P_k x||^2 / E||x - P_k x||^2  ("residual")  or  E||P_k x||^2 / sum_{l != k} E||P_l x||^2
            ("classes"),

        expectations over the samples of class k, P_k = U_k U_k^T. Source: the paper's image experiments.
        """
        choice("denominator", denominator, ("residual", "classes"))
        energy, classes = self.energies(features), self.bases.shape[1]
        member = torch.nn.functional.one_hot(check_labels(labels, features, classes), classes)
        member = member.to(energy.dtype).expand(len(energy), -1, -1)
        per_class = member.mT @ energy  # (P, K, K): summed energy of class k's samples in basis l
        own = per_class.diagonal(dim1=1, dim2=2)
        if denominator == "classes":
            other = per_class.sum(2) - own
        else:
            other = (member.mT @ features.square().sum(2, keepdim=True))[..., 0] - own
        return (own / other).mean(1)


def class_subspaces(
    features: Tensor, labels: Tensor, rank: int, num_classes: int | None = None
) -> ClassSubspaces:
    """Return per class the top `rank` right singular vectors of its features (P, N, D), not centred.

    Raises ValueError for wrong shapes or ranges, or if a class has fewer than `rank` samples.
    """
    labels, num_classes = check_training(features, labels, num_classes)
    rank = integer("rank", rank, 1, features.shape[2])
    fewest = torch.nn.functional.one_hot(labels, num_classes).sum(-2).min().item()
    if fewest < rank:
        raise ValueError(f"rank {rank} needs as many samples in every class; the smallest has {fewest}")
    probes, _, dim = features.shape
    bases = features.new_empty(probes, num_classes, dim, rank)
    alike = [slice(None)] if labels.ndim == 1 else [slice(probe, probe + 1) for probe in range(probes)]
    for rows, target in zip(alike, labels.reshape(len(alike), -1), strict=True):
        for label in range(num_classes):
            bases[rows, label] = _leading_directions(features[rows, target == label], rank)
    return ClassSubspaces(bases)


def _leading_directions(samples: Tensor, rank: int) -> Tensor:
    """Leading right singular vectors (P, D, rank) of (P, N, D), from the smaller of the Gram matrices."""
    if samples.shape[1] >= samples.shape[2]:
        return torch.linalg.eigh(samples.mT @ samples).eigenvectors[..., -rank:].flip(2)
    vectors = torch.linalg.eigh(samples @ samples.mT).eigenvectors[..., -rank:].flip(2)
    # A QR step makes the images of the vectors orthonormal to rounding, whatever their lengths.
    return torch.linalg.qr(samples.mT @ vectors).Q
