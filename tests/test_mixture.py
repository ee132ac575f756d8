"""The mixture against dense float64 algebra, autograd, and identities."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

from molrg import MoLRG
from molrg.support.checks import Levels

LEVELS = torch.tensor([1e-3, 0.03, 0.4, 2.0, 20.0], dtype=torch.float64)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_bases(dim: int, ranks: list[int], seed: int = 0) -> list[torch.Tensor]:
    """Random subspaces with random angles between them."""
    g = generator(seed)
    return [torch.linalg.qr(torch.randn(dim, d, generator=g, dtype=torch.float64)).Q for d in ranks]


def shared_direction() -> list[torch.Tensor]:
    """Two classes in R^5 that share one direction exactly."""
    q = torch.linalg.qr(torch.randn(5, 5, generator=generator(7), dtype=torch.float64)).Q
    return [q[:, [0, 1]], q[:, [0, 2]]]


MIXTURES = {
    "orthogonal": MoLRG.orthogonal(3, 2, 8, 0.2, generator=generator(), dtype=torch.float64),
    "orthogonal-complement": MoLRG.orthogonal(3, 2, 8, 0.3, "complement", generator(), torch.float64),
    "full-space": MoLRG.orthogonal(2, 3, 6, 0.5, generator=generator(), dtype=torch.float64),
    "angles-ranks-priors": MoLRG(random_bases(9, [3, 1, 2]), 0.3, [0.5, 0.2, 0.3]),
    "angles-complement": MoLRG(random_bases(9, [3, 1, 2]), 0.3, [0.5, 0.2, 0.3], "complement"),
    "overlap": MoLRG(shared_direction(), 0.25),
    "orthogonal-unequal": MoLRG(
        torch.linalg.qr(torch.randn(9, 5, generator=generator(3), dtype=torch.float64)).Q.split([4, 1], 1),
        0.2,
    ),
}


@pytest.fixture(params=MIXTURES)
def mixture(request: pytest.FixtureRequest) -> MoLRG:
    return MIXTURES[request.param]


def dense_covariance(mixture: MoLRG, k: int) -> np.ndarray:
    """U U^T + delta^2 V V^T with V from a null space, independent of the library's route."""
    u = mixture.bases[k].double().numpy()
    if mixture.background == "complement":
        support = np.eye(mixture.dim)
    else:
        q, s, _ = np.linalg.svd(np.concatenate([b.double().numpy() for b in mixture.bases], axis=1))
        q = q[:, : int((s > 1e-9).sum())]
        support = q @ q.T
    inside = support - u @ u.T
    values, vectors = np.linalg.eigh(inside)
    v = vectors[:, values > 0.5]
    return u @ u.T + mixture.delta**2 * v @ v.T


def dense_log_densities(mixture: MoLRG, x: np.ndarray, sigma: float) -> np.ndarray:
    """log pi_k N(x; 0, Sigma_k + sigma^2 I), (N, K), by scipy."""
    noise = sigma**2 * np.eye(mixture.dim)
    columns = [
        math.log(mixture.priors[k]) + multivariate_normal(cov=dense_covariance(mixture, k) + noise).logpdf(x)
        for k in range(mixture.num_classes)
    ]
    return np.stack(columns, axis=-1)


def dense_posterior_mean(mixture: MoLRG, x: np.ndarray, sigma: float) -> np.ndarray:
    logs = dense_log_densities(mixture, x, sigma)
    weights = np.exp(logs - logsumexp(logs, axis=1, keepdims=True))
    result = np.zeros_like(x)
    for k in range(mixture.num_classes):
        cov = dense_covariance(mixture, k)
        result += weights[:, [k]] * np.linalg.solve(cov + sigma**2 * np.eye(mixture.dim), x.T).T @ cov
    return result


def points(mixture: MoLRG, sigma: float, n: int = 40, seed: int = 1) -> torch.Tensor:
    x0, _ = mixture.sample(n, generator=generator(seed))
    return x0 + sigma * torch.randn(x0.shape, generator=generator(seed + 1), dtype=x0.dtype)


@pytest.mark.parametrize("sigma", [0.05, 0.4, 2.0, 20.0])
def test_against_dense_gaussian_mixture(mixture: MoLRG, sigma: float) -> None:
    x = points(mixture, sigma)
    logs = dense_log_densities(mixture, x.numpy(), sigma)
    np.testing.assert_allclose(mixture.log_prob(x, sigma), logsumexp(logs, axis=1), rtol=1e-9)
    weights = np.exp(logs - logsumexp(logs, axis=1, keepdims=True))
    np.testing.assert_allclose(mixture.posterior_weights(x, sigma), weights, atol=1e-9)
    mean = dense_posterior_mean(mixture, x.numpy(), sigma)
    np.testing.assert_allclose(mixture.posterior_mean(x, sigma), mean, atol=1e-10)
    np.testing.assert_allclose(mixture.score(x, sigma), (mean - x.numpy()) / sigma**2, atol=1e-8)


def test_score_is_gradient_of_log_density(mixture: MoLRG) -> None:
    for sigma in (0.05, 0.7, 5.0):
        x = points(mixture, sigma).requires_grad_()
        (gradient,) = torch.autograd.grad(mixture.log_prob(x, sigma).sum(), x)
        torch.testing.assert_close(mixture.score(x.detach(), sigma), gradient, rtol=1e-9, atol=1e-9)


def test_gradient_flows_through_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    mixture = MIXTURES["orthogonal"]
    x = points(mixture, 0.5, n=700).requires_grad_()
    whole = torch.autograd.grad(mixture.log_prob(x, [0.5, 1.0]).sum(), x)[0]
    monkeypatch.setattr("molrg.model.rows.CHUNK", 1)
    chunked = torch.autograd.grad(mixture.log_prob(x, [0.5, 1.0]).sum(), x)[0]
    torch.testing.assert_close(chunked, whole)


def test_chunks_change_nothing(mixture: MoLRG, monkeypatch: pytest.MonkeyPatch) -> None:
    x = points(mixture, 0.5, n=600)
    names = ["log_prob", "posterior_weights", "posterior_mean", "score"]
    whole = [getattr(mixture, name)(x, LEVELS) for name in names]
    monkeypatch.setattr("molrg.model.rows.CHUNK", 1)
    for name, value in zip(names, whole, strict=True):
        torch.testing.assert_close(getattr(mixture, name)(x, LEVELS), value, rtol=1e-12, atol=1e-12)


def test_sweep_equals_single_levels(mixture: MoLRG) -> None:
    x = points(mixture, 0.3)
    for name in ("log_prob", "posterior_weights", "posterior_mean", "score"):
        sweep = getattr(mixture, name)(x, LEVELS)
        assert len(sweep) == len(LEVELS)
        for level, value in zip(LEVELS.tolist(), sweep, strict=True):
            torch.testing.assert_close(getattr(mixture, name)(x, level), value)


@pytest.mark.parametrize("background", ["span", "complement"])
@pytest.mark.parametrize("shape", [(3, 5, 50, 0.2), (10, 20, 784, 0.2), (4, 2, 30, 0.05)])
@pytest.mark.parametrize("noisy", [True, False])
def test_float32_is_accurate(shape: tuple[int, int, int, float], background: str, noisy: bool) -> None:
    num_classes, rank, dim, delta = shape
    mixture = MoLRG.orthogonal(num_classes, rank, dim, delta, background, generator())
    x0, _ = mixture.sample(400, generator=generator(1))
    noise = torch.randn(x0.shape, generator=generator(2))
    for sigma in torch.logspace(-3, math.log10(20), 12).tolist():
        x = x0 + sigma * noise if noisy else x0
        single, double = mixture.posterior_mean(x, sigma), mixture.posterior_mean(x.double(), sigma)
        assert single.dtype == torch.float32
        assert (single - double).norm() <= 1e-6 * double.norm()


def test_moments_of_samples(mixture: MoLRG) -> None:
    n = 40_000
    x0, labels = mixture.sample(n, generator=generator(5))
    assert x0.shape == (n, mixture.dim)
    assert labels.shape == (n,)
    counts = torch.bincount(labels, minlength=mixture.num_classes)
    spread = (mixture.priors * (1 - mixture.priors) / n).sqrt()
    assert ((counts / n - mixture.priors).abs() < 5 * spread).all()
    for k in range(mixture.num_classes):
        own = x0[labels == k].double()
        cov = mixture.covariance(k)
        np.testing.assert_allclose(cov, dense_covariance(mixture, k), atol=1e-12)
        # Entries of a Gaussian sample covariance vary by sqrt((S_ii S_jj + S_ij^2)/N).
        error = (cov.diagonal().outer(cov.diagonal()) + cov.square()).sqrt() / math.sqrt(len(own))
        assert ((own.T @ own / len(own) - cov).abs() <= 5 * error + 1e-12).all()
        assert (own.mean(0).abs() <= 5 * (cov.diagonal() / len(own)).sqrt() + 1e-12).all()


def test_samples_of_given_classes_and_seeds() -> None:
    mixture = MIXTURES["orthogonal"]
    labels = torch.tensor([2, 0, 1, 1])
    x0, returned = mixture.sample(4, generator=generator(1), labels=labels)
    assert torch.equal(returned, labels)
    assert torch.equal(mixture.sample(4, generator=generator(1), labels=labels)[0], x0)
    assert not torch.equal(mixture.sample(4, generator=generator(2), labels=labels)[0], x0)


def test_labels_of_every_integer_kind() -> None:
    mixture = MIXTURES["orthogonal"]
    expected = mixture.sample(3, generator(), torch.tensor([2, 0, 1]))
    kinds: list = [
        [2, 0, 1],
        (2, 0, 1),
        np.array([2, 0, 1], dtype=np.uint16),
        torch.tensor([2, 0, 1], dtype=torch.int32),
        torch.tensor([2, 0, 1], dtype=torch.uint8),
    ]
    for labels in kinds:
        x0, returned = mixture.sample(3, generator(), labels)
        assert returned.dtype == torch.int64
        assert torch.equal(returned, expected[1])
        assert torch.equal(x0, expected[0])


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0.0, 1.0, 2.0], "which are integers; got torch.float64"),
        (torch.tensor([True, False, True]), "which are integers; got torch.bool"),
        ("abc", "got str"),
        ([[0], [1, 2], [0]], "got list"),
        (1, r"got shape \(\)"),
        ([0, 1], r"got shape \(2,\)"),
        ([0, -1, 1], "got values from -1 to 1"),
        (torch.tensor([0, 1, 3]), "got values from 0 to 3"),
    ],
)
def test_wrong_labels(labels: object, message: str) -> None:
    with pytest.raises(ValueError, match=r"labels must have shape \(3,\) and values 0 ... 2.*" + message):
        MIXTURES["orthogonal"].sample(3, labels=labels)  # type: ignore[arg-type]


def test_bases_are_copied() -> None:
    bases = random_bases(6, [2, 2])
    mixture = MoLRG(bases, 0.2)
    before = [basis.clone() for basis in bases]
    for basis in bases:
        basis.zero_()
    assert all(torch.equal(kept, was) for kept, was in zip(mixture.bases, before, strict=True))
    np.testing.assert_allclose(mixture.covariance(0), dense_covariance(mixture, 0), atol=1e-12)


def test_bases_may_deviate_by_rounding_alone() -> None:
    """QR of 5000 rows passes; a deviation that would show in the densities is refused."""
    g = generator()
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-10)):
        bases = torch.linalg.qr(torch.randn(5000, 40, generator=g, dtype=dtype)).Q.split(20, 1)
        assert MoLRG(bases, 0.2).is_orthogonal
        with pytest.raises(ValueError, match=rf"bases\[1\].*more than {tolerance:g}"):
            MoLRG([bases[0], bases[1] * (1 + 2 * tolerance)], 0.2)
        tilted = torch.linalg.qr(bases[1] + 4 * tolerance * bases[0]).Q
        assert not MoLRG([bases[0], tilted], 0.2).is_orthogonal


def test_float32_density_agrees_with_its_covariance() -> None:
    """Bases at the edge of what is accepted: |U^T U - I| = 9e-6."""
    u = torch.linalg.qr(torch.randn(30, 10, generator=generator())).Q * (1 + 4.5e-6)
    mixture = MoLRG(u.split(5, 1), 0.2)
    sigma, x = 0.1, points(mixture, 0.1).double()
    noise = sigma**2 * torch.eye(30, dtype=torch.float64)
    logs = [
        multivariate_normal(cov=(mixture.covariance(k) + noise).numpy()).logpdf(x.numpy()) - math.log(2)
        for k in range(2)
    ]
    np.testing.assert_allclose(mixture.log_prob(x, sigma), np.logaddexp(*logs), atol=0.01)


def test_limits_of_posterior_mean() -> None:
    mixture = MIXTURES["orthogonal"]
    x0, _ = mixture.sample(50, generator=generator(1))
    torch.testing.assert_close(mixture.posterior_mean(x0, 1e-6), x0, rtol=0, atol=1e-9)
    # At high noise all weights are equal, and zeta, xi tend to 1/sigma^2, delta^2/sigma^2.
    sigma = 1e4
    u = torch.cat(list(mixture.bases), dim=1)
    limit = (1 + 2 * 0.2**2) / 3 / sigma**2 * x0 @ u @ u.T
    torch.testing.assert_close(mixture.posterior_mean(x0, sigma), limit, rtol=1e-6, atol=1e-18)


def test_posterior_mean_is_a_projection() -> None:
    """The error of E[x_0 | x_sigma] is uncorrelated with every function of x_sigma (Monte Carlo, 5 sigma)."""
    mixture = MIXTURES["angles-ranks-priors"]
    x0, _ = mixture.sample(200_000, generator=generator(3))
    x = x0 + 0.5 * torch.randn(x0.shape, generator=generator(4), dtype=x0.dtype)
    mean = mixture.posterior_mean(x, 0.5)
    for function in (x, mean, x.sin()):
        product = ((x0 - mean) * function).sum(1)
        assert product.mean().abs() < 5 * product.std() / math.sqrt(len(product))
    # A wrong denoiser is found out by the same test.
    product = ((x0 - 0.95 * mean) * mean).sum(1)
    assert product.mean().abs() > 5 * product.std() / math.sqrt(len(product))


@pytest.mark.parametrize("dim", [15, 16, 50])  # of 15 dimensions the classes leave none
@pytest.mark.parametrize("delta", [1e-3, 0.2])
def test_score_and_density_are_accurate_in_float32(dim: int, delta: float) -> None:
    mixture = MoLRG.orthogonal(3, 5, dim, delta, generator=generator())
    for sigma in (1e-4, 1e-3, 1e-2, 1.0):
        x = points(mixture, sigma, n=100)
        score, log_prob = mixture.score(x.double(), sigma), mixture.log_prob(x.double(), sigma)
        assert (mixture.score(x, sigma) - score).norm() < 1e-6 * score.norm()
        assert (mixture.log_prob(x, sigma) - log_prob).abs().max() < 1e-5 * log_prob.abs().max()


def test_the_score_of_classes_that_fill_the_space_is_dense_algebra() -> None:
    mixture = MoLRG.orthogonal(2, 3, 6, 0.5, generator=generator(), dtype=torch.float64)
    x, sigma = points(mixture, 1e-6, n=5), 1e-6
    precisions = [torch.linalg.inv(mixture.covariance(k) + sigma**2 * torch.eye(6).double()) for k in (0, 1)]
    weights = mixture.posterior_weights(x, sigma)
    expected = -sum(weights[:, [k]] * (x @ precision) for k, precision in enumerate(precisions))
    torch.testing.assert_close(mixture.score(x, sigma), expected, rtol=1e-8, atol=1e-8)


@settings(max_examples=25)
@given(
    ranks=st.lists(st.integers(1, 3), min_size=2, max_size=4),
    delta=st.floats(0.02, 0.95),
    sigma=st.floats(1e-2, 20),
    background=st.sampled_from(["span", "complement"]),
    seed=st.integers(0, 1000),
)
def test_rotation_and_permutation(
    ranks: list[int], delta: float, sigma: float, background: str, seed: int
) -> None:
    dim = 7
    bases = random_bases(dim, ranks, seed)
    priors = torch.rand(len(ranks), generator=generator(seed), dtype=torch.float64) + 0.1
    priors = priors / priors.sum()
    mixture = MoLRG(bases, delta, priors, background)
    x = points(mixture, sigma, n=5, seed=seed)
    rotation = torch.linalg.qr(torch.randn(dim, dim, generator=generator(seed + 1), dtype=x.dtype)).Q
    rotated = MoLRG([rotation @ u for u in bases], delta, priors, background)
    order = torch.randperm(len(ranks), generator=generator(seed))
    permuted = MoLRG([bases[k] for k in order], delta, priors[order], background)
    mean = mixture.posterior_mean(x, sigma)
    close = partial(torch.testing.assert_close, rtol=1e-7, atol=1e-9)
    close(rotated.posterior_mean(x @ rotation.T, sigma), mean @ rotation.T)
    close(permuted.posterior_mean(x, sigma), mean)
    close(permuted.posterior_weights(x, sigma), mixture.posterior_weights(x, sigma)[:, order])
    close(rotated.log_prob(x @ rotation.T, sigma), mixture.log_prob(x, sigma))


def test_dtypes_mix() -> None:
    double, single = MIXTURES["orthogonal"], MoLRG.orthogonal(3, 2, 8, 0.2, generator=generator())
    x = points(double, 0.5)
    assert double.posterior_mean(x.float(), [0.5, 1]).dtype == torch.float32
    assert single.posterior_mean(x, 0.5).dtype == torch.float64
    assert single.sample(3, generator=generator())[0].dtype == torch.float32
    assert double.sample(3, generator=generator())[0].dtype == torch.float64


def test_shapes_and_kinds_of_sigma() -> None:
    mixture = MIXTURES["orthogonal"]
    x = points(mixture, 0.5, n=4)
    scalars: list[Levels] = [0.5, 1, np.float64(0.5), torch.tensor(0.5)]
    for sigma in scalars:
        assert mixture.posterior_mean(x, sigma).shape == (4, 8)
        assert mixture.log_prob(x, sigma).shape == (4,)
    for levels in ([0.5, 1], np.array([0.5, 1]), torch.tensor([0.5, 1])):
        assert mixture.posterior_mean(x, levels).shape == (2, 4, 8)
        assert mixture.posterior_weights(x, levels).shape == (2, 4, 3)
        assert mixture.score(x, levels).shape == (2, 4, 8)
        assert mixture.log_prob(x, levels).shape == (2, 4)
    assert mixture.posterior_mean(x[:0], [0.5, 1]).shape == (2, 0, 8)


def test_orthogonal_bases_are_orthonormal() -> None:
    mixture = MoLRG.orthogonal(4, 3, 20, 0.1, generator=generator(), dtype=torch.float64)
    u = torch.cat(list(mixture.bases), dim=1)
    torch.testing.assert_close(u.T @ u, torch.eye(12, dtype=torch.float64), atol=1e-14, rtol=0)
    assert mixture.is_orthogonal
    assert mixture.support_dim == 12
    assert not MIXTURES["angles-ranks-priors"].is_orthogonal
    assert MIXTURES["overlap"].support_dim == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"delta": 1.0}, "delta must lie strictly between 0 and 1, got 1.0"),
        ({"delta": "0.2"}, "delta must lie strictly between 0 and 1, got '0.2'"),
        ({"delta": torch.tensor([0.2, 0.3])}, "delta must lie strictly between 0 and 1"),
        ({"num_classes": 1}, "num_classes must be an integer >= 2, got 1"),
        ({"rank": 2.0}, "rank must be an integer >= 1, got 2.0"),
        ({"num_classes": 6, "dim": 11, "rank": 2}, r"num_classes \* rank <= dim, got 6 \* 2 > 11"),
        ({"background": "spam"}, "background must be 'span' or 'complement', got 'spam'"),
        ({"background": np.array(["span"])}, "background must be 'span' or 'complement', got array"),
        ({"background": np.array(["span", "span"])}, "background must be 'span' or 'complement', got array"),
    ],
)
def test_wrong_settings(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MoLRG.orthogonal(**arguments)


def test_wrong_bases_and_priors() -> None:
    good = random_bases(6, [2, 2])
    with pytest.raises(ValueError, match=r"bases\[1\] must have orthonormal columns.*torch.linalg.qr"):
        MoLRG([good[0], 2 * good[1]], 0.2)
    with pytest.raises(ValueError, match="at least 2 classes"):
        MoLRG(good[:1], 0.2)
    with pytest.raises(ValueError, match=r"bases must share \(rows, dtype, device\)"):
        MoLRG([good[0], good[1].float()], 0.2)
    for priors in ([0.5, 0.6], [1.0, 0.0], [0.2, 0.3, 0.5]):
        with pytest.raises(ValueError, match="priors must be 2 positive numbers with sum 1"):
            MoLRG(good, 0.2, priors)
    with pytest.raises(ValueError, match="priors must be 2 positive numbers with sum 1, got 'a'"):
        MoLRG(good, 0.2, "a")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"bases must be a sequence of 2 or more tensors.*got NoneType"):
        MoLRG(None, 0.2)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"bases\[1\] must be a float32 or float64 tensor.*got ndarray$"):
        MoLRG([good[0], good[1].numpy()], 0.2)  # type: ignore[list-item]
    with pytest.raises(ValueError, match=r"bases\[0\].*got torch.float16 \(6, 2\)$"):
        MoLRG([basis.half() for basis in good], 0.2)


def test_wrong_inputs() -> None:
    mixture = MIXTURES["orthogonal"]
    x = points(mixture, 0.5, n=4)
    with pytest.raises(ValueError, match=r"x must have shape \(N, 8\), got \(4, 7\)"):
        mixture.posterior_mean(x[:, :7], 0.5)
    with pytest.raises(ValueError, match=r"x must be a float32 or float64 tensor, got torch\.int64"):
        mixture.score(x.long(), 0.5)
    for sigma in (0.0, -1.0, float("nan"), float("inf"), [0.5, 0]):
        with pytest.raises(ValueError, match="sigma must be finite and positive"):
            mixture.log_prob(x, sigma)
    for shape in (torch.ones(1, 1), torch.ones(0)):
        with pytest.raises(ValueError, match="sigma must be a positive number or a non-empty 1-D array"):
            mixture.log_prob(x, shape)
    wrong: list = ["much", None, True, [True], [0.5, False], np.array([True]), torch.tensor(True), 10**400]
    for sigma in wrong:
        with pytest.raises(ValueError, match="sigma must be a positive number or a 1-D array"):
            mixture.log_prob(x, sigma)
    for sigma in (1e-13, 1e13, [0.5, 1e200]):
        with pytest.raises(ValueError, match="sigma must lie from 1e-12 to 1e\\+12, got"):
            mixture.log_prob(x, sigma)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_lowest_and_highest_levels(mixture: MoLRG, dtype: torch.dtype) -> None:
    x = points(mixture, 0.5).to(dtype)
    for name in ("log_prob", "posterior_weights", "posterior_mean", "score"):
        assert getattr(mixture, name)(x, [1e-12, 1e12]).isfinite().all()
