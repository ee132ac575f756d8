"""The invariant contamination ratio (ICR) of any network's features, from two views of each sample."""

import torch
from torch import Tensor

from molrg.measuring.labelled import binary_scale, floating
from molrg.support.checks import nonnegative
from molrg.support.devices import widest

__all__ = ["icr"]


def icr(first: Tensor, second: Tensor, ridge: float = 0.0) -> Tensor:
    r"""Return the ICR of features (..., N, D) of two views of the same N samples, float64, (...).

        ICR = D / (D + tr(Sigma_xi^{-1} Sigma_s)),
        Sigma_xi = Cov(h - h')/2,    Sigma_s = Cov((h + h')/2) - Sigma_xi/2,

    for the covariances of the part of the features that the views share and of what differs between them.
    0: the views have the same features. 1: they share nothing. The views say what counts as contamination:
    two noise draws, or two augmentations with noise.

    Parameters
    ----------
    first, second
        Features h and h' of sample i in row i of both; leading axes broadcast.
    ridge
        >= 0. With 0, Sigma_xi must be invertible, which takes N >= D + 3 samples, and the bias of its inverse
        is removed: a factor (N-1)/(N-D-2), by which tr(Sigma_xi^{-1} Cov((h + h')/2)) is too large where
        features are Gaussian (the trace is then unbiased). Its relative standard deviation is about
        sqrt(2/(N-D)). With more, ridge tr(Sigma_xi)/D is added to the diagonal and no bias removed: for
        fewer samples than dimensions, and to compare values of one N, D and ridge.

    Raises
    ------
    ValueError
        For features of two shapes or types, or that are not finite; too few samples for the ridge; a ridge
        below 0; a Sigma_xi that is singular to rounding.

    Notes
    -----
    By sampling the estimated trace of a small signal can be negative and the ICR above 1. Any invertible
    linear map of the features leaves the value alone if ridge is 0. Source: Li, Jia et al., Evaluating the
    Representation Space of Diffusion Models via Self-Supervised Principles (2026); the factor is that of the
    inverse of a Wishart matrix.

    Statement: `def-icr`.
    """
    ridge = nonnegative("ridge", ridge)
    given = first, second
    first, second = floating("first", first), floating("second", second)
    if given[0].shape[-2:] != given[1].shape[-2:] or given[0].dtype != given[1].dtype:
        shapes = [(tuple(each.shape), str(each.dtype)) for each in given]
        raise ValueError(f"both views must have the same (N, D) and type, got {shapes}")
    samples, dim = first.shape[-2:]
    if samples < (2 if ridge else dim + 3):
        need = "2" if ridge else f"D + 3 = {dim + 3} with ridge=0"
        raise ValueError(
            f"the features need N >= {need} samples, got {samples}; pass a ridge > 0 or more samples"
        )
    wide = widest(first.device)
    scale = binary_scale(torch.maximum(first.abs().amax(-2, True), second.abs().amax(-2, True)), (-1,))
    first, second = (first / scale).to(wide), (second / scale).to(wide)
    noise = _covariance(first - second) / 2
    mean = _covariance((first + second) / 2)
    size = noise.diagonal(dim1=-2, dim2=-1).mean(-1)
    smallest = torch.linalg.eigvalsh(noise)[..., 0]
    if not ridge and (smallest <= dim * torch.finfo(given[0].dtype).eps * size).any():
        raise ValueError(
            "the difference of the two views does not reach every dimension of the features, so that the "
            "noise covariance is singular; project the features on their span or pass a ridge > 0"
        )
    if ridge and (size == 0).any():
        raise ValueError("the two views have the same features: the ICR is 0, and no covariance to invert")
    noise_plus = noise + ridge * size[..., None, None] * torch.eye(dim, dtype=wide, device=noise.device)
    keep = 1.0 if ridge else (samples - dim - 2) / (samples - 1)
    solved = torch.linalg.solve(noise_plus, torch.stack([mean, noise / 2]))
    total, half = solved.diagonal(dim1=-2, dim2=-1).sum(-1)
    return (dim / (dim + keep * total - half)).to("cpu", torch.float64)


def _covariance(features: Tensor) -> Tensor:
    centred = features - features.mean(-2, keepdim=True)
    return centred.mT @ centred / (features.shape[-2] - 1)
