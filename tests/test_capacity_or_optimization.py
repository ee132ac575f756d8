"""One property of the training varied at a time: its parts by independent routes, and a small run."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from experiments.learned import bench, capacity_or_optimization
from molrg import MoLRG, snr
from molrg.learning import training
from molrg.learning.networks import FeedForward
from molrg.model import noise
from molrg.snr import denoising_error

SMOKE: dict[str, Any] = {
    "num_classes": 2,
    "rank": 2,
    "dim": 8,
    "delta": 0.2,
    "width": 8,
    "depth": 2,
    "steps": 8,
    "batch_size": 8,
    "learning_rate": 1e-3,
    "train_size": 360,
    "probe_size": 60,
    "seeds": 1,
    "measured": [5],
}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def data() -> bench.Data:
    return bench.draw(2, 2, 8, 0.2, 360, 60, 0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("capacity")


@pytest.fixture(scope="module")
def found(folder: Path) -> dict[str, Any]:
    return capacity_or_optimization.run(**SMOKE, workdir=folder)


def test_one_property_at_a_time() -> None:
    base = capacity_or_optimization.Setting(256, 2, 1500, 128, 1e-3, 12000, 50)
    chosen = capacity_or_optimization.variations(base, 15)
    assert len({label for _, label, _ in chosen}) == len(chosen)
    for factor, label, setting in chosen:
        changed = [name for name, value in vars(setting).items() if value != vars(base)[name]]
        alone = factor not in ("base", "recipe") and label != "exact targets, predicts edm"
        assert not alone or len(changed) == 1 or (factor == "dimension" and "dim" in changed), label


def test_shapes_and_theory(found: dict[str, Any]) -> None:
    count = len(found["labels"])
    assert len(found["factors"]) == count
    for name in ("snr", "csnr", "linear", "nearest", "features", "distance"):
        assert found[name].shape == (count, 1, 2, 1), name
        assert np.isfinite(found[name]).all()
    assert found["excess"].shape == found["overfit"].shape == (count, 1, 1)
    assert found["curve"].shape == (count, 1, capacity_or_optimization.WINDOWS)
    levels = noise.paper_levels()[[5]]
    np.testing.assert_allclose(found["levels"], levels, atol=1e-6)
    for i, noisy in enumerate((True, False)):
        exact = snr.exact(2, 2, 0.2, levels, noisy, "classes")
        np.testing.assert_allclose(found["csnr_exact"][i], exact, rtol=1e-4)
    np.testing.assert_allclose(found["error_linear"], denoising_error.linear(2, 2, 0.2, levels), rtol=1e-4)
    assert found["training_exact"] < found["training_linear"]


def test_untrained_networks_lose_all_they_could_know(found: dict[str, Any]) -> None:
    """After a few tiny steps an x_0-prediction is about 0, so its distance to the posterior mean is 1."""
    row = found["labels"].index("2 steps")
    np.testing.assert_allclose(found["distance"][row], 1, atol=0.02)
    np.testing.assert_allclose(found["excess"][row].mean(), found["excess"][0].mean(), rtol=0.1)


def test_stopped_and_called_again_it_goes_on(
    found: dict[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_arguments: object) -> None:
        raise AssertionError("measured again what a file holds")

    monkeypatch.setattr(bench, "measure", never)
    again = capacity_or_optimization.run(**SMOKE, workdir=folder)
    assert all(np.array_equal(found[name], again[name]) for name in found)


def test_the_optimum_has_no_distance(data: bench.Data, tmp_path: Path) -> None:
    mixture, levels = data.mixture, noise.paper_levels()[[3, 9]]

    class Optimal(torch.nn.Module):
        def forward(self, x: torch.Tensor, sigma: float) -> torch.Tensor:
            return mixture.posterior_mean(x, sigma)

    least = denoising_error.exact(2, 2, 0.2, levels)
    same = capacity_or_optimization._distances(Optimal(), data, levels, least)
    for name in ("distance", "excess", "overfit"):
        assert np.abs(same[name]).max() < 1e-10

    class Linear(torch.nn.Module):
        def forward(self, x: torch.Tensor, sigma: float) -> torch.Tensor:
            basis = torch.cat(mixture.bases, 1)
            return 0.52 / (0.52 + sigma**2) * x @ basis @ basis.T

    many = bench.draw(2, 2, 8, 0.2, 360, 20000, 0)
    mixture = many.mixture
    linear = capacity_or_optimization._distances(Linear(), many, levels, least)
    expected = denoising_error.linear(2, 2, 0.2, levels) / least - 1
    np.testing.assert_allclose(linear["excess"], expected, rtol=0.05)


def test_targets_are_the_posterior_mean(data: bench.Data) -> None:
    x, sigma = torch.randn(5, 8, generator=generator()), torch.tensor([0.1, 0.3, 0.5, 1.0, 2.0])
    rows = [data.mixture.posterior_mean(each[None], s)[0] for each, s in zip(x, sigma.tolist(), strict=True)]
    torch.testing.assert_close(capacity_or_optimization._posterior_mean(data)(x, sigma), torch.stack(rows))


def test_told_weights_are_the_posterior_weights(data: bench.Data) -> None:
    """A network that passes on its last two inputs shows what it is told."""

    class Echo(FeedForward):
        def forward(self, x: torch.Tensor, noise: float | torch.Tensor) -> torch.Tensor:
            return x[:, -2:]

    told = capacity_or_optimization._ToldWeights(Echo(10, 4), data.mixture, 1.0)
    x, sigma = torch.randn(6, 8, generator=generator()), torch.linspace(0.1, 2, 6)
    rows = [
        data.mixture.posterior_weights(each[None], s)[0] for each, s in zip(x, sigma.tolist(), strict=True)
    ]
    torch.testing.assert_close(told(x, sigma), torch.stack(rows))


def test_first_step_of_one_layer_is_linear() -> None:
    mixture = MoLRG.orthogonal(2, 2, 6, 0.3, generator=generator())
    step = capacity_or_optimization.first_step(mixture, 0.5, 1, 300, generator(7))
    draws = generator(7)
    x0, _ = mixture.sample(300, generator=draws)
    x = x0 + 0.5 * torch.randn(x0.shape, generator=draws)
    points, _ = mixture.sample(50, generator=generator(11))
    torch.testing.assert_close(step(points, 0.5), points @ x.T @ x0 / 600, rtol=1e-4, atol=1e-6)


def test_kernel_is_that_of_a_wide_network() -> None:
    width = 4000
    x = torch.randn(10, 6, generator=generator())
    first, second = (
        torch.randn(width, size, generator=generator(i)) * (2 / size) ** 0.5
        for i, size in enumerate((6, width), 1)
    )
    once = torch.relu(x @ first.T)
    twice = torch.relu(once @ second.T)
    for layers, hidden in enumerate((once, twice), 1):
        product = torch.nn.functional.normalize(hidden) @ torch.nn.functional.normalize(hidden).T
        cosine = torch.nn.functional.normalize(x) @ torch.nn.functional.normalize(x).T
        torch.testing.assert_close(
            product, capacity_or_optimization.kernel(cosine, layers), rtol=0, atol=0.06
        )


def test_kernel_of_one_layer_is_half_linear_in_its_odd_part() -> None:
    c = torch.linspace(-1, 1, 41, dtype=torch.float64)
    torch.testing.assert_close(
        (capacity_or_optimization.kernel(c, 1) - capacity_or_optimization.kernel(-c, 1)) / 2, c / 2
    )
    assert capacity_or_optimization.kernel(torch.ones(1), 3).item() == pytest.approx(1)


def test_rank_correlation_against_scipy() -> None:
    chance = np.random.default_rng(1)
    a = chance.standard_normal(30).round(1)  # with ties
    b = a + chance.standard_normal(30)
    value, low, high = capacity_or_optimization.rank_correlation(a, b)
    assert value == pytest.approx(spearmanr(a, b).statistic)
    assert low < value < high
    rows = np.stack([a[:10], a[10:20], np.ones(10)]), np.stack([b[:10], -a[10:20], b[20:]])
    value, low, high = capacity_or_optimization.rank_correlation(*rows)
    assert value == pytest.approx((spearmanr(a[:10], b[:10]).statistic - 1 + 0) / 3)


def test_jobs_follow_their_settings(data: bench.Data) -> None:
    base = capacity_or_optimization.Setting(8, 2, 10, 4, 1e-2, 360, 8)
    job = capacity_or_optimization._job(base, data, 3, capacity_or_optimization._posterior_mean(data))
    assert (job.steps, job.batch_size, job.lr, job.seed, job.target) == (10, 4, 1e-2, 3, None)
    assert job.schedule is training.cosine
    sigma = torch.tensor([0.1, 2.0])
    torch.testing.assert_close(job.loss_weighting(sigma), torch.ones(2))
    for name, expected in (("1/sigma^2", sigma**-2), ("edm", training.edm_weighting(data.scale)(sigma))):
        other = capacity_or_optimization._job(
            replace(base, weighting=name), data, 3, capacity_or_optimization._posterior_mean(data)
        )
        torch.testing.assert_close(other.loss_weighting(sigma), expected)
    other = capacity_or_optimization._job(
        replace(base, exact_targets=True, decaying=False),
        data,
        3,
        capacity_or_optimization._posterior_mean(data),
    )
    assert other.schedule is training.constant
    assert other.target is not None


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seeds": 0}, "seeds must be an integer >= 1, got 0"),
        ({"measured": [14]}, "measured must be an integer from 0 to 13, got 14"),
        ({"depth": 1}, "depth must be an integer >= 2, got 1"),
        ({"dim": 3}, "dim must be an integer >= 4, got 3"),
        ({"train_size": 60}, "train_size must be an integer >= 336, got 60"),
        ({"learning_rate": 0.0}, "lr must be positive"),
    ],
)
def test_wrong_values_are_named(tmp_path: Path, change: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        capacity_or_optimization.run(**(SMOKE | change), workdir=tmp_path)
    assert not list(tmp_path.iterdir())
