"""Two views of the same contents, denoised, and the start of the ICR's curve."""

import numpy as np
import torch
from torch import Tensor

from molrg import MoLRG
from molrg.model.coefficients import block_variances, coefficients
from molrg.snr.quadrature import weight_moments
from molrg.support.checks import mixture_sizes

__all__ = ["VIEWS", "features", "start_slopes"]

VIEWS = ("background and noise", "background", "noise")
"""What differs between two views of a point."""


def features(
    mixture: MoLRG, sigma: float, samples: int, views: str, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Denoised coordinates U^T f (N, K d) of two views of each of N points, as many of each class.

    Views of which the noise does not differ have none. The bases of `mixture` are orthogonal.
    """
    labels = torch.randperm(samples, generator=generator) % mixture.num_classes
    frame = torch.cat(mixture.bases, 1)
    own = torch.nn.functional.one_hot(labels, mixture.num_classes).to(frame.dtype)
    own = own.repeat_interleave(mixture.ranks[0], 1)
    content, _ = mixture.sample(samples, generator=generator, labels=labels)
    both = []
    for _ in range(2):
        x = content @ frame
        if "background" in views:
            fresh, _ = mixture.sample(samples, generator=generator, labels=labels)
            x = own * x + (1 - own) * (fresh @ frame)
        if "noise" in views:
            x = x + sigma * torch.randn(x.shape, generator=generator, dtype=x.dtype)
        both.append(mixture.posterior_mean(x @ frame.T, sigma) @ frame)
    return both[0], both[1]


def start_slopes(num_classes: int, rank: int, delta: float) -> tuple[float, float]:
    """Slopes in sigma^2 at 0, for noisy input, of log SNR and of log(1 - ICR).

    Raises ValueError for arguments outside the ranges of `molrg.snr.exact`.

    Statement: `prop-icr-start`.
    """
    num_classes, rank, delta = mixture_sizes(num_classes, rank, delta)
    kappa = coefficients(0.0, delta).kappa
    own, other = block_variances(0.0, delta)
    moments = np.array(weight_moments(num_classes, rank, kappa * own, kappa * other)) / rank
    slope = (1 / delta**2 - 1) * (2 * (moments[0] - moments[2]) - 1)
    return float(slope), float(slope / (1 + 1 / ((num_classes - 1) * delta**2)) - 1)
