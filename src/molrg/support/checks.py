"""What the public functions accept: one clear error per wrong argument, raised before any work."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "HIGHEST",
    "LOWEST",
    "Levels",
    "boolean",
    "choice",
    "finite",
    "fraction",
    "integer",
    "is_boolean",
    "mixture_sizes",
    "noise_levels",
    "nonnegative",
    "numbers",
    "positive",
    "within",
]

Levels = float | Sequence[float] | np.ndarray | Tensor
"""A noise level sigma > 0, or a 1-D array of S of them."""

LOWEST, HIGHEST = 1e-12, 1e12  # of noise levels: 1/sigma^2 times an energy stays far inside float32


def numbers(name: str, value: Any, kind: str = "a number") -> Tensor:
    """Return a number, or a 1-D array of them, as a float64 CPU tensor without gradient.

    Raises ValueError, that `name` must be `kind`, for booleans, texts, other shapes and empty arrays.
    """
    if is_boolean(value):
        raise ValueError(f"{name} must be {kind} or a 1-D array of them, got the boolean {value!r}")
    try:
        found = torch.as_tensor(value, dtype=torch.float64, device="cpu").detach()
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise ValueError(f"{name} must be {kind} or a 1-D array of them, got {value!r}") from error
    if found.ndim > 1 or found.numel() == 0:
        raise ValueError(
            f"{name} must be {kind} or a non-empty 1-D array of them, got shape {tuple(found.shape)}"
        )
    return found


def noise_levels(sigma: Levels) -> tuple[Tensor, bool]:
    """Return sigma as a float64 CPU tensor (S,), and whether it was a scalar (then S = 1).

    Raises ValueError unless every level is a number from 1e-12 to 1e12, and sigma is a scalar or 1-D.
    """
    levels = numbers("sigma", sigma, "a positive number")
    scalar = levels.ndim == 0
    levels = levels.reshape(-1)
    inside = (levels >= LOWEST) & (levels <= HIGHEST)
    if not inside.all():
        level = levels[~inside][0].item()
        if not 0 < level < math.inf:
            raise ValueError(
                f"sigma must be finite and positive, got {level:g}; "
                "for the noise-free limit pass a small level such as 1e-3"
            )
        raise ValueError(
            f"sigma must lie from {LOWEST:g} to {HIGHEST:g}, got {level:g}; "
            "the data have unit scale, so that levels from 1e-3 to 1e3 show both limits"
        )
    return levels, scalar


def integer(name: str, value: Any, low: int, high: int | None = None) -> int:
    """Return `value` as an int in [low, high]; raises ValueError otherwise (also for True and 3.0)."""
    allowed = f"an integer >= {low}" if high is None else f"an integer from {low} to {high}"
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise ValueError(f"{name} must be {allowed}, got {value!r}")
    if value < low or (high is not None and value > high):
        raise ValueError(f"{name} must be {allowed}, got {value}")
    return int(value)


def fraction(name: str, value: Any) -> float:
    """Return `value` as a float strictly between 0 and 1; raises ValueError otherwise (also for True)."""
    return _checked(name, value, lambda number: 0 < number < 1, "lie strictly between 0 and 1")


def within(name: str, value: Any, low: float, high: float) -> float:
    """Return `value` as a float in [low, high); raises ValueError otherwise (also for True)."""
    return _checked(name, value, lambda number: low <= number < high, f"lie in [{low:g}, {high:g})")


def finite(name: str, value: Any) -> float:
    """Return `value` as a finite float; raises ValueError otherwise (also for True)."""
    return _checked(name, value, math.isfinite, "be a finite number")


def nonnegative(name: str, value: Any) -> float:
    """Return `value` as a finite float >= 0; raises ValueError otherwise (also for True)."""
    return _checked(name, value, lambda number: 0 <= number < math.inf, "be a finite number >= 0")


def positive(name: str, value: Any, help: str = "") -> float:
    """Return `value` as a finite float > 0; raises ValueError otherwise (also for True)."""
    return _checked(name, value, lambda number: 0 < number < math.inf, "be positive and finite", help)


def _checked(name: str, value: Any, allows: Callable[[float], bool], allowed: str, help: str = "") -> float:
    try:
        number = math.nan if is_boolean(value) or isinstance(value, str | bytes) else float(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        number = math.nan
    if not allows(number):
        raise ValueError(f"{name} must {allowed}, got {value!r}{help and '; ' + help}")
    return number


def is_boolean(value: Any) -> bool:
    """Whether `value` is a boolean, or a list or array of which one entry is: no number, though it adds."""
    if isinstance(value, list | tuple):
        return any(is_boolean(part) for part in value)
    return isinstance(value, bool) or str(getattr(value, "dtype", "")).endswith("bool")


def boolean(name: str, value: Any) -> bool:
    """Return `value` as a bool; raises ValueError unless it is Python's or NumPy's True or False."""
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"{name} must be True or False, got {value!r}")
    return bool(value)


def choice(name: str, value: Any, allowed: Sequence[str]) -> str:
    """Return `value` if it is one of `allowed`; raises ValueError that lists them otherwise."""
    if not isinstance(value, str) or value not in allowed:
        options = " or ".join(repr(option) for option in allowed)
        raise ValueError(f"{name} must be {options}, got {value!r}")
    return str(value)


def mixture_sizes(num_classes: int, rank: int, delta: float) -> tuple[int, int, float]:
    return integer("num_classes", num_classes, 2), integer("rank", rank, 1), fraction("delta", delta)
