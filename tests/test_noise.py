"""Noise levels and the distributions that training draws from."""

import math
from collections.abc import Callable

import pytest
import torch

from molrg.model import noise


def test_paper_levels_are_the_published_ones() -> None:
    published = [
        0.035,
        0.057,
        0.103,
        0.194,
        0.287,
        0.384,
        0.486,
        0.594,
        0.710,
        0.837,
        0.976,
        1.503,
        1.730,
        1.992,
    ]
    assert noise.paper_levels().tolist() == pytest.approx(published, abs=6e-4)


def test_ddpm_levels_follow_the_cumulative_product() -> None:
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    abar = torch.cumprod(1 - betas, 0)
    torch.testing.assert_close(noise.ddpm_levels(1000), ((1 - abar) / abar).sqrt(), rtol=1e-9, atol=0)


def test_image_levels_are_the_low_end_of_edm() -> None:
    levels = noise.edm_levels(18, 0.002, 80.0)
    assert levels[:9].tolist() == pytest.approx(noise.IMAGE_LEVELS, abs=6e-4)
    assert (levels[0], levels[-1]) == (0.002, 80.0)
    assert (levels.diff() > 0).all()


def test_log_uniform_and_log_normal_have_their_moments() -> None:
    generator = torch.Generator().manual_seed(1)
    uniform = noise.LogUniform(0.01, 10.0).sample(40_000, generator)
    assert uniform.min() >= 0.0099
    assert uniform.max() <= 10.01
    assert uniform.log().mean().item() == pytest.approx(math.log(0.1 * 10**0.5), abs=0.04)
    normal = noise.LogNormal(-1.0, 0.5).sample(40_000, generator).log()
    assert normal.mean().item() == pytest.approx(-1.0, abs=0.02)
    assert normal.std().item() == pytest.approx(0.5, abs=0.02)


def test_levels_are_drawn_evenly() -> None:
    generator = torch.Generator().manual_seed(1)
    drawn = noise.as_distribution([0.5, 1.0, 2.0]).sample(30_000, generator)
    values, counts = drawn.unique(return_counts=True)
    assert values.tolist() == [0.5, 1.0, 2.0]
    assert (counts - 10_000).abs().max() < 500
    assert noise.as_distribution(0.3).sample(4, generator).tolist() == pytest.approx([0.3] * 4)


def test_as_distribution_takes_every_form() -> None:
    assert noise.as_distribution(0.25) == noise.Levels((0.25,))
    assert noise.as_distribution(torch.tensor([0.25, 0.5])) == noise.Levels((0.25, 0.5))
    assert noise.as_distribution((0.25, 0.5)) == noise.Levels((0.25, 0.5))
    distribution = noise.LogNormal()
    assert noise.as_distribution(distribution) is distribution


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        (lambda: noise.edm_levels(1, 0.1, 1.0), "n must be an integer >= 2, got 1"),
        (lambda: noise.edm_levels(4, 1.0, 0.1), "low=1.0 and high=0.1"),
        (lambda: noise.edm_levels(4, 0.1, 1.0, rho=0.0), "rho must be positive and finite, got 0.0"),
        (lambda: noise.ddpm_levels(0), "num_steps must be an integer >= 1, got 0"),
        (lambda: noise.ddpm_levels(10, 0.5, 0.1), "beta_min must not be above beta_max, got 0.5 and 0.1"),
        (lambda: noise.LogUniform(-1.0, 1.0), "low must be positive and finite, got -1.0"),
        (lambda: noise.LogNormal(0.0, 0.0), "std must be positive and finite, got 0.0"),
        (lambda: noise.as_distribution([]), "at least one level"),
        (lambda: noise.as_distribution([0.1, -0.1]), "each of sigmas must be positive and finite, got -0.1"),
        (lambda: noise.as_distribution("high"), "positive number"),  # type: ignore[arg-type]
    ],
)
def test_wrong_values_are_named(wrong: Callable[[], object], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        wrong()
