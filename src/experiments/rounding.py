"""Rounding of what is stored: further digits are noise, and differ between processors."""

import numpy as np

__all__ = ["significant"]


def significant(values: np.ndarray, digits: int = 5) -> np.ndarray:
    """Return `values`, of any shape, rounded to so many significant digits, float64."""
    return np.array([float(f"{value:.{digits}g}") for value in values.flat]).reshape(values.shape)
