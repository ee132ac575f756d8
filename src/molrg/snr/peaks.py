"""Where a curve over the noise level has its peak, how high it is, and whether it is the only one."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np

from molrg.support.checks import integer, noise_levels, within

__all__ = ["Peak", "find", "turns"]


class Peak(NamedTuple):
    """The highest point of a curve over sigma in [low, high], and the shape of the curve.

    `sigma` and `height` are its place and value. `edge` is None for a peak inside the range, "low" or "high"
    where the curve is highest at that end: then it has no peak there, or only a lower one. `num_maxima` and
    `num_minima` count the turns inside the range that the scan sees; they are observed, not proved.
    """

    sigma: float
    height: float
    num_maxima: int
    num_minima: int
    edge: Literal["low", "high"] | None

    @property
    def is_single(self) -> bool:
        """Whether the curve was seen to rise to this peak and then to fall, with no other turn."""
        return (self.edge, self.num_maxima, self.num_minima) == (None, 1, 0)


def find(
    function: Callable[[np.ndarray], Any],
    low: float = 1e-3,
    high: float = 1e2,
    points: int = 101,
    accuracy: float = 1e-10,
) -> Peak:
    """Find the peak of `function`, which maps an array (S,) of noise levels to S values, over [low, high].

    The curve is scanned at `points` levels, evenly spaced in log sigma, by one call. It turns where it comes
    back from its last extreme value by more than `accuracy` times that value, its relative rounding error: a
    flat end with rounding on it has no maxima. A turn that fits between two levels of the scan is missed.

    The highest turn is refined by a few more calls of 7 levels each and a parabola. For a smooth curve the
    place is then known to a relative 1e-6 or so, the height as well as the function itself.

    Raises ValueError unless 0 < low < high (noise levels from 1e-12 to 1e12), points >= 5,
    0 <= accuracy < 1, and `function` returns one finite number per level.
    """
    noise_levels([low, high])
    integer("points", points, 5)
    if not low < high:
        raise ValueError(f"low must be below high, got low={low:g} and high={high:g}")
    within("accuracy", accuracy, 0, 1)  # a relative error
    levels = np.geomspace(low, high, points)
    values = _evaluate(function, levels)
    maxima, minima = turns(values, accuracy)
    shape = (len(maxima), len(minima))
    edge: Literal["low", "high"] = "low" if values[0] >= values[-1] else "high"
    end = max(values[0], values[-1])
    best = max(maxima, key=lambda i: values[i], default=None)
    if best is None or values[best] <= end:
        return Peak(float(low if edge == "low" else high), float(end), *shape, edge)
    sigma, height = _refine(function, levels[best - 1 : best + 2], values[best - 1 : best + 2])
    return Peak(sigma, height, *shape, None)


def _evaluate(function: Callable[[np.ndarray], Any], levels: np.ndarray) -> np.ndarray:
    values = np.asarray(function(levels), dtype=np.float64)
    if values.shape != levels.shape:
        raise ValueError(
            f"function must return one value per noise level, shape {levels.shape}, got shape {values.shape}"
        )
    if not np.isfinite(values).all():
        wrong = levels[~np.isfinite(values)][0]
        raise ValueError(f"function must return finite values; at sigma = {wrong:g} it does not")
    return values


def turns(values: np.ndarray, accuracy: float = 1e-10) -> tuple[list[int], list[int]]:
    """Indices of the interior maxima and minima, which alternate, of values (S,) along a curve.

    The running extreme becomes a turn once the curve has come back from it by more than `accuracy` times its
    value.
    """
    maxima: list[int] = []
    minima: list[int] = []
    top = bottom = 0
    direction = 0  # unknown until the curve has left its first value
    for i, value in enumerate(values):
        top = i if value > values[top] else top
        bottom = i if value < values[bottom] else bottom
        fell = values[top] - value > accuracy * abs(values[top])
        rose = value - values[bottom] > accuracy * abs(values[bottom])
        if direction >= 0 and fell:
            if direction > 0:
                maxima.append(top)
            direction, bottom = -1, i
        elif direction <= 0 and rose:
            if direction < 0:
                minima.append(bottom)
            direction, top = 1, i
    return maxima, minima


def _refine(
    function: Callable[[np.ndarray], Any], levels: np.ndarray, values: np.ndarray
) -> tuple[float, float]:
    """Place and height of the maximum between the first and last of three levels, whose middle is higher.

    Each round takes 9 levels and keeps the best with its neighbours. Across the last 9, half a per cent of
    sigma, a smooth curve is a parabola in log sigma, and the fit averages the rounding.
    """
    best, ratio = 1, np.inf
    while ratio > 1.002:
        ends, heights = levels[[best - 1, best + 1]], values[[best - 1, best + 1]]
        levels, ratio = np.geomspace(ends[0], ends[1], 9), ends[1] / ends[0]
        values = np.concatenate([heights[:1], _evaluate(function, levels[1:-1]), heights[1:]])
        best = int(np.clip(values.argmax(), 1, 7))
    unit = np.linspace(-1, 1, 9)
    _, slope, curvature = np.polynomial.polynomial.polyfit(unit, values, 2)
    vertex = -slope / (2 * curvature) if curvature < 0 else unit[best]
    sigma = levels[4] * ratio ** (np.clip(vertex, unit[best - 1], unit[best + 1]) / 2)
    height = _evaluate(function, np.array([sigma]))[0]
    if height < values[best]:  # not a parabola: a kink, or rounding
        sigma, height = levels[best], values[best]
    return float(sigma), float(height)
