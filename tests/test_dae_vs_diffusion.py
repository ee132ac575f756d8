"""One network for all noise levels and one for each: a small run for real, and the plan of the models."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from experiments.learned import dae_vs_diffusion as experiment
from molrg import snr
from molrg.model import noise
from molrg.snr import denoising_error

SMOKE: dict[str, Any] = {
    "num_classes": 3,
    "rank": 5,
    "dim": 50,
    "delta": 0.2,
    "train_size": 600,
    "test_size": 300,
    "probe_size": 200,
    "width": 32,
    "dae_steps": 60,
    "sharing_steps": 120,
    "batch_size": 64,
    "learning_rate": 5e-3,
    "dropout": 0.1,
    "seeds": 2,
}
QUANTITIES = {"snr", "csnr", "error", "linear", "nearest", "features", "moved", "cka", "distance"}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return experiment.run(**SMOKE, workdir=tmp_path_factory.mktemp("smoke"))


def test_shapes(found: dict[str, Any]) -> None:
    plan = experiment.models(60, 120, 0.1, 7)
    assert set(found) == {*plan, "optimal", "exact", "levels", "few", "peaks"}
    for name in (*plan, "optimal"):
        levels = len(found["few"]) if name in ("dae_long", "dae_dropout", "dae_edm") else 14
        layers = 0 if name == "optimal" else 2
        assert set(found[name]) == QUANTITIES
        for key, shape in {
            "snr": (2, 2, levels),
            "error": (2, levels),
            "features": (2, layers, 2, levels),
            "cka": (2, layers + 1, 2, levels),
        }.items():
            assert found[name][key].shape == shape, (name, key)
        assert all(np.isfinite(value).all() for value in found[name].values()), name


def test_the_optimal_denoiser_is_measured_as_optimal(found: dict[str, Any]) -> None:
    best = found["optimal"]
    np.testing.assert_allclose(best["error"], 1)
    assert abs(best["csnr"].mean(0)[1] / found["exact"]["csnr"][1] - 1).max() < 0.4  # 100 samples a class
    assert (best["nearest"][:, 1] > 0.95).all()
    # It removes all noise outside the span of the classes, 35 of 50 dimensions, and part of that inside.
    assert ((best["moved"] > 0.6) & (best["moved"] < 1.1)).all()


def test_a_trained_network_beats_doing_nothing(found: dict[str, Any]) -> None:
    sigma = found["levels"]
    identity = 50 * sigma**2 / denoising_error.exact(3, 5, 0.2, torch.from_numpy(sigma)).numpy()
    for name in ("dae", "diffusion", "edm"):
        assert (found[name]["error"].mean(0)[5:] < identity[5:]).all(), name


def test_steadiness_at_the_peak_is_exact(found: dict[str, Any]) -> None:
    assert found["peaks"][1] == snr.exact(3, 5, 0.2, noise.paper_levels(), False, "classes").argmax()
    for name in ("dae", "diffusion", "optimal"):
        for kind, peak in enumerate(found["peaks"]):
            np.testing.assert_allclose(found[name]["cka"][:, :, kind, peak], 1, atol=1e-3)
            np.testing.assert_allclose(found[name]["distance"][:, :, kind, peak], 0, atol=1e-3)
        assert ((found[name]["cka"] >= 0) & (found[name]["cka"] <= 1 + 1e-6)).all()


def test_untold_of_the_level_clean_features_do_not_move(found: dict[str, Any]) -> None:
    """Its input is scaled by the level all the same, which the ReLU layers' biases do not follow."""
    assert (found["untold"]["cka"][:, :, 1] > 0.8).all()


def test_plan() -> None:
    plan = experiment.models(10, 30, 0.2, 7)
    levels = tuple(noise.paper_levels().tolist())
    assert plan["diffusion"].steps == 140 == sum(plan["dae"].steps for _ in plan["dae"].trained_on)
    assert [each.sigmas for each in plan["dae"].trained_on] == [(level,) for level in levels]  # type: ignore[attr-defined]
    assert plan["one"].trained_on == (noise.Levels((levels[7],)),)
    linear, log = (plan[name].trained_on[0].sigmas for name in ("three_linear", "three_log"))  # type: ignore[attr-defined]
    assert linear[1] == pytest.approx((levels[0] + levels[-1]) / 2)
    assert log[1] == pytest.approx((levels[0] * levels[-1]) ** 0.5)
    assert plan["untold"].frequencies == 0
    assert plan["dae_dropout"].dropout == 0.2
    assert len(plan["dae_long"].trained_on) == len(plan["dae_long"].levels) == len(experiment.FEW)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seeds": 0}, "seeds must be an integer >= 1, got 0"),
        ({"dae_steps": 0}, "dae_steps must be an integer >= 1, got 0"),
        ({"sharing_steps": 0}, "sharing_steps must be an integer >= 1, got 0"),
        ({"probe_size": 601}, "probe_size must be an integer from 60 to 600, got 601"),
        ({"test_size": 20}, "test_size must be an integer >= 30, got 20"),
        ({"dropout": 1.0}, "dropout must lie strictly between 0 and 1"),
    ],
)
def test_wrong_values_are_named(tmp_path: Path, change: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        experiment.run(**(SMOKE | change), workdir=tmp_path)
    assert not list(tmp_path.iterdir())
