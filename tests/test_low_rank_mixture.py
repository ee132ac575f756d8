"""Low-rank mixtures with means and variances: dense float64 algebra, autograd, identities, special cases."""

import math
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp
from scipy.stats import multivariate_normal
from torch import Tensor

from molrg import LowRankMixture, MoLRG, snr

LEVELS = torch.tensor([1e-3, 0.03, 0.4, 2.0, 20.0], dtype=torch.float64)
METHODS = ("log_prob", "posterior_weights", "posterior_mean", "score")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def random_bases(dim: int, ranks: list[int], seed: int = 0) -> list[Tensor]:
    return [torch.linalg.qr(normal(dim, d, seed=seed + 100 * k)).Q for k, d in enumerate(ranks)]


def orthogonal_bases(dim: int, ranks: list[int], seed: int = 0) -> list[Tensor]:
    return list(torch.linalg.qr(normal(dim, sum(ranks), seed=seed)).Q.split(ranks, 1))


VARIANCES: list[Any] = [[1.0, 0.5, 0.01], [2.0], [0.0, 0.7]]  # one below the background, one of nothing
PRIORS = [0.5, 0.2, 0.3]
ANGLES, APART = random_bases(9, [3, 1, 2]), orthogonal_bases(9, [3, 1, 2])
MEANS = normal(3, 9, seed=5)
MIXTURES = {
    "orthogonal-variances": LowRankMixture(APART, 0.3, VARIANCES, priors=PRIORS),
    "orthogonal-means": LowRankMixture(APART, 0.3, [1.0, 0.5, 2.0], MEANS, PRIORS),
    "orthogonal-both": LowRankMixture(APART, 0.2, VARIANCES, MEANS + 3),
    "orthogonal-means-inside": LowRankMixture(APART, 0.3, None, MEANS @ APART[0] @ APART[0].T, PRIORS),
    "angles-variances": LowRankMixture(ANGLES, 0.3, VARIANCES, priors=PRIORS),
    "angles-both": LowRankMixture(ANGLES, 0.3, VARIANCES, MEANS, PRIORS),
    "complement-both": LowRankMixture(ANGLES, 0.3, VARIANCES, MEANS, PRIORS, "complement"),
    "full-space": LowRankMixture(orthogonal_bases(6, [3, 3]), 0.5, [0.2, 1.5], normal(2, 6, seed=4)),
    "no-background": LowRankMixture(APART, 0.0, [[1.0, 0.5, 0.3], [2.0], [0.2, 0.7]], 0.3 * MEANS),
    "far-from-zero": LowRankMixture(ANGLES, 0.3, VARIANCES, MEANS + 50, PRIORS),
}


@pytest.fixture(params=MIXTURES)
def mixture(request: pytest.FixtureRequest) -> LowRankMixture:
    return MIXTURES[request.param]


def dense_covariance(mixture: LowRankMixture, k: int) -> np.ndarray:
    """U diag(v) U^T + delta^2 V V^T with V from a null space, independent of the library's route."""
    u, v = mixture.bases[k].numpy(), mixture.variances[k].numpy()
    if mixture.background == "complement":
        support = np.eye(mixture.dim)
    else:
        q, s, _ = np.linalg.svd(np.concatenate([b.numpy() for b in mixture.bases], axis=1))
        q = q[:, : int((s > 1e-9).sum())]
        support = q @ q.T
    values, vectors = np.linalg.eigh(support - u @ u.T)
    background = vectors[:, values > 0.5]
    return u @ np.diag(v) @ u.T + mixture.delta**2 * background @ background.T


def dense_logits(mixture: LowRankMixture, x: np.ndarray, sigma: float) -> np.ndarray:
    """log pi_k N(x; mu_k, Sigma_k + sigma^2 I), (N, K), by scipy."""
    noise = sigma**2 * np.eye(mixture.dim)
    columns = [
        math.log(mixture.priors[k])
        + multivariate_normal(mixture.means[k].numpy(), dense_covariance(mixture, k) + noise).logpdf(x)
        for k in range(mixture.num_classes)
    ]
    return np.stack(columns, axis=-1)


def dense_posterior_mean(mixture: LowRankMixture, x: np.ndarray, sigma: float) -> np.ndarray:
    logits = dense_logits(mixture, x, sigma)
    weights = np.exp(logits - logsumexp(logits, axis=1, keepdims=True))
    result = np.zeros_like(x)
    for k in range(mixture.num_classes):
        cov, mean = dense_covariance(mixture, k), mixture.means[k].numpy()
        gain = np.linalg.solve(cov + sigma**2 * np.eye(mixture.dim), cov)
        result += weights[:, [k]] * (mean + (x - mean) @ gain)
    return result


def points(mixture: LowRankMixture, sigma: float, n: int = 40, seed: int = 1) -> Tensor:
    x0, _ = mixture.sample(n, generator=generator(seed))
    return x0 + sigma * normal(*x0.shape, seed=seed + 1)


@pytest.mark.parametrize("sigma", [0.05, 0.4, 2.0, 20.0])
def test_against_dense_gaussian_mixture(mixture: LowRankMixture, sigma: float) -> None:
    x = points(mixture, sigma)
    logits = dense_logits(mixture, x.numpy(), sigma)
    np.testing.assert_allclose(mixture.log_prob(x, sigma), logsumexp(logits, axis=1), rtol=1e-8, atol=1e-8)
    weights = np.exp(logits - logsumexp(logits, axis=1, keepdims=True))
    np.testing.assert_allclose(mixture.posterior_weights(x, sigma), weights, atol=1e-8)
    mean = dense_posterior_mean(mixture, x.numpy(), sigma)
    np.testing.assert_allclose(mixture.posterior_mean(x, sigma), mean, atol=1e-8)
    np.testing.assert_allclose(mixture.score(x, sigma), (mean - x.numpy()) / sigma**2, atol=1e-6)


def test_score_is_gradient_of_log_density(mixture: LowRankMixture) -> None:
    for sigma in (0.05, 0.7, 5.0):
        x = points(mixture, sigma).requires_grad_()
        (gradient,) = torch.autograd.grad(mixture.log_prob(x, sigma).sum(), x)
        torch.testing.assert_close(mixture.score(x.detach(), sigma), gradient, rtol=1e-8, atol=1e-8)


def test_one_level_a_point(mixture: LowRankMixture, monkeypatch: pytest.MonkeyPatch) -> None:
    x = points(mixture, 0.5, n=300)
    sigma = torch.logspace(-2, 1, 300, dtype=torch.float64)
    found = mixture.denoise(x, sigma)
    apart = [mixture.posterior_mean(x[i : i + 1], level) for i, level in enumerate(sigma.tolist())]
    torch.testing.assert_close(found, torch.cat(apart), rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(mixture.denoise(x, 0.3), mixture.posterior_mean(x, 0.3), rtol=0, atol=0)
    monkeypatch.setattr("molrg.model.rows.CHUNK", 1)
    torch.testing.assert_close(mixture.denoise(x, sigma), found, rtol=1e-12, atol=1e-13)
    with pytest.raises(ValueError, match="one level for each of the 300 points, got 2;"):
        mixture.denoise(x, torch.tensor([0.1, 0.2]))


def test_chunks_and_sweeps_change_nothing(mixture: LowRankMixture, monkeypatch: pytest.MonkeyPatch) -> None:
    x = points(mixture, 0.5, n=600)
    whole = [getattr(mixture, name)(x, LEVELS) for name in METHODS]
    monkeypatch.setattr("molrg.model.rows.CHUNK", 1)
    for name, value in zip(METHODS, whole, strict=True):
        torch.testing.assert_close(getattr(mixture, name)(x, LEVELS), value, rtol=1e-9, atol=1e-9)
        for level, one in zip(LEVELS.tolist(), value, strict=True):
            torch.testing.assert_close(getattr(mixture, name)(x, level), one, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("background", ["span", "complement"])
@pytest.mark.parametrize("orthogonal", [True, False])
@pytest.mark.parametrize("noisy", [True, False])
def test_float32_is_accurate(background: str, orthogonal: bool, noisy: bool) -> None:
    ranks = [8, 5, 3]
    bases = [u.float() for u in (orthogonal_bases if orthogonal else random_bases)(60, ranks)]
    variances = [torch.linspace(1.5, 0.1, d) for d in ranks]
    mixture = LowRankMixture(bases, 0.2, variances, 2 * normal(3, 60, seed=8) / 60**0.5, None, background)
    x0, _ = mixture.sample(400, generator=generator(1))
    noise = torch.randn(x0.shape, generator=generator(2))
    for sigma in torch.logspace(-3, math.log10(20), 12).tolist():
        x = x0 + sigma * noise if noisy else x0
        single, double = mixture.posterior_mean(x, sigma), mixture.posterior_mean(x.double(), sigma)
        assert single.dtype == torch.float32
        assert (single - double).norm() <= 1e-6 * double.norm()


def test_moments_of_samples(mixture: LowRankMixture) -> None:
    n = 40_000
    x0, labels = mixture.sample(n, generator=generator(5))
    for k in range(mixture.num_classes):
        own = x0[labels == k] - mixture.means[k]
        cov = mixture.covariance(k)
        np.testing.assert_allclose(cov, dense_covariance(mixture, k), atol=1e-12)
        error = (cov.diagonal().outer(cov.diagonal()) + cov.square()).sqrt() / math.sqrt(len(own))
        assert ((own.T @ own / len(own) - cov).abs() <= 5 * error + 1e-12).all()
        assert (own.mean(0).abs() <= 5 * (cov.diagonal() / len(own)).sqrt() + 1e-12).all()


@pytest.mark.parametrize("name", ["angles-both", "orthogonal-both", "complement-both"])
def test_posterior_mean_is_a_projection(name: str) -> None:
    """The error of E[x_0 | x_sigma] is uncorrelated with every function of x_sigma (Monte Carlo, 5 sigma)."""
    mixture = MIXTURES[name]
    x0, _ = mixture.sample(100_000, generator=generator(3))
    x = x0 + 0.5 * normal(*x0.shape, seed=4)
    mean = mixture.posterior_mean(x, 0.5)
    for function in (x, mean, x.sin()):
        product = ((x0 - mean) * function).sum(1)
        assert product.mean().abs() < 5 * product.std() / math.sqrt(len(product))
    product = ((x0 - 0.95 * mean) * mean).sum(1)  # a wrong denoiser is found out
    assert product.mean().abs() > 5 * product.std() / math.sqrt(len(product))


@settings(max_examples=25)
@given(
    ranks=st.lists(st.integers(1, 3), min_size=2, max_size=4),
    delta=st.floats(0.02, 0.95),
    sigma=st.floats(1e-2, 20),
    background=st.sampled_from(["span", "complement"]),
    spread=st.booleans(),
    separation=st.sampled_from([0.0, 1.0, 5.0]),
    seed=st.integers(0, 1000),
)
def test_symmetries(
    ranks: list[int],
    delta: float,
    sigma: float,
    background: str,
    spread: bool,
    separation: float,
    seed: int,
) -> None:
    """Rotations, translations, changes of scale and permutations of the classes act as they should."""
    dim, size = 7, len(ranks)
    bases = random_bases(dim, ranks, seed)
    weights = normal(size, seed=seed).exp()
    weights = weights / weights.sum()
    v = [normal(d if spread else 1, seed=seed + k).exp().expand(d) for k, d in enumerate(ranks)]
    mu = separation * normal(size, dim, seed=seed)
    mixture = LowRankMixture(bases, delta, v, mu, weights, background)
    x = points(mixture, sigma, n=5, seed=seed)
    mean, weight, log_prob = (
        getattr(mixture, name)(x, sigma) for name in ("posterior_mean", *METHODS[1::-1])
    )
    close = partial(torch.testing.assert_close, rtol=1e-6, atol=1e-7)

    turn, shift, scale = torch.linalg.qr(normal(dim, dim, seed=seed + 1)).Q, normal(dim, seed=seed + 2), 3.0
    moved = LowRankMixture(
        [turn @ u for u in bases],
        scale * delta,
        [scale**2 * part for part in v],
        scale * mu @ turn.T + shift,
        weights,
        background,
    )
    y = scale * x @ turn.T + shift
    close(moved.posterior_mean(y, scale * sigma), scale * mean @ turn.T + shift)
    close(moved.posterior_weights(y, scale * sigma), weight)
    close(moved.log_prob(y, scale * sigma) + dim * math.log(scale), log_prob)

    order = torch.randperm(size, generator=generator(seed))
    permuted = LowRankMixture(
        [bases[k] for k in order], delta, [v[k] for k in order], mu[order], weights[order], background
    )
    close(permuted.posterior_mean(x, sigma), mean)
    close(permuted.posterior_weights(x, sigma), weight[:, order])
    close(permuted.log_prob(x, sigma), log_prob)


@settings(max_examples=15)
@given(
    delta=st.floats(0.02, 0.95),
    sigma=st.floats(1e-2, 20),
    background=st.sampled_from(["span", "complement"]),
    orthogonal=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_general_cases_reduce_to_the_simple_one(
    delta: float, sigma: float, background: str, orthogonal: bool, seed: int
) -> None:
    bases = (orthogonal_bases if orthogonal else random_bases)(9, [3, 2], seed)
    simple = MoLRG(bases, delta, [0.3, 0.7], background)
    x = points(simple, sigma, n=6, seed=seed)
    turned = [u @ torch.linalg.qr(normal(u.shape[1], u.shape[1], seed=seed)).Q for u in bases]
    almost = [torch.tensor([1.0, 1.0, 1.0 + 1e-14]), torch.tensor([1.0, 1.0])]  # not one variance a class
    for general in (
        LowRankMixture(bases, delta, priors=[0.3, 0.7], background=background),
        LowRankMixture(turned, delta, [1.0, 1.0], torch.zeros(2, 9), [0.3, 0.7], background),
        LowRankMixture(bases, delta, [v.double() for v in almost], None, [0.3, 0.7], background),
        LowRankMixture(bases, delta, None, 1e-14 * normal(2, 9), [0.3, 0.7], background),
    ):
        for name in METHODS:
            found, expected = getattr(general, name)(x, sigma), getattr(simple, name)(x, sigma)
            torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)


def test_equal_variances_are_a_change_of_scale() -> None:
    """v = s^2 throughout is the simple mixture of x/s, with delta/s and sigma/s."""
    s, simple = 2.0, MoLRG(ANGLES, 0.3, PRIORS)
    general = LowRankMixture(ANGLES, 0.3 * s, [s**2] * 3, None, PRIORS)
    x = points(simple, 0.5)
    torch.testing.assert_close(general.posterior_mean(s * x, 0.5 * s), s * simple.posterior_mean(x, 0.5))


def test_one_class_decided_is_a_linear_filter() -> None:
    """Where one class has nearly all the prior the posterior mean is that class's Wiener filter."""
    mixture = LowRankMixture(ANGLES, 0.3, VARIANCES, MEANS, [1 - 2e-14, 1e-14, 1e-14])
    x, cov = points(mixture, 0.5), mixture.covariance(0)
    gain = torch.linalg.solve(cov + 0.25 * torch.eye(9, dtype=cov.dtype), cov)
    torch.testing.assert_close(
        mixture.posterior_mean(x, 0.5), MEANS[0] + (x - MEANS[0]) @ gain, rtol=1e-6, atol=1e-6
    )


def test_gradient_and_hessian_give_the_posterior_covariance() -> None:
    """sigma^2 d E[x_0|x]/dx is Cov[x_0|x], whose trace is positive and at most n sigma^2."""
    mixture = MIXTURES["angles-both"]
    x = points(mixture, 0.5, n=1)

    def denoise(point: Tensor) -> Tensor:
        return mixture.posterior_mean(point[None], 0.5)[0]

    jacobian = torch.autograd.functional.jacobian(denoise, x[0])
    torch.testing.assert_close(jacobian, jacobian.T)
    assert (torch.linalg.eigvalsh(jacobian) > -1e-12).all()


def test_dtypes_and_lowest_levels(mixture: LowRankMixture) -> None:
    x = points(mixture, 0.5)
    for dtype in (torch.float32, torch.float64):
        for name in METHODS:
            value = getattr(mixture, name)(x.to(dtype), [1e-12, 1e12])
            assert value.dtype == dtype
            assert value.isfinite().all()


def test_snr_of_a_general_mixture_is_that_of_its_posterior_mean() -> None:
    mixture = MIXTURES["orthogonal-variances"]
    one = snr.estimate(mixture, mixture, [0.1, 0.5], 300, average="none", generator=generator(1))
    two = snr.estimate(
        mixture.posterior_mean, mixture, [0.1, 0.5], 300, average="none", generator=generator(1)
    )
    assert torch.equal(one.value, two.value)
    simple = MoLRG(APART, 0.3)
    general = LowRankMixture(APART, 0.3)
    fast = snr.estimate(simple, simple, [0.1, 0.5], 300, generator=generator(1)).value
    slow = snr.estimate(general, general, [0.1, 0.5], 300, generator=generator(1)).value
    torch.testing.assert_close(fast, slow, rtol=1e-9, atol=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"delta": -0.1}, "delta must be a finite number >= 0, got -0.1"),
        ({"delta": math.inf}, "delta must be a finite number >= 0, got inf"),
        ({"delta": "a"}, "delta must be a finite number >= 0, got 'a'"),
        ({"variances": [1.0]}, "variances must hold, for each of the 2 classes, one number .* got 1 entries"),
        ({"variances": [1.0, [1.0, 2.0, 3.0]]}, r"variances\[1\] has shape \(3,\), d_1 is 2"),
        (
            {"variances": [1.0, [1.0, -2.0]]},
            r"variances must be finite and >= 0, got \[1.0, -2.0\] for class 1",
        ),
        ({"variances": [1.0, math.nan]}, "variances must be finite and >= 0, got nan for class 1"),
        ({"variances": 1.0}, "variances must hold, for each of the 2 classes, .* got 1.0"),
        ({"means": torch.zeros(2, 5)}, r"means must be finite numbers of shape \(2, 6\), got shape \(2, 5\)"),
        ({"means": np.full((2, 6), np.inf)}, r"means must be finite numbers of shape \(2, 6\), got inf"),
        ({"means": ["a", "b"]}, r"means must be finite numbers of shape \(2, 6\), got \['a', 'b'\]"),
    ],
)
def test_wrong_arguments(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"bases": random_bases(6, [2, 2]), "delta": 0.2} | change
    with pytest.raises(ValueError, match=message):
        LowRankMixture(**arguments)


def test_samples_do_not_depend_on_how_the_svd_breaks_ties(monkeypatch: pytest.MonkeyPatch) -> None:
    """Overlapping classes: the singular values of their private directions are equal."""
    frame = torch.linalg.qr(normal(9, 6)).Q
    bases = [frame[:, [0, 1, k]] for k in (2, 3, 4)]
    draws = LowRankMixture(bases, 0.3).sample(50, generator=generator())[0]
    svd = torch.linalg.svd

    def another(matrix: Tensor, full_matrices: bool = True) -> tuple[Tensor, Tensor, Tensor]:
        u, values, v = svd(matrix, full_matrices=full_matrices)
        kept = int((values > 1e-9).sum())
        turn = torch.linalg.qr(normal(kept, kept, seed=3)).Q
        return torch.cat([u[:, :kept] @ turn, u[:, kept:]], 1), values, v

    monkeypatch.setattr(torch.linalg, "svd", another)
    torch.testing.assert_close(LowRankMixture(bases, 0.3).sample(50, generator=generator())[0], draws)
