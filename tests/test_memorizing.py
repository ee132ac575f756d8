"""The empirical denoiser against dense float64 sums, autograd, and identities."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp
from torch.utils._python_dispatch import TorchDispatchMode

from molrg import EmpiricalDenoiser, MoLRG
from molrg.model import memorizing
from molrg.model import rows as row_chunking
from molrg.support.checks import Levels

LEVELS = torch.tensor([1e-3, 0.03, 0.4, 2.0, 20.0], dtype=torch.float64)
METHODS = ("posterior_mean", "posterior_weights", "log_prob", "score")
FIELDS = ("posterior_mean", "posterior_weights", "log_prob", "entropy", "largest")


def normal_points(count: int, kind: torch.dtype) -> torch.Tensor:
    return torch.randn(count, 5, generator=torch.Generator().manual_seed(count), dtype=kind)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def data(num_points: int, num_queries: int, dim: int = 12) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Training points, their labels, and other points of the same distribution, float64."""
    g = generator()
    model = MoLRG.orthogonal(3, 2, dim, 0.2, "complement", generator=g, dtype=torch.float64)
    points, labels = model.sample(num_points, generator=g)
    return points, labels, model.sample(num_queries, generator=g)[0]


POINTS, LABELS, FRESH = data(1300, 60)


def noisy(sigma: float, seed: int = 3) -> torch.Tensor:
    """Fresh points, and training points, both with noise."""
    x = torch.cat([FRESH, POINTS[:60]])
    return x + sigma * torch.randn(x.shape, generator=generator(seed), dtype=x.dtype)


def dense(
    points: torch.Tensor, x: torch.Tensor, sigma: float, labels: torch.Tensor = LABELS
) -> dict[str, Any]:
    """Every quantity from all pairwise differences, in float64."""
    a, b = points.double().numpy(), x.double().numpy()
    logits = np.stack([-((row - a) ** 2).sum(1) for row in b]) / (2 * sigma**2)
    constant = math.log(len(a)) + a.shape[1] / 2 * math.log(2 * math.pi * sigma**2)
    log_weights = logits - logsumexp(logits, axis=1, keepdims=True)
    weights = np.exp(log_weights)
    mean = weights @ a
    return {
        "posterior_mean": mean,
        "posterior_weights": weights @ np.eye(3)[LABELS.numpy()],
        "log_prob": logsumexp(logits, axis=1) - constant,
        "score": (mean - b) / sigma**2,
        "entropy": -(weights * log_weights).sum(1),
        "largest": weights.max(1),
        "nearest": np.argmax(logits, axis=1),
    }


@pytest.mark.parametrize("sigma", LEVELS.tolist())
def test_all_methods_are_the_dense_sums(sigma: float) -> None:
    denoiser, x = EmpiricalDenoiser(POINTS, LABELS), noisy(sigma)
    expected = dense(POINTS, x, sigma)
    for name in METHODS:
        scale = 1 / sigma if name == "score" else 1
        np.testing.assert_allclose(
            getattr(denoiser, name)(x, sigma), expected[name], rtol=1e-8, atol=1e-9 * scale
        )
    found = denoiser.posterior(x, sigma)
    for name, value in zip(FIELDS, found, strict=True):
        np.testing.assert_allclose(value, expected[name], rtol=1e-8, atol=1e-9, err_msg=name)


def test_nearest_point_and_its_distance() -> None:
    distance, index = EmpiricalDenoiser(POINTS).nearest(noisy(0.3))
    assert (index.numpy() == dense(POINTS, noisy(0.3), 1.0)["nearest"]).all()
    torch.testing.assert_close(distance, (noisy(0.3) - POINTS[index]).norm(dim=1))
    distance, index = EmpiricalDenoiser(POINTS).nearest(POINTS)
    assert (distance == 0).all()
    assert (index == torch.arange(len(POINTS))).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_has_no_nearest_point(value: float) -> None:
    x = noisy(0.3)
    x[2, 1] = value
    with pytest.raises(ValueError, match="x must be finite, found NaN or infinity"):
        EmpiricalDenoiser(POINTS).nearest(x)


def test_score_is_the_gradient_of_the_log_density() -> None:
    """By automatic differentiation of a density written with torch alone."""
    sigma, x = 0.4, noisy(0.4).requires_grad_()
    log_density = torch.logsumexp(-(x[:, None] - POINTS).square().sum(-1) / (2 * sigma**2), 1)
    (gradient,) = torch.autograd.grad(log_density.sum(), x)
    torch.testing.assert_close(EmpiricalDenoiser(POINTS).score(x.detach(), sigma), gradient)


def test_jacobian_of_the_mean_is_the_posterior_covariance() -> None:
    """d E[x_0 | x] / dx = Cov(x_0 | x) / sigma^2, the derivative by differences."""
    sigma, x, step = 0.5, noisy(0.5)[:1], 1e-5
    denoiser = EmpiricalDenoiser(POINTS)
    shifts = step * torch.eye(x.shape[1], dtype=x.dtype)
    ahead, behind = denoiser.posterior_mean(x + shifts, sigma), denoiser.posterior_mean(x - shifts, sigma)
    slopes = (ahead - behind) / (2 * step)
    weights = torch.softmax(-(x - POINTS).square().sum(1) / (2 * sigma**2), 0)
    centred = POINTS - weights @ POINTS
    torch.testing.assert_close(
        slopes, centred.T @ (weights[:, None] * centred) / sigma**2, rtol=1e-5, atol=1e-7
    )


def test_a_sweep_is_its_single_levels() -> None:
    denoiser, x = EmpiricalDenoiser(POINTS, LABELS), noisy(0.3)
    for levels in (LEVELS, LEVELS.flip(0), [0.7], np.array([5.0, 0.01])):
        for name in METHODS:
            swept = getattr(denoiser, name)(x, levels)
            assert len(swept) == len(levels)
            for value, level in zip(swept, levels, strict=True):
                torch.testing.assert_close(
                    value, getattr(denoiser, name)(x, float(level)), rtol=1e-9, atol=1e-9
                )
        swept = denoiser.posterior(x, levels)
        single = denoiser.posterior(x, float(levels[-1]))
        for many, one in zip(swept, single, strict=True):
            torch.testing.assert_close(many[-1], one, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("rows", "points"), [(7, 10), (256, 13), (1024, 5000)])
def test_blocks_do_not_matter(monkeypatch: pytest.MonkeyPatch, rows: int, points: int) -> None:
    denoiser, x = EmpiricalDenoiser(POINTS, LABELS), noisy(0.3).repeat(5, 1)
    expected = denoiser.posterior(x, LEVELS), denoiser.nearest(x)
    monkeypatch.setattr(memorizing, "POINTS", points)
    monkeypatch.setattr(memorizing, "ROWS", rows)
    monkeypatch.setattr(row_chunking, "CHUNK", 256)  # 256 rows of x at a time
    for first, second in zip(expected, (denoiser.posterior(x, LEVELS), denoiser.nearest(x)), strict=True):
        for a, b in zip(first, second, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


class Largest(TorchDispatchMode):
    """Notes the number of elements of the largest tensor that torch makes."""

    size = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        self.size = max(self.size, made.numel() if isinstance(made, torch.Tensor) else 0)
        return made


def test_memory_does_not_grow_with_the_pairs() -> None:
    """Of 2000 x 60,000 pairs only a block is in memory; the points themselves are the largest tensor."""
    denoiser = EmpiricalDenoiser(torch.randn(20_000, 10, generator=generator()))
    x = torch.randn(2000, 10, generator=generator(1))
    with Largest() as largest:
        denoiser.posterior_mean(x, 0.5)
        denoiser.log_prob(x, [0.1, 0.5])
    assert largest.size <= max(20_000 * 10, memorizing.ROWS * memorizing.POINTS)


# --- single precision ---------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", LEVELS.tolist())
@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_single_precision(sigma: float, offset: float) -> None:
    """The documented accuracy: median below 1e-6 at every level, a common offset costs nothing."""
    points = (POINTS + offset).float()
    x = (noisy(sigma) + offset).float()
    denoiser = EmpiricalDenoiser(points, LABELS)
    found, expected = denoiser.posterior(x, sigma), dense(points, x, sigma)
    error = np.abs(found.mean.double().numpy() - expected["posterior_mean"]).max(1) / points.std().item()
    rounding = 1 + offset  # the result is rounded at its own size
    assert np.median(error) < 2e-6 * rounding
    assert np.quantile(error, 0.98) < 3e-4 * rounding
    assert np.abs(found.log_prob.double().numpy() / expected["log_prob"] - 1).max() < 1e-4
    assert np.abs(found.entropy.double().numpy() - expected["entropy"]).max() < 1e-3
    assert found.mean.dtype == torch.float32


def test_double_precision_of_points_given_in_single() -> None:
    """Points are used as given, not as rounded after centring."""
    points = (POINTS + 10).float()
    exact = dense(points, points[:20], 1e-5)
    found = EmpiricalDenoiser(points).log_prob(points[:20].double(), 1e-5)
    np.testing.assert_allclose(found, exact["log_prob"], rtol=1e-12)


def test_no_overflow_at_the_ends() -> None:
    x = torch.cat([noisy(0.1), 1e3 * noisy(0.1)]).float()
    denoiser = EmpiricalDenoiser(POINTS.float(), LABELS)
    for level in (1e-12, 1e12):
        found = denoiser.posterior(x, level)
        assert all(torch.isfinite(part).all() for part in found)
    torch.testing.assert_close(found.mean, POINTS.float().mean(0).expand(len(x), -1))
    torch.testing.assert_close(found.entropy, torch.full((len(x),), math.log(len(POINTS))))


# --- identities ---------------------------------------------------------------------------------------


@settings(max_examples=25)
@given(
    seed=st.integers(0, 1000),
    num_points=st.integers(1, 40),
    dim=st.integers(1, 6),
    sigma=st.floats(0.05, 10),
)
def test_order_place_and_direction_do_not_matter(seed: int, num_points: int, dim: int, sigma: float) -> None:
    g = generator(seed)
    points = torch.randn(num_points, dim, generator=g, dtype=torch.float64)
    labels = torch.randint(3, (num_points,), generator=g)
    x = torch.randn(9, dim, generator=g, dtype=torch.float64)
    base = EmpiricalDenoiser(points, labels, 3).posterior(x, sigma)
    assert (base.mean <= points.max(0).values + 1e-9).all()
    assert (base.mean >= points.min(0).values - 1e-9).all()
    assert (base.entropy <= math.log(num_points) + 1e-9).all()
    assert (base.largest * num_points >= 1 - 1e-9).all()
    torch.testing.assert_close(base.class_weights.sum(1), torch.ones(9, dtype=torch.float64))
    order = torch.randperm(num_points, generator=g)
    rotation = torch.linalg.qr(torch.randn(dim, dim, generator=g, dtype=torch.float64)).Q
    shift = 5 * torch.randn(dim, generator=g, dtype=torch.float64)
    for moved, moved_x, mean in [
        (EmpiricalDenoiser(points[order], labels[order], 3), x, base.mean),
        (
            EmpiricalDenoiser(points @ rotation + shift, labels, 3),
            x @ rotation + shift,
            base.mean @ rotation + shift,
        ),
        (EmpiricalDenoiser(points.repeat(3, 1), labels.repeat(3), 3), x, base.mean),
    ]:
        again = moved.posterior(moved_x, sigma)
        torch.testing.assert_close(again.mean, mean, rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(again.class_weights, base.class_weights, rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(again.log_prob, base.log_prob, rtol=1e-8, atol=1e-8)


def test_scale_law() -> None:
    """Data and noise scaled by c scale the denoised point by c."""
    for c in (0.01, 30.0):
        scaled = EmpiricalDenoiser(c * POINTS).posterior_mean(c * noisy(0.3), 0.3 * c)
        torch.testing.assert_close(scaled, c * EmpiricalDenoiser(POINTS).posterior_mean(noisy(0.3), 0.3))


def test_one_point_is_always_the_answer() -> None:
    denoiser = EmpiricalDenoiser(POINTS[:1], [0])
    found = denoiser.posterior(noisy(0.5), LEVELS)
    torch.testing.assert_close(found.mean, POINTS[0].expand_as(found.mean))
    assert (found.entropy == 0).all()
    levels = torch.logspace(-2, 1, 20, dtype=torch.float64)
    for kind in (torch.float32, torch.float64):  # where some of the weights vanish
        x = normal_points(400, kind)
        assert EmpiricalDenoiser(normal_points(1500, kind)).posterior(x, levels).entropy.min() >= 0
    assert (found.largest == 1).all()
    assert (found.class_weights == 1).all()


def test_low_noise_gives_back_training_points() -> None:
    torch.testing.assert_close(EmpiricalDenoiser(POINTS).posterior_mean(POINTS, 1e-3), POINTS)


def test_many_points_give_the_mixture() -> None:
    """With 2 10^5 points in few dimensions the empirical denoiser is that of the distribution."""
    g = generator()
    model = MoLRG.orthogonal(2, 1, 2, 0.3, generator=g)
    points, labels = model.sample(200_000, generator=g)
    x, _ = model.sample(500, generator=g)
    x = x + 0.4 * torch.randn(x.shape, generator=g)
    found = EmpiricalDenoiser(points, labels).posterior(x, 0.4)
    assert (found.mean - model.posterior_mean(x, 0.4)).square().mean().sqrt() < 0.01
    assert (found.class_weights - model.posterior_weights(x, 0.4)).square().mean().sqrt() < 0.01
    assert (found.log_prob - model.log_prob(x, 0.4)).square().mean().sqrt() < 0.03


def test_no_rows() -> None:
    assert EmpiricalDenoiser(POINTS).posterior_mean(POINTS[:0], [0.1, 1.0]).shape == (2, 0, 12)
    assert EmpiricalDenoiser(POINTS).posterior_mean(POINTS[:0], 0.1).shape == (0, 12)


def test_it_keeps_its_own_points() -> None:
    points = POINTS.clone()
    denoiser = EmpiricalDenoiser(points)
    before = denoiser.posterior_mean(noisy(0.2), 0.2)
    points.zero_()
    torch.testing.assert_close(denoiser.posterior_mean(noisy(0.2), 0.2), before, rtol=0, atol=0)
    assert (denoiser.num_points, denoiser.dim, denoiser.num_classes) == (1300, 12, 0)


# --- errors -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((POINTS.numpy(),), r"points must be a float32 or float64 tensor \(M, n\), got ndarray"),
        ((POINTS.long(),), "got torch.int64"),
        ((POINTS[0],), r"points must have shape \(M, n\) with M, n >= 1, got \(12,\)"),
        ((POINTS[:0],), r"got \(0, 12\)"),
        ((POINTS / 0,), "points must be finite"),
        ((POINTS, LABELS[:5]), r"labels must have shape \(1300,\)"),
        ((POINTS, LABELS - 1), "got values from -1"),
        ((POINTS, LABELS, 2), "values 0 ... 1"),
        ((POINTS, LABELS, 0), "num_classes must be an integer >= 1, got 0"),
        ((POINTS, None, 3), "num_classes = 3 is given without labels"),
    ],
)
def test_wrong_points_are_named(arguments: tuple[Any, ...], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        EmpiricalDenoiser(*arguments)


@pytest.mark.parametrize(
    ("x", "sigma", "named"),
    [
        (FRESH.numpy(), 0.1, "x must be a float32 or float64 tensor, got ndarray"),
        (FRESH[:, :5], 0.1, r"x must have shape \(N, 12\), got \(60, 5\)"),
        (FRESH, 0.0, "sigma must be finite and positive, got 0"),
        (FRESH, [[0.1]], "1-D array"),
        (FRESH.clone().requires_grad_(), 0.1, "x must not require gradients"),
    ],
)
def test_wrong_queries_are_named(x: torch.Tensor, sigma: Levels, named: str) -> None:
    denoiser = EmpiricalDenoiser(POINTS, LABELS)
    for call in (
        denoiser.posterior_mean,
        denoiser.posterior_weights,
        denoiser.log_prob,
        denoiser.score,
        denoiser.posterior,
    ):
        with pytest.raises(ValueError, match=named):
            call(x, sigma)


def test_classes_need_labels() -> None:
    with pytest.raises(ValueError, match="posterior_weights needs classes"):
        EmpiricalDenoiser(POINTS).posterior_weights(FRESH, 0.1)
    assert EmpiricalDenoiser(POINTS).posterior(FRESH, 0.1).class_weights.shape == (60, 0)
