"""The quadrature rules of the exact SNR against adaptive integration."""

import warnings
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import chi

from molrg.snr import quadrature


def adaptive(integrand: Callable[[float], float], breaks: np.ndarray) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of rounding, in panels that add nothing
        return sum(quad(integrand, a, b, epsabs=0, epsrel=1e-12)[0] for a, b in pairwise(breaks))


@pytest.mark.parametrize(
    ("v", "rank", "scale"),
    [(-5.0, 1, 1.0), (-1e4, 5, 1e3), (-3e5, 3, 1e5), (-40.0, 8, 0.01), (-2.0, 20, 3.0)],
)
def test_a_narrow_transition_is_resolved(v: float, rank: int, scale: float) -> None:
    """E[Y^[m > 0] e^{mt - e^t}], t = v + scale Y, changes where t is near 0: in 1/scale of a unit of Y."""
    turns = np.array([-40, -30, -20, -10, -6, -3, -1, 0, 1, 2, 3, 4, 5, 6])
    turns = np.sqrt(np.clip((turns - v) / scale, 0, None))
    top = np.sqrt(rank) + 9
    breaks = np.unique(np.concatenate([turns.clip(0, top), np.linspace(0, top, 40)]))
    found = quadrature.transforms(np.array([v]), rank, scale)
    for power, value in enumerate(found):

        def integrand(r: float, power: int = power) -> float:
            t = min(v + scale * r * r, 6.0)
            return chi.pdf(r, rank) * np.exp(power * t - np.exp(t)) * (r * r if power else 1)

        assert value[0] == pytest.approx(adaptive(integrand, breaks), rel=1e-9)
