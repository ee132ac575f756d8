"""The sweep of peaks and the terms of Theorem 1's error: a small run for real, and independent routes."""

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from experiments.theory import tightness as experiment
from molrg import MoLRG, snr
from molrg.snr import peaks

SMOKE: dict[str, Any] = {"num_classes": [2, 10], "ranks": [1, 5], "deltas": [0.2]}


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return experiment.run(**SMOKE, workdir=tmp_path_factory.mktemp("smoke"))


def test_shapes(figures: dict[str, Any]) -> None:
    for name in ("place", "height", "curve"):
        assert figures[name].shape == (2, 1, 2, 2, 3)
        assert np.isfinite(figures[name]).all()
    assert figures["terms"].shape == (2, 1, 2, 2, 2, 8)
    assert (figures["curve"][..., 0] == 0).all()


def test_peaks_of_the_exact_value(figures: dict[str, Any]) -> None:
    for i, noisy in enumerate((True, False)):
        found = peaks.find(lambda s, noisy=noisy: snr.exact(10, 5, 0.2, s, noisy), 0.1, 2, 13)  # type: ignore[misc]
        assert figures["place"][i, 0, 1, 1, 0] == pytest.approx(found.sigma, rel=3e-4)
        assert figures["height"][i, 0, 1, 1, 0] == pytest.approx(found.height, rel=1e-6)


def test_terms_add_up_to_the_error(figures: dict[str, Any]) -> None:
    for i, noisy in enumerate((True, False)):
        for place, terms in zip(figures["place"][i, 0, 1, 1], figures["terms"][i, 0, 1, 1], strict=False):
            ratio = float(snr.theorem(10, 5, 0.2, place, noisy) / snr.exact(10, 5, 0.2, place, noisy))
            assert terms.sum() == pytest.approx(math.log(ratio), rel=1e-9)


@pytest.mark.parametrize("noisy", [True, False])
def test_terms_by_simulation(noisy: bool) -> None:
    """Each mean of the eight steps on samples of the mixture, through its posterior weights."""
    num_classes, rank, delta, sigma, count = 4, 3, 0.3, 0.5, 200_000
    generator = torch.Generator().manual_seed(0)
    mixture = MoLRG.orthogonal(num_classes, rank, 12, delta, generator=generator, dtype=torch.float64)
    x, _ = mixture.sample(count, generator=generator, labels=torch.zeros(count, dtype=torch.long))
    if noisy:
        x = x + sigma * torch.randn(x.shape, generator=generator, dtype=x.dtype)
    energy = torch.stack([(x @ u).square().sum(1) for u in mixture.bases], 1)
    kappa = (1 / (delta**2 + sigma**2) - 1 / (1 + sigma**2)) / 2
    means = energy.mean(0, keepdim=True).expand_as(energy)
    half = torch.cat([energy[:, :1], energy[:, 1:].mean().expand(count, num_classes - 1)], 1)
    weights = [torch.softmax(kappa * e, 1) for e in (means, half, energy)]
    assert torch.allclose(weights[2], mixture.posterior_weights(x, sigma))
    xi, zeta = delta**2 / (delta**2 + sigma**2), 1 / (1 + sigma**2)
    expected = []
    for k, sign in ((0, -1), (1, 1)):
        betas = [xi + (zeta - xi) * w[:, k] for w in weights]
        logs = [2 * beta.mean().log() for beta in betas] + [betas[2].square().mean().log()]
        logs.append(((betas[2].square() * energy[:, k]).mean() / energy[:, k].mean()).log())
        expected += [sign * (after - before).item() for before, after in pairwise(logs)]
    terms = experiment.terms(num_classes, rank, delta, sigma, noisy)
    np.testing.assert_allclose(terms, expected, atol=0.01)


def test_a_monotone_curve_has_no_peak(tmp_path: Path) -> None:
    found = experiment.run([3], [1], [0.7], workdir=tmp_path)
    assert np.isnan(found["place"][0, 0, 0, 0]).all()
    assert np.isnan(found["terms"][0, 0, 0, 0]).all()
    assert np.isfinite(found["place"][1, 0, 0, 0]).all()


def test_a_killed_run_goes_on(tmp_path: Path) -> None:
    first = experiment.run([3], [2], [0.3], workdir=tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clean-0.3.npz", "noisy-0.3.npz"]
    again = experiment.run([3], [2], [0.3], workdir=tmp_path)
    assert all(np.array_equal(first[key], again[key]) for key in first)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"num_classes": [1]}, "num_classes must be an integer >= 2, got 1"),
        ({"ranks": [0]}, "rank must be an integer >= 1, got 0"),
        ({"deltas": [1.0]}, "delta must lie strictly between 0 and 1, got 1.0"),
    ],
)
def test_wrong_values_are_named(tmp_path: Path, change: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        experiment.run(**(SMOKE | change), workdir=tmp_path)
    assert not list(tmp_path.iterdir())
