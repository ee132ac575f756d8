"""A composite Gauss-Legendre rule for the chi distribution."""

import numpy as np
from scipy.special import gammaln

from molrg.snr.quadrature import panel_rule

__all__ = ["chi_rule"]


def chi_rule(rank: int, panels: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes Y and weights of a rule for Y ~ chi^2_rank, in r = sqrt(Y)."""
    root = np.sqrt(rank)
    r, weights = panel_rule(np.linspace(max(0.0, root - 8), root + 8, panels + 1))
    log_density = (rank - 1) * np.log(r) - r * r / 2 - (rank / 2 - 1) * np.log(2) - gammaln(rank / 2)
    return r * r, weights * np.exp(log_density)
