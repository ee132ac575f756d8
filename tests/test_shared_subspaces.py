"""Nested classes: exact values against a product rule, adaptive rules, the simplified case and samples."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import roots_genlaguerre

from experiments.theory import class_information, granularity, shared_subspaces
from molrg import snr
from molrg.snr import peaks, quadrature


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def setting(delta: float, sigma: float, noisy: bool) -> tuple[float, float, float, float, float]:
    s2, d2 = sigma**2, delta**2
    kappa = (1 / (d2 + s2) - 1 / (1 + s2)) / 2
    xi = d2 / (d2 + s2)
    return kappa, xi, 1 / (1 + s2) - xi, 1 + s2 if noisy else 1.0, d2 + s2 if noisy else d2


def product_rule(c: int, d: int, delta: float, sigma: float, noisy: bool, nodes: int) -> dict[str, float]:
    """S = M = 2: SNR and E log 1/w by a Gauss-Laguerre rule in all six energies, softmax included."""
    kappa, xi, gain, own, other = setting(delta, sigma, noisy)
    axes = []
    for rank, scale in ((c, own), (d, own), (d, other), (c, other), (d, other), (d, other)):
        x, weight = roots_genlaguerre(nodes, rank / 2 - 1)
        axes.append((2 * scale * x, weight / weight.sum()))
    a, b, j, a2, b2, j2 = grids = np.meshgrid(*[axis[0] for axis in axes], indexing="ij", sparse=True)
    mass: Any = math.prod(np.meshgrid(*[axis[1] for axis in axes], indexing="ij", sparse=True))
    terms = [np.exp(kappa * e) for e in (a + b, a + j, a2 + b2, a2 + j2)]
    total = sum(terms)
    w = [term / total for term in terms]
    weights = (w[0] + w[1], w[0], w[1], w[2] + w[3], w[2], w[3])
    energy = [(mass * (xi + gain * u) ** 2 * e).sum() for u, e in zip(weights, grids, strict=True)]
    rest = sum(energy[3:])
    return {
        "coarse": sum(energy[:3]) / rest,
        "fine": (energy[0] + energy[1]) / (energy[2] + rest),
        "coarse information": math.log(2) + (mass * np.log(weights[0])).sum(),
        "fine information": math.log(4) + (mass * np.log(weights[1])).sum(),
    }


@pytest.mark.parametrize(("c", "d"), [(1, 1), (3, 2), (2, 5)])
@pytest.mark.parametrize("noisy", [True, False])
def test_against_a_six_dimensional_rule(c: int, d: int, noisy: bool) -> None:
    for sigma in (1.0, 3.0):
        expected = product_rule(c, d, 0.7, sigma, noisy, nodes=12)
        pair = shared_subspaces.Nested(2, 2, c, d, 0.7).snr(sigma, noisy)
        assert float(pair.coarse) == pytest.approx(expected["coarse"], rel=1e-9)
        assert float(pair.fine) == pytest.approx(expected["fine"], rel=1e-9)
        if noisy:
            information = shared_subspaces.Nested(2, 2, c, d, 0.7).information(sigma)
            assert float(information.coarse) == pytest.approx(expected["coarse information"], abs=1e-9)
            assert float(information.fine) == pytest.approx(expected["fine information"], abs=1e-9)


@pytest.mark.parametrize("noisy", [True, False])
def test_reduces_to_orthogonal_classes(noisy: bool) -> None:
    levels = [0.03, 0.5]
    for c, d, delta in ((2, 3, 0.05), (10, 1, 0.6)):
        pair = shared_subspaces.Nested(4, 1, c, d, delta).snr(levels, noisy)
        expected = snr.exact(4, c + d, delta, levels, noisy)
        for value in pair:
            torch.testing.assert_close(value, expected, rtol=1e-9, atol=0)
        flat = shared_subspaces.Nested(3, 4, 0, d, delta).snr(levels, noisy)
        expected = snr.exact(12, d, delta, levels, noisy)
        torch.testing.assert_close(flat.fine, expected, rtol=1e-9, atol=0)
        torch.testing.assert_close(flat.coarse, (11 * expected + 3) / 8, rtol=1e-9, atol=0)


def test_one_superclass_is_a_mixture_of_its_private_parts() -> None:
    """With S = 1 the shared block is known to be signal, and is kept whole."""
    levels = torch.tensor([0.1, 0.5, 2.0], dtype=torch.float64)
    pair = shared_subspaces.Nested(1, 3, 4, 2, 0.3).snr(levels)
    assert pair.coarse.isinf().all()
    simple = snr.exact(3, 2, 0.3, levels)
    # The private blocks alone have the SNR of the simplified case; the shared block adds zeta^2 v_A c.
    more = shared_subspaces.Nested(1, 3, 8, 2, 0.3).snr(levels).fine - pair.fine
    torch.testing.assert_close(pair.fine - more, simple, rtol=1e-9, atol=0)
    torch.testing.assert_close(
        shared_subspaces.Nested(1, 3, 4, 2, 0.3).information(levels).fine,
        class_information.mutual_information(3, 2, 0.3, levels),
        rtol=0,
        atol=1e-8,
    )


def test_information_of_orthogonal_classes() -> None:
    levels = [0.05, 0.4, 2.0]
    one = shared_subspaces.Nested(4, 1, 2, 3, 0.2).information(levels)
    torch.testing.assert_close(
        one.coarse, class_information.mutual_information(4, 5, 0.2, levels), rtol=0, atol=1e-8
    )
    torch.testing.assert_close(one.coarse, one.fine, rtol=0, atol=1e-9)
    flat = shared_subspaces.Nested(2, 3, 0, 4, 0.2).information(levels)
    torch.testing.assert_close(
        flat.fine, class_information.mutual_information(6, 4, 0.2, levels), rtol=0, atol=1e-8
    )


def test_is_converged(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rule of almost twice the order gives the same, also at small delta and high rank."""
    cases = [
        ((3, 10, 30, 20), 0.03, 0.2, True),
        ((2, 2, 1, 1), 0.05, 0.02, False),
        ((50, 50, 2, 40), 0.3, 1.0, True),
    ]
    coarse = [
        shared_subspaces.Nested(*counts, delta).snr(sigma, noisy) for counts, delta, sigma, noisy in cases
    ]
    nodes, weights = np.polynomial.legendre.leggauss(28)
    monkeypatch.setattr(quadrature, "_NODES", nodes)
    monkeypatch.setattr(quadrature, "_WEIGHTS", weights)
    shared_subspaces._energies.cache_clear()
    try:
        for (counts, delta, sigma, noisy), before in zip(cases, coarse, strict=True):
            after = shared_subspaces.Nested(*counts, delta).snr(sigma, noisy)
            assert float(after.coarse) == pytest.approx(float(before.coarse), rel=1e-9)
            assert float(after.fine) == pytest.approx(float(before.fine), rel=1e-9)
    finally:
        shared_subspaces._energies.cache_clear()


@pytest.mark.parametrize("noisy", [True, False])
def test_against_the_mixture_with_overlapping_bases(noisy: bool) -> None:
    counts, delta = (2, 3, 3, 2), 0.25
    mixture = shared_subspaces.Nested(*counts, delta).mixture(20, generator=generator(), dtype=torch.float64)
    assert (mixture.num_classes, mixture.support_dim, mixture.is_orthogonal) == (6, 18, False)
    u, values, _ = torch.linalg.svd(torch.cat(mixture.bases[:3], 1), full_matrices=False)
    group = u[:, values > 1e-6]
    assert group.shape[1] == 3 + 3 * 2
    for sigma in (0.1, 0.5, 2.0):
        x, _ = mixture.sample(20_000, generator=generator(1), labels=[0] * 20_000)
        if noisy:
            x = x + sigma * torch.randn(x.shape, generator=generator(2), dtype=x.dtype)
        f = mixture.posterior_mean(x, sigma)
        pair = shared_subspaces.Nested(*counts, delta).snr(sigma, noisy)
        for basis, exact in ((group, pair.coarse), (mixture.bases[0], pair.fine)):
            signal = (f @ basis).square().sum(1)
            excess = signal - exact * (f.square().sum(1) - signal)
            assert abs(excess.mean()) < 4.5 * excess.std() / math.sqrt(len(x))
        if noisy:
            w = mixture.posterior_weights(x, sigma)
            read = shared_subspaces.Nested(*counts, delta).accuracies(sigma, generator=generator(3))
            for estimate, right in (
                (read.bayes_coarse, w.unflatten(1, (2, 3)).sum(2).argmax(1) == 0),
                (read.bayes_fine, w.argmax(1) == 0),
            ):
                share = right.double()
                error = math.hypot(float(estimate.standard_error), float(share.std()) / math.sqrt(len(x)))
                assert abs(float(estimate.value) - float(share.mean())) < 4.5 * error


def test_linear_accuracy_against_fitted_discriminants() -> None:
    """Class means and total covariance of training sets, as a large logistic regression weighs them."""
    counts, delta, sigma = (2, 2, 3, 2), 0.25, 0.4
    mixture = shared_subspaces.Nested(*counts, delta).mixture(14, generator=generator(), dtype=torch.float64)
    g, scores = generator(5), []
    for _ in range(40):
        sets = []
        for per_class in (300, 150):
            labels = torch.arange(4).repeat_interleave(per_class)
            x, _ = mixture.sample(len(labels), generator=g, labels=labels)
            sets.append((mixture.posterior_mean(x, sigma), labels))
        (train, labels), (test, test_labels) = sets
        second = train.T @ train / len(train)
        row = []
        for classes, group in ((2, 2), (4, 1)):
            means = train.reshape(classes, -1, 14).mean(1)
            predicted = (test @ torch.linalg.solve(second, means.T)).argmax(1)
            row.append((predicted == test_labels // group).double().mean().item())
        scores.append(row)
    read = shared_subspaces.Nested(*counts, delta).accuracies(sigma, False, generator=generator(1))
    mean, error = np.mean(scores, 0), np.std(scores, 0) / math.sqrt(40)
    assert abs(mean[0] - 0.5) < 0.01
    assert float(read.linear_coarse.value) == pytest.approx(0.5, abs=1e-12)
    assert abs(mean[1] - float(read.linear_fine.value)) < 4 * error[1] + 0.01


@settings(max_examples=2)
@given(
    s=st.integers(2, 6),
    m=st.integers(2, 6),
    c=st.integers(1, 8),
    d=st.integers(1, 8),
    delta=st.floats(0.05, 0.9),
    sigma=st.floats(0.01, 10),
)
def test_orders(s: int, m: int, c: int, d: int, delta: float, sigma: float) -> None:
    """Clean beats noisy; noise takes information; the fine label has more of it, by at most log M."""
    noisy, clean = (shared_subspaces.Nested(s, m, c, d, delta).snr(sigma, kind) for kind in (True, False))
    less = shared_subspaces.Nested(s, m, c, d, delta).information(1.2 * sigma)
    more = shared_subspaces.Nested(s, m, c, d, delta).information(sigma)
    assert noisy.coarse <= clean.coarse * (1 + 1e-9)
    assert noisy.fine <= clean.fine * (1 + 1e-9)
    assert noisy.fine < noisy.coarse
    assert less.coarse <= more.coarse + 1e-9
    assert less.fine <= more.fine + 1e-9
    assert -1e-9 <= more.fine - more.coarse <= math.log(m) + 1e-9


@pytest.mark.parametrize("noisy", [True, False])
def test_the_formula_is_theorem_1_for_orthogonal_classes(noisy: bool) -> None:
    levels = [0.01, 0.3, 3.0]
    expected = snr.theorem(4, 5, 0.2, levels, noisy)
    for value in shared_subspaces.Nested(4, 1, 2, 3, 0.2).approximate(levels, noisy):
        torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)
    flat = shared_subspaces.Nested(2, 2, 0, 5, 0.2).approximate(levels, noisy)
    torch.testing.assert_close(flat.fine, expected, rtol=1e-12, atol=0)


def test_limits_of_formula_and_exact_value() -> None:
    s, m, c, d, delta = 3, 2, 4, 1, 0.3
    own, siblings, others = c + d, (m - 1) * d * delta**2, (s - 1) * (c + m * d) * delta**2
    model = shared_subspaces.Nested(s, m, c, d, delta)
    for function in (model.snr, model.approximate):
        for noisy in (True, False):
            pair = function(1e-6, noisy)
            assert float(pair.coarse) == pytest.approx((own + siblings) / others, rel=1e-6)
            assert float(pair.fine) == pytest.approx(own / (siblings + others), rel=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: shared_subspaces.Nested(0, 2, 1, 1, 0.2).snr(0.5),
            "num_superclasses must be an integer >= 1, got 0",
        ),
        (lambda: shared_subspaces.Nested(1, 1, 1, 1, 0.2).snr(0.5), "must be at least 2 classes, got 1"),
        (
            lambda: shared_subspaces.Nested(2, 2, -1, 1, 0.2).snr(0.5),
            "shared_rank must be an integer >= 0, got -1",
        ),
        (
            lambda: shared_subspaces.Nested(2, 2, 1, 0, 0.2).information(0.5),
            "private_rank must be an integer >= 1, got 0",
        ),
        (
            lambda: shared_subspaces.Nested(2, 2, 1, 1, 1.5).approximate(0.5),
            "delta must lie strictly between 0 and 1",
        ),
        (
            lambda: shared_subspaces.Nested(2, 2, 1, 1, 0.2).mixture(5),
            r"need dim >= S \(c \+ M d\) = 6, got dim=5",
        ),
        (
            lambda: shared_subspaces.Nested(2, 2, 1, 1, 0.2).accuracies(0.5, num_samples=1),
            "num_samples must be an integer >= 2",
        ),
    ],
)
def test_wrong_arguments(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_curves(tmp_path: Path) -> None:
    found = granularity.curves(2, 2, 3, 2, 0.2, 3, 500, 0, tmp_path)
    assert found["snr"].shape == found["bayes"].shape == found["linear_error"].shape == (2, 2, 3)
    assert found["information"].shape == (2, 3)
    again = granularity.curves(2, 2, 3, 2, 0.2, 3, 500, 0, tmp_path)
    assert all(np.array_equal(found[key], again[key]) for key in found)


def test_peak_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the fast formula in place of the exact value: the places of Theorem 1's peaks."""
    monkeypatch.setattr(shared_subspaces.Nested, "snr", shared_subspaces.Nested.approximate)
    found = granularity.peak_places([[3, 1, 2, 3, 0.2], [3, 1, 1, 1, 0.9]], 61, tmp_path)
    assert found["place"].shape == found["maxima"].shape == (2, 2, 2)
    for i, noisy in enumerate((True, False)):
        peak = peaks.find(lambda s, n=noisy: snr.theorem(3, 5, 0.2, s, n), 0.02, 5)  # type: ignore[misc]
        np.testing.assert_allclose(found["place"][0, i], peak.sigma, rtol=0.01)
        np.testing.assert_allclose(found["height"][0, i], peak.height, rtol=0.01)
    assert (found["place"][1, 0] == 0).all()  # it only falls


def test_a_curve_that_falls_has_no_peak() -> None:
    levels = np.geomspace(0.1, 1, 9)
    assert granularity._peak(levels, 1 / levels, lambda s: 1 / s) == (0.0, pytest.approx(10.0), 0)


def test_a_lopsided_peak_is_found_between_the_levels() -> None:
    def curve(s: np.ndarray) -> np.ndarray:
        return s**2 / (1 + s**6)  # highest at s^6 = 1/2

    levels = np.geomspace(0.02, 5, 21)
    place, height, maxima = granularity._peak(levels, curve(levels), curve)
    assert place == pytest.approx(2 ** (-1 / 6), rel=2e-3)
    assert height == pytest.approx(2 ** (-1 / 3) / 1.5, rel=1e-5)
    assert maxima == 1
