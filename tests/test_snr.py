"""The exact SNR against published points, independent routes, Monte Carlo, and limits."""

import math
from itertools import pairwise, product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.special import expit
from scipy.stats import chi2

from molrg import LowRankMixture, MoLRG, snr
from molrg.snr import quadrature

POINTS = [  # K=2, d=2, delta=.3: sigma, clean, noisy
    (0.4, 32.5540382077707, 10.5622383368502),
    (1.0, 22.0291555795681, 2.84920609937745),
    (0.1, 12.9446880049675, 11.7374481986971),
]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def setting(delta: float, sigma: float, noisy: bool) -> tuple[float, float, float, float, float]:
    """kappa, xi, zeta - xi, and the variances of the own and of the other blocks."""
    s2, d2 = sigma**2, delta**2
    kappa = (1 / (d2 + s2) - 1 / (1 + s2)) / 2
    xi, zeta = d2 / (d2 + s2), 1 / (1 + s2)
    return kappa, xi, zeta - xi, 1 + s2 if noisy else 1.0, d2 + s2 if noisy else d2


def tensor_rule(num_classes: int, rank: int, delta: float, sigma: float, noisy: bool, panels: int) -> float:
    """First independent route: E num / E den as a K-dimensional integral over the block energies.

    A composite Gauss-Legendre product rule in r = sqrt(chi^2), with the softmax itself in the integrand.
    """
    kappa, xi, gap, own, other = setting(delta, sigma, noisy)
    node, weight = np.polynomial.legendre.leggauss(20)
    edges = np.linspace(0, math.sqrt(rank) + 9, panels + 1)
    half = np.diff(edges)[:, None] / 2
    r = (edges[:-1, None] + half + half * node).ravel()
    density = (half * weight).ravel() * r ** (rank - 1) * np.exp(-r * r / 2)
    density /= density.sum()
    y = r * r
    grids = np.meshgrid(*[y] * num_classes, indexing="ij", sparse=True)
    masses = np.meshgrid(*[density] * num_classes, indexing="ij", sparse=True)
    logits = [kappa * own * grids[0]] + [kappa * other * g for g in grids[1:]]
    top = np.maximum.reduce(np.broadcast_arrays(*logits))
    scaled = [np.exp(logit - top) for logit in logits]
    total = sum(scaled)
    mass = math.prod(masses)
    signal = (mass * (xi + gap * scaled[0] / total) ** 2 * own * grids[0]).sum()
    noise = (mass * (xi + gap * scaled[1] / total) ** 2 * other * grids[1]).sum()
    return float(signal / ((num_classes - 1) * noise))


def adaptive(num_classes: int, rank: int, delta: float, sigma: float, noisy: bool) -> float:
    """Second route, for many classes: the factorised form by QUADPACK's adaptive rules, in u and chi^2."""
    kappa, xi, gap, own, other = setting(delta, sigma, noisy)
    law = chi2(rank)
    support = [*law.ppf([1e-25, 1e-6, 0.5, 1 - 1e-6]).tolist(), law.isf(1e-25)]
    norm = 2 ** (rank / 2) * math.gamma(rank / 2)

    def transform(scale: float, m: int, v: float) -> float:
        def integrand(y: float) -> float:
            t = v + scale * y
            density = y ** (rank / 2 - 1) * math.exp(-y / 2) / norm
            return density * (y if m else 1) * math.exp(m * t - math.exp(t)) if t < 5 else 0.0

        stops = sorted(
            {*support, *np.clip((np.array([-30, -5, -1, 1, 4]) - v) / scale, support[0], support[-1])}
        )
        return sum(quad(integrand, low, high, epsabs=1e-17, epsrel=1e-11)[0] for low, high in pairwise(stops))

    def moment(m: int, mine: float, factors: dict[float, int]) -> float:
        def integrand(v: float) -> float:
            rest = math.prod(transform(scale, 0, v) ** power for scale, power in factors.items())
            return rest and rest * transform(mine, m, v)

        stops = np.linspace(-40 - kappa * max(own, other) * support[-1], 4, 9)
        return sum(quad(integrand, low, high, epsabs=0, epsrel=1e-10)[0] for low, high in pairwise(stops))

    a, b = kappa * own, kappa * other
    alone, rivals = {b: num_classes - 1}, {a: 1, b: num_classes - 2}
    signal = xi**2 * rank + 2 * xi * gap * moment(1, a, alone) + gap**2 * moment(2, a, alone)
    noise = xi**2 * rank + 2 * xi * gap * moment(1, b, rivals) + gap**2 * moment(2, b, rivals)
    return own * signal / ((num_classes - 1) * other * noise)


@pytest.mark.parametrize(("sigma", "clean", "noisy"), POINTS)
def test_known_points(sigma: float, clean: float, noisy: float) -> None:
    assert float(snr.exact(2, 2, 0.3, sigma, noisy_input=False)) == pytest.approx(clean, rel=1e-13)
    assert float(snr.exact(2, 2, 0.3, sigma)) == pytest.approx(noisy, rel=1e-13)


@pytest.mark.parametrize("noisy", [True, False])
@pytest.mark.parametrize("rank", [1, 2, 7, 30])
def test_exact_against_two_dimensional_integral(rank: int, noisy: bool) -> None:
    for delta, sigma in product([0.1, 0.5, 0.95], [0.05, 0.5, 3.0, 50.0]):
        expected = tensor_rule(2, rank, delta, sigma, noisy, panels=60)
        assert float(snr.exact(2, rank, delta, sigma, noisy)) == pytest.approx(expected, rel=1e-9)


def test_exact_against_three_dimensional_integral() -> None:
    for rank, delta, sigma, noisy in [(1, 0.5, 0.4, True), (3, 0.3, 0.7, False), (6, 0.4, 1.5, True)]:
        expected = tensor_rule(3, rank, delta, sigma, noisy, panels=10)
        assert float(snr.exact(3, rank, delta, sigma, noisy)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("num_classes", "rank", "delta", "sigma", "noisy"),
    [(1000, 4, 0.3, 0.8, True), (10, 60, 0.5, 2.0, False)],
)
def test_exact_against_adaptive_rules(
    num_classes: int, rank: int, delta: float, sigma: float, noisy: bool
) -> None:
    expected = adaptive(num_classes, rank, delta, sigma, noisy)
    assert float(snr.exact(num_classes, rank, delta, sigma, noisy)) == pytest.approx(expected, rel=1e-9)


def test_exact_is_converged(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rule with 2.5 times the nodes and other breaks gives the same at the corners of the domain."""
    cases = list(product([2, 1000], [1, 200], [0.01, 0.95], [True, False]))
    sigma = [1e-3, 0.05, 0.5, 50.0]
    coarse = [snr.exact(k, d, delta, sigma, noisy) for k, d, delta, noisy in cases]
    nodes, weights = np.polynomial.legendre.leggauss(30)
    monkeypatch.setattr(quadrature, "_NODES", nodes)
    monkeypatch.setattr(quadrature, "_WEIGHTS", weights)
    radii = quadrature.radii
    monkeypatch.setattr(quadrature, "radii", lambda rank, panels: radii(rank, int(1.3 * panels)))
    for case, value in zip(cases, coarse, strict=True):
        k, d, delta, noisy = case
        torch.testing.assert_close(snr.exact(k, d, delta, sigma, noisy), value, rtol=1e-10, atol=0)


@pytest.mark.parametrize("background", ["span", "complement"])
@pytest.mark.parametrize("denominator", ["residual", "classes"])
@pytest.mark.parametrize("noisy", [True, False])
def test_exact_against_monte_carlo(background: str, denominator: str, noisy: bool) -> None:
    mixture = MoLRG.orthogonal(3, 4, 20, 0.25, background, generator(), torch.float64)
    levels = [0.05, 0.3, 1.0, 4.0]
    expected = snr.exact(3, 4, 0.25, levels, noisy, denominator, background, dim=20)
    for denoiser in (mixture, mixture.posterior_mean):
        value, error = snr.estimate(
            denoiser, mixture, levels, 20_000, noisy, denominator, generator=generator(1)
        )
        assert ((value - expected).abs() < 4.5 * error).all()
        assert (error < 0.02 * expected).all()


def test_mismatched_noise_joins_clean_and_matched_input() -> None:
    model, levels = (3, 5, 0.2), [0.05, 0.4, 2.0]
    torch.testing.assert_close(snr.mismatched(*model, 0, levels), snr.exact(*model, levels, False))
    for level in levels:
        matched = snr.mismatched(*model, level, level)
        assert matched.shape == ()
        assert float(matched) == float(snr.exact(*model, level))


@pytest.mark.parametrize(("given", "sigma"), [(0.1, 0.6), (0.8, 0.2), (2.0, 0.5)])
@pytest.mark.parametrize("background", ["span", "complement"])
def test_mismatched_noise_against_monte_carlo(given: float, sigma: float, background: str) -> None:
    mixture = MoLRG.orthogonal(3, 4, 20, 0.25, background, generator(), torch.float64)
    expected = snr.mismatched(3, 4, 0.25, given, sigma, background=background, dim=20)
    value, error = snr.estimate(
        lambda x, _: mixture.posterior_mean(x, sigma), mixture, given, 20_000, generator=generator(1)
    )
    assert abs(value - expected) < 4.5 * error < 0.2 * expected


def test_mismatched_noise_against_a_plane_integral() -> None:
    """K = 2: the softmax itself, over the two block energies."""
    rank, delta, given, sigma = 3, 0.3, 0.7, 0.25
    kappa, xi, gap, _, _ = setting(delta, sigma, False)
    own, other = 1 + given**2, delta**2 + given**2
    node, weight = np.polynomial.legendre.leggauss(400)
    r = (1 + node) / 2 * (math.sqrt(rank) + 9)
    mass = weight * r ** (rank - 1) * np.exp(-r * r / 2)
    a, b = own * r[:, None] ** 2, other * r**2
    w = expit(kappa * (a - b))
    signal, noise = (xi + gap * w) ** 2 * a, (xi + gap * (1 - w)) ** 2 * b
    expected = (mass @ signal @ mass) / (mass @ noise @ mass)
    assert float(snr.mismatched(2, rank, delta, given, sigma)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("given", "message"),
    [(-0.1, "sigma must be finite and positive, got -0.1"), ([0.1, 0.2], "input_sigma must be one number")],
)
def test_mismatched_noise_refuses(given: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        snr.mismatched(3, 5, 0.2, given, 0.5)


@pytest.mark.parametrize("background", ["span", "complement"])
@pytest.mark.parametrize("denominator", ["residual", "classes"])
@pytest.mark.parametrize("noisy", [True, False])
def test_block_energies_equal_denoised_vectors(background: str, denominator: str, noisy: bool) -> None:
    mixture = MoLRG.orthogonal(3, 4, 20, 0.25, background, generator(), torch.float64)
    arguments = (mixture, [0.1, 1.0, 10.0], 500, noisy, denominator, "none")
    fast = snr.estimate(mixture, *arguments, generator=generator(1))
    slow = snr.estimate(mixture.posterior_mean, *arguments, generator=generator(1))
    assert fast.value.shape == (3, 3)
    torch.testing.assert_close(fast.value, slow.value, rtol=1e-9, atol=0)
    torch.testing.assert_close(fast.standard_error, slow.standard_error, rtol=1e-6, atol=0)


def with_angles(n: int, ranks: list[int], background: str, dtype: torch.dtype = torch.float64) -> MoLRG:
    """Random subspaces, whose ranks may add up to more than n, with unequal priors."""
    g = generator(n)
    bases = [torch.linalg.qr(torch.randn(n, d, generator=g, dtype=torch.float64)).Q.to(dtype) for d in ranks]
    priors = torch.arange(1.0, len(ranks) + 1)
    return MoLRG(bases, 0.25, priors / priors.sum(), background)


@pytest.mark.parametrize("background", ["span", "complement"])
@pytest.mark.parametrize("denominator", ["residual", "classes"])
@pytest.mark.parametrize("noisy", [True, False])
def test_block_energies_equal_denoised_vectors_at_any_angles(
    background: str, denominator: str, noisy: bool
) -> None:
    """For the mixture of the data, whether or not it fills the space, and for another one."""
    wide, full = with_angles(20, [3, 5, 2], background), with_angles(8, [3, 4, 3], background)
    other = with_angles(20, [2, 4], background)
    for denoiser, mixture in ((wide, wide), (full, full), (other, wide)):
        arguments = (mixture, [1e-3, 0.1, 1.0, 10.0, 1e3], 700, noisy, denominator, "none")
        fast = snr.estimate(denoiser, *arguments, generator=generator(1))
        slow = snr.estimate(denoiser.posterior_mean, *arguments, generator=generator(1))
        torch.testing.assert_close(fast.value, slow.value, rtol=1e-10, atol=0)
        torch.testing.assert_close(fast.standard_error, slow.standard_error, rtol=1e-8, atol=0)


def test_a_mixture_as_denoiser_forms_no_denoised_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    mixture = with_angles(20, [3, 5, 2], "span", torch.float32)
    expected = snr.estimate(mixture.posterior_mean, mixture, [0.1, 2.0], 300, generator=generator(1)).value
    monkeypatch.delattr(LowRankMixture, "posterior_mean")
    value = snr.estimate(mixture, mixture, [0.1, 2.0], 300, generator=generator(1)).value
    torch.testing.assert_close(value, expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize("noisy", [True, False])
def test_levels_at_which_float32_cannot_hold_the_denoised_vectors(noisy: bool) -> None:
    for mixture in (MoLRG.orthogonal(generator=generator()), with_angles(9, [3, 4], "span", torch.float32)):
        end, limit = snr.estimate(mixture, mixture, [1e12, 1e4], 100, noisy, generator=generator(1)).value
        assert float(end) == pytest.approx(float(limit), rel=1e-3)


def test_standard_error_is_the_spread_over_seeds() -> None:
    mixture = MoLRG.orthogonal(3, 4, 20, 0.25, generator=generator())
    for average in ("classes", "pooled", "none"):
        runs = [
            snr.estimate(mixture, mixture, 0.4, 400, average=average, generator=generator(seed))
            for seed in range(200)
        ]
        spread = torch.stack([run.value for run in runs]).std(0)
        claimed = torch.stack([run.standard_error for run in runs]).mean(0)
        assert ((claimed / spread - 1).abs() < 0.25).all()


def test_averages() -> None:
    mixture = MoLRG.orthogonal(2, 3, 10, 0.3, generator=generator(), dtype=torch.float64)
    mixture = MoLRG(mixture.bases, 0.3, priors=[0.8, 0.2])
    runs = {
        average: snr.estimate(mixture, mixture, 0.5, 5000, average=average, generator=generator(1)).value
        for average in snr.AVERAGES
    }
    assert runs["classes"] == pytest.approx(runs["none"].mean().item())
    assert runs["none"].min() < runs["pooled"] < runs["none"].max()


def test_theorem_limits() -> None:
    for k, delta in product([2, 5], [0.2, 0.7]):
        low = 1 / ((k - 1) * delta**2)
        for noisy in (True, False):
            assert float(snr.theorem(k, 5, delta, 1e-6, noisy)) == pytest.approx(low, rel=1e-6)
            assert float(snr.exact(k, 5, delta, 1e-6, noisy)) == pytest.approx(low, rel=1e-6)
        assert float(snr.theorem(k, 5, delta, 1e5, False)) == pytest.approx(low, rel=1e-6)
        assert float(snr.theorem(k, 5, delta, 1e5, True)) == pytest.approx(1 / (k - 1), rel=1e-6)
        assert float(snr.exact(k, 5, delta, 1e5, True)) == pytest.approx(1 / (k - 1), rel=1e-6)


def test_lowest_and_highest_levels() -> None:
    for k, d, delta, noisy in product([2, 1000], [1, 200], [0.01, 0.95], [True, False]):
        low = 1 / ((k - 1) * delta**2)
        ends = torch.tensor([low, 1 / (k - 1) if noisy else low], dtype=torch.float64)
        for function in (snr.exact, snr.theorem):
            torch.testing.assert_close(function(k, d, delta, [1e-12, 1e12], noisy), ends, rtol=1e-8, atol=0)


def test_theorem_by_its_definition() -> None:
    """Theorem 1 is the SNR of the denoiser whose weights are the softmax of the mean energies."""
    for k, d, delta, sigma, noisy in product([2, 7], [1, 9], [0.1, 0.6], [0.1, 1.0, 9.0], [True, False]):
        kappa, xi, gap, own, other = setting(delta, sigma, noisy)
        # Its weights are those of energies d (1 - delta^2) apart, for noisy and for clean input.
        logits = np.array([kappa * d * (1 - delta**2)] + [0.0] * (k - 1))
        w = np.exp(logits - logits.max())
        w /= w.sum()
        expected = (xi + gap * w[0]) ** 2 * own / ((k - 1) * (xi + gap * w[1]) ** 2 * other)
        assert float(snr.theorem(k, d, delta, sigma, noisy)) == pytest.approx(expected, rel=1e-12)


def refined_by_plain_averages(
    num_classes: int, rank: int, delta: float, sigma: float, noisy: bool, points: int = 120
) -> float:
    """The closure of `snr.refined` with dense rules over the energies themselves instead of tilted ones."""
    kappa, xi, gap, own, other = setting(delta, sigma, noisy)
    node, weight = np.polynomial.legendre.leggauss(points)

    def law(degrees: int) -> tuple[np.ndarray, np.ndarray]:
        r = (math.sqrt(degrees) + 8) * (node + 1) / 2
        density = weight * r ** (degrees - 1) * np.exp(-r * r / 2)
        return r * r, density / density.sum()

    def given(degrees_own: int, degrees_rival: int) -> tuple[np.ndarray, ...]:
        (y, over_own), (z, over_rival), (plain, over_plain) = map(law, (degrees_own, degrees_rival, rank))
        share = expit(kappa * (other * z - own * y[:, None]))
        h = expit(kappa * (other * plain - own * y[:, None])) @ over_plain
        return over_own, h, 1 + (num_classes - 2) * h, share @ over_rival, share**2 @ over_rival

    over, h, spread, _, two = given(rank + 2, rank)
    lost = (num_classes - 1) * h / spread
    square = (1 - lost) ** 2 + (num_classes - 1) * (two - h**2) / spread**4
    signal = over @ (xi**2 + 2 * xi * gap * (1 - lost) + gap**2 * square)
    if noisy:  # what the own class loses, the others have
        noise = over @ (2 * xi * gap * lost + gap**2 * (1 - lost - square)) * own / other / (num_classes - 1)
        noise += xi**2
    else:
        over, _, spread, one, two = given(rank, rank + 2)
        noise = over @ (xi**2 + 2 * xi * gap * one / spread + gap**2 * two / spread**2)
    return own * signal / ((num_classes - 1) * other * noise)


@pytest.mark.parametrize("noisy", [True, False])
def test_refined_by_its_definition(noisy: bool) -> None:
    for k, d, delta, sigma in product([2, 3, 30], [1, 2, 7], [0.2, 0.6], [0.1, 0.4, 2.0]):
        expected = refined_by_plain_averages(k, d, delta, sigma, noisy)
        assert float(snr.refined(k, d, delta, sigma, noisy)) == pytest.approx(expected, rel=0.03)


def test_refined_is_exact_for_two_classes_but_for_its_rule() -> None:
    levels = [0.01, 0.1, 0.3, 1.0, 10.0]
    for d, delta, noisy in product([1, 4, 20], [0.2, 0.7], [True, False]):
        torch.testing.assert_close(
            snr.refined(2, d, delta, levels, noisy), snr.exact(2, d, delta, levels, noisy), rtol=0.02, atol=0
        )


@pytest.mark.parametrize("noisy", [True, False])
def test_refined_is_close_where_the_theorem_is_not(noisy: bool) -> None:
    """Off the page's grid: heights on a scan within 6%, values within 25%; Theorem 1 is often off by 50%."""
    far = 0
    for k, d, delta in [(2, 3, 0.04), (4, 7, 0.15), (20, 2, 0.25), (60, 15, 0.4), (400, 120, 0.03)]:
        levels = np.geomspace(delta, 3, 9)
        exact, refined, theorem = (
            f(k, d, delta, levels, noisy).numpy() for f in (snr.exact, snr.refined, snr.theorem)
        )
        assert abs(refined.max() / exact.max() - 1) < 0.06
        assert (abs(refined / exact - 1) < 0.25).all()
        far += abs(theorem / exact - 1).max() > 0.5
    assert far >= 3


def test_refined_has_the_limits() -> None:
    for k, d, delta, noisy in product([2, 1000], [1, 200, 5000], [0.01, 0.95], [True, False]):
        low = 1 / ((k - 1) * delta**2)
        ends = torch.tensor([low, 1 / (k - 1) if noisy else low], dtype=torch.float64)
        torch.testing.assert_close(
            snr.refined(k, d, delta, [1e-12, 1e12], noisy),
            ends,
            rtol=1e-8,
            atol=0,
            msg=f"{k, d, delta, noisy}",
        )


@settings(max_examples=60)
@given(
    num_classes=st.integers(2, 1000),
    rank=st.integers(1, 3000),
    delta=st.floats(0.01, 0.95),
    sigma=st.floats(1e-3, 1e3),
    noisy=st.booleans(),
)
def test_refined_stays_below_the_confident_bound(
    num_classes: int, rank: int, delta: float, sigma: float, noisy: bool
) -> None:
    value = float(snr.refined(num_classes, rank, delta, sigma, noisy))
    best = (delta**2 + sigma**2) ** 2 / delta**4 / (1 + sigma**2) ** 2 / (num_classes - 1)
    best *= (1 + sigma**2) / (delta**2 + sigma**2) if noisy else 1 / delta**2
    assert 0 < value <= best * (1 + 1e-9)


def test_published_row_of_orthogonal_classes() -> None:
    """K=2, d=5, delta=.2: the Bayes value is within 5% of the published trained row at each level."""
    levels = [0.008, 0.023, 0.060, 0.140, 0.296, 0.585, 1.088, 1.923]
    published = torch.tensor([24.88, 25.15, 26.95, 35.84, 58.27, 20.84, 4.05, 1.57], dtype=torch.float64)
    value = snr.exact(2, 5, 0.2, levels)
    assert ((value / published - 1).abs() < 0.05).all()
    bayes = [25.04, 25.31, 27.13, 36.18, 58.69, 21.30, 4.07, 1.57]
    torch.testing.assert_close(value, torch.tensor(bayes, dtype=torch.float64), rtol=1e-3, atol=0.005)


def test_dimension_enters_only_with_complement_and_residual() -> None:
    one = snr.exact(2, 5, 0.2, [0.3, 0.5], background="complement", dim=50)
    two = snr.exact(2, 5, 0.2, [0.3, 0.5], background="complement", dim=60)
    assert (two < one).all()
    assert float(snr.exact(2, 5, 0.2, 0.5, background="complement", dim=50)) == pytest.approx(11.3, abs=0.05)
    same = snr.exact(2, 5, 0.2, [0.3, 0.5])
    for arguments in (
        {"background": "complement", "denominator": "classes"},
        {"background": "complement", "denominator": "residual", "dim": 10},
        {"denominator": "classes", "dim": 99},
    ):
        torch.testing.assert_close(snr.exact(2, 5, 0.2, [0.3, 0.5], **arguments), same)


@settings(max_examples=30)
@given(
    num_classes=st.integers(2, 1000),
    rank=st.integers(1, 200),
    delta=st.floats(0.01, 0.95),
    sigma=st.floats(1e-3, 50),
)
def test_order_of_the_values(num_classes: int, rank: int, delta: float, sigma: float) -> None:
    """Clean input beats noisy input; both stay above 1/(K-1) and below the confident bound."""
    noisy = float(snr.exact(num_classes, rank, delta, sigma))
    clean = float(snr.exact(num_classes, rank, delta, sigma, noisy_input=False))
    assert 1 / (num_classes - 1) * (1 - 1e-9) <= noisy <= clean * (1 + 1e-9)
    best = (1 + sigma**2 / delta**2) ** 2 / (1 + sigma**2) ** 2 / ((num_classes - 1) * delta**2)
    assert clean <= best * (1 + 1e-9)


def test_shapes_and_dtype() -> None:
    for function in (snr.exact, snr.refined, snr.theorem):
        assert function(3, 5, 0.2, 0.5).shape == ()
        assert function(3, 5, 0.2, [0.5]).shape == (1,)
        assert function(3, 5, 0.2, torch.tensor([0.5, 1.0])).dtype == torch.float64


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1, 5, 0.2, 0.5), "num_classes must be an integer >= 2, got 1"),
        ((3, 0, 0.2, 0.5), "rank must be an integer >= 1, got 0"),
        ((3, 5, 1.2, 0.5), "delta must lie strictly between 0 and 1, got 1.2"),
        ((3, 5, 0.2, -0.5), "sigma must be finite and positive, got -0.5"),
        ((3, 5, 0.2, 0.5, True, "rest"), "denominator must be 'residual' or 'classes', got 'rest'"),
        ((3, 5, 0.2, 0.5, True, "residual", "complement"), "dim is needed .* pass dim=n"),
        ((3, 5, 0.2, 0.5, True, "residual", "complement", 14), "dim must be an integer >= 15, got 14"),
    ],
)
def test_wrong_arguments(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        snr.exact(*arguments)


@pytest.mark.parametrize("noisy", ["no", 0, None, [True]])
def test_noisy_input_is_true_or_false(noisy: object) -> None:
    mixture = MoLRG.orthogonal(generator=generator())
    for call in (
        lambda: snr.theorem(3, 5, 0.2, 0.5, noisy),  # type: ignore[arg-type]
        lambda: snr.exact(3, 5, 0.2, 0.5, noisy),  # type: ignore[arg-type]
        lambda: snr.refined(3, 5, 0.2, 0.5, noisy),  # type: ignore[arg-type]
        lambda: snr.estimate(mixture, mixture, 0.5, 10, noisy),  # type: ignore[arg-type]
    ):
        with pytest.raises(ValueError, match="noisy_input must be True or False, got"):
            call()


def test_noisy_input_may_be_a_numpy_bool() -> None:
    for function in (snr.theorem, snr.exact):
        for noisy in (True, False):
            numpy_bool: Any = np.bool_(noisy)
            assert function(3, 5, 0.2, 0.5, numpy_bool) == function(3, 5, 0.2, 0.5, noisy)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("denominator", ["residual", "classes"])
@pytest.mark.parametrize("average", ["classes", "pooled", "none"])
def test_nothing_in_the_denominator_is_an_infinite_snr(
    dtype: torch.dtype, denominator: str, average: str
) -> None:
    """A denoiser into one class: infinite for it, and what is not zero stays finite."""
    mixture = MoLRG.orthogonal(2, 5, 50, 0.2, generator=generator(), dtype=dtype)
    a, b = mixture.bases

    def own(x: torch.Tensor, sigma: float) -> torch.Tensor:
        first = ((x @ a).square().sum(1) > (x @ b).square().sum(1)).to(x.dtype)[:, None]
        return first * (x @ a @ a.T) + (1 - first) * (x @ b @ b.T)

    arguments = (mixture, 0.5, 100, False, denominator, average)
    assert snr.estimate(own, *arguments, generator=generator()).value.isinf().all()
    almost = snr.estimate(lambda x, s: own(x, s) + 1e-4 * x @ (a @ a.T + b @ b.T), *arguments, generator())
    assert almost.value.isfinite().all()


def test_wrong_denoiser() -> None:
    mixture = MoLRG.orthogonal(generator=generator())
    for wrong, named in (
        (lambda x, sigma: x.double(), "torch.float64"),
        (lambda x, sigma: x.numpy(), "ndarray"),
        (lambda x, sigma: None, "NoneType"),
    ):
        with pytest.raises(ValueError, match=f"must return a tensor of torch.float32.*, got {named}"):
            snr.estimate(wrong, mixture, 0.5, 10)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"the denoiser must return shape \(10, 50\), got \(10, 49\)"):
        snr.estimate(lambda x, sigma: x[:, 1:], mixture, 0.5, 10)
    with pytest.raises(ValueError, match="a mixture of the dimension of the data, 50, got 9"):
        snr.estimate(with_angles(9, [3, 4], "span"), mixture, 0.5, 10)
    with pytest.raises(ValueError, match="average must be 'classes' or 'pooled' or 'none', got 'mean'"):
        snr.estimate(mixture, mixture, 0.5, 10, average="mean")
