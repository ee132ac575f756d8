"""The formula that the browser evaluates against the library's."""

import re

import pytest
import vl_convert

from compendium import charts
from experiments.theory.theorem_sliders import theorem_figure
from molrg import snr


@pytest.mark.parametrize(("num_classes", "rank", "delta"), [(3, 5, 0.2), (40, 60, 0.05), (2, 1, 0.9)])
def test_browser_formula(num_classes: int, rank: int, delta: float) -> None:
    """Vega draws each point with a label that states its values; they must be those of Theorem 1."""
    spec = theorem_figure(num_classes, rank, delta, ("#000", "#111"), mark="point")
    spec = charts.show(spec, "Theorem 1's SNR over the noise level").spec | {"width": 400}
    svg = vl_convert.vegalite_to_svg(spec, vl_version="6.4")
    number = r"([-+.\de−]+)"
    labels = re.findall(rf"σ \(log scale\): {number}; SNR \(log scale\): {number}; input: (\w+)", svg)
    assert len(labels) == 2 * 251
    for sigma, value, name in labels:
        level, drawn = (float(text.replace("−", "-")) for text in (sigma, value))
        expected = float(snr.theorem(num_classes, rank, delta, level, noisy_input=name == "noisy"))
        assert drawn == pytest.approx(expected, rel=1e-6)
