"""The fitted readouts: shapes, what theory says of them, and repeatability."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments.theory import class_information
from experiments.theory import readouts as experiment

SMOKE: dict[str, Any] = {
    "num_classes": 3,
    "rank": 5,
    "dim": 50,
    "delta": 0.2,
    "num_levels": 4,
    "train_per_class": 400,
    "test_per_class": 300,
    "seeds": 3,
    "shots": [2, 50],
    "draws": 4,
    "few_test_per_class": 100,
}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return experiment.run(**SMOKE, workdir=tmp_path_factory.mktemp("smoke"))


def test_shapes(found: dict[str, Any]) -> None:
    assert found["many"].shape == (3, 2, 3, 3, 4)
    for key in ("few", "few_error", "few_rise"):
        assert found[key].shape == (2, 2, 5, 4)
        assert np.isfinite(found[key]).all()
    np.testing.assert_allclose(found["levels"][[0, -1]], [0.01, 4])
    assert found["shots"] == [2, 50]


def test_invariant_readouts_are_bayes(found: dict[str, Any]) -> None:
    for i, noisy in enumerate((True, False)):
        bayes = class_information.bayes_accuracy(3, 5, 0.2, found["levels"], noisy).numpy()
        for readout in (1, 2):
            assert np.abs(found["many"][:, i, 2, readout].mean(0) - bayes).max() < 0.05


def test_span_coordinates_change_nothing_for_the_denoised_point(found: dict[str, Any]) -> None:
    for readout in (1, 2):
        np.testing.assert_allclose(
            found["many"][:, :, 1, readout], found["many"][:, :, 2, readout], atol=0.01
        )


def test_clean_points_do_not_know_sigma(found: dict[str, Any]) -> None:
    assert (np.ptp(found["many"][:, 1, 0], axis=-1) == 0).all()
    assert (found["few_rise"][:, 1, 0] == 0).all()


def test_two_labels_profit_from_denoising(found: dict[str, Any]) -> None:
    few = found["few"]
    assert few[0, 1, 1].max() > few[0, 1, 1, 0] + 0.05
    assert few[0, 1, 0].max() == few[0, 1, 0].min()
    assert np.ptp(few[1, 1, 1]) < 0.02


def test_repeats(tmp_path: Path) -> None:
    tiny = SMOKE | {"train_per_class": 20, "test_per_class": 20, "seeds": 1, "shots": [1], "draws": 2}
    one, two = (experiment.run(**tiny, workdir=tmp_path) for _ in range(2))
    assert all(np.array_equal(one[key], two[key]) for key in one)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seeds": 0}, "seeds must be an integer >= 1, got 0"),
        ({"draws": 1}, "draws must be an integer >= 2, got 1"),
        ({"shots": [0]}, "shots must be an integer >= 1, got 0"),
        ({"train_per_class": 4}, "train_per_class must be an integer >= 5, got 4"),
        ({"num_levels": 1}, "num_levels must be an integer >= 2, got 1"),
    ],
)
def test_wrong_values_are_named(tmp_path: Path, change: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        experiment.run(**(SMOKE | change), workdir=tmp_path)
