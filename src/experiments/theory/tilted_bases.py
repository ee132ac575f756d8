"""Bases of subspaces at given angles, or drawn at random."""

import numpy as np
import torch
from torch import Tensor

__all__ = ["bases_at_angle", "random_bases"]


def bases_at_angle(num_classes: int, rank: int, degrees: float, tilted: int) -> list[Tensor]:
    """Return K bases in R^(K d) of which any two have `tilted` principal angles of `degrees`, the rest 90.

    Direction i of the K classes has the Gram matrix (1 - c) I + c 1 1^T with c = cos(degrees), in its own K
    dimensions: the columns of its square root.
    """
    columns = torch.zeros(num_classes, rank, rank, num_classes, dtype=torch.float64)
    for i in range(rank):
        c = np.cos(np.deg2rad(degrees)) if i < tilted else 0.0
        gram = (1 - c) * np.eye(num_classes) + c
        values, vectors = np.linalg.eigh(gram)
        columns[:, i, i] = torch.from_numpy(vectors * np.sqrt(values) @ vectors.T)
    return [block.flatten(1).T.contiguous() for block in columns]


def random_bases(num_classes: int, rank: int, dim: int, seed: int) -> list[Tensor]:
    """Return K independent Haar-distributed bases (n, d)."""
    draws = torch.randn(
        num_classes, dim, rank, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    return list(torch.linalg.qr(draws).Q)
