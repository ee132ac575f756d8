"""Noise levels: the grids at which results are shown, and the distributions from which training draws.

A noise level is the standard deviation sigma > 0 in x_sigma = x_0 + sigma * eps, eps ~ N(0, I).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from molrg.support import checks

__all__ = [
    "IMAGE_LEVELS",
    "Distribution",
    "Halves",
    "Levels",
    "LogNormal",
    "LogUniform",
    "as_distribution",
    "ddpm_levels",
    "edm_levels",
    "paper_levels",
]

IMAGE_LEVELS: tuple[float, ...] = (0.002, 0.008, 0.023, 0.060, 0.140, 0.296, 0.585, 1.088, 1.923)
"""The nine levels of the published image experiments: the low end of `edm_levels(18, 0.002, 80)`, rounded."""

_PAPER_TIMESTEPS = (5, 10, 20, 40, 60, 80, 100, 120, 140, 160, 180, 240, 260, 280)


def ddpm_levels(num_steps: int, beta_min: float = 1e-4, beta_max: float = 0.02) -> Tensor:
    """Noise levels of a DDPM with a linear schedule, seen as variance exploding.

    With beta_t from `beta_min` to `beta_max` in equal steps and abar_t = prod_{s <= t} (1 - beta_s), the
    model's x_t = sqrt(abar_t) (x_0 + sigma_t eps) has sigma_t = sqrt((1 - abar_t) / abar_t).

    Returns (num_steps,) float64, increasing; entry t belongs to the timestep t = 0, ..., num_steps - 1.

    Raises ValueError unless num_steps >= 1 and 0 < beta_min <= beta_max < 1.

    Source: Ho, Jain & Abbeel, Denoising Diffusion Probabilistic Models (2020).
    """
    num_steps = checks.integer("num_steps", num_steps, 1)
    if not checks.fraction("beta_min", beta_min) <= checks.fraction("beta_max", beta_max):
        raise ValueError(f"beta_min must not be above beta_max, got {beta_min} and {beta_max}")
    betas = torch.linspace(beta_min, beta_max, num_steps, dtype=torch.float64)
    inverse_abar = torch.exp(-torch.log1p(-betas).cumsum(0))
    return (inverse_abar - 1).sqrt()


def paper_levels() -> Tensor:
    """Return the 14 noise levels, 0.035 to 1.992, of the paper's experiments on MoLRG data: (14,) float64.

    They are timesteps 5, 10, 20, 40, ..., 180, 240, 260, 280 of a DDPM with 500 steps and a linear schedule.
    """
    return ddpm_levels(500)[list(_PAPER_TIMESTEPS)]


def edm_levels(n: int, low: float, high: float, rho: float = 7.0) -> Tensor:
    """Return `n` levels from `low` to `high`, equally spaced in sigma^(1/rho): (n,) float64, increasing.

    rho = 1 spaces them equally; the larger rho, the denser the low end (rho -> inf: equal ratios).

    Raises ValueError unless n >= 2, 0 < low < high < inf and rho > 0.

    Source: Karras et al., Elucidating the Design Space of Diffusion-Based Generative Models (2022), eq. (5),
    where the levels are listed from `high` to `low`.
    """
    n = checks.integer("n", n, 2)
    _check_range(low, high)
    checks.positive("rho", rho)
    levels = torch.linspace(low ** (1 / rho), high ** (1 / rho), n, dtype=torch.float64) ** rho
    levels[0], levels[-1] = low, high
    return levels


class Distribution(Protocol):
    """From what training draws its noise levels. Its `repr` must tell it apart from any other."""

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """(n,) float32 levels on the generator's device."""
        ...


@dataclass(frozen=True)
class Levels:
    """Each of the given levels with equal probability. One level trains a denoising autoencoder (DAE)."""

    sigmas: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.sigmas:
            raise ValueError("sigmas must hold at least one level")
        for sigma in self.sigmas:
            checks.positive("each of sigmas", sigma)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        device = generator.device
        if len(self.sigmas) == 1:
            return torch.full((n,), self.sigmas[0], device=device)
        which = torch.randint(len(self.sigmas), (n,), generator=generator, device=device)
        return torch.tensor(self.sigmas, dtype=torch.float32, device=device)[which]


@dataclass(frozen=True)
class LogUniform:
    """log sigma uniform between log `low` and log `high`."""

    low: float
    high: float

    def __post_init__(self) -> None:
        _check_range(self.low, self.high)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        log_low, log_high = math.log(self.low), math.log(self.high)
        uniform = torch.rand(n, generator=generator, device=generator.device)
        return (log_low + (log_high - log_low) * uniform).exp()


@dataclass(frozen=True)
class LogNormal:
    """log sigma ~ N(mean, std^2); the defaults are those of EDM training."""

    mean: float = -1.2
    std: float = 1.2

    def __post_init__(self) -> None:
        checks.positive("std", self.std)
        checks.finite("mean", self.mean)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        normal = torch.randn(n, generator=generator, device=generator.device)
        return (self.mean + self.std * normal).exp()


@dataclass(frozen=True)
class Halves:
    """Every other level from `first`, the ones between from `second`.

    EDM's log-normal levels alone train the low end hardly at all: one in 500 lies below 0.008.
    """

    first: Distribution
    second: Distribution

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        of_first, of_second = (part.sample(n, generator) for part in (self.first, self.second))
        return torch.where(torch.arange(n, device=generator.device) % 2 == 0, of_first, of_second)


def as_distribution(sigmas: float | Sequence[float] | Tensor | Distribution) -> Distribution:
    """One level, a sequence or 1-D tensor of levels, or a distribution, as a distribution."""
    if checks.is_boolean(sigmas):
        raise ValueError(f"sigmas must be numbers, got the boolean {sigmas!r}")
    if isinstance(sigmas, Tensor):
        return Levels(tuple(sigmas.double().reshape(-1).tolist()))
    if isinstance(sigmas, int | float):
        return Levels((float(sigmas),))
    if isinstance(sigmas, Sequence) and not isinstance(sigmas, str):
        return Levels(tuple(float(sigma) for sigma in sigmas))
    if callable(getattr(sigmas, "sample", None)):
        return sigmas
    raise ValueError(
        f"sigmas={sigmas!r}: a positive number, several of them, LogNormal(...) or LogUniform(...) is needed."
    )


def _check_range(low: float, high: float) -> None:
    if not checks.positive("low", low) < checks.positive("high", high):
        raise ValueError(f"low must be below high, got low={low} and high={high}")
