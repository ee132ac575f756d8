"""The peak of a curve that is known on a grid of noise levels."""

import numpy as np
from scipy.interpolate import make_interp_spline

__all__ = ["highest"]


def highest(levels: np.ndarray, values: np.ndarray) -> tuple[float, float] | None:
    """Level and height of the largest of values (S,), by a spline over log levels; None at an end."""
    if values.argmax() in (0, len(values) - 1):
        return None
    fine = np.linspace(np.log(levels[0]), np.log(levels[-1]), 20_001)
    drawn = make_interp_spline(np.log(levels), values, k=5)(fine)
    return float(np.exp(fine[drawn.argmax()])), float(drawn.max())
