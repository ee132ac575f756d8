"""How alike two sets of features of the same samples are: linear CKA, and distance.

Features are (..., N, D): N samples in rows, the same in both sets; leading axes broadcast.
"""

import torch
from torch import Tensor

from molrg.measuring.labelled import binary_scale, floating
from molrg.support.devices import widest

__all__ = ["linear_cka", "relative_distance"]


def linear_cka(a: Tensor, b: Tensor) -> Tensor:
    r"""Return the linear centred kernel alignment of features (..., N, D) and (..., N, E).

        CKA(A, B) = ||A^T B||_F^2 / (||A^T A||_F ||B^T B||_F),    columns centred.

    It lies in [0, 1]; it is 1 for features equal up to a shift, a rotation and a factor, and 0 for
    uncorrelated ones.

    Raises ValueError if the samples differ in number, are fewer than 2, or all have the same features, and
    for features of two types, or that are not finite.

    Source: Kornblith et al., Similarity of Neural Network Representations Revisited (2019).

    Statement: `def-cka`.
    """
    a, b = _checked(a, b)
    rounding = 10 * torch.finfo(a.dtype).eps
    centred = [each - each.mean(-2, keepdim=True) for each in (a, b)]
    for values, rest in zip((a, b), centred, strict=True):
        if not (rest.abs().amax((-2, -1)) > rounding * values.abs().amax((-2, -1))).all():
            raise ValueError("the similarity of features that are the same for all samples is not defined")
    # A factor is free: without it, squares of squares of small features underflow.
    a, b = (each / each.abs().amax((-2, -1), keepdim=True) for each in centred)
    cross, own, other = (_squares(left.mT @ right).sum((-2, -1)) for left, right in ((a, b), (a, a), (b, b)))
    return cross / (own.sqrt() * other.sqrt())


def relative_distance(a: Tensor, b: Tensor) -> Tensor:
    r"""Return ||A - B||_F / ||B||_F for features (..., N, D) of both.

    Unlike CKA it sees rotations and factors: it asks whether one readout serves both.

    Raises ValueError if the samples differ in number, are fewer than 2, or differ in dimension, if B is 0,
    and for features of two types, or that are not finite.
    """
    a, b = _checked(a, b)
    if a.shape[-1] != b.shape[-1]:
        raise ValueError(
            f"a distance needs features of one dimension, got {a.shape[-1]} and {b.shape[-1]}; use linear_cka"
        )
    if not b.any(-1).any(-1).all():
        raise ValueError("a distance relative to features that are all 0 is not defined")
    scale = binary_scale(b, (-2, -1))
    a, b, wide = a / scale, b / scale, widest(a.device)
    return ((a - b).to(wide).square().sum((-2, -1)) / b.to(wide).square().sum((-2, -1))).sqrt()


def _squares(values: Tensor) -> Tensor:
    return values.to(widest(values.device)).square()


def _checked(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    kinds, a, b = (a, b), floating("features", a), floating("features", b)
    if kinds[0].dtype != kinds[1].dtype:
        raise ValueError(
            f"features must be floating point of one type, got {kinds[0].dtype} and {kinds[1].dtype}"
        )
    if a.shape[-2] != b.shape[-2] or a.shape[-2] < 2:
        raise ValueError(
            "features must be (..., N, D) with the same N >= 2 samples in both, "
            f"got {tuple(a.shape)} and {tuple(b.shape)}"
        )
    return a, b
