"""The probing experiment in small sizes, computed for real: both networks, several data sets, a stop."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from molrg import training
from molrg.experiments import probing

SMALL = probing.settings("digits", "mlp", seeds=2, smoke=True)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    workdir = tmp_path_factory.mktemp("probing é")
    return probing.run(**SMALL, workdir=workdir), workdir


def test_figures_have_the_stated_axes(small: tuple[dict[str, Any], Path]) -> None:
    found, _ = small
    assert found["layers"] == [f"network.blocks.{i}{end}" for end in ("", ".dropout") for i in (0, 1)]
    for name in ("linear", "linear_train", "subspace", "snr", "csnr", "between", "rank"):
        assert found[name].shape == (2, 2, 2, 4)
    for name in ("posterior", "posterior_between", "change"):
        assert found[name].shape == (2, 2, 2)
    assert found["mismatched"].shape == (2, 3, 2)
    assert found["sizes"].shape == (2, 1, 2)
    assert found["strip"].shape == (3, 2, 6, 8, 8, 1)
    assert found["strip"].dtype == np.uint8
    assert (found["train_images"], found["probe_images"], found["test_images"]) == (1437, 400, 200)


def test_figures_are_plausible(small: tuple[dict[str, Any], Path]) -> None:
    found, _ = small
    assert (found["linear"][:, 0, 0] > 0.6).all()  # clean input: ten classes
    assert (found["posterior"][:, 0] > 0.6).all()
    assert (found["raw"] > 0.8).all()
    assert (found["linear"][:, 1, 1] < found["linear"][:, 0, 1]).all()  # at sigma = 1 noise hurts
    assert (found["linear_train"] >= found["linear"] - 0.05).all()
    assert ((found["between"] > 0) & (found["between"] < 1)).all()
    assert ((found["rank"] >= 1) & (found["rank"] <= 32)).all()
    # The denoised image is closer to the clean one where less noise was added.
    assert (found["change"][:, 1, 0] < found["change"][:, 1, 1]).all()
    # Conditioning and input noise that agree are a cell of the mismatched table: the same number.
    level = SMALL["levels"].index(0.1), found["mismatched_levels"].index(0.1)
    for seed in range(2):
        matched = found["linear"][seed, 1, level[0], found["best_layer"][seed]]
        assert abs(found["mismatched"][seed, level[1], level[0]] - matched) <= 0.03


def test_a_stopped_run_goes_on(
    small: tuple[dict[str, Any], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in the second seed, called again: the first seed is not computed again, all figures agree."""
    real, calls = training.train, []

    def stopping(*arguments: Any, **options: Any) -> Any:
        calls.append(options["checkpoint"].name)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    monkeypatch.setattr(training, "train", stopping)
    with pytest.raises(KeyboardInterrupt):
        probing.run(**SMALL, workdir=tmp_path)
    again = probing.run(**SMALL, workdir=tmp_path)
    assert calls == ["denoiser-0.safetensors", "denoiser-1.safetensors", "denoiser-1.safetensors"]
    expected, _ = small
    for name in ("linear", "posterior", "losses", "strip"):
        np.testing.assert_array_equal(again[name], expected[name])


def test_changed_data_are_computed_anew(tmp_path: Path) -> None:
    """The same path, other labels or images: nothing stored in the folder of checkpoints is taken up."""
    g = np.random.default_rng(0)
    labels = np.arange(60) % 3
    pictures = np.clip(60 * labels[:, None, None] + g.normal(40, 20, (60, 8, 8)), 0, 255).astype(np.uint8)
    small = probing.settings(str(tmp_path / "three.npz"), "mlp", seeds=1, smoke=True) | {"steps": 5}

    def run(images: np.ndarray, kinds: np.ndarray, workdir: str) -> dict[str, Any]:
        arrays: dict[str, Any] = {
            "train_images": images[:40],
            "train_labels": kinds[:40],
            "test_images": images[40:],
            "test_labels": kinds[40:],
        }
        np.savez(tmp_path / "three.npz", **arrays, class_names=np.array(["dark", "grey", "bright"]))
        return probing.run(**small, workdir=tmp_path / workdir)

    first = run(pictures, labels, "shared")
    shuffled = run(pictures, g.permutation(labels), "shared")
    assert shuffled["linear"].mean() < first["linear"].mean() - 0.2
    darker = run(pictures // 2, labels, "shared")
    np.testing.assert_array_equal(darker["losses"], run(pictures // 2, labels, "alone")["losses"])
    assert darker["losses"] != first["losses"]


def test_unet_on_an_npz_of_colour_images(tmp_path: Path) -> None:
    g = np.random.default_rng(0)
    labels = np.arange(60) % 3
    pictures = np.clip(60 * labels[:, None, None, None] + g.normal(40, 20, (60, 8, 8, 3)), 0, 255)
    np.savez(
        tmp_path / "three.npz",
        train_images=pictures[:40].astype(np.uint8),
        train_labels=labels[:40],
        test_images=pictures[40:].astype(np.uint8),
        test_labels=labels[40:],
        class_names=np.array(["dark", "grey", "bright"]),
    )
    small = probing.settings(str(tmp_path / "three.npz"), "unet", seeds=1, smoke=True)
    found = probing.run(**small, workdir=tmp_path / "work")
    assert len(found["layers"]) == 7
    assert found["strip"].shape == (3, 2, 3, 8, 8, 3)
    assert found["sample_sizes"] == [40]
    assert found["linear"][0, 0].max() > 0.9


def test_wrong_parameters_stop_the_run_before_any_work(tmp_path: Path) -> None:
    for change, error, message in (
        ({"network": "cnn"}, ValueError, "network must be 'mlp' or 'unet'"),
        ({"seeds": 0}, ValueError, "seeds must be an integer >= 1"),
        ({"dataset": "mnist"}, ValueError, "unknown data set 'mnist'"),
        ({"dataset": str(tmp_path / "none.npz")}, FileNotFoundError, "not found: looked for"),
    ):
        with pytest.raises(error, match=message):
            probing.run(**{**SMALL, **change}, workdir=tmp_path / "work")
    assert not (tmp_path / "work").exists()


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
