"""Denoisers on mismatched pairs: a small run for real, and what the exact ones must do there."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from compendium.values import difference
from experiments.learned import bench
from experiments.learned import clean_or_noisy as experiment
from molrg import snr
from molrg.learning.networks import FeedForward, Preconditioned

SMOKE: dict[str, Any] = {
    "num_classes": 3,
    "rank": 5,
    "dim": 50,
    "delta": 0.2,
    "train_size": 2000,
    "test_size": 2000,
    "probe_size": 600,
    "levels": [0.05, 0.5, 2.0],
    "single_levels": [0.5],
    "steps": 400,
    "single_steps": 200,
    "batch_size": 64,
    "learning_rate": 3e-3,
    "width": 64,
    "depth": 2,
    "seeds": 2,
}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return experiment.run(**SMOKE, workdir=tmp_path_factory.mktemp("smoke"))


def test_shapes(found: dict[str, Any]) -> None:
    assert found["inputs"] == [0, 0.05, 0.5, 2]
    for name, levels in (
        ("exact", 3),
        ("x0", 3),
        ("edm", 3),
        ("blind", 1),
        ("blind_exact", 1),
        ("single", 1),
    ):
        figures = found[name]
        optimal = name.endswith("exact")
        for quantity in ("features", "distance"):
            assert (quantity in figures) != optimal
        for quantity, values in figures.items():
            extra = {"energies": (3, 4), "features": (2, 4), "snr_inside": (), "snr_outside": ()}
            assert values.shape == (2, *extra.get(quantity, (4,)), levels)
            assert (np.isfinite(values) & (values >= 0)).all()


def test_measured_snr_of_the_optimum_is_the_exact_one(found: dict[str, Any]) -> None:
    exact = np.stack([snr.mismatched(3, 5, 0.2, s, found["levels"]).numpy() for s in found["inputs"]])
    np.testing.assert_allclose(found["exact"]["snr"].mean(0), exact, rtol=0.15)
    assert found["exact"]["energies"][:, 2].max() < 1e-8  # nothing outside the span


def test_nearest_subspace_of_the_optimum_ignores_the_conditioning(found: dict[str, Any]) -> None:
    nearest = found["exact"]["nearest"]
    # At s = 2 the subspaces that are fitted to 200 points of a class differ from the true ones.
    assert np.ptp(nearest[:, :3], axis=-1).max() < 0.02
    assert (nearest[:, 0] > 0.98).all()
    assert (nearest[:, -1] < 0.6).all()


def test_the_matched_pair_has_the_least_error(found: dict[str, Any]) -> None:
    """Of all that is told, the truth: that is what the posterior mean minimises."""
    error = found["exact"]["error"].mean(0)[1:]
    assert (error.argmin(-1) == np.arange(3)).all()


def test_told_the_truth_is_better_than_blind(found: dict[str, Any]) -> None:
    matched = np.diagonal(found["exact"]["error"][:, 1:], axis1=1, axis2=2)
    blind = found["blind_exact"]["error"][:, 1:, 0]
    assert (matched.mean(0) <= blind.mean(0)).all()
    assert (blind.mean(0) < 1.25 * matched.mean(0)).all()


def test_the_blind_optimum_takes_a_clean_point_for_the_lowest_level() -> None:
    mixture = bench.draw(3, 5, 50, 0.2, 60, 60, 0).mixture
    x0, _ = mixture.sample(200, generator=torch.Generator().manual_seed(1))
    blind = experiment.blind_posterior_mean(mixture, x0, 0.05, 2)
    told = mixture.posterior_mean(x0, 0.05)
    assert (blind - told).square().sum() < 1e-4 * told.square().sum()


def test_the_blind_optimum_is_the_mean_over_levels() -> None:
    """Against an average over draws of the level, weighted by the density of the point at each."""
    mixture = bench.draw(2, 2, 6, 0.3, 60, 60, 0).mixture
    generator = torch.Generator().manual_seed(1)
    x0, _ = mixture.sample(50, generator=generator)
    x = x0 + 0.4 * torch.randn(x0.shape, generator=generator)
    levels = 0.1 * 20 ** torch.rand(4000, generator=generator, dtype=torch.float64)
    weights = torch.softmax(mixture.log_prob(x, levels), 0)
    mean = torch.einsum("sn,sni->ni", weights, mixture.posterior_mean(x, levels))
    torch.testing.assert_close(
        experiment.blind_posterior_mean(mixture, x, 0.1, 2), mean, rtol=0.05, atol=0.02
    )


def test_parts_of_the_noise(found: dict[str, Any]) -> None:
    """Where sigma is small both parts are little; where it is large that in the span lowers the SNR."""
    for name in ("x0", "edm"):
        parts = np.stack([found[name][f"snr_{part}"] for part in ("inside", "outside")])
        clean = found[name]["snr"][:, 0]
        assert np.abs(parts[..., 0] / clean[:, 0] - 1).max() < 0.25
        assert (parts[0, :, -1] < 0.7 * clean[:, -1]).all()


def test_measured_snr_of_a_network_is_that_of_the_library() -> None:
    data = bench.draw(3, 4, 20, 0.3, 300, 6000, 0)
    generator = torch.Generator().manual_seed(2)
    inner = FeedForward(20, 32, generator=generator)
    torch.nn.init.normal_(inner.last.weight, std=0.1, generator=generator)
    network = Preconditioned(inner, data.scale, "edm").eval()
    levels = (0.3, 1.0)
    measured = experiment.measure([network] * 2, data.mixture.posterior_mean, data, 0.3, levels, 300)["snr"]
    for told, value in zip(levels, measured, strict=True):

        def denoiser(x: torch.Tensor, _: float, told: float = told) -> torch.Tensor:
            return network(x, told)

        expected = snr.estimate(denoiser, data.mixture, 0.3, 6000, generator=generator)
        assert value == pytest.approx(float(expected.value), rel=0.08)


def test_a_network_without_frequencies_is_blind() -> None:
    network = FeedForward(20, 32, frequencies=0, generator=torch.Generator().manual_seed(0))
    torch.nn.init.ones_(network.last.weight)
    x = torch.randn(5, 20, generator=torch.Generator().manual_seed(1))
    assert torch.equal(network(x, 0.1), network(x, 3.0))


def test_run_again_it_gives_the_same(tmp_path: Path) -> None:
    tiny = SMOKE | {"train_size": 200, "test_size": 90, "probe_size": 90, "steps": 6, "single_steps": 3}
    tiny |= {"seeds": 1, "width": 8}
    first = experiment.run(**tiny, workdir=tmp_path)
    for folder in (tmp_path, tmp_path / "new"):
        assert difference(first, experiment.run(**tiny, workdir=folder)) == 0


BLIND: dict[str, Any] = {
    key: value for key, value in SMOKE.items() if key not in ("probe_size", "single_levels", "single_steps")
}


def test_blind_networks_learn_and_repeat(tmp_path: Path, found: dict[str, Any]) -> None:
    first = experiment.blind(**BLIND, workdir=tmp_path / "one")
    assert first["inputs"] == found["inputs"]
    assert first["snr"].shape == first["error"].shape == (2, 4)
    assert (first["error"][:, 2] < 2 * found["exact"]["error"][:, 2, 1]).all()  # of the same points
    assert difference(first, experiment.blind(**BLIND, workdir=tmp_path / "two")) == 0


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seeds": 0}, "seeds must be"),
        ({"levels": [0.1]}, "levels must hold"),
        ({"steps": 0}, "steps must be"),
    ],
)
def test_wrong_values_of_blind_networks_are_named(tmp_path: Path, change: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        experiment.blind(**(BLIND | change), workdir=tmp_path)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seeds": 0}, "seeds must be an integer >= 1, got 0"),
        ({"levels": [0.1]}, "levels must hold at least two"),
        ({"levels": [0.1, -1.0]}, "sigma must"),
        ({"probe_size": 3000}, "probe_size must be an integer from 60 to 2000, got 3000"),
        ({"test_size": 2}, "test_size must be an integer >= 3, got 2"),
        ({"learning_rate": 0.0}, "lr must be positive and finite, got 0"),
        ({"steps": 0}, "steps must be an integer >= 1, got 0"),
    ],
)
def test_wrong_values_are_named(tmp_path: Path, change: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        experiment.run(**(SMOKE | change), workdir=tmp_path)
    assert not list(tmp_path.iterdir())
