"""Linear discriminants: the readout of small features that needs no iterations."""

from dataclasses import dataclass

import torch
from torch import Tensor

from molrg.measuring.labelled import check_features, check_training, share_correct
from molrg.support.checks import integer, nonnegative

__all__ = ["LinearDiscriminants", "fit_discriminants"]


@dataclass(frozen=True)
class LinearDiscriminants:
    """P fitted linear discriminants.

    Attributes
    ----------
    weight, bias
        (P, D, K) and (P, K): the scores are ((x - mean) / scale) weight + bias.
    mean, scale
        (P, D), of the training features; a constant feature has scale 1.
    """

    weight: Tensor
    bias: Tensor
    mean: Tensor
    scale: Tensor

    def scores(self, features: Tensor) -> Tensor:
        """Return the class scores (P, N, K) of features (P, N, D)."""
        features = check_features(features, self.weight.shape[0], self.weight.shape[1]).to(self.weight.dtype)
        scaled = (features - self.mean[:, None]) / self.scale[:, None]
        return torch.baddbmm(self.bias[:, None], scaled, self.weight)

    def predict(self, features: Tensor) -> Tensor:
        """Return the class of the highest score (P, N) of features (P, N, D)."""
        return self.scores(features).argmax(2)

    def accuracy(self, features: Tensor, labels: Tensor) -> Tensor:
        """Return the share of correct predictions (P,), float64."""
        return share_correct(self.predict(features), labels)


def fit_discriminants(
    features: Tensor,
    labels: Tensor,
    ridge: float = 0.03,
    num_classes: int | None = None,
    components: int | None = None,
) -> LinearDiscriminants:
    r"""Fit P linear discriminants with pooled covariance.

    With features z standardised by the mean and standard deviation of the training features, class means m_k,
    shares pi_k and pooled within-class covariance S, the class of x is

        argmax_k  z^T A m_k - m_k^T A m_k / 2 + log pi_k,    A = (S + ridge I)^{-1},

    the Bayes rule for Gaussian classes of one covariance S + ridge I. With `components`, z is replaced by its
    projection on that many leading principal components of the training features, so that blocks of different
    widths are read through as many numbers. An invertible linear map of the features changes the rule through
    the ridge, the standardisation and the choice of components alone.

    Parameters
    ----------
    features
        (P, N, D) floating point, one layer of P: noise levels, seeds.
    labels
        (N,) or (P, N) integers in [0, num_classes); each class must have a sample.
    ridge
        >= 0, in units of the variance of a feature.
    num_classes
        K; None: the largest label plus one.
    components
        How many principal components are read, >= 1; None, or D or more: all features as they are.

    Returns
    -------
    LinearDiscriminants

    Raises
    ------
    ValueError
        For wrong shapes, dtypes or ranges, features that are not finite, or a class without samples.

    Notes
    -----
    Source: R. A. Fisher (1936); Hastie, Tibshirani & Friedman, The Elements of Statistical Learning,
    Section 4.3.
    """
    features, labels, classes = check_training(features, labels, num_classes)
    ridge = nonnegative("ridge", ridge)
    kept = features.shape[2] if components is None else integer("components", components, 1)
    probes, samples, _ = features.shape
    member = torch.nn.functional.one_hot(labels, classes).to(features.dtype).expand(probes, -1, -1)
    counts = member.sum(1)
    if not bool((counts > 0).all()):
        absent = int((counts == 0).nonzero()[0, 1])
        raise ValueError(f"class {absent} of {classes} has no sample among the labels")
    mean = features.mean(1)
    scale = features.std(1, correction=0)
    scale = torch.where(scale > 1e-6 * mean.abs(), scale, torch.ones_like(scale))
    scaled = (features - mean[:, None]) / scale[:, None]
    basis = None
    if kept < scaled.shape[2]:
        basis = torch.linalg.eigh(scaled.mT @ scaled).eigenvectors[..., -kept:]
        scaled = scaled @ basis
    means = (member.mT @ scaled) / counts[..., None]
    within = scaled - member @ means
    covariance = within.mT @ within / samples
    covariance.diagonal(dim1=1, dim2=2).add_(ridge if ridge else 1e-12)
    weight = torch.linalg.solve(covariance, means.mT)
    bias = (counts / samples).log() - 0.5 * (means * weight.mT).sum(2)
    return LinearDiscriminants(weight if basis is None else basis @ weight, bias, mean, scale)
