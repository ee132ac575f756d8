r"""Subspace clustering: K subspaces that hold as much as possible of a set of points, labels unknown.

    maximise over U_1 ... U_K    F(U) = sum_i max_k ||U_k^T x_i||^2,    U_k^T U_k = I.

This is what training a hard-max low-rank denoiser on the points x_i maximises. Both functions alternate
between giving each point to the subspace that holds most of it and improving the subspaces, which never
lowers F. They may end below its largest value: hence many random starts.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from molrg.model.mixture import gaussian
from molrg.model.rows import CHUNK
from molrg.support.checks import integer

__all__ = ["GAIN", "Clustering", "k_subspaces", "orthogonal_k_subspaces"]

GAIN = 1e-12
"""A start goes on as long as a round raises F by more than this share."""


class Clustering(NamedTuple):
    """The outcomes of R starts, best first.

    `bases` (R, K, n, d) holds orthonormal U_k, `labels` (R, N) the k that holds most of each point,
    `captured` (R,) the values of F, decreasing; at most sum_i ||x_i||^2.
    """

    bases: Tensor
    labels: Tensor
    captured: Tensor


def k_subspaces(
    x: Tensor,
    num_classes: int,
    rank: int,
    restarts: int = 10,
    generator: torch.Generator | None = None,
    rounds: int = 1000,
) -> Clustering:
    r"""Cluster x (N, n) into K = `num_classes` subspaces of dimension d = `rank`, free of each other.

    U_k becomes the top-d eigenvectors of sum_{i: label k} x_i x_i^T, the best for its points (any basis for
    no points). The `restarts` starts, random orthonormal
    bases, run side by side, at most `rounds` rounds each.

    Raises ValueError unless x is a (N, n) float tensor, num_classes >= 1, 1 <= rank <= n, restarts >= 1 and
    rounds >= 1. Source: K-subspaces; Bradley & Mangasarian, k-Plane Clustering (2000), for hyperplanes.

    Statement: `thm-clustering`.
    """
    _check(x, num_classes, rank, rank, restarts, rounds)
    start = gaussian((restarts, num_classes, x.shape[1], rank), x, generator)

    def principal(z: Tensor, own: Tensor) -> Tensor:
        moments = (own * x).mT @ x
        return torch.linalg.eigh(moments).eigenvectors[..., -rank:]

    return _alternate(x, torch.linalg.qr(start).Q, principal, rounds)


def orthogonal_k_subspaces(
    x: Tensor,
    num_classes: int,
    rank: int,
    restarts: int = 10,
    generator: torch.Generator | None = None,
    rounds: int = 1000,
) -> Clustering:
    r"""Cluster as `k_subspaces`, with subspaces that are orthogonal to one another, U_k^T U_l = 0.

    [U_1 ... U_K] becomes the orthonormal factor of [C_1 U_1 ... C_K U_K], C_k = sum_{i: label k} x_i x_i^T,
    which maximises a linear lower bound of F: many small steps.

    Raises ValueError as `k_subspaces`, and unless num_classes * rank <= n. Source: the constraint is that of
    Wang et al., arXiv 2409.02426.
    """
    _check(x, num_classes, rank, num_classes * rank, restarts, rounds)
    start = gaussian((restarts, x.shape[1], num_classes * rank), x, generator)

    def polar(z: Tensor, own: Tensor) -> Tensor:
        gradient = (x.mT @ (own * z)).movedim(1, 2).flatten(2)
        u, _, vh = torch.linalg.svd(gradient, full_matrices=False)
        return _blocks(u @ vh, num_classes)

    return _alternate(x, _blocks(torch.linalg.qr(start).Q, num_classes), polar, rounds)


def _blocks(frame: Tensor, num_classes: int) -> Tensor:
    """[U_1 ... U_K], (R, n, K d), as (R, K, n, d)."""
    return frame.unflatten(-1, (num_classes, -1)).movedim(1, 2).contiguous()


def _alternate(
    x: Tensor, bases: Tensor, improve: Callable[[Tensor, Tensor], Tensor], rounds: int
) -> Clustering:
    """Run the starts `bases`; `improve` gets U_k^T x_i (R, K, N, d) and who owns whom (R, K, N, 1)."""
    restarts, num_classes = bases.shape[:2]
    labels = torch.empty(restarts, len(x), dtype=torch.int64, device=x.device)
    captured = x.new_zeros(restarts)
    size = max(1, 4 * CHUNK // (num_classes * x.numel()))  # starts that are worked on together
    for part in torch.arange(restarts, device=x.device).split(size):
        active = part
        for left in range(rounds, -1, -1):
            z = x @ bases[active]
            top, label = z.square().sum(-1).max(1)
            value = top.sum(-1)
            grows = value > captured[active] * (1 + GAIN)
            labels[active], captured[active] = label, value
            active = active[grows]
            if not left or not len(active):
                break
            own = torch.nn.functional.one_hot(label[grows], num_classes).mT.unsqueeze(-1).to(x.dtype)
            bases[active] = improve(z[grows], own)
    order = captured.argsort(descending=True, stable=True)
    return Clustering(bases[order], labels[order], captured[order])


def _check(x: Tensor, num_classes: int, rank: int, columns: int, restarts: int, rounds: int) -> None:
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.ndim != 2 or not len(x):
        kind = f"{x.dtype} {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"x must be a float tensor of shape (N, n) with N >= 1, got {kind}")
    integer("num_classes", num_classes, 1)
    integer("rank", rank, 1)
    integer("restarts", restarts, 1)
    integer("rounds", rounds, 1)
    if columns > x.shape[1]:
        what = "rank" if columns == rank else "num_classes * rank"
        raise ValueError(f"{what} must be at most n = {x.shape[1]}, got {columns}")
