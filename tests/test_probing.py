"""The probing experiment in small sizes, computed for real: networks, data sets, a stop, a checkpoint."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from experiments.images import denoisers, probing
from molrg import images
from molrg.measuring import probes, subspaces

SMALL = probing.settings("digits", "dit", seed=0, draws=2, smoke=True) | {
    "probe_samples": 200,
    "test_samples": 100,
}


@pytest.fixture(scope="module", autouse=True)
def _networks(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Train in a folder of these tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MOLRG_NETWORKS", str(tmp_path_factory.mktemp("networks")))
        yield


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    workdir = tmp_path_factory.mktemp("probing é")
    return probing.run(**SMALL, workdir=workdir), workdir


def test_figures_have_the_stated_axes(small: tuple[dict[str, Any], Path]) -> None:
    found, _ = small
    assert found["layers"] == [f"network.model.transformer_blocks.{i}" for i in (0, 1)]
    assert found["kinds"] == ["block"] * 2
    for name in probing.FIGURES:
        assert found[name].shape == (2, 1, 2, 3, 2)
    assert found["transfer"].shape == (2, 2, 4, 4)
    assert found["posterior"].shape == (2, 1, 2, 3)
    assert found["between"].shape == (2, 2, 3)
    assert found["image_csnr"].shape == (2, 2, 2, 3)
    assert found["pixels"].shape == (2, 1)
    assert (found["train_images"], found["probe_images"], found["test_images"]) == (1437, 200, 100)


def test_figures_are_plausible(small: tuple[dict[str, Any], Path]) -> None:
    found, _ = small
    assert (found["linear"][:, 0, 0] > 0.6).all()  # clean input: ten classes
    assert (found["linear"][:, 0, 1, 2] < found["linear"][:, 0, 0, 2]).all()  # at sigma = 1 noise hurts
    assert (found["linear_train"] >= found["linear"] - 0.05).all()
    assert (found["subspace"][:, 0, 0] > 0.5).all()
    assert (found["pixels"] > 0.7).all()
    assert ((found["between"] > 0) & (found["between"] < 1)).all()
    assert (np.ptp(found["linear"], axis=0) > 0).any()  # each draw has images and noise of its own
    # A fresh classifier is the one that was fitted to the level on which it is tested.
    fresh = np.diagonal(found["transfer"], axis1=2, axis2=3)[:, :, 1:]
    np.testing.assert_array_equal(found["posterior"][:, 0], fresh)
    # Images as they are do not depend on the input that is denoised.
    np.testing.assert_array_equal(found["transfer"][:, 0, 0, 0], found["transfer"][:, 1, 0, 0])
    assert (found["transfer"][:, :, 0, 0] > 0.7).all()


def test_reader_agrees_with_a_second_route() -> None:
    """One layer, level and input: features, probe, subspace and SNR computed step by step."""
    data, denoiser, _ = denoisers.get(images.load("digits"), "unet", 0, True)
    reader = probing.Reader(denoiser, data, 150, 80, 5)
    found = reader.figures([0.3])
    name = next(each for each in reader.layers if each.endswith("up_blocks.2.resnets.1"))
    layer, kept = reader.layers.index(name), []
    module = dict(denoiser.named_modules())[name]
    handle = module.register_forward_hook(lambda *call: kept.append(call[2]))
    with torch.no_grad():
        for rows, noise, pictures in (
            (reader.train, reader.noise[0], data.train_images),
            (reader.test, reader.noise[1], data.test_images),
        ):
            denoiser(pictures[rows] + 0.3 * noise, 0.3)
    handle.remove()
    z, zt = (functional.avg_pool2d(each, 2).flatten(1)[None] for each in kept)  # 8 x 8 maps, 4 x 4 places
    labels, test_labels = data.train_labels[reader.train], data.test_labels[reader.test]
    unit, mean = subspaces.unit_features(z)
    bases = subspaces.class_subspaces(unit, labels, 5, 10)
    snr = bases.snr(unit, labels, denominator="classes").item()
    assert found["csnr"][0, 1, 0, layer] == pytest.approx(snr, rel=1e-3)
    nearest = bases.accuracy(subspaces.unit_features(zt, mean)[0], test_labels).item()
    assert found["subspace"][0, 1, 0, layer] == pytest.approx(nearest, abs=0.03)
    best = max(
        probes.fit_logistic(z, labels, l2, 10).accuracy(zt, test_labels).item() for l2 in (0.3, 0.03, 3e-3)
    )
    assert best - 0.1 <= found["linear"][0, 1, 0, layer] <= best + 0.03


def test_layers_are_averaged_until_few_features_are_left() -> None:
    maps = torch.arange(2 * 3 * 8 * 8.0).reshape(2, 3, 8, 8)
    expected = functional.avg_pool2d(maps, 2).flatten(1)
    torch.testing.assert_close(probing._pooled(maps), expected)
    torch.testing.assert_close(probing._pooled(maps.flatten(2).mT), expected)  # tokens row by row
    assert probing._pooled(torch.zeros(2, 128, 7, 7)).shape == (2, 512)
    assert probing._pooled(torch.zeros(2, 600, 7, 7)).shape == (2, 600)
    assert probing._pooled(torch.zeros(2, 9)).shape == (2, 9)


def test_a_stopped_run_goes_on(
    small: tuple[dict[str, Any], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in the second draw, called again: the first is not computed again, all figures agree."""
    real, calls = probing.Reader.figures, []

    def stopping(self: probing.Reader, *arguments: Any) -> Any:
        calls.append(self.draw)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(self, *arguments)

    monkeypatch.setattr(probing.Reader, "figures", stopping)
    with pytest.raises(KeyboardInterrupt):
        probing.run(**SMALL, workdir=tmp_path)
    again = probing.run(**SMALL, workdir=tmp_path)
    assert calls == [0, 1, 1]
    expected, _ = small
    for name in (*probing.FIGURES, "transfer", "pixels"):
        np.testing.assert_array_equal(again[name], expected[name])


def _write_pictures(path: Path, labels: np.ndarray, coarse: bool) -> None:
    """Colour images in four classes of brightness: dark and dusky, grey and bright."""
    g = np.random.default_rng(0)
    pictures = np.clip(50 * labels[:, None, None, None] + g.normal(40, 15, (80, 8, 8, 3)), 0, 255)
    arrays: dict[str, Any] = {
        "train_images": pictures[:60].astype(np.uint8),
        "train_labels": labels[:60],
        "test_images": pictures[60:].astype(np.uint8),
        "test_labels": labels[60:],
        "class_names": np.array(["dark", "dusky", "grey", "bright"]),
    }
    if coarse:
        arrays |= {"coarse_of_class": np.array([0, 0, 1, 1]), "coarse_names": np.array(["low", "high"])}
    np.savez(path, **arrays)


def test_coarse_labels_and_changed_data(tmp_path: Path) -> None:
    """Coarse labels get a second probe; other labels under the same path take up nothing that was stored."""
    labels, path = np.arange(80) % 4, tmp_path / "four.npz"
    small = probing.settings(str(path), "unet", 0, 1, True) | {"levels": [0.1]}
    _write_pictures(path, labels, coarse=True)
    found = probing.run(**small, workdir=tmp_path / "work")
    assert len(found["layers"]) == 20
    assert found["coarse_names"] == ["low", "high"]
    assert found["linear"].shape == (1, 2, 2, 1, 20)
    assert found["linear"][0, 1].max() > 0.9
    assert found["linear"][0, 1].mean() > found["linear"][0, 0].mean()  # two groups are told more easily
    _write_pictures(path, np.random.default_rng(1).permutation(labels), coarse=False)
    again = probing.run(**small, workdir=tmp_path / "work")
    assert again["linear"].shape == (1, 1, 2, 1, 20)


def test_best_probe_reads_each_layer_and_all_together(tmp_path: Path) -> None:
    found = probing.best_probe("digits", "unet", 0, 0.3, True, workdir=tmp_path)
    assert len(found["layers"]) == 6
    assert all("up_blocks" in name and "resnets" in name for name in found["layers"])
    assert found["dims"][-1] == sum(found["dims"][:-1])
    assert found["accuracy"].shape == found["accuracy_train"].shape == (7,)
    assert (found["accuracy"] > 0.7).all()
    assert found["train_images"] == 1437


def test_published_checkpoint_and_levels_outside_its_range(tmp_path: Path, tiny_checkpoint: Path) -> None:
    small = probing.settings("digits", str(tiny_checkpoint), 0, 1, True) | {"levels": [0.002, 0.3]}
    found = probing.run(**small, workdir=tmp_path / "work")
    assert (found["levels"], found["left_out"]) == ([0.3], [0.002])
    assert "skip" in found["kinds"]
    assert "decoder" in found["kinds"]
    assert found["linear"][0, 0, 0].max() > 0.6
    with pytest.raises(ValueError, match="none of the levels"):
        probing.run(**small | {"levels": [0.002]}, workdir=tmp_path / "none")


def test_wrong_parameters_stop_the_run_before_any_work(tmp_path: Path) -> None:
    for change, error, message in (
        ({"model": "cnn"}, ValueError, "'cnn'"),
        ({"draws": 0}, ValueError, "draws must be an integer >= 1"),
        ({"seed": -1}, ValueError, "seed must be an integer >= 0"),
        ({"dataset": "mnist"}, ValueError, "unknown data set 'mnist'"),
        ({"dataset": str(tmp_path / "none.npz")}, FileNotFoundError, "not found: looked for"),
    ):
        with pytest.raises(error, match=message):
            probing.run(**{**SMALL, **change}, workdir=tmp_path / "work")
    assert not (tmp_path / "work").exists()


def test_names_and_peaks() -> None:
    for layer, name in (
        ("network.model.conv_in", "first convolution"),
        ("model.down_blocks.0.downsamplers.0", "encoder 1 down"),
        ("network.model.mid_block.attentions.0", "middle 1 attention"),
        ("network.model.up_blocks.1.resnets.0", "decoder 2.1"),
        ("network.model.transformer_blocks.3", "block 4"),
    ):
        assert probing.plain(layer) == name
    levels = [0.1, 0.2, 0.4, 0.8]
    parabola = -((np.log(levels) - np.log(0.25)) ** 2)
    assert probing.peak_level(parabola, levels) == pytest.approx(0.25)
    assert probing.peak_level(np.array([4.0, 3, 2, 1]), levels) == 0.1
    assert probing.peak_level(np.array([1.0, 2, 3, 4]), levels) == 0.8


def test_shape_of_curves() -> None:
    one_peak = probing.shape(np.array([[1.0, 3.0, 2.0], [1.2, 3.2, 2.1]]))
    assert one_peak.peak == 1
    assert one_peak.unimodal
    assert one_peak.rise == pytest.approx(2.0)
    assert one_peak.fall == pytest.approx(1.05)
    assert one_peak.fall_error == pytest.approx(0.05)
    assert not probing.shape(np.array([[3.0, 2.0, 1.0]])).unimodal
    assert not probing.shape(np.array([[1.0, 2.0, 3.0]])).unimodal
    noisy = probing.shape(np.array([[1.0, 2.0, 0.0], [2.0, 1.5, 0.0], [1.0, 1.1, 0.0]]))
    assert noisy.peak == 1
    assert not noisy.unimodal  # the rise is within its error
