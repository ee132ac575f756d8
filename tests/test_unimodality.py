"""The experiment on unimodality: a certificate for real, a refusal, a restart, and a small scan."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments.theory import one_peak
from experiments.theory import unimodality as experiment
from molrg import snr


def test_certificates_and_a_refusal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    true, calls = one_peak.exact, []

    def certificate(num_classes: int, rank: int, delta: float) -> one_peak.Certificate:
        calls.append(num_classes)
        if num_classes == 3:
            raise one_peak.NotCertified("two peaks")
        return true(num_classes, rank, delta)

    monkeypatch.setattr(one_peak, "exact", certificate)
    mixtures = [[2, 2, 0.8], [3, 2, 0.8]]
    found = experiment.run(mixtures, workdir=tmp_path)
    assert found["certified"].tolist() == [True, False]
    assert found["mixtures"].tolist() == mixtures
    assert found["intervals"][0] > 10
    assert found["evaluations"].tolist() == [96, 0]
    (low, high), (least, most) = found["sigma"][0], found["height"][0]
    middle = float(snr.exact(2, 2, 0.8, (low + high) / 2, noisy_input=False))
    assert least - 1e-12 < middle < most + 1e-12
    assert np.isnan(found["sigma"][1]).all()
    again = experiment.run(mixtures, workdir=tmp_path)  # from what the first run has left
    assert calls == [2, 3]
    assert all(np.array_equal(found[key], again[key], equal_nan=True) for key in found)


def test_scan() -> None:
    grid: dict[str, Any] = {"num_classes": [2, 3], "ranks": [1, 5], "deltas": [0.2, 0.5]}
    found = experiment.scan(**grid, low=0.1, high=3, points=9, workdir=Path())
    assert {key: value.shape for key, value in found.items()} == dict.fromkeys(found, (2, 2, 2))
    assert (found["maxima"] == 1).all()
    assert (found["minima"] == 0).all()
    assert (found["margin"] > 1e3).all()


def test_scan_sees_other_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    def wavy(k: int, d: int, delta: float, levels: np.ndarray, noisy_input: bool) -> torch.Tensor:
        return torch.from_numpy((2 + np.sin(8 * np.log(levels))) / ((k - 1) * delta**2))

    monkeypatch.setattr(snr, "exact", wavy)
    found = experiment.scan([2], [1], [0.5], 0.5, 3, 60, Path())
    assert found["maxima"].item() == 3
    assert found["margin"].item() < -1e3


def test_wrong_values_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="delta must lie strictly between 0 and 1"):
        experiment.run([[2, 2, 1.5]], workdir=tmp_path)
    with pytest.raises(ValueError, match="points must be an integer >= 5, got 4"):
        experiment.scan([2], [1], [0.5], 0.1, 1, 4, tmp_path)
