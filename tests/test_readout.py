"""What is read out of networks' blocks: controls, and the same answer by another route."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from experiments.images import image_data, probe_sets, readout
from molrg.images import zoo

SMALL: dict[str, Any] = {"labels": 200, "validation": 100, "tests": 150, "levels": (0.1, 1.0)}


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
    found = readout.run("digits", (32, 48), 64, 0, **SMALL, workdir=tmp_path / "1")
    data = image_data.get("digits")
    counts = probe_sets.equal(data.train_labels, 300, data.class_names)
    known = probe_sets.draw(data.train_labels, counts, torch.Generator().manual_seed(0))
    x0 = torch.cat([data.train_images[known], data.test_images[:150]])
    eps = torch.randn(x0.shape, generator=torch.Generator().manual_seed(1))
    kept: dict[str, torch.Tensor] = {}
    block = shipped.get_submodule("network.model.mid_block")
    block.register_forward_hook(lambda _m, _i, output: kept.update(mid=output))
    assert found["blocks"][2] == "network.model.mid_block"
    for kind, x in enumerate((x0 + 1.0 * eps, x0)):
        with torch.no_grad():
            shipped(x, 1.0)
        values = kept["mid"].mean((2, 3)).double().numpy()
        train = values[:200]
        z = (values - train.mean(0)) / train.std(0)
        answers = data.train_labels[known[:200]].numpy()
        own = z[:200] - np.stack([z[:200][answers == k].mean(0) for k in range(10)])[answers]
        covariance = own.T @ own / 200 + readout.RIDGE * np.eye(z.shape[1])
        root = np.linalg.inv(np.linalg.cholesky(covariance))
        white = z @ root.T
        means = np.stack([white[:200][answers == k].mean(0) for k in range(10)])
        nearest = ((white[300:, None] - means) ** 2).sum(2).argmin(1)
        right = nearest == data.test_labels[:150].numpy()
        assert (readout.accuracy(found)[kind, 2, 1] == right).mean() > 0.98


def test_a_noisy_input_is_noisier_and_a_clean_one_is_not(shipped: zoo.Preconditioned, tmp_path: Path) -> None:
    found = readout.run("digits", (32, 48), readout.PIXELS, 0, **SMALL, workdir=tmp_path / "2")
    right = readout.accuracy(found).mean(-1)[:, 0]
    assert right[0, 1] < right[0, 0] - 0.05
    assert right[1, 0] == right[1, 1]
    assert readout.accuracy(found, "validation").shape[-1] == 100


def test_controls_have_as_many_numbers_as_the_blocks(shipped: zoo.Preconditioned, tmp_path: Path) -> None:
    found = readout.run("digits", (32, 48), readout.RANDOM, 0, **SMALL, workdir=tmp_path / "3")
    assert found["blocks"] == ["32 random filters", "48 random filters"]
    untrained = readout.run("digits", (32, 48), readout.UNTRAINED, 0, **SMALL, workdir=tmp_path / "4")
    assert (
        untrained["blocks"]
        == readout.run("digits", (32, 48), 64, 0, **SMALL, workdir=tmp_path / "5")["blocks"]
    )
    assert untrained["counts"] == [100, 150]
