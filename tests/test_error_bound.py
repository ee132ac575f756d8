"""The enclosure of the exact SNR: each of its parts against the exact moments, and the whole on any model."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.theory import error_bound
from molrg import snr
from molrg.model.coefficients import block_variances, coefficients
from molrg.snr.quadrature import weight_moments


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 1000), st.integers(1, 100), st.floats(0.02, 0.95), st.floats(0.005, 100), st.booleans())
def test_the_exact_value_is_inside(
    num_classes: int, rank: int, delta: float, sigma: float, noisy: bool
) -> None:
    low, high = error_bound.enclosure(num_classes, rank, delta, sigma, noisy)
    exact = snr.exact(num_classes, rank, delta, sigma, noisy).item()
    assert low.shape == (3, 1)
    assert high.shape == (2, 1)
    assert low.max() <= exact * (1 + 1e-9)
    assert high.min() >= exact * (1 - 1e-9)
    formula = snr.theorem(num_classes, rank, delta, sigma, noisy).item()
    bound = error_bound.bound(num_classes, rank, delta, sigma, noisy).item()
    assert abs(np.log(formula / exact)) <= bound + 1e-9
    assert bound <= 2 * np.log((delta**2 + sigma**2) / (delta**2 * (1 + sigma**2))) + 1e-9


@pytest.mark.parametrize("noisy", [True, False])
def test_both_branches_are_the_exact_value_in_their_limits(noisy: bool) -> None:
    low, high = error_bound.enclosure(3, 200, 0.2, [0.3, 60.0], noisy)
    exact = snr.exact(3, 200, 0.2, [0.3, 60.0], noisy).numpy()
    assert low[1, 0] == pytest.approx(exact[0], rel=1e-5)
    assert high[0, 0] == pytest.approx(exact[0], rel=1e-5)
    assert low[2, 1] == pytest.approx(exact[1], rel=2e-3)
    assert high[1, 1] == pytest.approx(exact[1], rel=2e-3)
    assert high[1, 1] > low[2, 1]


@pytest.mark.parametrize(("num_classes", "rank"), [(2, 3), (6, 4)])
def test_undecided_points_are_counted_from_above_and_closely(num_classes: int, rank: int) -> None:
    sigma, delta = 0.3, 0.2
    kappa = coefficients(sigma, delta).kappa
    own, other = block_variances(sigma, delta)
    one, _, lost, gone = np.array(weight_moments(num_classes, rank, kappa * own, kappa * other)) / rank
    low, _ = error_bound.enclosure(num_classes, rank, delta, sigma)
    unit = own / other / (num_classes - 1)
    mu = (delta**2 + sigma**2) / (delta**2 * (1 + sigma**2)) - 1
    ideal = unit * (1 + mu * one) ** 2 / (1 + 2 * mu * lost + mu**2 * gone)
    assert ideal / 3 < low[1, 0] <= ideal


def test_wrong_values_are_named() -> None:
    with pytest.raises(ValueError, match="num_classes must be an integer >= 2, got 1"):
        error_bound.bound(1, 5, 0.2, 1.0)
