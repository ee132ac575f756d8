"""The peak finder: places against closed forms, flat and noisy ends, curves with other shapes."""

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from molrg import snr
from molrg.snr import peaks

Curve = Callable[[np.ndarray], Any]


def bump(place: float, width: float = 1.0) -> Curve:
    return lambda s: 3 / np.cosh(np.log(s / place) / width)


@settings(max_examples=50)
@given(st.floats(2e-3, 50), st.floats(0.2, 3), st.floats(-0.5, 0.5))
def test_place_and_height_of_a_lopsided_peak(place: float, width: float, tilt: float) -> None:
    """The curve u e^{-u}, u a power of sigma times something that grows with it, has its top at u = 1."""

    def curve(s: np.ndarray) -> np.ndarray:
        t = np.log(s / place) / width
        u = np.exp(t + tilt * np.tanh(t))
        return 7 * u * np.exp(-u)

    found = peaks.find(curve, 1e-4, 1e3)
    assert found.sigma == pytest.approx(place, rel=5e-6)
    assert found.height == pytest.approx(7 / math.e, rel=1e-9)
    assert found.is_single


def test_any_grid_finds_the_same_peak() -> None:
    for points in (5, 26, 400):
        assert peaks.find(bump(0.7), 1e-2, 1e2, points).sigma == pytest.approx(0.7, rel=2e-6)


def test_the_clean_snr() -> None:
    found = peaks.find(lambda s: snr.exact(3, 5, 0.2, s, noisy_input=False), 0.2, 2, points=5)
    assert found.is_single
    assert found.sigma == pytest.approx(0.555923, rel=2e-6)
    near = [found.sigma * (1 - 1e-4), found.sigma, found.sigma * (1 + 1e-4)]
    values = snr.exact(3, 5, 0.2, near, noisy_input=False).numpy()
    assert values.argmax() == 1
    assert found.height == pytest.approx(values[1], rel=1e-10)


def test_rounding_on_flat_ends_is_no_peak() -> None:
    falls = peaks.find(lambda s: snr.theorem(3, 1, 0.5, s), 1e-9, 1e9)
    assert falls[2:] == (0, 0, "low")
    assert peaks.find(lambda s: snr.theorem(3, 1, 0.5, s, noisy_input=False), 1e-9, 1e9).is_single
    noise = np.random.default_rng(0).normal(size=101) * 1e-12

    def rough(s: np.ndarray) -> np.ndarray:
        return 1 / (1 + s) * (1 + noise[: len(s)])

    assert peaks.find(rough) == (1e-3, pytest.approx(1 / 1.001), 0, 0, "low")
    assert peaks.find(rough, 1e-12, 1e-9, accuracy=0).num_maxima > 10


def test_accuracy_is_the_least_rise_that_counts() -> None:
    def ripple(s: np.ndarray) -> np.ndarray:
        return 1 / (1 + s) + 1e-4 * bump(0.05, 0.3)(s)

    assert peaks.find(lambda s: ripple(s) + s).num_maxima == 0
    wavy = lambda s: 5 + np.sin(3 * np.log(s)) / 100  # noqa: E731
    assert peaks.find(wavy, accuracy=1e-2).num_maxima == 0
    assert peaks.find(wavy, accuracy=1e-3).num_maxima == 5


def test_monotone_curves_are_highest_at_an_end() -> None:
    assert peaks.find(lambda s: s, 0.1, 10) == (10, 10, 0, 0, "high")
    assert peaks.find(lambda s: -s, 0.1, 10) == (0.1, -0.1, 0, 0, "low")
    assert peaks.find(np.ones_like, 0.1, 10) == (0.1, 1, 0, 0, "low")


def test_other_shapes_are_not_single() -> None:
    two = peaks.find(lambda s: bump(0.05)(s) + 2 * bump(5)(s))
    assert (two.num_maxima, two.num_minima, two.edge) == (2, 1, None)
    assert two.sigma == pytest.approx(5, rel=0.05)
    assert not two.is_single
    dip_first = peaks.find(lambda s: 2 * bump(1)(s) + 0.5 / s**0.5, 1e-2, 1e2)
    assert (dip_first.num_maxima, dip_first.num_minima) == (1, 1)
    assert not dip_first.is_single
    lower_than_the_end = peaks.find(lambda s: bump(1, 0.3)(s) + s / 10, 1e-2, 1e2)
    assert (lower_than_the_end.num_maxima, lower_than_the_end.num_minima) == (1, 1)
    assert lower_than_the_end.edge == "high"


def test_plateaus_and_kinks() -> None:
    flat = peaks.find(lambda s: np.minimum(bump(1)(s), 2))
    assert flat.is_single
    assert flat.height == 2
    kink = peaks.find(lambda s: -np.abs(np.log(s / 0.3)))
    assert kink.sigma == pytest.approx(0.3, rel=2e-3)


def test_values_may_be_tensors_and_levels_stay_in_range() -> None:
    seen = []

    def curve(s: np.ndarray) -> torch.Tensor:
        seen.append(s)
        return torch.from_numpy(bump(0.3)(s))

    peaks.find(curve, 0.1, 10)
    assert min(s.min() for s in seen) == 0.1
    assert max(s.max() for s in seen) == 10
    assert len(seen) < 8


@pytest.mark.parametrize(("ends", "edge"), [((2.0, 1.0), "low"), ((1.0, 2.0), "high"), ((2.0, 2.0), "low")])
def test_an_end_as_high_as_the_best_turn_is_no_peak_inside(ends: tuple[float, float], edge: str) -> None:
    levels = np.geomspace(0.1, 10, 5)
    values = np.array([ends[0], 1.5, 2.0, 1.5, ends[1]])
    values[1 if ends[0] < 2 else 3] = 1.4
    found = peaks.find(lambda s: np.interp(np.log(s), np.log(levels), values), 0.1, 10, 5)
    assert (found.edge, found.height) == (edge, 2.0)
    assert found.sigma == (0.1 if edge == "low" else 10)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"low": 0}, "sigma must be finite and positive, got 0"),
        ({"low": 3, "high": 3}, "low must be below high, got low=3 and high=3"),
        ({"points": 4}, "points must be an integer >= 5, got 4"),
        ({"accuracy": 1.0}, "accuracy must lie in [0, 1), got 1.0"),
        ({"accuracy": False}, "accuracy must lie in [0, 1), got False"),
        ({"accuracy": math.nan}, "accuracy must lie in [0, 1)"),
        ({"function": lambda s: s[1:]}, "one value per noise level, shape (101,), got shape (100,)"),
        ({"function": lambda s: 1 / (s > 1)}, "finite values; at sigma = 0.001 it does not"),
    ],
)
@pytest.mark.filterwarnings("ignore:divide by zero")
def test_wrong_arguments_are_named(arguments: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=re.escape(named)):
        peaks.find(**({"function": bump(1)} | arguments))
