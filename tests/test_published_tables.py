"""The networks of the published tables: a small run for real, and the parts it is made of."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from experiments.learned import bench
from experiments.learned import published_tables as experiment
from experiments.theory import relaxations
from molrg.learning.networks import subspace_denoise

SMALL: dict[str, Any] = {
    "seeds": 2,
    "samples": 2000,
    "test_size": 400,
    "epochs": [2, 8],
    "batch_size": 64,
    "learning_rate": 5e-3,
}
NAMES = list(experiment.VARIANTS)
PLAIN, NEAR, INFORMED = (
    NAMES.index(name) for name in ("plain", "start: near the truth", "informed, near the truth")
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def truth(setting: experiment.Setting, seed: int = 0) -> tuple[Any, torch.Tensor]:
    """A mixture of the setting and its U in every variant, (1, V, n, r)."""
    mixture = experiment._mixture(setting, generator(seed))
    return mixture, torch.cat(mixture.bases, 1).expand(1, len(NAMES), -1, -1).contiguous()


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return experiment.run("priors", **SMALL, workdir=tmp_path_factory.mktemp("small"))


def test_shapes(figures: dict[str, Any]) -> None:
    v = len(NAMES)
    shapes = {key: value.shape for key, value in figures.items() if isinstance(value, np.ndarray)}
    assert shapes == {
        "snr": (2, 2, v, 9, 3),
        "snr_averaged": (2, v, 9, 3),
        "bayes": (9, 3),
        "held": (2, 2, v, 2, 2),
        "lengths": (2, v, 10),
        "outside": (2, v),
        "cosines": (2, v),
        "excess": (2, v),
        "excess_truth": (2, v),
    }
    assert all(np.isfinite(figures[key]).all() for key in shapes)
    assert (figures["steps"], figures["epochs"], figures["variants"]) == (250, [2, 8], NAMES)


def test_training_that_knows_the_priors_becomes_the_optimal_denoiser(figures: dict[str, Any]) -> None:
    assert (figures["excess"][:, INFORMED] < 0.03).all()
    assert (abs(figures["excess_truth"][:, INFORMED]) < 1e-4).all()
    assert (figures["held"][-1, :, INFORMED].diagonal(axis1=-2, axis2=-1) > 4.8).all()
    pooled = figures["snr"][-1, :, INFORMED, :, 2]
    assert (abs(pooled / figures["bayes"][:, 2] - 1) < 0.5).all()


def test_training_that_does_not_shrinks_the_rare_block(figures: dict[str, Any]) -> None:
    frequent, rare = figures["lengths"][:, NEAR, :5].mean(-1), figures["lengths"][:, NEAR, 5:].mean(-1)
    assert (rare < 0.95 * frequent).all()


def test_weights_of_low_noise_do_not(figures: dict[str, Any]) -> None:
    ratios = figures["lengths"][:, :, 5:].mean(-1) / figures["lengths"][:, :, :5].mean(-1)
    assert (ratios[:, NAMES.index("weight: 1/σ², near the truth")] > ratios[:, NEAR] + 0.05).all()


def test_starts_and_the_running_mean() -> None:
    training = experiment._Training(experiment.SETTINGS["ranks"], 2, 300, 8, 1e-2)
    start = training.basis.detach().clone()
    for seed, mixture in enumerate(training.mixtures):
        off = (start[seed, NEAR] - torch.cat(mixture.bases, 1)).norm(dim=0)  # of unit columns
        assert 0.06 < off.min() < off.max() < 0.14
    torch.testing.assert_close(start[:, PLAIN].mT @ start[:, PLAIN], torch.eye(12).expand(2, -1, -1))
    training.step()
    torch.testing.assert_close(training.average, 0.1 * start + 0.9 * training.basis)
    assert not torch.equal(start, training.basis)


def test_errors_are_those_of_the_dense_network() -> None:
    setting = experiment.SETTINGS["orthogonal"]
    draw = lambda *shape: torch.randn(*shape, generator=generator(1), dtype=torch.float64)  # noqa: E731
    basis, x0, eps = draw(2, len(NAMES), 50, 10) / 7, draw(2, 6, 50), draw(2, 6, 50)
    sigma = torch.rand(2, len(NAMES), 6, 1, generator=generator(2)).double() + 0.1
    dense = subspace_denoise(basis, x0[:, None] + sigma * eps[:, None], sigma, 2, experiment.DELTA)
    expected = (dense - x0[:, None]).square().sum(-1) - x0.square().sum(-1)[:, None]
    torch.testing.assert_close(experiment._errors(setting, basis, x0, eps, sigma), expected)


@pytest.mark.parametrize("name", ["priors", "ranks"])
def test_with_the_true_basis_the_network_is_the_one_computed_exactly(name: str) -> None:
    """Informed variants are the optimal denoiser, the others the form that knows neither priors nor ranks."""
    setting = experiment.SETTINGS[name]
    mixture, basis = truth(setting)
    tests = [experiment._test_points(mixture, 20_000, 0)]
    found = experiment._snr(setting, basis, [mixture], tests)[0]
    np.testing.assert_allclose(found[INFORMED], experiment._bayes(setting, mixture, 10), rtol=0.07)
    exact = relaxations.network(setting.ranks, 0.2, experiment.LEVELS, (1.0, 1.0), setting.priors)
    np.testing.assert_allclose(found[PLAIN], exact.T, rtol=0.07)
    losses = experiment._losses(setting, basis, [mixture], [experiment._test_points(mixture, 500, 1)])
    assert abs(losses["excess"][0, INFORMED]) < 1e-9
    assert losses["excess"][0, PLAIN] > 0.005
    np.testing.assert_array_equal(losses["excess"], losses["excess_truth"])


def test_at_an_angle_the_optimal_denoiser_is_that_of_the_mixture() -> None:
    setting = experiment.SETTINGS["angle"]
    mixture, basis = truth(setting)
    np.testing.assert_allclose(
        torch.linalg.svdvals(mixture.bases[0].T @ mixture.bases[1]), np.cos(np.pi / 6), rtol=1e-9
    )
    form = relaxations.angle30(20_000, 0)
    np.testing.assert_allclose(experiment._bayes(setting, mixture, 1000)[1:, 2], form[:, 0], rtol=0.06)
    found = experiment._snr(setting, basis, [mixture], [experiment._test_points(mixture, 20_000, 0)])
    np.testing.assert_allclose(found[0, PLAIN, 1:, 2], form[:, 1], rtol=0.06)
    assert experiment._shape(setting, basis, [mixture])["cosines"] == pytest.approx(np.cos(np.pi / 6))


def test_block_loss_against_simulation() -> None:
    for name, lengths in (("priors", (1.1, 0.7)), ("ranks", (0.8, 1.3))):
        setting = experiment.SETTINGS[name]
        mixture, basis = truth(setting)
        scales = torch.tensor(lengths, dtype=torch.float64).sqrt()
        scaled = basis * scales.repeat_interleave(torch.tensor(setting.blocks))
        x0, eps = experiment._test_points(mixture, 20_000, 0)
        for level in (0.05, 0.5, 2.0):
            column = torch.full((1, 1, 1, 1), level, dtype=torch.float64)
            found = [experiment._errors(setting, scaled, x0[[k]], eps[[k]], column)[0, PLAIN] for k in (0, 1)]
            mean = sum(p * each.mean() for p, each in zip(setting.priors, found, strict=True))
            error = max(each.std() for each in found) / 20_000**0.5
            exact = experiment.block_loss(lengths, setting.ranks, setting.priors, [level], [1.0])
            assert abs(mean - exact) < 4.5 * error
    separate = [experiment.block_loss((1.0, 0.8), (5, 5), (0.8, 0.2), [s], [1.0]) for s in (0.1, 1.0)]
    both = experiment.block_loss((1.0, 0.8), (5, 5), (0.8, 0.2), [0.1, 1.0], [3.0, 1.0])
    assert both == pytest.approx((3 * separate[0] + separate[1]) / 4)


def test_optimum_in_its_limits() -> None:
    np.testing.assert_allclose(experiment.optimum((5, 5), (0.5, 0.5), [0.5, 1.0], [1, 1]), 1, atol=2e-3)
    np.testing.assert_allclose(experiment.optimum((5, 5), (0.8, 0.2), [0.02], [1]), 1, atol=2e-3)
    h = [0.96 * prior + 0.04 for prior in (0.8, 0.2, 0.5)]
    np.testing.assert_allclose(
        experiment.optimum((5, 5), (0.8, 0.2), [300.0], [1e5]), [h[0] / h[2], h[1] / h[2]], atol=5e-3
    )


def test_levels_and_weights() -> None:
    ddpm, paper, even = (experiment.level_table(kind) for kind in ("ddpm", "14", "even"))
    assert len(ddpm.unique()) == 500
    assert len(paper.unique()) == 14
    assert len(ddpm) == len(paper) == len(even)
    assert even.max() < 6
    assert even.mean() == pytest.approx(3)
    assert (experiment.loss_weights("uniform", ddpm) == 1).all()
    noise, edm = (experiment.loss_weights(kind, ddpm) for kind in ("noise", "edm"))
    torch.testing.assert_close(noise * ddpm**2, (noise[0] * ddpm[0] ** 2).expand_as(noise))
    scale2 = (5 + 5 * 0.04) / 50  # mean square of a coordinate of a point
    expected = (ddpm**2 + scale2) / (ddpm**2 * scale2)
    torch.testing.assert_close(edm, expected / expected.mean())


def test_held_counts_directions_in_matched_blocks() -> None:
    setting = experiment.SETTINGS["orthogonal"]
    mixture, basis = truth(setting)
    a, b = mixture.bases
    mixed = (torch.cat([b[:, :4], a[:, :1]], 1), torch.cat([3 * a[:, 1:], b[:, 4:]], 1))
    basis[0, 1] = torch.cat(mixed, 1)
    held = experiment._held(setting, basis, [mixture])[0]
    np.testing.assert_allclose(held[0], [[5, 0], [0, 5]], atol=1e-9)
    np.testing.assert_allclose(held[1], [[4, 1], [1, 4]], atol=1e-9)
    shape = experiment._shape(setting, basis, [mixture])
    np.testing.assert_allclose(shape["lengths"][0, 1], [9, 9, 9, 9, 1, 1, 1, 1, 1, 1])
    np.testing.assert_allclose(shape["outside"], 0, atol=1e-9)


def test_orthonormal_variants_stay_so(figures: dict[str, Any]) -> None:
    found = figures["lengths"][:, NAMES.index("orthonormal U")]
    np.testing.assert_allclose(found, 1, atol=1e-3)


def test_neighbourhoods_hold_the_larger_class_first() -> None:
    setting = experiment.SETTINGS["orthogonal"]
    mixture = experiment._mixture(setting, generator())
    x0, _ = mixture.sample(4000, generator=generator(1))
    basis = bench.neighbourhoods(x0, setting.blocks, len(x0) // 10, generator(2)).expand(1, 1, -1, -1)
    assert (experiment._held(setting, basis, [mixture])[0, 0].diagonal() > 4.5).all()


def test_a_killed_training_goes_on_to_the_same_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiment, "_CHECKPOINT_EVERY", 4)
    shape = (experiment.SETTINGS["ranks"], 1, 300, 8, 1e-2)
    whole, average = experiment._Training(*shape).run([3, 10], tmp_path / "whole")
    killed, step = experiment._Training(*shape), experiment._Training.step

    def step_until_nine(self: Any) -> None:
        if self.done == 9:
            raise KeyboardInterrupt
        step(self)

    with monkeypatch.context() as patch:
        patch.setattr(experiment._Training, "step", step_until_nine)
        with pytest.raises(KeyboardInterrupt):
            killed.run([3, 10], tmp_path / "killed")
    resumed = experiment._Training(*shape)
    again, again_average = resumed.run([3, 10], tmp_path / "killed")
    assert all(torch.equal(a, b) for a, b in zip([*whole, average], [*again, again_average], strict=True))
    assert not torch.equal(whole[0], whole[1])


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"setting": "means"}, "setting must be 'orthogonal' or 'angle'"),
        ({"seeds": 0}, "seeds must be an integer >= 1, got 0"),
        ({"samples": 20}, "samples must be an integer >= 200, got 20"),
        ({"test_size": 5}, "test_size must be an integer >= 10, got 5"),
        ({"batch_size": 0}, "batch_size must be an integer >= 1, got 0"),
        ({"epochs": [0, 1]}, r"epochs\[0\] must be an integer >= 1, got 0"),
        ({"epochs": [3, 2]}, r"epochs must be increasing, got \[3, 2\]"),
        ({"epochs": []}, r"epochs must be increasing, got \[\]"),
    ],
)
def test_wrong_values_are_named(tmp_path: Path, change: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        experiment.run(**({"setting": "priors"} | SMALL | change), workdir=tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_published_rows_have_the_length_of_the_levels() -> None:
    for name, rows in experiment.PUBLISHED.items():
        assert name in experiment.SETTINGS
        assert {len(row) for row in rows} == {8 if len(rows) == 1 else 9}
