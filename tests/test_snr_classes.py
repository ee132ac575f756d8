"""The exact SNR of classes of unequal ranks and priors: independent routes, special cases, identities."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from molrg import MoLRG, snr
from molrg.snr import quadrature

LEVELS = [0.03, 0.3, 1.0, 10.0]


def plane_integral(
    ranks: tuple[int, int], priors: tuple[float, float], delta: float, sigma: float, noisy: bool
) -> np.ndarray:
    """E num and E den of both classes as two-dimensional integrals over the block energies: (2, 2).

    A product rule in r = sqrt(chi^2), whose integrand holds the posterior weights by Bayes' rule.
    """
    s2, d2 = sigma**2, delta**2
    xi, zeta = d2 / (d2 + s2), 1 / (1 + s2)
    node, weight = np.polynomial.legendre.leggauss(20)
    results = []
    for k in range(2):
        scales = [(1 if block == k else d2) + (s2 if noisy else 0) for block in range(2)]
        grids = []
        for rank, scale in zip(ranks, scales, strict=True):
            edges = np.linspace(0, math.sqrt(rank) + 9, 61)
            half = np.diff(edges)[:, None] / 2
            r = (edges[:-1, None] + half + half * node).ravel()
            density = (half * weight).ravel() * r ** (rank - 1) * np.exp(-r * r / 2)
            grids.append((scale * r * r, density / density.sum()))
        (e0, m0), (e1, m1) = grids
        e0, e1 = e0[:, None], e1[None]

        def log_density(own: np.ndarray, rest: np.ndarray, mine: int, other: int) -> np.ndarray:
            """Of a point with these energies in its own and in the other subspace."""
            return (
                -own / (2 * (1 + s2))
                - rest / (2 * (d2 + s2))
                - mine / 2 * math.log(1 + s2)
                - other / 2 * math.log(d2 + s2)
            )

        first = math.log(priors[0]) + log_density(e0, e1, ranks[0], ranks[1])
        second = math.log(priors[1]) + log_density(e1, e0, ranks[1], ranks[0])
        w0 = 1 / (1 + np.exp(np.clip(second - first, -700, 700)))
        energy0 = m0 @ ((xi + (zeta - xi) * w0) ** 2 * e0) @ m1
        energy1 = m0 @ ((xi + (zeta - xi) * (1 - w0)) ** 2 * e1) @ m1
        results.append((energy0, energy1) if k == 0 else (energy1, energy0))
    return np.array(results)


@pytest.mark.parametrize("noisy", [True, False])
@pytest.mark.parametrize(
    ("ranks", "priors", "delta"),
    [
        ((5, 5), (0.8, 0.2), 0.2),
        ((10, 2), (0.5, 0.5), 0.2),
        ((1, 7), (0.05, 0.95), 0.5),
        ((3, 30), (0.6, 0.4), 0.1),
    ],
)
def test_against_two_dimensional_integral(
    ranks: tuple[int, int], priors: tuple[float, float], delta: float, noisy: bool
) -> None:
    for sigma in LEVELS:
        pairs = plane_integral(ranks, priors, delta, sigma, noisy)
        found = snr.exact_classes(ranks, priors, delta, sigma, noisy, average="none")
        np.testing.assert_allclose(found, pairs[:, 0] / pairs[:, 1], rtol=1e-9)
        pooled = snr.exact_classes(ranks, priors, delta, sigma, noisy, average="pooled")
        signal, noise = np.array(priors) @ pairs
        np.testing.assert_allclose(pooled, signal / noise, rtol=1e-9)


@pytest.mark.parametrize("background", ["span", "complement"])
@pytest.mark.parametrize("denominator", ["residual", "classes"])
@pytest.mark.parametrize("noisy", [True, False])
def test_against_monte_carlo(background: str, denominator: str, noisy: bool) -> None:
    ranks, priors = [4, 1, 2, 4], [0.4, 0.3, 0.2, 0.1]
    g = torch.Generator().manual_seed(0)
    q = torch.linalg.qr(torch.randn(15, 11, generator=g, dtype=torch.float64)).Q
    mixture = MoLRG(q.split(ranks, 1), 0.25, priors, background)
    for average in ("none", "pooled"):
        expected = snr.exact_classes(
            ranks, priors, 0.25, LEVELS, noisy, denominator, background, dim=15, average=average
        )
        value, error = snr.estimate(
            mixture, mixture, LEVELS, 10_000, noisy, denominator, average, torch.Generator().manual_seed(1)
        )
        assert ((value - expected).abs() < 4.5 * error).all()
        assert (error < 0.07 * expected).all()


@pytest.mark.parametrize("noisy", [True, False])
@pytest.mark.parametrize("average", snr.AVERAGES)
def test_equal_classes(noisy: bool, average: str) -> None:
    for num_classes, rank, delta in [(2, 5, 0.2), (3, 1, 0.5), (100, 4, 0.05)]:
        expected = snr.exact(num_classes, rank, delta, LEVELS, noisy)
        found = snr.exact_classes([rank] * num_classes, None, delta, LEVELS, noisy, average=average)
        expected = expected[:, None].expand(-1, num_classes) if average == "none" else expected
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    expected = snr.exact(3, 2, 0.3, LEVELS, noisy, background="complement", dim=11)
    found = snr.exact_classes([2] * 3, None, 0.3, LEVELS, noisy, background="complement", dim=11)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


@settings(max_examples=6)
@given(
    ranks=st.lists(st.integers(1, 40), min_size=2, max_size=3),
    delta=st.floats(0.02, 0.9),
    sigma=st.floats(1e-2, 20),
    seed=st.integers(0, 100),
)
def test_permutation(ranks: list[int], delta: float, sigma: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    priors = rng.uniform(0.1, 1, len(ranks))
    priors /= priors.sum()
    values = snr.exact_classes(ranks, priors, delta, sigma, average="none").numpy()
    order = rng.permutation(len(ranks))
    permuted = snr.exact_classes(
        [ranks[k] for k in order], priors[order], delta, sigma, average="none"
    ).numpy()
    np.testing.assert_allclose(permuted, values[order], rtol=1e-9)


def test_the_ends_of_the_curves() -> None:
    """Where nothing is denoised class k has d_k directions of variance 1 against the others' delta^2."""
    ranks, delta = [10, 2, 3], 0.2
    start = torch.tensor([d / (15 - d) for d in ranks], dtype=torch.float64) / delta**2
    for noisy in (True, False):
        low = snr.exact_classes(ranks, [0.5, 0.2, 0.3], delta, 1e-6, noisy, average="none")
        torch.testing.assert_close(low, start, rtol=1e-6, atol=0)


def test_convergence(monkeypatch: pytest.MonkeyPatch) -> None:
    cases = [([1, 200], [0.999, 0.001], 0.01), ([3, 8, 8], [0.2, 0.7, 0.1], 0.6)]
    coarse = [snr.exact_classes(*case, sigma=[0.01, 1.0, 30.0], average="none") for case in cases]
    nodes, weights = np.polynomial.legendre.leggauss(30)
    monkeypatch.setattr(quadrature, "_NODES", nodes)
    monkeypatch.setattr(quadrature, "_WEIGHTS", weights)
    for case, value in zip(cases, coarse, strict=True):
        fine = snr.exact_classes(*case, sigma=[0.01, 1.0, 30.0], average="none")
        torch.testing.assert_close(fine, value, rtol=1e-10, atol=0)


def test_shapes() -> None:
    assert snr.exact_classes([1, 2], None, 0.3, 0.5).shape == ()
    assert snr.exact_classes([1, 2], None, 0.3, [0.5]).shape == (1,)
    assert snr.exact_classes([1, 2], None, 0.3, 0.5, average="none").shape == (2,)
    assert snr.exact_classes([1, 2, 2], None, 0.3, [0.5, 1], average="none").shape == (2, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([2], None, 0.2, 0.5), "ranks must hold at least 2 classes, got 1"),
        (([2, 0], None, 0.2, 0.5), r"ranks\[1\] must be an integer >= 1, got 0"),
        (([2, 1], [0.5, 0.6], 0.2, 0.5), "priors must be 2 positive numbers with sum 1"),
        (([2, 1], None, 0.0, 0.5), "delta must lie strictly between 0 and 1, got 0.0"),
        (([2, 1], None, 0.2, 0.5, True, "residual", "complement"), "dim is needed .* pass dim=n"),
        (([2, 1], None, 0.2, 0.5, True, "residual", "complement", 2), "dim must be an integer >= 3, got 2"),
        (([2, 1], None, 0.2, 0.5, True, "residual", "span", None, "mean"), "average must be 'classes' or"),
    ],
)
def test_wrong_arguments(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        snr.exact_classes(*arguments)
