"""Composite Gauss-Legendre rules, and one for the chi distribution."""

import numpy as np
from scipy.special import gammaln

__all__ = ["chi_rule", "legendre"]


def chi_rule(rank: int, panels: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes Y and weights of a rule for Y ~ chi^2_rank, in r = sqrt(Y)."""
    root = np.sqrt(rank)
    r, weights = legendre(np.linspace(max(0.0, root - 8), root + 8, panels + 1))
    log_density = (rank - 1) * np.log(r) - r * r / 2 - (rank / 2 - 1) * np.log(2) - gammaln(rank / 2)
    return r * r, weights * np.exp(log_density)


def legendre(breaks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights of the composite 16-point rule."""
    nodes, weights = np.polynomial.legendre.leggauss(16)
    half = np.diff(breaks)[:, None] / 2
    return (breaks[:-1, None] + half + half * nodes).ravel(), (half * weights).ravel()
