"""Conversions of predictions: by definitions, against the exact denoiser, and in single precision."""

import math
from fractions import Fraction
from itertools import permutations, product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from molrg import MoLRG
from molrg.learning import predictions
from molrg.learning.networks import Preconditioned
from molrg.learning.predictions import PARAMETRISATIONS, convert


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def by_definition(x0: Tensor, eps: Tensor, sigma: float) -> dict[str, Tensor]:
    """What each parametrisation stands for, of a known pair of point and noise."""
    abar = 1 / (1 + sigma**2)
    return {
        "x0": x0,
        "eps": eps,
        "v": abar**0.5 * eps - (1 - abar) ** 0.5 * x0,
        "flow": eps - x0,
        "score": -eps / sigma,
    }


def pair(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    x0, eps = torch.randn(2, 40, 7, generator=generator(), dtype=dtype)
    return x0, eps


@pytest.mark.parametrize("sigma", [1e-3, 0.3, 1.0, 20.0])
def test_all_ordered_pairs_by_their_definitions(sigma: float) -> None:
    x0, eps = pair()
    values = by_definition(x0, eps, sigma)
    x = x0 + sigma * eps
    assert tuple(values) == PARAMETRISATIONS
    for source, target in product(PARAMETRISATIONS, repeat=2):
        found = convert(values[source], x, sigma, source, target)
        terms = values[target].abs().max() + predictions.scale(sigma, target).abs() * x.abs().max()
        assert (found - values[target]).abs().max() < 1e-14 * terms


def test_velocities_are_derivatives() -> None:
    """v is the derivative along the angle of a variance preserving model, flow that along its time."""
    x0, eps = pair()
    h = 1e-5
    for sigma in (0.2, 3.0):
        angle, t = math.atan(sigma), sigma / (1 + sigma)
        arc = [math.cos(a) * x0 + math.sin(a) * eps for a in (angle - h, angle + h)]
        line = [(1 - s) * x0 + s * eps for s in (t - h, t + h)]
        x = x0 + sigma * eps
        for name, ends in (("v", arc), ("flow", line)):
            slope = (ends[1] - ends[0]) / (2 * h)
            torch.testing.assert_close(convert(x0, x, sigma, "x0", name), slope, rtol=1e-7, atol=1e-8)


@settings(max_examples=40)
@given(
    sigma=st.floats(1e-3, 1e3),
    names=st.tuples(*[st.sampled_from(PARAMETRISATIONS)] * 3),
)
def test_conversions_compose(sigma: float, names: tuple[str, str, str]) -> None:
    """From a to c is from a to b to c, up to rounding on the scale of the larger terms."""
    a, b, c = names
    value, x = pair()
    direct = convert(value, x, sigma, a, c)
    between = convert(value, x, sigma, a, b)
    detour = convert(between, x, sigma, b, c)
    gain = (predictions.scale(sigma, c) / predictions.scale(sigma, b)).abs()
    terms = (
        direct.abs().max() + gain * between.abs().max() + predictions.scale(sigma, c).abs() * x.abs().max()
    )
    assert (direct - detour).abs().max() < 1e-14 * terms


def test_against_the_exact_denoiser() -> None:
    mixture = MoLRG.orthogonal(3, 4, 20, 0.25, generator=generator(), dtype=torch.float64)
    x0, _ = mixture.sample(200, generator=generator(1))
    for sigma in (0.05, 0.7, 5.0):
        x = x0 + sigma * torch.randn(x0.shape, generator=generator(2), dtype=x0.dtype)
        mean, score = mixture.posterior_mean(x, sigma), mixture.score(x, sigma)
        torch.testing.assert_close(convert(mean, x, sigma, "x0", "score"), score, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(convert(score, x, sigma, "score", "x0"), mean, rtol=1e-9, atol=1e-9)


def test_one_level_a_row_and_gradients() -> None:
    x0, eps = pair()
    levels = torch.logspace(-2, 2, len(x0), dtype=torch.float64)[:, None]
    x = (x0 + levels * eps).requires_grad_()
    for source, target in permutations(PARAMETRISATIONS, 2):
        together = convert(x0, x, levels, source, target)
        one = convert(x0[7:8], x[7:8], levels[7].item(), source, target)
        torch.testing.assert_close(together[7:8], one, rtol=1e-14, atol=0)
        (slope,) = torch.autograd.grad(together.sum(), x, allow_unused=True, materialize_grads=True)
        assert torch.isfinite(slope).all()


def test_edm_with_unit_data_is_v() -> None:
    """EDM's network for sigma_data = 1 predicts -v."""

    class Fixed(torch.nn.Module):
        def forward(self, x: Tensor, noise: Tensor) -> Tensor:
            return output

    output, x = pair(torch.float32)
    for sigma in (0.1, 2.0):
        denoised = Preconditioned(Fixed(), sigma_data=1.0)(x, sigma)
        torch.testing.assert_close(convert(-output, x, sigma, "v", "x0"), denoised, rtol=1e-5, atol=1e-6)


def test_single_precision_is_kept_where_the_digits_are_there() -> None:
    """From v nothing is lost, at any level; coefficients alone could lose digits at both ends."""
    x0, eps = pair()
    for sigma in (1e-4, 1e-2, 1.0, 1e2, 1e4):
        x = x0 + sigma * eps
        for target in ("x0", "eps", "score"):
            exact = by_definition(x0, eps, sigma)
            found = convert(exact["v"].float(), x.float(), sigma, "v", target)
            assert (found - exact[target]).norm() < 3e-7 * exact[target].norm()


@pytest.mark.parametrize("sigma", [1e-4, 0.7, 1.5, 1e4])
def test_the_difference_of_the_skips_does_not_cancel(sigma: float) -> None:
    s = Fraction(sigma)
    skip = {
        "x0": Fraction(0),
        "eps": Fraction(1),
        "v": 1 / (1 + s * s),
        "flow": 1 / (1 + s),
        "score": Fraction(1),
    }
    zero, one = torch.zeros(1, 1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
    for source, target in permutations(PARAMETRISATIONS, 2):
        expected = float(skip[source] - skip[target]) * predictions.scale(sigma, target).item()
        found = convert(zero, one, sigma, source, target).item()
        assert found == pytest.approx(expected, rel=1e-14, abs=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sigma": 0.0}, "sigma must be positive and finite, got 0.0"),
        ({"sigma": float("nan")}, "sigma must be positive"),
        ({"source": "noise"}, "source must be 'x0' or 'eps' or 'v' or 'flow' or 'score', got 'noise'"),
        ({"target": "V"}, "target must be"),
        ({"value": torch.zeros(3, 2)}, r"one shape and one floating dtype, got \(3, 2\)"),
        ({"value": torch.zeros(3, 4, dtype=torch.float64)}, "torch.float64 and"),
        ({"sigma": torch.ones(3)}, r"sigma of shape \(3,\) does not broadcast .* \(3, 4\).* shape \(N, 1\)"),
        ({"sigma": torch.ones(2, 3, 4)}, "does not broadcast"),
    ],
)
def test_wrong_arguments(change: dict, message: str) -> None:
    arguments = {
        "value": torch.zeros(3, 4),
        "x": torch.zeros(3, 4),
        "sigma": 1.0,
        "source": "x0",
        "target": "eps",
    }
    with pytest.raises(ValueError, match=message):
        convert(**(arguments | change))


def test_wrong_name_of_a_scale() -> None:
    with pytest.raises(ValueError, match="name must be"):
        predictions.scale(1.0, "x")
