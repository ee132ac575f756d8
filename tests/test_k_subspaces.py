"""Subspace clustering: its objective, its rounds, and what it finds."""

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from experiments.theory import k_subspaces as clustering
from experiments.theory.k_subspaces import Clustering, k_subspaces, orthogonal_k_subspaces

Method = Callable[..., Clustering]
BOTH = pytest.mark.parametrize("method", [k_subspaces, orthogonal_k_subspaces])


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def data(
    num_classes: int = 2, rank: int = 2, count: int = 12, dim: int = 6, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """`count` points of each of K orthogonal classes, (K count, n), and the classes' bases (K, n, d)."""
    g = generator(seed)
    frame = torch.linalg.qr(torch.randn(dim, num_classes * rank, generator=g, dtype=torch.float64)).Q
    bases = torch.stack(frame.split(rank, 1))
    points = torch.randn(num_classes, count, rank, generator=g, dtype=torch.float64) @ bases.mT
    return points.flatten(0, 1), bases


@BOTH
def test_the_outcome_is_what_it_says(method: Method) -> None:
    x, _ = data(3, 2, 10, 9)
    bases, labels, captured = method(x, 3, 2, 20, generator(1))
    assert bases.shape == (20, 3, 9, 2)
    assert labels.shape == (20, 30)
    torch.testing.assert_close(bases.mT @ bases, torch.eye(2, dtype=x.dtype).expand(20, 3, 2, 2))
    energy = (x @ bases).square().sum(-1)
    torch.testing.assert_close(captured, energy.amax(1).sum(-1), rtol=1e-11, atol=0)
    assert (labels == energy.argmax(1)).double().mean() > 0.99
    assert (captured.diff() <= 0).all()
    assert (captured <= x.square().sum() * (1 + 1e-12)).all()


@BOTH
def test_rounds_never_lose(method: Method) -> None:
    x = torch.randn(40, 7, generator=generator(), dtype=torch.float64)
    values = [method(x, 2, 3, 1, generator(5), rounds=rounds).captured.item() for rounds in range(1, 12)]
    assert all(b >= a * (1 - 1e-13) for a, b in pairwise(values))
    assert values[-1] > values[0]


@BOTH
def test_the_best_of_many_starts_finds_the_classes(method: Method) -> None:
    x, truth = data(2, 2)
    best = method(x, 2, 2, 30, generator(1))
    assert best.captured[0] == pytest.approx(x.square().sum().item(), rel=1e-9)
    overlap = (best.bases[0].unsqueeze(1).mT @ truth).square().sum((-1, -2)) / 2
    assert (overlap.amax(0) > 1 - 1e-6).all()
    first, second = best.labels[0].split(12)
    assert (first == first[0]).all()
    assert (second == 1 - first[0]).all()


def test_one_class_is_pca() -> None:
    x = torch.randn(50, 8, generator=generator(), dtype=torch.float64) * torch.arange(1, 9)
    found = k_subspaces(x, 1, 3, 4, generator(1))
    values = torch.linalg.svdvals(x).square()
    torch.testing.assert_close(found.captured, values[:3].sum().expand(4))
    leading = torch.linalg.svd(x).Vh[:3].T
    torch.testing.assert_close(found.bases[0, 0] @ found.bases[0, 0].T, leading @ leading.T)
    constrained = orthogonal_k_subspaces(x, 1, 3, 4, generator(1))
    torch.testing.assert_close(constrained.captured, found.captured, rtol=1e-9, atol=0)


def test_the_constraint_is_kept_and_costs() -> None:
    x = torch.randn(60, 6, generator=generator(), dtype=torch.float64)
    bound = orthogonal_k_subspaces(x, 3, 2, 20, generator(1))
    frame = bound.bases.movedim(1, 2).flatten(2)
    torch.testing.assert_close(frame.mT @ frame, torch.eye(6, dtype=x.dtype).expand(20, 6, 6))
    assert bound.captured[0] < k_subspaces(x, 3, 2, 20, generator(1)).captured[0]


@BOTH
def test_starts_together_or_in_parts_are_the_same(method: Method, monkeypatch: pytest.MonkeyPatch) -> None:
    x, _ = data(3, 2, 10, 9)
    together = method(x, 3, 2, 7, generator(1)).captured
    monkeypatch.setattr(clustering, "CHUNK", 200)
    torch.testing.assert_close(method(x, 3, 2, 7, generator(1)).captured, together, rtol=1e-9, atol=0)


def test_a_class_without_points_still_has_a_basis() -> None:
    x = torch.ones(1, 4, dtype=torch.float64)
    found = k_subspaces(x, 3, 2, 2, generator())
    torch.testing.assert_close(found.captured, torch.full((2,), 4.0, dtype=x.dtype))
    torch.testing.assert_close(found.bases.mT @ found.bases, torch.eye(2, dtype=x.dtype).expand(2, 3, 2, 2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(3)}, r"x must be a float tensor of shape \(N, n\) with N >= 1, got torch.float32"),
        ({"x": torch.zeros(0, 5)}, "N >= 1"),
        ({"x": [[1.0]]}, "got list"),
        ({"num_classes": 0}, "num_classes must be an integer >= 1, got 0"),
        ({"rank": 0}, "rank must be an integer >= 1, got 0"),
        ({"restarts": 0}, "restarts must be an integer >= 1"),
        ({"rounds": 0}, "rounds must be an integer >= 1"),
        ({"rank": 6}, r"must be at most n = 5, got"),
    ],
)
@BOTH
def test_wrong_arguments(method: Method, change: dict, message: str) -> None:
    arguments = {"x": torch.ones(4, 5), "num_classes": 2, "rank": 2, "restarts": 2}
    with pytest.raises(ValueError, match=message):
        method(**(arguments | change))


def test_orthogonal_subspaces_need_room() -> None:
    with pytest.raises(ValueError, match=r"num_classes \* rank must be at most n = 5, got 6"):
        orthogonal_k_subspaces(torch.ones(4, 5), 3, 2)
