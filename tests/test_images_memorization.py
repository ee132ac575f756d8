"""The experiment on memorization in small sizes, computed for real, and its parts by independent routes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from experiments.images import memorization as experiment
from molrg.learning import training

SIZES = experiment.settings("digits", "sizes", "small", seeds=2, smoke=True)
TIMES = experiment.settings("digits", "times", "small", seeds=1, smoke=True)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return experiment.run(**SIZES, workdir=tmp_path_factory.mktemp("sizes é"))


def test_figures_have_the_stated_axes(found: dict[str, Any]) -> None:
    assert found["readouts"] == ["network.blocks.0.dropout", "denoised"]
    shapes = {
        "correct": (2, 2, 2, 1, 2, 3, 2, experiment.BLOCKS),
        "loss": (2, 2, 2, 1, 2, 3),
        "to_memory": (2, 2, 2, 1, 2, 3),
        "nearest": (2, 2, 2, 1, 2, 20),
        "frechet": (2, 2, 2, 1),
        "strip": (2, 2, 1, 2, experiment.SHOWN, 8, 8, 1),
        "memory_correct": (2, 2, 2, 3, experiment.BLOCKS),
        "memory_loss": (2, 2, 2, 3),
        "memory_frechet": (2, 2),
        "held_nearest": (2, 2, 2, 200),
        "held_frechet": (2,),
        "pixels": (2, experiment.BLOCKS),
    }
    assert {name: found[name].shape for name in shapes} == shapes
    assert (found["sizes"], found["strip_sizes"], found["block"]) == ([16, 256], [16, 256], 10)


def test_figures_are_plausible(found: dict[str, Any]) -> None:
    assert found["correct"].max() <= found["block"]
    assert found["correct"][..., 0, 0, -1, :].mean() > 6  # clean input at low noise: ten classes
    assert found["pixels"].mean() > 8
    train, fresh = found["loss"][..., 0, :], found["loss"][..., 1, :]
    assert (np.diff(found["loss"], axis=-1) > 0).all()  # more noise, more error
    assert (train[:, 1, 0, :, -1] < 0.97 * fresh[:, 1, 0, :, -1]).all()  # wider network, few images: a gap
    assert (found["nearest"][..., 0, :] <= found["nearest"][..., 1, :]).all()
    assert (found["held_frechet"] < found["memory_frechet"][:, 0]).all()  # 16 images are no distribution


def test_the_memorizing_limit_is_the_best_on_its_training_set(found: dict[str, Any]) -> None:
    """No network beats the empirical denoiser on training images; on fresh ones it is poor."""
    limit = found["memory_loss"][:, None, :, None]
    slack = 1 + 0.1  # 100 training images and one draw of noise
    assert (limit[..., 0, :] < slack * found["loss"][..., 0, :]).all()
    assert (found["memory_loss"][:, 0, 1] > 3 * found["memory_loss"][:, 0, 0]).all()
    # ||f - x||^2 on training images is the limit's loss plus the distance to it, up to sampling.
    excess = found["loss"][..., 0, :] - limit[..., 0, :]
    np.testing.assert_allclose(excess, found["to_memory"][..., 0, :], rtol=0.15, atol=0.01)


def test_a_stopped_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stopped on the way to the second measurement, called again: the same figures as without a stop."""
    whole = experiment.run(**TIMES, workdir=tmp_path / "whole")
    real, calls = training.train, []

    def stopping(*arguments: Any, **options: Any) -> Any:
        calls.append(options["steps"])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    monkeypatch.setattr(training, "train", stopping)
    with pytest.raises(KeyboardInterrupt):
        experiment.run(**TIMES, workdir=tmp_path / "stopped")
    again = experiment.run(**TIMES, workdir=tmp_path / "stopped")
    assert calls == [20, 100, 100]
    for name in ("correct", "loss", "nearest", "strip", "memory_loss"):
        np.testing.assert_array_equal(again[name], whole[name])
    alone = experiment.run(**TIMES | {"steps": [100]}, workdir=tmp_path / "alone")
    np.testing.assert_array_equal(alone["loss"][:, :, :, 0], whole["loss"][:, :, :, 1])


def test_a_unet_is_measured_too(tmp_path: Path) -> None:
    chosen = experiment.settings("digits", "unet", "small", seeds=1, smoke=True)
    found = experiment.run(**chosen, workdir=tmp_path)
    assert found["readouts"][-1] == "denoised"
    assert [name.split(".")[2] for name in found["readouts"][:-1]] == ["mid_block", "up_blocks", "up_blocks"]
    assert np.isfinite(found["loss"]).all()


def test_wrong_parameters_stop_the_run_before_any_work(tmp_path: Path) -> None:
    for change, message in (
        ({"model": "cnn"}, "model must be 'mlp' or 'unet'"),
        ({"seeds": 0}, "seeds must be an integer >= 1"),
        ({"sizes": [16, 2000]}, "sizes must be an integer from 2 to 1237, got 2000"),
        ({"shrink": 3}, "factor must divide height and width of digits, 8 x 8, got 3"),
        ({"steps": [100, 20]}, "steps must rise"),
        ({"test_samples": 5}, "test_samples must be an integer >= 10"),
    ):
        with pytest.raises(ValueError, match=message):
            experiment.run(**{**SIZES, **change}, workdir=tmp_path / "work")
    assert not (tmp_path / "work").exists()
    with pytest.raises(ValueError, match="study must be"):
        experiment.settings("digits", "size", "small", 1, True)
    with pytest.raises(ValueError, match="scale must be"):
        experiment.settings("digits", "sizes", "huge", 1, True)


def test_the_published_scale_is_what_the_page_says() -> None:
    full = experiment.settings("cifar10", "unet", "full", 1, False)
    assert (full["widths"], full["shrink"], full["sizes"][-1]) == ([32, 64], 1, 2**15)
    times = experiment.settings("cifar10", "times", "full", 1, False)
    assert (times["sizes"], times["model"]) == ([4096], "unet")


def accuracy(mean: list[float], seeds: int, spread: float, seed: int) -> np.ndarray:
    g = np.random.default_rng(seed)
    common = g.normal(0, 0.05, (1, 1, 10))  # parts differ in difficulty, which must not count
    return np.array(mean)[None, :, None] + common + g.normal(0, spread, (seeds, len(mean), 10))


def test_shapes_of_curves() -> None:
    one_peak = experiment.shape(accuracy([0.7, 0.75, 0.8, 0.7], 3, 0.01, 0))
    assert (one_peak.kind, one_peak.peak) == ("unimodal", 2)
    assert one_peak.rise == pytest.approx(0.1, abs=3 * one_peak.rise_error)
    assert one_peak.rise_error < 0.01
    assert experiment.shape(accuracy([0.8, 0.75, 0.7, 0.6], 3, 0.01, 0)).kind == "falling"
    assert experiment.shape(accuracy([0.6, 0.7, 0.75, 0.8], 3, 0.01, 0)).kind == "rising"
    # Networks that disagree: the spread between them counts.
    apart = accuracy([0.7, 0.75, 0.7], 3, 0.001, 0) + np.array([0.1, -0.1, 0.0])[:, None, None] * [
        [0],
        [1],
        [0],
    ]
    assert experiment.shape(apart).rise_error > 0.05


def test_chance_makes_no_peak() -> None:
    """Flat curves with noise: the highest of nine values is above the first, but the rise is not biased."""
    shapes = [experiment.shape(accuracy([0.8] * 9, 1, 0.02, seed)) for seed in range(200)]
    rises = np.array([each.rise for each in shapes])
    assert abs(rises.mean()) < 3 * rises.std() / 200**0.5
    assert np.mean([each.kind == "unimodal" for each in shapes]) < 0.1


def test_frechet_distance_of_gaussians() -> None:
    """In one dimension, and for covariances that commute, it is that of means and standard deviations."""
    g = torch.Generator().manual_seed(0)
    z = torch.randn(4000, 3, generator=g).double()
    z = (z - z.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(z.T))).T  # exactly white
    first, second = torch.tensor([1.0, 2.0, 0.5]).double(), torch.tensor([2.0, 1.0, 0.5]).double()
    shift = torch.tensor([0.3, 0.0, -1.0]).double()
    expected = (shift.square().sum() + (first - second).square().sum()) / second.square().sum()
    found = experiment.frechet_distance(z * first + shift, z.flip(0) * second)
    assert found == pytest.approx(expected.item(), rel=1e-9)
    assert experiment.frechet_distance(z, z) == pytest.approx(0, abs=1e-9)


def test_nearest_two_finds_copies_and_their_distances() -> None:
    points = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    distances, index = experiment.nearest_two(points[[7, 3]] + 1e-6, points)
    assert index.tolist() == [7, 3]
    assert distances[0].max() < 2e-6
    second = (points[7] - points).square().mean(1).sqrt().sort().values[1]
    assert distances[1, 0].item() == pytest.approx(second.item(), rel=1e-4)


def test_copies_are_nearer_than_what_was_held_out() -> None:
    """Two seeds, one width, one N: held-out images at 1 ... 20, generated ones around their 5% quantile."""
    held = np.tile(np.arange(1.0, 21.0), (2, 1, 2, 1))  # (R, N, 2, H)
    threshold = np.quantile(held[0, 0, 0], 0.05)
    near = np.array([[threshold - 0.1, threshold + 0.1], [threshold + 1, threshold + 2]])
    nearest = np.stack([near, near + 1], 1)[:, None, None, None]  # (R, W, N, T, 2, G)
    score = experiment.gl_score({"held_nearest": held, "nearest": nearest})
    assert score.shape == (2, 1, 1, 1)
    assert score.flatten().tolist() == [0.5, 1.0]


def test_accuracies_are_of_the_layer_that_is_read_best_with_clean_input() -> None:
    correct = np.zeros((1, 1, 1, 1, 2, 3, 4, 2))  # (R, W, N, T, I, S, L, B)
    correct[:, :, :, :, 0, :, 1] = 5  # clean input, second layer
    correct[:, :, :, :, 1, :, 2] = 9  # noisy input, third layer
    correct[:, :, :, :, 0, :, 3] = 8  # the denoised image is no layer
    found = {"correct": correct, "block": 10}
    assert experiment.read_layer(found, 0) == 1
    assert experiment.accuracy(found, 0, 0, 0, 0).tolist() == [[[50.0] * 2] * 3]
    assert experiment.accuracy(found, 0, 0, 0, 1, -1).max() == 0
