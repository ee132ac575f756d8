"""Curves from stored readings: the choice of a block, verdicts and differences, on readings made by hand."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments.images import image_page, neighbours, probing, readings

READOUT, LEVELS, COUNT = readings.READOUTS[0], [0.01, 0.1, 1.0], 400


def reading(curves: dict[str, list[float]], seed: int = 0) -> dict[str, Any]:
    """A reading whose blocks have these shares of right images, on noisy and on clean input."""
    rng = np.random.default_rng(seed)
    shares = np.array(list(curves.values()))
    right = rng.random((1, 2, *shares.shape, COUNT)) < shares[None, None, ..., None]
    return {
        "blocks": list(curves),
        "readouts": [READOUT],
        "levels": LEVELS,
        "count": COUNT,
        "tests": np.packbits(right, axis=-1),
        "validation": np.broadcast_to(shares, (1, 2, *shares.shape)),
    }


PEAKED = reading(
    {"down_blocks.0": [0.2, 0.3, 0.1], "mid_block": [0.3, 0.6, 0.1], "denoised": [0.9, 0.9, 0.9]}
)


def test_the_block_is_chosen_on_validation_images_and_is_not_the_denoised_image() -> None:
    assert probing.best_block(PEAKED, READOUT, "noisy") == "mid_block"


def test_a_peak_is_seen_and_a_flat_curve_is_none() -> None:
    s = probing.shape([PEAKED], READOUT, "clean", "mid_block")
    assert s.verdict == "peak"
    assert s.level == 0.1
    assert s.unit == "test image"
    assert s.units == COUNT
    assert not probing.shape([PEAKED], READOUT, "clean", "denoised").has_peak
    seeds = [reading({"mid_block": [0.3, 0.6, 0.1]}, seed) for seed in range(4)]
    several = probing.shape(seeds, READOUT, "noisy", "mid_block")
    assert several.unit == "training seed"
    assert several.has_peak


def test_what_training_adds_is_paired_by_images() -> None:
    control = reading({"filters": [0.2, 0.2, 0.2]}, 7)
    more = probing.added(PEAKED, control, READOUT, "noisy", "mid_block")
    own, other = (readings.right(each)[0, 0, b].mean(-1) for each, b in ((PEAKED, 1), (control, 0)))
    np.testing.assert_allclose([each.mean for each in more], own - other)
    assert more[1].low > 0.3
    itself = probing.added(PEAKED, PEAKED, READOUT, "noisy", "mid_block")
    assert all(each.mean == 0 for each in itself)


def test_names_of_blocks() -> None:
    names = {
        "down_blocks.0": "encoder 1",
        "mid_block": "middle",
        "up_blocks.2": "decoder 3",
        "pixels": "pixels",
    }
    assert {name: probing.plain(name) for name in names} == names


def test_the_networks_of_a_data_set_are_those_of_the_zoo(monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = [
        {"data": data, "network": network, "seed": seed, "images": images}
        for data, network, seed, images in (
            ("garments", "unet-32-64", 0, 10_000),
            ("garments", "unet-32-64", 0, 20_000),
            ("garments", "unet-32-64", 0, 30_000),
            ("garments", "unet-32-64", 1, 30_000),
            ("garments", "unet-32-48", 0, 99),
            ("natural-16", "unet-32-64-96", 0, 7),
        )
    ]
    asked = []

    class Stored:
        def __init__(self, *given: Any, **_: Any) -> None:
            asked.append(given)
            self.value = {"given": given}

    monkeypatch.setattr(probing.zoo, "listed", lambda: shipped)
    monkeypatch.setattr(readings, "stored", Stored)
    found = probing.networks("garments")
    assert list(found.seen) == [10_000, 30_000]
    assert [each["given"] for each in found.last] == [("garments", 30_000), ("garments", 30_000, 1)]
    assert list(found.controls) == list(probing.CONTROLS)
    assert len(asked) == len(found.records) == 6


def test_neighbours_are_nearest_and_of_the_class_more_often_than_by_chance(tmp_path: Path) -> None:
    found = neighbours.run("digits", (32, 48), 20_000, 0, 2, [0.1, 5.0], 5, 4, 300, workdir=tmp_path)
    assert found["asked"].shape == (5, 8, 8, 1)
    assert found["nearest"].shape == (2, 5, 4, 8, 8, 1)
    assert found["same"][0] > 0.7
    assert found["same"][1] < 0.4
    assert not (found["nearest"] == found["asked"][:, None]).all((-3, -2, -1)).any()


def test_what_was_read_is_told(tmp_path: Path, tiny_checkpoint: Path) -> None:
    lines = image_page.as_read("digits", "", workdir=tmp_path)["lines"]
    assert any("8 x 8 pixels" in line for line in lines)
    more = image_page.as_read("digits", str(tiny_checkpoint), workdir=tmp_path)["lines"]
    assert more[: len(lines)] == lines
    assert len(more) > len(lines)
