"""The experiment on the empirical denoiser: a small run for real, and its parts by independent routes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from experiments.theory import memorization as experiment
from molrg import EmpiricalDenoiser, MoLRG

SMOKE: dict[str, Any] = {
    "num_classes": 3,
    "rank": 5,
    "dim": 50,
    "delta": 0.2,
    "background": "span",
    "per_class": [2, 16, 128],
    "queries": 60,
    "lowest": 0.03,
    "highest": 20.0,
    "num_levels": 9,
    "seeds": 2,
}


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return experiment.run(**SMOKE, workdir=tmp_path_factory.mktemp("smoke"))


def test_shapes(figures: dict[str, Any]) -> None:
    full = ("snr", "loss", "subspace", "snr_bayes", "loss_bayes", "subspace_bayes")
    more = ("entropy", "largest", "classes", "gap")
    expected: dict[str, tuple[int, ...]] = dict.fromkeys((*full, *more), (2, 3, 2, 2, 9))
    expected.update(linear=(2, 3, 2, 9), linear_bayes=(2, 3, 2, 9), own=(2, 3, 2, 9), own_bound=(2, 3, 2, 9))
    assert {key: value.shape for key, value in figures.items()} == expected | {
        "information": (2, 2, 9),
        "levels": (9,),
        "sizes": (3,),
    }
    assert all(np.isfinite(value).all() for value in figures.values())


def test_low_noise_copies_training_points(figures: dict[str, Any]) -> None:
    train = figures["loss"][:, :, 0, :, 0]
    assert (train < 1e-6).all()
    assert (figures["own"][..., 0] > 0.999).all()
    np.testing.assert_allclose(figures["snr"][:, :, 0, 0, 0], figures["snr"][:, :, 0, 1, 0], rtol=1e-4)


def test_the_optimum_wins_on_fresh_points_and_loses_on_training_points(figures: dict[str, Any]) -> None:
    gain = figures["loss_bayes"] - figures["loss"]
    assert (gain[:, :, 0, 0, :6].mean(0) > 0).all()
    assert (gain[:, :, 1, 0, :6].mean(0) < 0).all()


def test_more_points_come_closer_to_the_optimum(figures: dict[str, Any]) -> None:
    assert (np.diff(figures["gap"][:, :, 1, 0].mean(0), axis=0)[:, 2:] < 0).all()


def test_information_bounds_the_weights(figures: dict[str, Any]) -> None:
    information = figures["information"].mean(0)[0]
    least = np.maximum(np.log(figures["sizes"])[:, None] - information, 0)
    assert (figures["entropy"].mean(0)[:, 0, 0] > least - 0.05).all()
    assert (figures["own"] > figures["own_bound"] - 0.1).all()
    assert (figures["own"][:, :, 0] <= figures["largest"][:, :, 0, 0] + 1e-4).all()


def test_outside_the_span_nothing_enters() -> None:
    """Noise off the span of the training points leaves weights and output alone."""
    generator = torch.Generator().manual_seed(0)
    mixture = MoLRG.orthogonal(3, 2, 12, 0.2, generator=generator, dtype=torch.float64)
    points, _ = mixture.sample(50, generator=generator)
    x = points + 0.3 * torch.randn(points.shape, generator=generator, dtype=torch.float64)
    blocks = torch.cat(mixture.bases, 1)
    inside = EmpiricalDenoiser(points @ blocks).posterior_mean(x @ blocks, 0.3)
    torch.testing.assert_close(EmpiricalDenoiser(points).posterior_mean(x, 0.3), inside @ blocks.T)


@pytest.mark.parametrize("background", ["span", "complement"])
def test_leading_gap_is_what_many_training_sets_show(background: str) -> None:
    generator = torch.Generator().manual_seed(0)
    mixture = MoLRG.orthogonal(2, 1, 3, 0.3, background, generator, torch.float64)
    expected, error = experiment.leading_gap(mixture, 2.0, 40_000, generator)
    assert error < 0.02 * expected
    gaps = []
    for _ in range(60):
        points, _ = mixture.sample(2000, generator=generator)
        x, _ = mixture.sample(200, generator=generator)
        x = x + 2 * torch.randn(x.shape, generator=generator, dtype=x.dtype)
        gap = EmpiricalDenoiser(points).posterior_mean(x, 2.0) - mixture.posterior_mean(x, 2.0)
        gaps.append(2000 * gap.square().sum(1).mean().item())
    assert abs(np.mean(gaps) / expected - 1) < 4 * np.std(gaps) / 60**0.5 / expected + 0.03


def test_divergence_is_the_integral_of_the_gap() -> None:
    mixture = MoLRG.orthogonal(2, 1, 2, 0.3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    levels = torch.logspace(1.5, -0.5, 25, dtype=torch.float64)
    draws = torch.Generator().manual_seed(1)
    found = experiment.divergences(mixture, 20, levels, 20, 200, draws)
    assert found["divergence"].shape == found["gap"].shape == (20, 2, 25)
    direct, gap = (found[key].mean(0) for key in ("divergence", "gap"))
    precision = levels.numpy() ** -2
    integral = 0.5 * np.trapezoid(precision * gap, np.log(precision), axis=1)
    np.testing.assert_allclose(integral, direct[:, -1], rtol=0.08)


def test_run_again_it_goes_on_from_its_files(tmp_path: Path) -> None:
    tiny = SMOKE | {"per_class": [2, 4], "queries": 5, "num_levels": 2}
    first = experiment.run(**tiny, workdir=tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["seed-0.npz", "seed-1.npz"]
    for again in (experiment.run(**tiny, workdir=tmp_path), experiment.run(**tiny, workdir=tmp_path / "new")):
        assert all(np.array_equal(first[key], again[key]) for key in first)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seeds": 0}, "seeds must be an integer >= 1, got 0"),
        ({"queries": 1}, "queries must be an integer >= 2, got 1"),
        ({"background": "none"}, "background must be 'span' or 'complement', got 'none'"),
        ({"per_class": []}, r"per_class must list .* got \[\]"),
        ({"per_class": [4, 2]}, r"rising order, got \[4, 2\]"),
        ({"per_class": [0, 2]}, "per_class must be an integer >= 1, got 0"),
        ({"lowest": 20.0}, "lowest must be below highest"),
        ({"lowest": 0.0}, "sigma must be finite and positive"),
        ({"num_levels": 1}, "num_levels must be an integer >= 2"),
        ({"delta": 1.5}, "delta must lie strictly between 0 and 1"),
        ({"dim": 14}, r"num_classes \* rank <= dim, got 3 \* 5 > 14"),
    ],
)
def test_wrong_values_are_named(tmp_path: Path, change: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        experiment.run(**(SMOKE | change), workdir=tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_weight_of_the_true_point_and_the_distance_by_their_formulas() -> None:
    mixture = MoLRG.orthogonal(2, 2, 4, 0.3, "span", torch.Generator().manual_seed(1), torch.float64)
    draws = torch.Generator().manual_seed(2)
    found = experiment.true_weight(mixture, 6, 0.4, 9, draws)
    draws = torch.Generator().manual_seed(2)
    points, _ = mixture.sample(12, generator=draws, labels=torch.arange(2).repeat(6))
    x = points[:9] + 0.4 * torch.randn(9, 4, generator=draws, dtype=torch.float64)
    weights = torch.softmax(-torch.cdist(x, points).square() / (2 * 0.4**2), 1)
    assert found == pytest.approx(weights[range(9), range(9)].mean().item(), rel=1e-9)

    draws = torch.Generator().manual_seed(3)
    found = experiment.distance(mixture, 7, 0.4, 1, 5, draws)
    draws = torch.Generator().manual_seed(3)
    points, fresh = (mixture.sample(size, generator=draws)[0] for size in (7, 5))
    x = fresh + 0.4 * torch.randn(5, 4, generator=draws, dtype=torch.float64)
    mean = torch.softmax(-torch.cdist(x, points).square() / (2 * 0.4**2), 1) @ points
    expected = (mean - mixture.posterior_mean(x, 0.4)).square().sum(1).mean().item()
    assert found == pytest.approx(expected, rel=1e-9)
