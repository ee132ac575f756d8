"""The phase diagram of subspace clustering: a small one for real, against the theorem."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from experiments.theory import subspace_clustering as experiment

SMALL: dict[str, Any] = {
    "num_classes": 2,
    "ranks": [1, 2],
    "counts": [1, 2, 3, 6],
    "restarts": 20,
    "seeds": 3,
}


@pytest.mark.parametrize("method", ["free", "orthogonal"])
def test_exact_minimisers_recover_from_the_threshold_on(method: str, tmp_path: Path) -> None:
    found = experiment.run(method=method, **SMALL, workdir=tmp_path)
    attained, recovered = found["attained"], found["recovered"]
    assert attained.shape == recovered.shape == (2, 4, 3)
    assert (attained > 0).all()
    threshold = 1 if method == "free" else 0  # one point more than d where the subspaces are free
    for i, rank in enumerate(SMALL["ranks"]):
        for j, count in enumerate(SMALL["counts"]):
            if count < rank:
                assert (recovered[i, j] == 0).all()
            elif count >= rank + threshold or rank == 1:
                assert (recovered[i, j] == attained[i, j]).all()
            else:
                assert (recovered[i, j] < attained[i, j]).any()


def test_run_again_it_gives_the_same(tmp_path: Path) -> None:
    first = experiment.run(method="free", **SMALL, workdir=tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["rank-1.json", "rank-2.json"]
    for again in (
        experiment.run(method="free", **SMALL, workdir=tmp_path),
        experiment.run(method="free", **SMALL, workdir=tmp_path / "new"),
    ):
        assert all(np.array_equal(first[key], again[key]) for key in first)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"method": "hard"}, "method must be 'free' or 'orthogonal', got 'hard'"),
        ({"num_classes": 1}, "num_classes must be an integer >= 2, got 1"),
        ({"ranks": [1, 0]}, "ranks must be an integer >= 1, got 0"),
        ({"counts": [0]}, "counts must be an integer >= 1, got 0"),
        ({"restarts": 0}, "restarts must be"),
        ({"seeds": 0}, "seeds must be"),
    ],
)
def test_wrong_values_are_named(tmp_path: Path, change: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        experiment.run(**({"method": "free"} | SMALL | change), workdir=tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_minimisers_of_two_classes_of_rank_2_are_counted() -> None:
    draws = torch.Generator().manual_seed(0)
    assert experiment.count_minimisers(2, (2, 2), draws) == [(6, 2), (2, 2)]  # three pairings, two labellings
    assert experiment.count_minimisers(2, (2, 3), draws) == [(2, 2), (2, 2)]
    (free, right), (bound, _) = experiment.count_minimisers(2, (1, 1), draws)
    assert (free, right, bound) == (4, 0, 4)  # whatever the partition, the subspaces are not determined
