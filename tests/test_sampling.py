"""Sampling against distributions whose optimal denoisers are known."""

import math

import pytest
import torch
from torch import Tensor

from molrg import EmpiricalDenoiser, MoLRG
from molrg.images import sampling
from molrg.model import noise


def gaussian(mean: Tensor, scales: Tensor) -> sampling.Denoiser:
    """The posterior mean for x_0 ~ N(mean, diag(scales^2))."""
    return lambda x, sigma: mean + scales**2 / (scales**2 + sigma**2) * (x - mean)


def test_samples_of_a_gaussian_have_its_mean_and_covariance() -> None:
    mean, scales = torch.tensor([0.5, -1.0, 0.0]).double(), torch.tensor([0.3, 1.0, 0.05]).double()
    drawn = sampling.sample(
        gaussian(mean, scales), 20_000, 3, noise.edm_levels(40, 0.001, 80.0), dtype=torch.float64
    )
    error = 5 / math.sqrt(20_000)
    assert ((drawn.mean(0) - mean).abs() < error * scales + mean.abs() / 80).all()
    correlation = torch.cov(drawn.T) / scales / scales[:, None]
    assert (correlation - torch.eye(3).double()).abs().max() < 2 * error


def test_heun_is_of_second_order() -> None:
    """Halving the steps divides the error by four; the path of a Gaussian is known exactly."""
    scale, high, low = 0.7, 10.0, 1e-5
    denoiser = gaussian(torch.zeros(1).double(), torch.full((1,), scale).double())
    start = torch.randn(50, 1, generator=torch.Generator().manual_seed(3), dtype=torch.float64) * high
    exact = start * scale / math.hypot(scale, high)
    errors = []
    for steps in (40, 80, 160):
        generator = torch.Generator().manual_seed(3)
        levels = noise.edm_levels(steps, low, high)
        drawn = sampling.sample(denoiser, 50, 1, levels, generator, dtype=torch.float64)
        errors.append((drawn - exact).norm().item())
    assert 3.6 < errors[0] / errors[1] < 4.4
    assert 3.8 < errors[1] / errors[2] < 4.2


def test_samples_of_a_mixture_lie_on_its_subspaces() -> None:
    mixture = MoLRG.orthogonal(3, 2, 12, 0.05, generator=torch.Generator().manual_seed(0))
    drawn = sampling.sample(mixture.posterior_mean, 3000, 12, noise.edm_levels(40, 0.002, 80.0))
    energy = torch.stack([(drawn @ basis).square().sum(1) for basis in mixture.bases], 1)
    own, rest = energy.amax(1), energy.sum(1) - energy.amax(1)
    assert own.mean().item() == pytest.approx(2.0, rel=0.1)  # d, up to the choice of the largest
    assert rest.mean().item() == pytest.approx(4 * 0.05**2, rel=0.15)
    share = energy.argmax(1).bincount(minlength=3) / len(drawn)
    assert (share - 1 / 3).abs().max() < 0.05
    assert (drawn.square().sum(1) - energy.sum(1)).abs().max() < 1e-3  # `span`: nothing outside


def test_the_empirical_denoiser_returns_its_training_points() -> None:
    points = torch.randn(30, 8, generator=torch.Generator().manual_seed(0))
    memory = EmpiricalDenoiser(points)
    drawn = sampling.sample(memory.posterior_mean, 200, 8, noise.edm_levels(18, 0.002, 80.0))
    distance, index = memory.nearest(drawn)
    assert distance.quantile(0.95) < 1e-3
    assert index.unique().numel() > 25


def test_batches_and_the_order_of_levels_do_not_matter() -> None:
    denoiser = gaussian(torch.zeros(2), torch.ones(2))
    levels = noise.edm_levels(6, 0.01, 20.0)
    whole = sampling.sample(denoiser, 10, 2, levels)
    parts = sampling.sample(denoiser, 10, 2, levels.flip(0).tolist(), batch_size=3)
    torch.testing.assert_close(whole, parts)
    assert whole.shape == (10, 2)
    assert whole.dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n": 0}, "n must be an integer >= 1"),
        ({"dim": 0}, "dim must be an integer >= 1"),
        ({"batch_size": 0}, "batch_size must be an integer >= 1"),
        ({"levels": 1.0}, "two or more noise levels"),
        ({"levels": [1.0, 1.0]}, "all different"),
        ({"levels": [1.0, -1.0]}, "finite and positive"),
    ],
)
def test_wrong_arguments_are_refused(change: dict[str, object], message: str) -> None:
    arguments = {"n": 2, "dim": 3, "levels": [0.1, 1.0]} | change
    with pytest.raises(ValueError, match=message):
        sampling.sample(lambda x, _: x, **arguments)  # type: ignore[arg-type]
