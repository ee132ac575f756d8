"""Phase boundary and peaks for noisy input: against direct scans, independent integrals and limits."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, gammaln, log_expit, logsumexp
from scipy.stats import chi2

from experiments.theory import peak_boundary, phase_diagram
from molrg import snr
from molrg.snr import peaks

MODELS = st.tuples(st.integers(2, 1000), st.integers(1, 200), st.floats(0.02, 0.95))


@pytest.fixture(scope="module")
def curve() -> peak_boundary.ExactCurve:
    return peak_boundary.ExactCurve(3, 5)


@given(st.floats(0.01, 0.99), st.floats(1e-3, 1e3))
def test_contrast_and_level_are_inverse(delta: float, sigma: float) -> None:
    eta = float(peak_boundary.log_contrast(delta, sigma)[0])
    assert peak_boundary.level(delta, eta) == pytest.approx(sigma, rel=1e-6)


@given(MODELS, st.floats(-2, 2))
def test_theorem_in_the_contrast(model: tuple[int, int, float], exponent: float) -> None:
    num_classes, rank, delta = model
    eta = peak_boundary.log_contrast(delta, 10**exponent)[0]
    r, y = np.exp(-2 * np.log(delta) - eta), np.exp(-rank * (np.cosh(eta) - 1))
    ratio = (r + (num_classes - 1) * y) / (1 + (r + num_classes - 2) * y)
    expected = snr.theorem(num_classes, rank, delta, 10**exponent).item()
    assert np.exp(eta) / (num_classes - 1) * ratio**2 == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("num_classes", "rank", "eta"), [(2, 1, 0.3), (3, 5, 1.7), (50, 2, 2.5)])
def test_moments_obey_the_identities_of_posterior_weights(num_classes: int, rank: int, eta: float) -> None:
    a1, a2, b1, b2 = peak_boundary.moments(num_classes, rank, eta)
    assert (num_classes - 1) * b1 == pytest.approx(math.exp(eta) * (1 - a1), rel=1e-11)
    assert (num_classes - 1) * b2 == pytest.approx(math.exp(eta) * (a1 - a2), rel=1e-11)
    delta = math.exp(-eta / 2) / 2
    q = math.exp(-2 * math.log(delta) - eta) - 1
    value = math.exp(eta) / (num_classes - 1) * (1 + 2 * q * a1 + q * q * a2) / (1 + 2 * q * b1 + q * q * b2)
    expected = snr.exact(num_classes, rank, delta, peak_boundary.level(delta, eta)).item()
    assert value == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize(("num_classes", "rank"), [(2, 3), (3, 1), (100, 5)])
def test_shares_over_the_contrast(num_classes: int, rank: int) -> None:
    eta = np.linspace(0.05, 4, 12)
    a1, _, b1, _ = np.transpose([peak_boundary.moments(num_classes, rank, each) for each in eta.tolist()])
    assert (np.diff(a1) > 0).all()
    assert (np.diff(a1 - b1) > 0).all()
    overlap = np.cosh(eta / 2) ** -float(rank)
    assert (1 - a1 <= (num_classes - 1) / (1 + np.exp(eta)) * overlap).all()
    assert (b1 <= overlap).all()


@settings(max_examples=50)
@given(MODELS, st.floats(0.8, 1.25))
def test_theorem_has_one_peak_below_the_boundary_and_falls_above(
    model: tuple[int, int, float], factor: float
) -> None:
    num_classes, rank, _ = model
    boundary = peak_boundary.theorem_boundary(num_classes, rank)
    delta = boundary ** (1 / factor)
    found = peaks.find(lambda s: snr.theorem(num_classes, rank, delta, s).numpy(), 1e-5, 1e4, 500, 1e-13)
    if delta < boundary * 0.999:
        by_equation = peak_boundary.theorem_peak(num_classes, rank, delta)
        assert by_equation is not None
        assert found.is_single
        assert by_equation.sigma == pytest.approx(found.sigma, rel=1e-3)
        assert by_equation.height == pytest.approx(found.height, rel=1e-7)
    elif delta > boundary:
        assert peak_boundary.theorem_peak(num_classes, rank, delta) is None
        assert (found.edge, found.num_maxima) == ("low", 0)


@settings(max_examples=50)
@given(MODELS)
def test_clean_peak_of_the_theorem(model: tuple[int, int, float]) -> None:
    found = peaks.find(lambda s: snr.theorem(*model, s, False).numpy(), 1e-4, 1e4, 400)
    by_equation = peak_boundary.theorem_peak(*model, noisy_input=False)
    assert by_equation is not None
    assert by_equation.height == pytest.approx(found.height, rel=1e-8)
    if found.height > 1.001 * snr.theorem(*model, 1e-6, False).item():  # else too flat to be found
        assert by_equation.sigma == pytest.approx(found.sigma, rel=1e-3)


def test_boundary_of_the_theorem_solves_its_equation() -> None:
    delta = peak_boundary.theorem_boundary(7, 3)
    assert 3 * (1 - delta**2) ** 2 / (2 * delta**2) == pytest.approx(math.log(8), rel=1e-13)


@pytest.mark.parametrize("rank", [1, 4])
def test_exact_boundary_of_two_classes_by_a_plane_integral(rank: int) -> None:
    delta = peak_boundary.exact_boundary(2, rank)
    node, weight = np.polynomial.legendre.leggauss(400)
    r = (node + 1) / 2 * (np.sqrt(rank) + 9)
    density = weight * r ** (rank - 1) * np.exp(-r * r / 2)
    density /= density.sum()
    y = r * r
    own, other = (delta**-2 - 1) / 2 * y[:, None], (1 - delta**2) / 2 * y
    w = 1 / (1 + np.exp(other - own))
    own_share = float((density * y) @ w @ density / rank)
    other_share = float(density @ (1 - w) @ (density * y) / rank)
    assert own_share - other_share == pytest.approx(0.5, abs=1e-9)


def test_exact_curve_is_the_exact_snr(curve: peak_boundary.ExactCurve) -> None:
    for delta in (0.05, 0.3):
        eta = np.array([0.02, 0.3, 1.0, 2.0])
        expected = [snr.exact(3, 5, delta, peak_boundary.level(delta, e)).log().item() for e in eta.tolist()]
        assert curve.log_snr(delta, eta) == pytest.approx(expected, abs=1e-6)
    s = np.array([0.1, 0.33, 2.0])
    around = [np.log(snr.exact(3, 5, 0.2, s * np.exp(h)).numpy()) for h in (-1e-4, 1e-4)]
    assert curve.slope(0.2, peak_boundary.log_contrast(0.2, s)) == pytest.approx(
        (around[1] - around[0]) / 2e-4, abs=1e-5
    )


def test_exact_peak_of_the_scan_and_none_beyond_the_boundary(curve: peak_boundary.ExactCurve) -> None:
    (found,) = curve.peaks(0.2)
    by_scan = peaks.find(lambda sigma: snr.exact(3, 5, 0.2, sigma).numpy(), 0.2, 0.5, 5)
    assert (found.sigma, found.height) == pytest.approx((by_scan.sigma, by_scan.height), rel=1e-5)
    boundary = peak_boundary.exact_boundary(3, 5)
    assert [len(curve.peaks(factor * boundary)) for factor in (0.99, 1.01)] == [1, 0]


def test_boundaries_in_the_limits() -> None:
    scaled = -2 * math.log(peak_boundary.exact_boundary(2, 1000)) * math.sqrt(500)
    assert scaled == pytest.approx(peak_boundary.wide_boundary(2), rel=3e-4)
    delta = peak_boundary.joint_boundary(0.7)
    assert (delta**-2 - 1 + 2 * math.log(delta)) / 2 == pytest.approx(0.7, rel=1e-12)
    assert peak_boundary.joint_boundary(0.7, exact=False) == pytest.approx(
        peak_boundary.theorem_boundary(10**6, math.log(10**6 + 1) / 0.7), rel=1e-12
    )
    errors = [
        abs(peak_boundary.exact_boundary(round(math.exp(d)), d) / peak_boundary.joint_boundary(1.0) - 1)
        for d in (2, 12)
    ]
    assert errors[1] < errors[0] / 2


def test_boundary_at_a_rate_is_the_exact_one_while_there_are_few_classes() -> None:
    by_number = peak_boundary.exact_boundary(1000, 12)
    assert peak_boundary.boundary_at_rate(math.log(999) / 12, 12) == pytest.approx(by_number, rel=1e-8)
    boundary = peak_boundary.boundary_at_rate(1.0, 30)  # e^30 classes, by other sums in 400 bits
    ends = boundary * (1 - 1e-5), boundary * (1 + 1e-5)
    assert peak_boundary.certify_exact_boundary(round(math.exp(30)) + 1, 30, *ends)


def test_boundary_at_a_rate_with_more_classes_than_can_be_counted() -> None:
    """By drawing the largest of e^240 energies, which are a Poisson process, and the mean of the others."""
    rank, draws, kept = 240, 20_000, 200
    boundary = peak_boundary.boundary_at_rate(1.0, rank)
    own, other = (boundary**-2 - 1) / 2, (1 - boundary**2) / 2
    rng, y = np.random.default_rng(0), np.linspace(200, 1500, 20_001)
    log_number = rank + chi2.logsf(y, rank)  # of energies above y
    logits = np.full(draws, -np.inf)
    arrivals = np.zeros(draws)
    for _ in range(kept):
        arrivals += rng.exponential(size=draws)
        largest = np.interp(-np.log(arrivals), -log_number, y)
        logits = np.logaddexp(logits, other * largest)
    log_density = rank + other * y + chi2.logpdf(y, rank) + math.log(y[1] - y[0])
    below = np.interp(largest, y, np.logaddexp.accumulate(log_density))
    share = expit(own * rng.chisquare(rank + 2, draws) - np.logaddexp(logits, below)).mean()
    assert share == pytest.approx(0.5, abs=0.01)  # 3 standard errors; b_1 is below e^-200
    limits = [peak_boundary.joint_boundary(1.0, exact) for exact in (True, False)]
    assert abs(boundary / limits[0] - 1) < 0.004 < 0.08 < abs(boundary / limits[1] - 1)


def test_laws_become_exact() -> None:
    assert math.exp(peak_boundary.log_undecided(2, 2)) == pytest.approx(2 * math.log(2), rel=1e-12)
    for noisy in (True, False):
        errors = []
        for delta in (1e-2, 1e-4):
            law = peak_boundary.small_delta_law(3, 5, delta, noisy)
            sigma, height = phase_diagram.exact_peak(3, 5, delta, noisy)
            errors.append([abs(law.sigma / sigma - 1), abs(law.height / height - 1)])
        assert np.max(errors[1]) < 2e-3
        assert (np.array(errors[1]) < np.array(errors[0]) / 5).all()
    law = peak_boundary.large_rank_law(3, 1000, 0.2)
    sigma, height = phase_diagram.exact_peak(3, 1000, 0.2, True)
    assert law.sigma == pytest.approx(sigma, rel=0.02)
    assert law.height == pytest.approx(height, rel=0.01)


def two_class_limit(rank: int) -> float:
    """Logarithm of the limit for K = 2 by a product rule over s and Y: no function of the library."""
    x, w = np.polynomial.legendre.leggauss(16)

    def rule(high: float) -> tuple[np.ndarray, np.ndarray]:
        edges = np.linspace(0, high, 401)
        half = np.diff(edges)[:, None] / 2
        return (edges[:-1, None] + half * (1 + x)).ravel(), np.log(half * w).ravel()

    (t, log_t), (r, log_r) = rule(math.sqrt(3 * rank) + 8), rule(math.sqrt(6 * rank) + 12)
    own = log_t + math.log(2) + (rank - 1) * np.log(t) - gammaln(rank / 2)
    other = log_r + math.log(2) + (rank + 1) * np.log(r) - r * r / 2
    other -= rank / 2 * math.log(2) + gammaln(rank / 2)
    rows = [logsumexp(o + other + 2 * log_expit(r * r / 2 - s)) for o, s in zip(own, t * t, strict=True)]
    return float(logsumexp(rows)) - math.log(rank)


@pytest.mark.parametrize("rank", [3, 100, 400])
def test_the_law_of_small_backgrounds_holds_for_large_ranks(rank: int) -> None:
    assert peak_boundary.log_undecided(2, rank) == pytest.approx(two_class_limit(rank), abs=1e-9)
    # For clean input and K = 2: c = 2^-a E[(1 + e^-s)^-2], s ~ Gamma(a) of rate 2, a = d/2.
    a, s = rank / 2, np.random.default_rng(0).gamma(rank / 2, 0.5, 200_000)
    law = peak_boundary.small_delta_law(2, rank, 0.2, noisy_input=False)
    log_c = -a * math.log(2) + math.log(np.mean((1 + np.exp(-s)) ** -2))
    log_s2 = 2 / (rank + 4) * (math.log(4 * 0.2**4 / rank) - log_c)
    assert law.sigma == pytest.approx(math.exp(log_s2 / 2), rel=1e-3)
    assert law.height == pytest.approx(rank / (rank + 4) * law.sigma**4 / 0.2**6, rel=1e-12)


def test_the_law_of_small_backgrounds_is_finite() -> None:
    for arguments in ((2, 400, 0.2, False), (1000, 1000, 0.2, False), (1000, 1000, 0.2, True)):
        assert np.isfinite(peak_boundary.small_delta_law(*arguments)).all()


@pytest.mark.parametrize(("num_classes", "rank"), [(2, 1), (3, 5), (1000, 200)])
def test_certificate(num_classes: int, rank: int) -> None:
    assert 100 < peak_boundary.certify_single_peak(num_classes, rank) < 5000


def test_exact_boundary_is_proved() -> None:
    boundary = peak_boundary.exact_boundary(10, 2)
    assert peak_boundary.certify_exact_boundary(10, 2, boundary * (1 - 1e-7), boundary * (1 + 1e-7))
    assert not peak_boundary.certify_exact_boundary(10, 2, boundary * 1.01, boundary * 1.02)
    assert not peak_boundary.certify_exact_boundary(10, 2, boundary * 0.98, boundary * 0.99)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: peak_boundary.level(0.5, 2.0), "eta must lie strictly between 0 and"),
        (lambda: peak_boundary.theorem_boundary(1, 2), "num_classes must be an integer >= 2"),
        (lambda: peak_boundary.theorem_boundary(2, 0), "rank must be positive and finite"),
        (lambda: peak_boundary.exact_boundary(2, 1.5), "rank must be an integer >= 1"),  # type: ignore[arg-type]
        (lambda: peak_boundary.certify_exact_boundary(2, 1, 0.5, 0.4), "below must be less than above"),
        (lambda: peak_boundary.exact_boundary(10**8, 2), "at most 10\\^7, got 100000000: use boundary_at"),
        (lambda: peak_boundary.boundary_at_rate(1, 9), "rank must be an integer >= 10"),
        (lambda: peak_boundary.joint_boundary(-1), "load must be positive and finite"),
        (lambda: peak_boundary.theorem_peak(2, 1, 1.0), "delta must lie strictly between 0 and 1"),
        (lambda: peak_boundary.large_rank_law(2, 1, 0.9), "too small for this law"),
    ],
)
def test_wrong_arguments(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_diagram_in_small(tmp_path: Path) -> None:
    found = phase_diagram.diagram([3], [2], [0.1, 0.6], workdir=tmp_path)
    assert found["boundary"][0, 0] == pytest.approx(peak_boundary.exact_boundary(3, 2), rel=1e-8)
    assert found["boundary_slope"] == pytest.approx(found["boundary"], rel=2e-5)
    assert (found["steepest"] < 0).all()
    assert found["near"].tolist() == [[[1, 0]]]
    assert found["maxima"].tolist() == [[[1, 0]]]
    assert np.isnan(found["sigma"][0, 0]).tolist() == [False, True]
    again = phase_diagram.diagram([3], [2], [0.1, 0.6], workdir=tmp_path)  # from what was kept
    assert all(np.array_equal(found[key], again[key], equal_nan=True) for key in found)
