"""What the browser shows of the exact SNR: the table, and the interpolation that the figure does."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import vl_convert

from compendium import charts
from experiments.theory import explorer
from molrg import snr

SMALL = ([2, 10], [1, 5])
COLORS = ("#111111", "#222222", "#333333")


@pytest.fixture(scope="module")
def table() -> np.ndarray:
    """The whole table, from the refined formula at all K and d: as hard to interpolate, and fast."""
    return explorer.refined(explorer.CLASSES, explorer.RANKS)


def test_the_grid_holds_exact_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deltas, levels = explorer.DELTAS[[3, 12]], explorer.LEVELS[[5, 25, 45]]
    monkeypatch.setattr(explorer, "DELTAS", deltas.repeat(3))  # of which every third counts
    monkeypatch.setattr(explorer, "LEVELS", levels.repeat(4))
    found = explorer.run(*SMALL, tmp_path)["log_snr"]
    assert found.shape == (2, 2, 2, 2, 3)
    for i, k, d, j, s in np.ndindex(found.shape):
        exact = snr.exact(SMALL[0][k], SMALL[1][d], float(deltas[j]), float(levels[s]), noisy_input=i == 0)
        assert found[i, k, d, j, s] == pytest.approx(np.log(float(exact)), abs=1e-6)


def test_the_fine_table_passes_through_the_grid(table: np.ndarray) -> None:
    coarse = table[..., ::3, ::4] + np.random.default_rng(0).uniform(-0.1, 0.1, table[..., ::3, ::4].shape)
    fine = explorer.fine(coarse, table)
    assert fine.shape == table.shape
    assert np.abs(fine[..., ::3, ::4] - coarse).max() < 1e-9


def drawn(tables: dict[str, np.ndarray], **settings: Any) -> tuple[dict[str, np.ndarray], str]:
    """The curves, (L, 2) with level and SNR, and the line of text that Vega draws at these settings."""
    spec = explorer.figure(tables, 3, 5, COLORS)
    for parameter in spec["params"]:
        if parameter["name"] in settings:
            parameter["value"] = settings[parameter["name"]]
    spec["layer"][0]["mark"] = {"type": "point"}
    spec = charts.show(spec, "the SNR over the noise level").spec | {"width": 400}
    svg = vl_convert.vegalite_to_svg(spec, vl_version=charts.VEGA_LITE)
    number = r"([-+.\de]+)"
    curves: dict[str, list[tuple[float, float]]] = {}
    for level, value, name in re.findall(
        rf"σ \(log scale\): {number}; SNR: {number}; name: ([\w ]+)", svg.replace("−", "-")
    ):
        curves.setdefault(name, []).append((float(level), float(value)))
    (text,) = re.findall(r">(at σ[^<]*)<", svg)
    return {name: np.array(sorted(curve)) for name, curve in curves.items()}, text


@pytest.mark.parametrize("given", ["noisy", "clean"])
@pytest.mark.parametrize(
    ("K", "d", "delta"), [(3, 5, 0.2), (2, 20, 0.07), (100, 20, 0.178), (30, 1, 0.86), (5, 10, 0.5)]
)
def test_what_the_browser_draws_is_right_to_two_per_cent(
    table: np.ndarray, K: int, d: int, delta: float, given: str
) -> None:
    curves, text = drawn({"refined": table}, K=K, d=d, delta=delta, given=given, log_sigma=-0.437)
    assert list(curves) == ["refined", "Theorem 1"]
    for name, function, accuracy in (("refined", snr.refined, 0.02), ("Theorem 1", snr.theorem, 1e-6)):
        levels, values = curves[name].T
        assert len(levels) == len(explorer.LEVELS)
        expected = function(K, d, delta, levels, noisy_input=given == "noisy").numpy()
        assert np.abs(values / expected - 1).max() < accuracy
    sigma = 10**-0.437
    read = dict(re.findall(r"(refined|Theorem 1) ([\d.]+(?:e[-+]?\d+)?)", text))
    for name, function in (("refined", snr.refined), ("Theorem 1", snr.theorem)):
        shown = float(function(K, d, delta, sigma, noisy_input=given == "noisy"))
        assert float(read[name]) == pytest.approx(shown, rel=0.025)  # three digits are shown


def test_between_its_nodes_the_table_is_right_to_two_per_cent(table: np.ndarray) -> None:
    points = np.random.default_rng(0).random((40, 2))
    for u, v in points:
        delta, sigma = 0.07 + 0.79 * u, 0.02 * 300**v
        for i in range(2):
            read = explorer.interpolated(table[i], delta, sigma)
            for k, d in np.ndindex(read.shape):
                expected = snr.refined(explorer.CLASSES[k], explorer.RANKS[d], delta, sigma, i == 0)
                assert abs(read[k, d] / float(expected) - 1) < 0.02, (i, k, d, delta, sigma)


def test_the_text_of_a_table_holds_its_numbers() -> None:
    table = np.linspace(-3, 9, 1500).reshape(2, 1, 1, 3, 250)
    text, low, step = explorer.encode(table)
    codes = np.array([explorer.DIGITS.index(letter) for letter in text]).reshape(-1, 2)
    read = low + step * (codes @ [len(explorer.DIGITS), 1])
    assert np.abs(read - table.ravel()).max() < 2e-3


def test_the_cloud_is_denoised_as_the_library_does() -> None:
    import torch

    from molrg.model.mixture import MoLRG

    spec = explorer.cloud(40, 0, COLORS[:2])
    spec["layer"] = [layer | {"mark": {"type": "point", "clip": False}} for layer in spec["layer"]]
    spec = charts.show(spec, "a cloud of points in the plane").spec | {"width": 400}
    svg = vl_convert.vegalite_to_svg(spec, vl_version=charts.VEGA_LITE).replace("−", "-")
    number = r"([-+.\de]+)"
    found = re.findall(rf"class 1's subspace: {number}; coordinate in class 2's subspace: {number}", svg)
    given, denoised = torch.tensor(np.array(found, dtype=float)).reshape(2, 40, 2)
    mixture = MoLRG([torch.eye(2)[:, [0]], torch.eye(2)[:, [1]]], 0.2)
    expected = mixture.posterior_mean(given, 10**-0.5)
    assert float((denoised - expected).abs().max()) < 1e-3
