"""The exact denoising error against Monte Carlo, a direct integral, and its limits."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from molrg import MoLRG
from molrg.snr import denoising_error


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("background", ["span", "complement"])
def test_against_monte_carlo(background: str) -> None:
    mixture = MoLRG.orthogonal(3, 4, 20, 0.25, background, generator(), torch.float64)
    x0, _ = mixture.sample(40_000, generator=generator(1))
    for sigma in (0.05, 0.3, 1.0, 4.0):
        x = x0 + sigma * torch.randn(x0.shape, generator=generator(2), dtype=x0.dtype)
        error = (mixture.posterior_mean(x, sigma) - x0).square().sum(1)
        expected = denoising_error.exact(3, 4, 0.25, sigma, mixture.support_dim)
        assert abs(error.mean() - expected) < 4.5 * error.std() / len(x0) ** 0.5
        assert error.std() / len(x0) ** 0.5 < 0.01 * expected


@pytest.mark.parametrize(("rank", "delta", "sigma"), [(2, 0.3, 0.4), (3, 0.6, 1.5)])
def test_ambiguity_of_two_classes_by_a_plane_integral(rank: int, delta: float, sigma: float) -> None:
    s2, d2 = sigma**2, delta**2
    kappa = (1 / (d2 + s2) - 1 / (1 + s2)) / 2
    own, other, gap = 1 + s2, d2 + s2, 1 / (1 + s2) - d2 / (d2 + s2)
    node, weight = np.polynomial.legendre.leggauss(400)
    r = (node + 1) * (np.sqrt(rank) + 9) / 2
    density = weight * r ** (rank - 1) * np.exp(-r * r / 2)
    density /= density.sum()
    a, b = own * r[:, None] ** 2, other * r**2
    w = 1 / (1 + np.exp(kappa * (b - a)))
    integral = density @ (w * (1 - w) * (a + b)) @ density
    assert float(denoising_error.ambiguity(2, rank, delta, sigma)) == pytest.approx(
        gap**2 * integral, rel=1e-9
    )


@settings(max_examples=25)
@given(
    num_classes=st.integers(2, 200),
    rank=st.integers(1, 50),
    delta=st.floats(0.02, 0.95),
    sigma=st.floats(1e-3, 50),
)
def test_order_of_the_errors(num_classes: int, rank: int, delta: float, sigma: float) -> None:
    model = (num_classes, rank, delta, sigma)
    known = float(denoising_error.known_class(*model, num_classes * rank))
    best, straight = float(denoising_error.exact(*model)), float(denoising_error.linear(*model))
    assert known * (1 - 1e-10) <= best <= straight * (1 + 1e-9)
    assert straight <= num_classes * rank * sigma**2
    assert straight <= rank * (1 + (num_classes - 1) * delta**2)


def test_limits() -> None:
    low, high = denoising_error.exact(3, 5, 0.2, [1e-6, 1e6]).tolist()
    assert low == pytest.approx(15e-12, rel=1e-9)
    assert high == pytest.approx(5 * (1 + 2 * 0.04), rel=1e-9)
    assert denoising_error.exact(3, 5, 0.2, 0.5).shape == ()
    assert denoising_error.exact(3, 5, 0.2, [0.5]).shape == (1,)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1, 5, 0.2, 0.5), "num_classes must be an integer >= 2, got 1"),
        ((3, 5, 1.0, 0.5), "delta must lie strictly between 0 and 1"),
        ((3, 5, 0.2, 0.0), "sigma must be finite and positive"),
        ((3, 5, 0.2, 0.5, 14), "support_dim must be an integer >= 15, got 14"),
    ],
)
def test_wrong_arguments(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        denoising_error.exact(*arguments)
    with pytest.raises(ValueError, match="rank must be"):
        denoising_error.linear(2, 0, 0.2, 0.5)
