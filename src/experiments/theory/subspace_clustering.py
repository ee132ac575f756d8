r"""How many points does subspace clustering need? A phase diagram over points per class and rank.

Each data set holds N_k noiseless points of each of K orthogonal classes of rank d, without labels. Two things
may go wrong, and are counted apart: no start reaches the largest value of the objective, which the true
subspaces attain (optimisation), or one does and yet its subspaces are others (information).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from compendium import resume
from experiments.theory.k_subspaces import k_subspaces, orthogonal_k_subspaces
from molrg.support.checks import choice, integer

__all__ = ["METHODS", "count_minimisers", "run"]

METHODS = {"free": k_subspaces, "orthogonal": orthogonal_k_subspaces}

_SPARE = 2  # dimensions outside all classes, n = K d + 2; the theorem needs one
_ATTAINED = 1e-8  # share of the energy that a start may miss and still count as an exact minimiser
_FOUND = 1e-4  # and the share of a true subspace that its nearest learned one may miss


def run(
    method: str,
    num_classes: int,
    ranks: list[int],
    counts: list[int],
    restarts: int,
    seeds: int,
    workdir: Path,
) -> dict[str, Any]:
    """Cluster `seeds` data sets of each rank d in `ranks` and each number N_k of points a class in `counts`.

    `method` is "free" (`k_subspaces.k_subspaces`) or "orthogonal" (`orthogonal_k_subspaces`), each
    from `restarts` random starts. Returns, with axes (ranks, counts, seeds), `attained`, the share of the
    starts that end with all the energy of the points held, an exact minimiser of the loss, and `recovered`,
    the share that ends in the true subspaces.

    Raises ValueError for arguments outside their ranges.
    """
    choice("method", method, tuple(METHODS))
    integer("num_classes", num_classes, 2)
    integer("restarts", restarts, 1)
    integer("seeds", seeds, 1)
    for name, values in (("ranks", ranks), ("counts", counts)):
        for value in values:
            integer(name, value, 1)
    given = (counts, restarts, seeds)
    shares = [
        resume.values(Path(workdir) / f"rank-{rank}.json", _of_rank, method, num_classes, rank, *given)
        for rank in ranks
    ]
    attained, recovered = np.moveaxis(np.array(shares), -1, 0)
    return {"attained": attained, "recovered": recovered}


def count_minimisers(rank: int, counts: Sequence[int], generator: torch.Generator) -> list[tuple[int, int]]:
    """Count all partitions of the points that are exact minimisers, and those of them that are the classes.

    For free and for orthogonal subspaces. `counts` are the points of each class, in general position; a
    partition is one if each of its groups spans at most `rank` dimensions, and orthogonal subspaces hold it
    if points of different groups are orthogonal.
    """
    size = len(counts) * rank
    x = torch.zeros(sum(counts), size, dtype=torch.float64)
    for k, points in enumerate(x.split(list(counts))):
        points[:, k * rank : (k + 1) * rank] = torch.randn(len(points), rank, generator=generator)
    labels = torch.cartesian_prod(*[torch.arange(len(counts))] * len(x))
    groups = torch.nn.functional.one_hot(labels, len(counts)).mT.unsqueeze(-1) * x
    ranks = torch.linalg.matrix_rank(groups, atol=1e-9)
    fits = (ranks <= rank).all(1)
    apart = labels.unsqueeze(1) != labels.unsqueeze(2)
    orthogonal = fits & ~(apart & ((x @ x.T).abs() > 1e-9)).flatten(1).any(1)
    whole = [(part == part[:, :1]).all(1) for part in labels.split(list(counts), 1)]
    right = torch.stack(whole).all(0) & (ranks == rank).all(1)
    return [(int(each.sum()), int((each & right).sum())) for each in (fits, orthogonal)]


def _of_rank(
    method: str, num_classes: int, rank: int, counts: list[int], restarts: int, seeds: int
) -> list[list[tuple[float, float]]]:
    return [
        [_of_data(method, num_classes, rank, count, restarts, seed) for seed in range(seeds)]
        for count in counts
    ]


def _of_data(
    method: str, num_classes: int, rank: int, count: int, restarts: int, seed: int
) -> tuple[float, float]:
    """Shares of the starts that attain the maximum, and that find the classes, on one data set."""
    generator = torch.Generator().manual_seed(seed + 1000 * count + 1_000_000 * rank)
    dim = num_classes * rank + _SPARE
    gauss = torch.randn(dim, num_classes * rank, generator=generator, dtype=torch.float64)
    truth = torch.stack(torch.linalg.qr(gauss).Q.split(rank, 1))
    coefficients = torch.randn(num_classes, count, rank, generator=generator, dtype=torch.float64)
    x = (coefficients @ truth.mT).flatten(0, 1)
    found = METHODS[method](x, num_classes, rank, restarts, generator)
    attained = found.captured > (1 - _ATTAINED) * x.square().sum()
    overlap = (found.bases.unsqueeze(2).mT @ truth).square().sum((-1, -2)) / rank
    recovered = overlap.amax(1).amin(1) > 1 - _FOUND
    return attained.double().mean().item(), recovered.double().mean().item()
