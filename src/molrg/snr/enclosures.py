r"""Enclosures of the exact SNR: numbers with a proved error, by ball arithmetic (python-flint).

`molrg.snr.exact` is accurate, but its accuracy is a matter of experience. Here every value is a ball, that is
a midpoint and a radius, proved to contain the true one. The SNR needs four moments of the softmax weights

    w = softmax(p Y, q Z_2, ..., q Z_K),   Y, Z_l independent chi^2_d,   0 < q <= p,   q < 1/2,

under laws that count a class by its energy: m_i = E[w_1^i Y]/d and n_i = E[w_2^i Z_2]/d for i = 1, 2. Two
sums with closed-form terms give them, and both have an exact error formula.

Outer sum. For every S > 0, Poisson's summation formula and the Mellin transform Gamma(i + 2 pi i n/h) give

    h sum_j e^{i v_j} e^{-e^{v_j} S} = S^{-i} Gamma(i) (1 + theta),   v_j = j h,
    |theta| <= sum_{n != 0} |Gamma(i + 2 pi i n / h)| / Gamma(i),

so that m_i (1 + theta) = h sum_j psi_i,p(v_j) phi_q(v_j)^(K-1), where phi_x(v) = E e^{-e^t} and
psi_i,x(v) = E[(Y/d) e^{it - e^t}] with t = v + x Y; likewise for n_i with psi_i,q phi_p phi_q^(K-2).

Inner sum. These are inverse Mellin transforms on the line Re s = 1,

    phi_x(v)    = 1/(2 pi i) int Gamma(s) (1 + 2 x s)^{-d/2} e^{-sv} ds,
    psi_i,x(v)  = 1/(2 pi i) int Gamma(s + i) (1 + 2 x s)^{-d/2-1} e^{-sv} ds,

and the trapezoidal rule with step 2 pi/P returns sum_n e^{nP} phi_x(v + nP) instead of phi_x(v), likewise
for psi: what is added is positive and at most about e^{-P}. Both are discrete Fourier transforms.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from molrg.model.coefficients import block_variances, coefficients
from molrg.support.checks import boolean, fraction, integer, noise_levels

__all__ = ["WINDOWS", "snr", "weight_moments"]

WINDOWS = (50, 75, 110, 160)
"""Lengths V of the window [-V, 5] in v; the least is taken for which the tail is small enough."""

_TOP = 5  # right end of the window: e^{-e^5} = 10^{-64}
_STEP = 0.2
_SMALL = -40.0  # logarithm of the largest tail
_TAIL_RATES = (1.0, 0.75, 0.5, 0.25)


def snr(num_classes: int, rank: int, delta: float, sigma: float, noisy_input: bool = True) -> Any:
    """Enclosure (`flint.arb`) of the exact SNR of the optimal denoiser, denominator `residual`, `span`.

    `delta` and `sigma` are taken as the binary fractions that they are. Twelve digits or more are proved
    for d up to 100 and sigma from 1e-3 to 50. Compare with `molrg.snr.exact`.

    Raises ValueError for arguments outside the ranges of `molrg.snr.exact`, and where d is so large that no
    window of `WINDOWS` holds the tail.
    """
    from flint import arb, ctx

    boolean("noisy_input", noisy_input)
    with ctx.workprec(400):  # the sums magnify what is uncertain in p and q by e^V
        background, level = arb(fraction("delta", delta)), arb(noise_levels(sigma)[0].item())
        kappa, xi, gain = coefficients(level, background)
        own, other = block_variances(level, background, noisy_input)
        m1, m2, n1, n2 = weight_moments(num_classes, rank, kappa * own, kappa * other)
        s = gain / xi
        return (own * (1 + 2 * s * m1 + s**2 * m2)) / (
            (num_classes - 1) * other * (1 + 2 * s * n1 + s**2 * n2)
        )


def weight_moments(num_classes: int, rank: int, own: Any, other: Any) -> tuple[Any, Any, Any, Any]:
    """Enclosures of m_1, m_2, n_1, n_2 (see the module) for p = `own` and q = `other`, balls or numbers.

    Raises ValueError unless 0 < q <= p and q < 1/2, and where no window of `WINDOWS` holds the tail.

    Statement: `lem-two-sums`.
    """
    from flint import arb, ctx

    integer("num_classes", num_classes, 2)
    integer("rank", rank, 1)
    for window in WINDOWS:
        grid = _grid(window)
        with ctx.workprec(grid.bits):
            own, other = arb(own), arb(other)
            if not (other > 0 and 2 * other < 1 and not own < other):
                raise ValueError(
                    f"the scales must satisfy 0 < q <= p and q < 1/2, got p = {own}, q = {other}"
                )
            tail = _tail(num_classes, rank, other, grid)
            if tail is None:
                continue
            phi_own, one_own, two_own = _transforms(rank, own, grid)
            phi_other, one_other, two_other = _transforms(rank, other, grid)
            rest = [value ** (num_classes - 2) for value in phi_other]
            # For m_i the sum without phi, which is 1, is kept apart: what is left has a short tail.
            missing = [1 - a * b for a, b in zip(rest, phi_other, strict=True)]
            competitors = [a * b for a, b in zip(rest, phi_own, strict=True)]
            theta = [arb(0, error) for error in grid.poisson]
            own_moments = [
                (1 + error - grid.total(psi, missing) + tail) / (1 + error)
                for psi, error in zip((one_own, two_own), theta, strict=True)
            ]
            other_moments = [
                (grid.total(psi, competitors) + tail) / (1 + error)
                for psi, error in zip((one_other, two_other), theta, strict=True)
            ]
            return own_moments[0], own_moments[1], other_moments[0], other_moments[1]
    raise ValueError(f"rank {rank} is too large for {num_classes} classes: no window holds the tail")


@dataclass(frozen=True)
class _Grid:
    """The nodes shared by all evaluations on one window [-V, 5]: v_j = j h, and s_k = 1 + 2 pi i k / P.

    `gammas[i]` holds Gamma(s_k + i) / P for k >= 0, `inner` bounds the error of the inner sum, and `poisson`
    holds the bounds of |theta| for i = 1, 2.
    """

    window: int
    bits: int
    length: int
    step: Any
    indices: tuple[int, ...]
    growth: tuple[Any, ...]
    nodes: tuple[Any, ...]
    gammas: tuple[tuple[Any, ...], ...]
    inner: Any
    poisson: tuple[Any, Any]

    def total(self, first: list[Any], second: list[Any]) -> Any:
        """h sum_j first_j second_j over the window."""
        from flint import arb

        return self.step * sum((a * b for a, b in zip(first, second, strict=True)), arb(0))


@lru_cache(maxsize=len(WINDOWS))
def _grid(window: int) -> _Grid:
    from flint import acb, arb, ctx

    period = window + 6
    bits = 90 + int(1.5 * window)
    length = int(np.ceil(period / _STEP))
    with ctx.workprec(bits):
        step = arb(period) / length
        indices = tuple(range(-(window * length // period), _TOP * length // period + 1))
        growth = tuple((-j * step).exp() for j in indices)  # e^{-v}, from the line Re s = 1
        spacing = 2 * arb.pi() / period
        count = int(np.ceil((window - _SMALL + 15) / (np.pi / 2) / float(spacing)))
        nodes = tuple(acb(1, k * spacing) for k in range(count))
        gammas = tuple(tuple((s + i).gamma() / period for s in nodes) for i in range(3))
        # The terms left out: |Gamma(3 + i omega)|^2 = (4 + omega^2) (1 + omega^2) pi omega / sinh(pi omega),
        # from omega on falling at least like e^{-1.4 omega}; the window multiplies them by up to e^V.
        omega = count * spacing
        last = (omega + 2) ** 2 * (2.1 * arb.pi() * omega).sqrt() * (-arb.pi() * omega / 2).exp()
        truncated = 2 * last / period * arb(window).exp() / (1 - (-1.4 * spacing).exp())
        alias = 2 * arb(-period).exp() + arb(-100).exp()
        poisson = []
        for i in (1, 2):
            terms = [acb(i, 2 * arb.pi() * n / step).gamma().abs_upper() for n in range(1, 4)]
            poisson.append(2 * (terms[0] + terms[1] + 2 * terms[2]))
        inner = arb(0, (truncated + alias).abs_upper())
        return _Grid(
            window, bits, length, step, indices, growth, nodes, gammas, inner, (poisson[0], poisson[1])
        )


def _tail(num_classes: int, rank: int, other: Any, grid: _Grid) -> Any:
    """Ball around 0 that holds what the outer sums have outside the window; None if it is not small.

    Left of it psi <= 1 and 1 - phi_q^(K-1) <= (K-1) E e^{ct}, and psi_i,q <= E[(Z/d) e^{ct}], for 0 < c <= 1.
    """
    from flint import arb

    bounds = []
    for rate in _TAIL_RATES:
        growth = (1 - 2 * rate * other) ** (-arb(rank) / 2 - 1)
        geometric = grid.step * arb(-rate * grid.window).exp() / (1 - (-rate * grid.step).exp())
        bounds.append(((num_classes - 1) * growth * geometric + arb(-130).exp()).abs_upper())
    least = min(bounds, key=float)
    return arb(0, least) if float(least) < np.exp(_SMALL) else None


def _transforms(rank: int, scale: Any, grid: _Grid) -> tuple[list[Any], list[Any], list[Any]]:
    """Enclosures of phi_x, psi_1,x, psi_2,x at the nodes of the window, x = `scale`."""
    from flint import acb, arb

    factors = [1 + 2 * scale * s for s in grid.nodes]
    powers = [factor ** (-arb(rank) / 2) for factor in factors]
    weighted = [power / factor for power, factor in zip(powers, factors, strict=True)]
    results = []
    for gammas, terms in zip(grid.gammas, (powers, weighted, weighted), strict=True):
        folded = [acb(0)] * grid.length
        for k, (gamma, term) in enumerate(zip(gammas, terms, strict=True)):
            folded[k % grid.length] += gamma * term * (2 if k else 1)
        sums = acb.dft(folded)
        pairs = zip(grid.indices, grid.growth, strict=True)
        results.append([growth * sums[j % grid.length].real + grid.inner for j, growth in pairs])
    return results[0], results[1], results[2]
