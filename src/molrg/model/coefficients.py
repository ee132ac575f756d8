"""The numbers with which the optimal denoiser shrinks and weighs the blocks of x, at a noise level."""

from typing import Any, NamedTuple

__all__ = ["Coefficients", "block_variances", "coefficients"]


class Coefficients(NamedTuple):
    """What `coefficients` returns."""

    kappa: Any
    xi: Any
    gain: Any


def coefficients(sigma: Any, delta: Any, variance: Any = 1.0) -> Coefficients:
    r"""Return kappa, xi and the gain zeta - xi of the posterior mean.

        kappa = (1/(delta^2 + sigma^2) - 1/(v + sigma^2)) / 2,   xi = delta^2/(delta^2 + sigma^2),
        zeta = v/(v + sigma^2),   gain = zeta - xi = 2 sigma^2 kappa,

    none of which cancels. v is the `variance` of a class's directions. All are numbers, arrays, tensors or
    balls, which broadcast, and nothing is checked. Source: Proposition 1 of the paper.
    """
    s2, d2 = sigma**2, delta**2
    kappa = 0.5 * (variance - d2) / ((variance + s2) * (d2 + s2))
    return Coefficients(kappa, d2 / (d2 + s2), 2 * s2 * kappa)


def block_variances(sigma: Any, delta: Any, noisy_input: bool = True) -> tuple[Any, Any]:
    """Return v_A and v_B, the variances of the input in the own class's directions and in the others'.

    1 + sigma^2 and delta^2 + sigma^2 for noisy input, 1 and delta^2 for clean input.
    """
    s2 = sigma**2 if noisy_input else 0.0
    return 1 + s2, delta**2 + s2
