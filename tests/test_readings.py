"""What is read out of networks' blocks: controls, and the same answer by another route."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from experiments.images import image_data, probe_sets, readings
from molrg.images import zoo
from molrg.measuring.discriminants import fit_discriminants

SMALL: dict[str, Any] = {"dataset": "digits", "prior": "digits", "channels": (32, 48), "seed": 0} | {
    "labels": 200,
    "validation": 100,
    "tests": 150,
    "levels": (0.1, 1.0),
}


def drawn() -> tuple[torch.Tensor, torch.Tensor]:
    """Numbers of the labelled and validation images, and of the test images."""
    data = image_data.get("digits")
    counts = probe_sets.equal(data.train_labels, 300, data.class_names)
    shares = probe_sets.proportional(data.test_labels, 150, data.class_names)
    return (
        probe_sets.draw(data.train_labels, counts, torch.Generator().manual_seed(0)),
        probe_sets.draw(data.test_labels, shares, torch.Generator().manual_seed(2)),
    )


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> zoo.Preconditioned:
    """A zoo with one network that was never trained, but whose weights are no longer at zero."""
    monkeypatch.setenv("MOLRG_ZOO", str(tmp_path))
    data = image_data.get("digits")
    denoiser = zoo.build("unet-32-48", data.shape, 0.75, torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    record = {
        "data": "digits",
        "network": "unet-32-48",
        "seed": 0,
        "images": 64,
        "shape": list(data.shape),
        "sigma_data": 0.75,
    }
    zoo.write(tmp_path / "digits.safetensors", denoiser, record)
    return zoo.load("digits").denoiser


def test_the_readout_is_the_nearest_mean_of_whitened_features_taken_by_hand(
    shipped: zoo.Preconditioned, tmp_path: Path
) -> None:
    found = readings.run(**SMALL, images=64, workdir=tmp_path)
    data = image_data.get("digits")
    known, judges = drawn()
    x0 = torch.cat([data.train_images[known], data.test_images[judges]])
    eps = torch.randn(x0.shape, generator=torch.Generator().manual_seed(1))
    kept: dict[str, torch.Tensor] = {}
    block = shipped.get_submodule("network.model.mid_block")
    block.register_forward_hook(lambda _m, _i, output: kept.update(mid=output))
    assert found["blocks"][2] == "mid_block"
    for kind, x in enumerate((x0 + 1.0 * eps, x0)):
        with torch.no_grad():
            shipped(x, 1.0)
        values = kept["mid"].mean((2, 3)).double().numpy()
        train = values[:200]
        z = (values - train.mean(0)) / train.std(0)
        answers = data.train_labels[known[:200]].numpy()
        own = z[:200] - np.stack([z[:200][answers == k].mean(0) for k in range(10)])[answers]
        covariance = own.T @ own / 200 + readings.RIDGE * np.eye(z.shape[1])
        root = np.linalg.inv(np.linalg.cholesky(covariance))
        white = z @ root.T
        means = np.stack([white[:200][answers == k].mean(0) for k in range(10)])
        nearest = ((white[:, None] - means) ** 2).sum(2).argmin(1)
        right = nearest[300:] == data.test_labels[judges].numpy()
        assert (readings.right(found)[0, kind, 2, 1] == right).mean() > 0.98
        chosen = (nearest[200:300] == data.train_labels[known[200:]].numpy()).mean()
        assert found["validation"][0, kind, 2, 1] == pytest.approx(chosen, abs=0.02)


def test_a_noisy_input_is_noisier_and_a_clean_one_is_not(shipped: zoo.Preconditioned, tmp_path: Path) -> None:
    found = readings.run(**SMALL, images=readings.PIXELS, workdir=tmp_path)
    right = readings.right(found).mean(-1)[:, :, 0]
    assert (right[:, 0, 1] < right[:, 0, 0] - 0.05).all()
    assert (right[:, 1, 0] == right[:, 1, 1]).all()
    assert found["snr"][0, 0, 1] < found["snr"][0, 0, 0]


def test_controls_are_read_as_the_blocks_are(shipped: zoo.Preconditioned, tmp_path: Path) -> None:
    filters = readings.run(**SMALL, images=readings.RANDOM, workdir=tmp_path / "filters")
    assert filters["blocks"] == [readings.RANDOM]
    untrained = readings.run(**SMALL, images=readings.UNTRAINED, workdir=tmp_path / "untrained")
    trained = readings.run(**SMALL, images=64, workdir=tmp_path / "trained")
    assert untrained["blocks"] == trained["blocks"]
    assert untrained["blocks"][-1] == "denoised"
    assert readings.right(trained).shape == (4, 2, 6, 2, 150)


def test_coarse_labels_are_a_readout_of_their_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    halves = torch.arange(10) // 5
    data = replace(image_data.get("digits"), coarse_of_class=halves, coarse_names=("low", "high"))
    monkeypatch.setattr(image_data, "get", lambda _: data)
    found = readings.run(**SMALL, images=readings.PIXELS, workdir=tmp_path)
    assert found["readouts"][-1] == readings.COARSE
    known, judges = drawn()
    x0 = torch.cat([data.train_images[known[:200]], data.test_images[judges]])
    fitted = fit_discriminants(x0[None, :200], halves[data.train_labels[known[:200]]], readings.RIDGE)
    right = fitted.predict(x0[None, 200:])[0] == halves[data.test_labels[judges]]
    assert (readings.right(found)[-1, 1, 0, 0] == right.numpy()).mean() > 0.98


def test_a_background_that_fills_the_features_is_read_and_another_is_not() -> None:
    generator = torch.Generator().manual_seed(0)
    scenes = torch.randn(400, 9, generator=generator)
    mixed = scenes @ torch.randn(9, 20, generator=generator)
    assert readings._explained(mixed, scenes, (200, 250)) > 0.9
    assert readings._explained(torch.randn(400, 20, generator=generator), scenes, (200, 250)) < 0.05


def test_a_stopped_run_goes_on(
    shipped: zoo.Preconditioned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = readings.run(**SMALL, images=64, workdir=tmp_path / "whole")
    real = readings._figures
    calls: list[None] = []

    def stopping(*given: Any) -> dict[str, Any]:
        calls.append(None)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*given)

    monkeypatch.setattr(readings, "_figures", stopping)
    with pytest.raises(KeyboardInterrupt):
        readings.run(**SMALL, images=64, workdir=tmp_path / "stopped")
    again = readings.run(**SMALL, images=64, workdir=tmp_path / "stopped")
    assert len(calls) == 3 + 2  # two levels were there
    for key in ("tests", "validation", "snr", "csnr"):
        np.testing.assert_array_equal(again[key], whole[key])


def test_own_images_train_a_network_and_a_published_one_takes_them_as_they_are(
    tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOLRG_NETWORKS", str(tmp_path / "networks"))
    rng = np.random.default_rng(0)
    content: dict[str, Any] = {
        f"{part}_{what}": values
        for part, count in (("train", 40), ("test", 20))
        for what, values in (
            ("images", rng.integers(0, 255, (count, 32, 32, 3), dtype=np.uint8)),
            ("labels", np.arange(count) % 2),
        )
    }
    file = tmp_path / "own.npz"
    np.savez(file, **content)
    small = SMALL | {"dataset": str(file), "prior": str(file), "labels": 24, "validation": 12, "tests": 20}
    own = readings.run(**small, images=128, workdir=tmp_path / "own")
    assert image_data.get(str(file)).shape == (3, 16, 16)
    assert own["blocks"][-1] == "denoised"
    small = SMALL | {"prior": str(tiny_checkpoint), "levels": (0.002, 0.3)}
    published = readings.run(**small, images=readings.PUBLISHED, workdir=tmp_path / "published")
    assert published["levels"] == [0.3]  # the lower one is below what it was trained on
