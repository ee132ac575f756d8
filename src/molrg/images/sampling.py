"""Sampling: from noise to data with a denoiser, along the deterministic path of a diffusion model."""

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from molrg.support.checks import Levels, integer, noise_levels

__all__ = ["Denoiser", "sample"]

Denoiser = Callable[[Tensor, float], Tensor]
"""D(x, sigma), the denoised (N, n) of x (N, n)."""


@torch.no_grad()
def sample(
    denoiser: Denoiser,
    n: int,
    dim: int,
    levels: Levels,
    generator: torch.Generator | None = None,
    *,
    batch_size: int = 1024,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    r"""Draw `n` samples (n, dim) from the distribution that `denoiser` has learned.

    Starts from x ~ N(0, sigma_max^2 I) and follows

        dx/dsigma = (x - D(x, sigma)) / sigma

    from the highest of the `levels` through all others down to 0 by Heun's method (second order), whose last
    step, from the lowest level to 0, is one of Euler's and returns D(x, sigma_min). With N levels that takes
    2 N - 1 calls of the denoiser. Where D is the posterior mean of x_0, the law of x at each sigma is that of
    x_0 + sigma eps, up to the error of the steps and to the start, which leaves out x_0.

    Parameters
    ----------
    denoiser
        Any D(x, sigma) -> (N, dim), for sigma a number; a network in evaluation mode.
    levels
        Noise levels in any order, two or more: `noise.edm_levels(18, 0.002, 80)` is EDM's choice.
    generator
        Source of the starting noise; the samples lie on its device. None: a new one on the CPU with seed 0.
    batch_size
        How many samples are drawn at a time.

    Raises ValueError for arguments outside their ranges, and for equal levels.

    Source: Karras et al., Elucidating the Design Space of Diffusion-Based Generative Models (2022),
    Algorithm 1.
    """
    integer("n", n, 1)
    integer("dim", dim, 1)
    integer("batch_size", batch_size, 1)
    sigmas = sorted(noise_levels(levels)[0].tolist(), reverse=True)
    if len(set(sigmas)) < max(2, len(sigmas)):
        raise ValueError(f"levels must hold two or more noise levels, all different, got {sigmas}")
    source = torch.Generator().manual_seed(0) if generator is None else generator
    start = torch.randn(n, dim, generator=source, device=source.device, dtype=dtype) * sigmas[0]
    return torch.cat([_follow(denoiser, x, sigmas) for x in start.split(batch_size)])


def _follow(denoiser: Denoiser, x: Tensor, sigmas: list[float]) -> Tensor:
    """Take x from the first of the falling `sigmas` to 0."""
    for sigma, below in pairwise(sigmas):
        slope = (x - denoiser(x, sigma)) / sigma
        ahead = x + (below - sigma) * slope
        slope_ahead = (ahead - denoiser(ahead, below)) / below
        x = x + (below - sigma) * (slope + slope_ahead) / 2
    return denoiser(x, sigmas[-1])
