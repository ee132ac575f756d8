"""Input noise and conditioning on images: a small run for real, against probes fitted by hand."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from experiments.images import clean_or_noisy as experiment
from experiments.images import denoisers
from molrg import images
from molrg.measuring import features

SMOKE: dict[str, Any] = {
    "dataset": "digits",
    "model": "unet",
    "seed": 0,
    "draws": 3,
    "inputs": [0.0, 1.0],
    "levels": [0.005, 1.0],
    "train_samples": 300,
    "test_samples": 180,
    "smoke": True,
}


@pytest.fixture(scope="module", autouse=True)
def networks(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MOLRG_NETWORKS", str(tmp_path_factory.mktemp("networks")))
        yield


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return experiment.run(**SMOKE, workdir=tmp_path_factory.mktemp("smoke"))


def test_figures_have_the_stated_axes(found: dict[str, Any]) -> None:
    assert found["layers"] == [
        f"network.model.{name}" for name in ("mid_block", "up_blocks.0", "up_blocks.1", "up_blocks.2")
    ]
    assert found["accuracy"].shape == (18, 2, 2, 4)
    assert found["validation"].shape == (3, 2, 2, 4)
    assert found["pixels"].shape == (18, 2)
    assert "coarse" not in found
    assert (found["fitted_images"], found["test_images"], found["train_images"]) == (200, 180, 1437)
    assert (found["levels"], found["left_out"]) == ([0.005, 1.0], [])


def test_noise_in_the_input_costs_accuracy(found: dict[str, Any]) -> None:
    mean = found["accuracy"].mean(0)
    assert mean[0].max() > 0.7
    assert (mean[1] < mean[0].max()).all()
    assert found["pixels"].mean(0)[1] < found["pixels"].mean(0)[0]
    np.testing.assert_allclose(found["validation"].mean(0), mean, atol=0.15)  # of the same pairs


def test_a_cell_is_what_scikit_learn_finds(found: dict[str, Any]) -> None:
    """Draw 1 of the pair (1, 1), layer up_blocks.1: noise, parts and probe once more, by other means."""
    data = images.load("digits")
    network = denoisers.get(data, "unet", 0, True).denoiser
    generator = torch.Generator().manual_seed(0)
    train = torch.randperm(len(data.train_images), generator=generator)[:300]
    test = torch.randperm(len(data.test_images), generator=generator)[:180]
    eps = torch.randn(480, data.dim, generator=generator)
    x = torch.cat([data.train_images[train], data.test_images[test]]) + eps
    layer = found["layers"][2]
    values = features.extract(network, x, 1.0, [layer], reduce=features.grid_mean(4))[layer].numpy()
    kept = np.r_[0:100, 200:300]
    scaler = StandardScaler().fit(values[kept])
    probe = LogisticRegression(C=1 / (experiment._L2 * len(kept)), max_iter=2000)
    probe.fit(scaler.transform(values[kept]), data.train_labels[train][kept])
    right = probe.predict(scaler.transform(values[360:420])) == data.test_labels[test][60:120].numpy()
    blocks = right.reshape(experiment.BLOCKS, -1).mean(1)
    np.testing.assert_allclose(found["accuracy"][6:12, 1, 1, 2], blocks, atol=0.11)
    assert found["accuracy"][6:12, 1, 1, 2].mean() == pytest.approx(blocks.mean(), abs=0.025)
    held = probe.score(scaler.transform(values[100:200]), data.train_labels[train][100:200])
    assert found["validation"][1, 1, 1, 2] == pytest.approx(held, abs=0.02)


def test_coarse_groups_and_a_stopped_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    g = np.random.default_rng(0)
    labels = np.arange(96) % 4
    pictures = np.clip(50 * labels[:, None, None, None] + g.normal(40, 30, (96, 8, 8, 3)), 0, 255)
    arrays: dict[str, Any] = {"train_images": pictures[:48].astype(np.uint8), "train_labels": labels[:48]}
    arrays |= {"test_images": pictures[48:].astype(np.uint8), "test_labels": labels[48:]}
    arrays |= {"class_names": np.array(list("abcd")), "coarse_names": np.array(["dark", "bright"])}
    np.savez(tmp_path / "four.npz", **arrays, coarse_of_class=np.array([0, 0, 1, 1]))
    small = SMOKE | {"dataset": str(tmp_path / "four.npz"), "draws": 2, "model": "dit"}
    real, calls = experiment._Parts.probed, []

    def stopping(self: Any, network: Any, added: float, levels: Any, layers: Any) -> Any:
        calls.append(added)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(self, network, added, levels, layers)

    monkeypatch.setattr(experiment._Parts, "probed", stopping)
    with pytest.raises(KeyboardInterrupt):
        experiment.run(**small, workdir=tmp_path / "work")
    found = experiment.run(**small, workdir=tmp_path / "work")
    assert calls == [0, 1, 1]  # the first row is kept
    assert found["coarse"].shape == found["accuracy"].shape == (12, 2, 2, 1)
    assert (found["coarse"] >= found["accuracy"]).all()
    assert found["coarse_names"] == ["dark", "bright"]
    assert (found["fitted_images"], found["test_images"]) == (24, 48)


def test_a_published_checkpoint_is_told_its_own_levels(tmp_path: Path, tiny_checkpoint: Path) -> None:
    found = experiment.run(**SMOKE | {"model": str(tiny_checkpoint)}, workdir=tmp_path / "work")
    assert (found["levels"], found["left_out"]) == ([1.0], [0.005])
    assert found["layers"] == ["model.mid_block", "model.up_blocks.0", "model.up_blocks.1"]
    assert found["accuracy"].shape == (18, 2, 1, 3)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": -1}, "seed must be an integer >= 0, got -1"),
        ({"draws": 1}, "draws must be an integer >= 2, got 1"),
        ({"levels": [0.1, -1.0]}, "sigma must be finite and positive"),
        ({"inputs": [-0.1]}, "inputs must be a finite number >= 0, got -0.1"),
        ({"train_samples": 3}, "train_samples must be an integer >= 6, got 3"),
        ({"test_samples": 17}, "test_samples must be an integer >= 18, got 17"),
        ({"dataset": "mnist"}, "unknown data set 'mnist'"),
        ({"model": "cnn"}, "model must be mlp, unet, dit, unet-36m, dit-b, or"),
    ],
)
def test_wrong_values_are_named(tmp_path: Path, change: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        experiment.run(**(SMOKE | change), workdir=tmp_path)
    assert not list(tmp_path.iterdir())
