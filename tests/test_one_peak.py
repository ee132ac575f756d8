"""Certificates of a single peak: against the peak finder, and refused where they should be."""

import math
import re
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from flint import arb, ctx
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.theory import one_peak
from molrg import snr
from molrg.snr import enclosures, peaks


@settings(max_examples=30)
@given(st.integers(2, 1000), st.integers(1, 200), st.floats(0.01, 0.9))
def test_theorem_against_the_peak_finder(num_classes: int, rank: int, delta: float) -> None:
    found = one_peak.theorem(num_classes, rank, delta)
    (low, high), (least, most) = found.sigma, found.height
    assert low < high < low * (1 + 1e-13)
    assert least < most < least * (1 + 1e-12)
    seen = peaks.find(lambda s: snr.theorem(num_classes, rank, delta, s, noisy_input=False), 1e-2, 1e2, 401)
    assert seen.is_single
    assert seen.sigma == pytest.approx(low, rel=1e-4)
    assert seen.height == pytest.approx(least, rel=1e-7)
    middle = float(snr.theorem(num_classes, rank, delta, (low + high) / 2, noisy_input=False))
    assert middle == pytest.approx(least, rel=1e-11)


@pytest.mark.parametrize("mixture", [(2, 2, 0.3), (3, 1, 0.9)])
def test_exact_against_the_peak_finder(mixture: tuple[int, int, float]) -> None:
    found = one_peak.exact(*mixture)
    (low, high), (least, most) = found.sigma, found.height
    assert low < high < low * (1 + 1e-6)
    assert least < most < least * (1 + 1e-9)
    assert found.evaluations >= 96
    lows, highs, signs = zip(*found.intervals, strict=True)
    assert lows[:-1] == highs[1:]  # without gaps, from high noise to low
    assert lows[-1] < 1e-4
    assert re.fullmatch(r"[+f]*\+f+-[-f]*", "".join(signs))
    assert len(signs) >= 20
    seen = peaks.find(lambda s: snr.exact(*mixture, s, noisy_input=False), low / 2, 2 * high, 9)
    assert seen.sigma == pytest.approx((low + high) / 2, rel=1e-5)
    assert least * (1 - 1e-12) < seen.height < most * (1 + 1e-12)


def enclosed(function: Callable[[Any], Any], derivative: Callable[[Any], Any]) -> Callable[..., Any]:
    return lambda u, v: (function(arb(u).union(arb(v))), derivative(arb(u).union(arb(v))))


def test_one_change_of_sign_is_certified() -> None:
    slope = enclosed(lambda x: 2 - x.exp(), lambda x: -x.exp())
    (low, high), intervals = one_peak.single_zero(slope, [-2.0, -1.9, 0.1, 2.9, 3.0])
    assert low <= math.log(2) <= high
    assert high - low < 1e-12
    assert [sign for _, _, sign in intervals] == [*"++f-"]
    level = enclosed(lambda x: 1 - x**3 - 0.1 * x, lambda x: -3 * x**2 - 0.1)  # nearly flat before the zero
    assert one_peak.single_zero(level, [-1.0, -0.9, 1.9, 2.0])[0][0] == pytest.approx(0.9667, abs=1e-4)


@pytest.mark.parametrize(
    ("function", "derivative", "signs"),
    [
        (lambda x: x - x**3, lambda x: 1 - 3 * x**2, "+f-0+f-"),  # the slope of a curve with two peaks
        (lambda x: x - 0.5, lambda x: arb(1), "-0+"),  # a valley
        (lambda x: 1 + x**2, lambda x: 2 * x, "+"),  # monotone
        (lambda x: -(x**3), lambda x: -3 * x**2, "+f+f+f0f-f-f-"),  # not simple: a zero or three
    ],
)
def test_other_patterns_are_refused(function: Any, derivative: Any, signs: str) -> None:
    with pytest.raises(one_peak.NotCertified, match=re.escape(f"the slope are {signs}, which")):
        one_peak.single_zero(enclosed(function, derivative), [-3.0, -2.9, 0.3, 2.9, 3.0], least=1e-3)


def test_a_curve_with_two_peaks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """With moments that are bent by a wiggle in log kappa the SNR has two peaks: `exact` must not pass it."""
    true = enclosures.weight_moments

    def bent(num_classes: int, rank: int, own: Any, other: Any) -> tuple[Any, ...]:
        m1, m2, n1, n2 = true(num_classes, rank, own, other)
        wiggle = 1 + (8 * own.log()).sin() / 3
        return m1, m2, n1 * wiggle, n2 * wiggle

    monkeypatch.setattr(enclosures, "weight_moments", bent)
    with pytest.raises(one_peak.NotCertified, match=r"\+f-.*\+f-"):
        one_peak.exact(2, 2, 0.3)


@pytest.fixture(scope="module")
def moments() -> tuple[Any, Any]:
    model = one_peak._Model(3, 2, 0.4)
    with ctx.workprec(120):
        return model, one_peak._Moments(model, -2.0, 0.5)


def test_interpolated_moments_hold_the_true_ones(moments: tuple[Any, Any]) -> None:
    model, interpolated = moments
    rng = np.random.default_rng(0)
    for tau in rng.uniform(-2, 0.5, 6).tolist():
        step = 2.0**-20
        with ctx.workprec(400):
            rows = [
                enclosures.weight_moments(3, 2, kappa, kappa * model.d2)
                for kappa in (arb(tau + j * step).exp() for j in (-1, 0, 1))
            ]
        with ctx.workprec(120):
            here, over = interpolated.at(tau, tau + 1e-3)
            at_point, _ = interpolated.at(tau, tau)
            for i in range(4):
                before, value, after = (row[i] for row in rows)
                assert at_point[i][0].overlaps(value)
                assert over[i][0].contains(value.mid())
                assert abs(float(at_point[i][1] - (after - before) / (2 * step))) < 1e-9
                assert abs(float(at_point[i][2] - (after - 2 * value + before) / step**2)) < 1e-4
                assert over[i][1].contains(at_point[i][1].mid())
                assert here[i][0].rad() < 1e-12


def test_slope_is_the_derivative_of_the_ratio(moments: tuple[Any, Any]) -> None:
    model, interpolated = moments
    with ctx.workprec(120):
        for tau in (-1.9, -0.7, 0.4):
            step = 2.0**-12

            def ratio(t: float) -> Any:
                num, den = one_peak._ratio(model, interpolated.at(t, t)[0], arb(t))
                return num / den, den

            def slope(t: float) -> Any:
                return one_peak._slope(model, interpolated, t, t)

            quotient = (ratio(tau + step)[0] - ratio(tau - step)[0]) / (2 * step)
            assert float(slope(tau)[0] / ratio(tau)[1] ** 2) == pytest.approx(float(quotient), rel=1e-5)
            second = (slope(tau + step)[0] - slope(tau - step)[0]) / (2 * step)
            assert float(slope(tau)[1]) == pytest.approx(float(second), rel=1e-4, abs=1e-6)
            whole = one_peak._slope(model, interpolated, tau, tau + 0.05)
            assert whole[0].contains(slope(tau + 0.03)[0].mid())
            assert whole[1].contains(slope(tau + 0.02)[1].mid())


def test_ratio_is_the_exact_snr(moments: tuple[Any, Any]) -> None:
    model, interpolated = moments
    with ctx.workprec(120):
        tau = -0.3
        num, den = one_peak._ratio(model, interpolated.at(tau, tau)[0], arb(tau))
        sigma = float((1 / model.zeta(arb(tau)) - 1).sqrt())
    assert float(num / den / model.scale) == pytest.approx(
        float(snr.exact(3, 2, 0.4, sigma, False)), rel=1e-11
    )


def test_moments_of_an_interval_over_two_pieces_are_refused(moments: tuple[Any, Any]) -> None:
    with pytest.raises(ValueError, match="does not lie in one piece"):
        moments[1].at(-2.0, 0.5)


@settings(max_examples=60)
@given(st.integers(2, 40), st.integers(0, 10**6), st.floats(-1, 1))
def test_softmax_is_bounded_in_the_sector(num_classes: int, seed: int, share: float) -> None:
    angle, floor = (float(value) for value in one_peak._sector(num_classes))
    rng = np.random.default_rng(seed)
    energies = rng.exponential(size=num_classes) * rng.choice([0.1, 1, 10])
    turned = np.exp(np.exp(1j * angle * share) * (energies - energies.max()))
    assert abs(turned.sum()) >= floor * (1 - 1e-12)
    # the worst case: all rivals at the distance where the real part is least
    distance = (np.pi / 2 + angle) / np.sin(angle)
    worst = 1 + (num_classes - 1) * np.exp(-distance * np.exp(1j * angle))
    assert worst.real == pytest.approx(floor, abs=1e-12)


@pytest.mark.parametrize("mixture", [(2, 1, 0.1), (3, 5, 0.5), (50, 4, 0.9)])
def test_the_curve_rises_from_infinite_noise(mixture: tuple[int, int, float]) -> None:
    """Also the closed-form first derivatives there, through the leading term of the SNR."""
    k, d, delta = mixture
    model = one_peak._Model(k, d, delta)
    with ctx.workprec(120):
        zeta_1 = float(one_peak._rising_end(model))
    zeta = zeta_1 * np.linspace(0.05, 1, 8)
    values = [enclosures.snr(k, d, delta, float(np.sqrt(1 / z - 1)), noisy_input=False) for z in zeta]
    assert all(a < b for a, b in pairwise(values))
    r, a = 1 - delta**2, (1 - delta**2) / delta**2
    small = 1e-5
    with ctx.workprec(120):
        value = enclosures.snr(k, d, delta, 1 / math.sqrt(small), noisy_input=False)
        excess = value * (k - 1) * arb(delta) ** 2 - 1
    assert float(excess) / small**2 == pytest.approx(a * r**2 * (d + 2 - 2 / k) / (k + a), rel=1e-3)


@pytest.mark.parametrize("function", [one_peak.theorem, one_peak.exact])
def test_wrong_arguments_are_named(function: Callable[..., Any]) -> None:
    for arguments, named in (
        ((1, 5, 0.2), "num_classes must be an integer >= 2, got 1"),
        ((2, 0.5, 0.2), "rank must be an integer >= 1, got 0.5"),
        ((2, 5, 0.0), "delta must lie strictly between 0 and 1"),
    ):
        with pytest.raises(ValueError, match=named):
            function(*arguments)
