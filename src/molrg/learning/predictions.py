r"""What a network that removes noise may predict, and how one prediction becomes another.

For x = x_0 + sigma eps the same knowledge can be written as

    x0     E[x_0 | x], the denoiser
    eps    E[eps | x], the noise (DDPM)
    v      E[(eps - sigma x_0) / sqrt(1 + sigma^2) | x], the velocity of a variance preserving model
    flow   E[eps - x_0 | x], the velocity of flow matching
    score  grad log p_sigma(x)

Each is affine in the denoiser: value = scale (x_0 - skip x), or x_0 = skip x + out value.
"""

import torch
from torch import Tensor

from molrg.support.checks import choice, is_boolean

__all__ = ["PARAMETRISATIONS", "convert", "scale", "skip_and_out"]

PARAMETRISATIONS = ("x0", "eps", "v", "flow", "score")


def scale(sigma: float | Tensor, name: str) -> Tensor:
    """Return the factor of x_0 in parametrisation `name`, float64, in the shape of sigma.

    1, -1/sigma, -sqrt(1 + sigma^2)/sigma, -(1 + sigma)/sigma and 1/sigma^2 for x0, eps, v, flow and score.
    Its square is by how much a squared error of the prediction counts more than one of the denoiser.

    Raises ValueError unless sigma is positive and finite and `name` is one of PARAMETRISATIONS.

    Statement: `prop-parametrisations`.
    """
    choice("name", name, PARAMETRISATIONS)
    return 1 / skip_and_out(_levels(sigma), name)[1]


def skip_and_out(sigma: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """Return the factors of x and of the prediction in x_0 = skip x + out value, in the shape of sigma.

    (0, 1), (1, -sigma), (1/(1 + sigma^2), -sigma/sqrt(1 + sigma^2)), (1/(1 + sigma), -sigma/(1 + sigma)) and
    (1, sigma^2) for x0, eps, v, flow and score.
    """
    one = torch.ones_like(sigma)
    match name:
        case "x0":
            return torch.zeros_like(sigma), one
        case "eps":
            return one, -sigma
        case "v":
            return 1 / (1 + sigma**2), -sigma / (1 + sigma**2).sqrt()
        case "flow":
            return 1 / (1 + sigma), -sigma / (1 + sigma)
        case _:
            return one, sigma**2


def convert(value: Tensor, x: Tensor, sigma: float | Tensor, source: str, target: str) -> Tensor:
    r"""Return the prediction `value` of parametrisation `source` as one of parametrisation `target`.

    Statement: `prop-parametrisations`.

        value_target = (scale_t / scale_s) value + scale_t (skip_s - skip_t) x,

    with `scale` as above and skip = 0, 1, 1/(1 + sigma^2), 1/(1 + sigma), 1 for x0, eps, v, flow, score.
    The coefficients do not cancel. The sum may, where the digits of the target are not in `value`.

    Parameters
    ----------
    value, x
        The prediction and the input x = x_0 + sigma eps it was made for (for a variance preserving model
        x_t / sqrt(abar_t), for flow matching x_t / (1 - t)), of one shape and dtype.
    sigma
        A number, or a tensor that broadcasts against x, such as (N, 1) for one level a row.
    source, target
        Two of PARAMETRISATIONS.

    Raises ValueError for shapes or dtypes that differ, an unknown name, or a sigma that is not positive.
    """
    choice("source", source, PARAMETRISATIONS)
    choice("target", target, PARAMETRISATIONS)
    if value.shape != x.shape or value.dtype != x.dtype or not x.is_floating_point():
        raise ValueError(
            "value and x must have one shape and one floating dtype, got "
            f"{tuple(value.shape)} {value.dtype} and {tuple(x.shape)} {x.dtype}"
        )
    level = _levels(sigma)
    try:
        fits = torch.broadcast_shapes(level.shape, x.shape) == x.shape
    except RuntimeError:
        fits = False
    if not fits:
        raise ValueError(
            f"sigma of shape {tuple(level.shape)} does not broadcast against x of shape {tuple(x.shape)}; "
            "one level a row has shape (N, 1)"
        )
    (_, out_s), (_, out_t) = (skip_and_out(level, name) for name in (source, target))
    gain, shift = out_s / out_t, _skip_difference(level, source, target) / out_t
    return gain.to(x) * value + shift.to(x) * x


def _levels(sigma: float | Tensor) -> Tensor:
    level = torch.as_tensor(sigma, dtype=torch.float64)
    if is_boolean(sigma) or not (torch.isfinite(level) & (level > 0)).all():
        raise ValueError(f"sigma must be positive and finite, got {sigma}")
    return level


def _skip_difference(level: Tensor, source: str, target: str) -> Tensor:
    """skip_s - skip_t, skip = 1/(1 + r): at low noise, where r is small, by 1 - skip = 1/(1 + 1/r)."""
    s, t = (_r(level, name) for name in (source, target))
    return torch.where(level > 1, 1 / (1 + s) - 1 / (1 + t), 1 / (1 + 1 / t) - 1 / (1 + 1 / s))


def _r(level: Tensor, name: str) -> Tensor:
    match name:
        case "x0":
            return torch.full_like(level, torch.inf)
        case "v":
            return level**2
        case "flow":
            return level
        case _:
            return torch.zeros_like(level)
