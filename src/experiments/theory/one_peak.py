r"""Certificates that the clean-input SNR has one peak: proofs whose last step is ball arithmetic.

`theorem` treats Theorem 1's formula, which is proved to have one peak for all parameters: only its place has
to be enclosed. `exact` treats the exact value, one mixture at a time. Both speak about all sigma in (0, inf).

The exact value. With zeta = 1/(1+sigma^2), r = 1-delta^2, a = r/delta^2 and s = a (1-zeta),

    SNR = Q/((K-1) delta^2),   Q = N/M,   N = 1 + 2 s m_1 + s^2 m_2,   M = 1 + 2 s n_1 + s^2 n_2,

where the moments m_i, n_i of the softmax weights (`molrg.snr.enclosures`) are functions of kappa =
r zeta^2/(2 (1-r zeta)) alone. They are smooth in tau = log kappa: where |arg kappa| <= alpha, the softmax's
denominator stays away from zero,

    |sum_l e^{kappa E_l}| >= g |e^{kappa max E}|,   g = 1 - (K-1) sin(alpha) e^{-(pi/2 + alpha) cot(alpha)},

so that |m_i|, |n_i| <= g^{-i} in a strip of half-width alpha around the real tau axis. Interpolation in
Chebyshev points then has a proved error, also of its derivatives, and enclosures at some hundred points give
enclosures of the slope W = N'M - NM' (primes for d/dtau) everywhere. One sign change of W is one peak.
"""

import re
from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from molrg.snr import enclosures
from molrg.support.checks import fraction, integer

__all__ = ["Certificate", "NotCertified", "exact", "single_zero", "theorem"]

_NODES = 48  # Chebyshev points of a piece
_ELLIPSE = 2.4  # parameter rho of the pieces' Bernstein ellipses, if they are as long as allowed
_BITS = 120


class Certificate(NamedTuple):
    """What is proved: over all sigma in (0, inf) the curve rises, has its one peak, and falls.

    `sigma` and `height` enclose the peak (low, high). `intervals` lists how the proof divides the noise
    levels, from high noise to low: (low, high, sign), where the slope of the SNR with falling noise is
    positive (+), negative (-), or itself falling (f). `evaluations` counts the enclosures of moments that
    they rest on. Where uniqueness is a theorem there are none.
    """

    sigma: tuple[float, float]
    height: tuple[float, float]
    intervals: tuple[tuple[float, float, str], ...]
    evaluations: int


class NotCertified(ArithmeticError):
    """The curve has more or less than one peak, or the enclosures are too wide to tell."""


def theorem(num_classes: int, rank: int, delta: float) -> Certificate:
    r"""Certify the peak of `molrg.snr.theorem` for clean input.

    With y = 1/sigma^2, the bracket R of Theorem 1 satisfies

        a/(R-1) = F(y) = 1 + y + K (y + b)/(e^D - 1),   b = 1 + a/K,   D = c y^2/((1+y)(1+delta^2 y)),

    a strictly convex function that is infinite at both ends (theorem on the page theory/unimodality); what
    remains is to enclose the zero of F'.

    Raises ValueError for arguments outside the ranges of `molrg.snr.theorem`.

    Statement: `thm-one-peak`.
    """
    from flint import arb, ctx

    model = _Model(num_classes, rank, delta)
    with ctx.workprec(_BITS):
        low = high = 0  # log2 of y
        while not model.fraction(arb(2) ** low)[1] < 0:
            low -= 1
        while not model.fraction(arb(2) ** high)[1] > 0:
            high += 1
        bracket = _bisect(lambda x: model.fraction(arb(2) ** arb(x))[1], float(low), float(high))
        y = arb(2) ** _ball(*bracket)
        at_middle, slope = model.fraction(y.mid())[0], model.fraction(y)[1]
        height = (1 + model.a / (at_middle + slope * (y - y.mid()))) ** 2 / model.scale
        return Certificate(_ends(1 / y.sqrt()), _ends(height), (), 0)


def exact(num_classes: int, rank: int, delta: float) -> Certificate:
    """Certify that `molrg.snr.exact` for clean input (denominator `residual`, `span`) has exactly one peak.

    Takes 2 s for two classes and 20 s for a thousand.

    Raises ValueError for arguments outside the ranges of `molrg.snr.exact`, and NotCertified where there is
    not one peak, or where it could not be decided.
    """
    from flint import arb, ctx

    model = _Model(num_classes, rank, delta)
    with ctx.workprec(_BITS):
        first = _rising_end(model)
        low = float(model.kappa(first).log().lower()) - 1e-9
        high = float((model.a / 2).log().upper()) + 1e-9
        moments = _Moments(model, low, high)
        bracket, signs = single_zero(lambda u, v: _slope(model, moments, u, v), moments.edges)
        tau = _ball(*bracket)
        at_middle, over = moments.at(*bracket)
        num, den = _ratio(model, at_middle, tau.mid())
        slope = _slope(model, moments, *bracket)[0] / _ratio(model, over, tau)[1] ** 2  # dQ/dtau
        height = (num / den + slope * (tau - tau.mid())) / model.scale
        sigma = _ends(model.sigma(tau))
        intervals = ((float(model.sigma(arb(v))), float(model.sigma(arb(u))), sign) for u, v, sign in signs)
        return Certificate(sigma, _ends(height), tuple(intervals), len(moments.pieces) * _NODES)


def single_zero(
    slope: Callable[[float, float], tuple[Any, Any]], edges: list[float], least: float = 1e-4
) -> tuple[tuple[float, float], list[tuple[float, float, str]]]:
    """Prove that a function on [edges[0], edges[-1]] has exactly one zero, from positive to negative.

    `slope(u, v)` returns enclosures (`flint.arb`) of the function and of its derivative over [u, v], which
    lies between two neighbouring edges. Intervals are halved until the function has one sign, or falls. Where
    it falls before the last positive interval it is positive too, and negative after the first negative one;
    between the two it must fall all the way.

    Returns a narrow bracket of the zero, and the intervals (u, v, sign) in order, with sign f where the
    function falls. Raises NotCertified otherwise: the message shows the signs, 0 for an interval of length
    `least` that could not be decided.
    """
    intervals: list[tuple[float, float, str]] = []
    for start, stop in pairwise(edges):
        stack = [(start, stop)]
        while stack:
            u, v = stack.pop()
            value, derivative = slope(u, v)
            decided = "+" if value > 0 else "-" if value < 0 else "f" if derivative < 0 else "0"
            if decided == "0" and v - u > least:
                middle = (u + v) / 2
                stack += [(middle, v), (u, middle)]
            else:
                intervals.append((u, v, decided))
    signs = "".join(sign for _, _, sign in intervals)
    found = re.fullmatch(r"[+f]*\+(f+)-[-f]*", signs)
    if not found:
        short = re.sub(r"(.)\1+", r"\1", signs)
        raise NotCertified(f"the signs of the slope are {short}, which is not one change from + to -")
    first, last = found.span(1)
    low, high = intervals[first][0], intervals[last - 1][1]
    return _bisect(lambda x: slope(x, x)[0], low, high, falling=True), intervals


class _Model:
    """The constants of one mixture as balls, and the formulas that do not need moments."""

    def __init__(self, num_classes: int, rank: int, delta: float) -> None:
        from flint import arb, ctx

        with ctx.workprec(_BITS):
            self.num_classes, self.rank = integer("num_classes", num_classes, 2), integer("rank", rank, 1)
            self.delta = arb(fraction("delta", delta))
            self.d2 = self.delta**2
            self.r = 1 - self.d2
            self.a = self.r / self.d2
            self.scale = (self.num_classes - 1) * self.d2

    def fraction(self, y: Any) -> tuple[Any, Any]:
        """F(y) and F'(y) of Theorem 1's formula."""
        gap = self.rank * self.r**2 / 2 * y**2 / ((1 + y) * (1 + self.d2 * y))
        gap_slope = gap / y * (1 / (1 + y) + 1 / (1 + self.d2 * y))
        odds = 1 / gap.expm1()
        lift = self.num_classes * y + self.num_classes + self.a
        return 1 + y + lift * odds, 1 + self.num_classes * odds - lift * odds * (1 + odds) * gap_slope

    def kappa(self, zeta: Any) -> Any:
        return self.r * zeta**2 / (2 * (1 - self.r * zeta))

    def zeta(self, tau: Any) -> Any:
        kappa = tau.exp()
        half = kappa * self.r
        return 2 * kappa / (half + (half**2 + 2 * half).sqrt())

    def sigma(self, tau: Any) -> Any:
        return (1 / self.zeta(tau) - 1).nonnegative_part().sqrt()


def _rising_end(model: _Model) -> Any:
    """A zeta_1 such that dQ/dzeta > 0 on (0, zeta_1].

    m_i = K^{-i} + kappa mu_i, where mu_i and dm_i/dkappa are within bound_i kappa of their values at 0, which
    are closed forms; a bound of the second derivatives is E sum_l E_l^2 for i = 1, four times that for i = 2.
    Divided by zeta, the slope is then an expression in balls around its limit, which is positive.
    """
    from flint import arb

    k, d, d2, a, r = model.num_classes, model.rank, model.d2, model.a, model.r
    # E[E_k - mean_l E_l]/K, first counted by the own energy (then chi^2_{d+2}), then by that of another class
    own = (d + 2 - (d + 2 + (k - 1) * d2 * d) / k) / k
    other = (d2 * (d + 2) - (d2 * (d + 2) + d + (k - 2) * d2 * d) / k) / k
    square, counted = d * (d + 2), (d + 2) * (d + 4)  # E[(chi^2_d)^2] and E[(chi^2_{d+2})^2]
    bound_own = counted + (k - 1) * d2**2 * square
    bound_other = square + d2**2 * counted + (k - 2) * d2**2 * square
    zeta_1 = arb(1)
    for _ in range(60):
        zeta_1 /= 2
        zeta = _ball(0, zeta_1)
        kappa = _ball(0, model.kappa(zeta_1).upper())
        s = a * (1 - zeta)

        def near(at_zero: Any, bound: Any, kappa: Any = kappa) -> list[tuple[Any, Any, Any]]:
            """Value, difference quotient from 0 and derivative of the first and of the second moment."""
            result = []
            for i, factor in ((1, 1), (2, 4)):
                start, slope = arb(1) / k**i, at_zero * (1 if i == 1 else arb(2) / k)
                room = factor * bound * kappa.upper()
                quotient = slope + arb(0, (room / 2).upper())
                result.append((start + kappa * quotient, quotient, slope + arb(0, room.upper())))
            return result

        (m1, mu1, dm1), (m2, mu2, dm2) = near(own, bound_own)
        (n1, nu1, dn1), (n2, nu2, dn2) = near(other, bound_other)
        num, den = 1 + 2 * s * m1 + s**2 * m2, 1 + 2 * s * n1 + s**2 * n2
        gain = (2 * s * dm1 + s**2 * dm2) * den - (2 * s * dn1 + s**2 * dn2) * num
        # (m2 n1 - m1 n2)/kappa, with the constant terms cancelled
        cross = (nu1 - mu1) / arb(k) ** 2 + (mu2 - nu2) / arb(k) + kappa * (mu2 * nu1 - mu1 * nu2)
        loss = mu1 - nu1 + s * (mu2 - nu2) + s**2 * cross
        rz = r * zeta
        if r * (2 - rz) / (2 * (1 - rz) ** 2) * gain - a * rz / (1 - rz) * loss > 0:
            return zeta_1
    raise NotCertified("the slope at high noise could not be decided")


class _Moments:
    """m_1, m_2, n_1, n_2 as functions of tau = log kappa on [edges[0], edges[-1]], enclosed with derivatives.

    Each piece holds its centre, its half-width, four interpolating polynomials in (tau - centre)/half-width,
    and the bounds of their errors, [moment][order of derivative]. Neighbouring pieces overlap, so that every
    short interval lies in one of them.
    """

    def __init__(self, model: _Model, low: float, high: float) -> None:
        from flint import arb

        angle, floor = _sector(model.num_classes)
        longest = 2 * angle / (_ELLIPSE - 1 / _ELLIPSE)
        count = int(np.ceil((high - low) / (2 * longest)))
        self.edges = np.linspace(low, high, count + 1).tolist()
        overlap = 0.01 * (high - low) / count
        self.ranges = [(max(u - overlap, low), min(v + overlap, high)) for u, v in pairwise(self.edges)]
        self.pieces = [_piece(model, arb(u), arb(v), angle, floor) for u, v in self.ranges]

    def at(self, u: float, v: float) -> tuple[list[list[Any]], list[list[Any]]]:
        """The moments and two derivatives, [moment][order], at the middle of [u, v] and over all of it."""
        from flint import arb, arb_poly

        index = int(np.clip(np.searchsorted(self.edges, (u + v) / 2) - 1, 0, len(self.pieces) - 1))
        if not self.ranges[index][0] <= u <= v <= self.ranges[index][1]:
            raise ValueError(f"[{u}, {v}] does not lie in one piece")
        centre, half, polynomials, errors = self.pieces[index]
        tau = _ball(u, v)
        middle = (tau.mid() - centre) / half
        room = arb(0, (tau.rad() / half).upper())
        at_middle, over = [], []
        for polynomial, error in zip(polynomials, errors, strict=True):
            local = polynomial(arb_poly([middle, 1]))
            here, all_of_it = [], []
            for order in range(3):
                here.append(local(arb(0)) / half**order + arb(0, error[order]))
                all_of_it.append(local(room) / half**order + arb(0, error[order]))
                local = local.derivative()
            at_middle.append(here)
            over.append(all_of_it)
        return at_middle, over


def _sector(num_classes: int) -> tuple[Any, Any]:
    """Half-width alpha of the strip, and the lower bound g of the softmax's denominator in it."""
    from flint import arb

    for step in range(145, 0, -1):
        angle = arb(step) / 100
        floor = 1 - (num_classes - 1) * angle.sin() * (-(arb.pi() / 2 + angle) * angle.cot()).exp()
        if floor > 0.3:
            return angle, floor
    raise NotCertified(f"{num_classes} classes are too many")


def _piece(
    model: _Model, low: Any, high: Any, angle: Any, floor: Any
) -> tuple[Any, Any, list[Any], list[Any]]:
    """A piece of `_Moments`, from enclosures in n Chebyshev points.

    Two errors, each with its derivatives. The function's Chebyshev coefficients satisfy |a_k| <= 2 size
    rho^{-k}; those with k >= n are lost and folded back on the others. And a polynomial through midpoints is
    off by at most Lebesgue's constant (below 4) times the enclosures' radius. In both a factor k^2 covers the
    first derivative of T_k, and k^4/3 the second (by Markov, of any polynomial).
    """
    from flint import arb, arb_poly, ctx

    centre, half = (low + high) / 2, (high - low) / 2
    n = _NODES
    with ctx.workprec(400):  # the moments' sums magnify what is uncertain in kappa
        nodes = [(arb.pi() * (2 * j + 1) / (2 * n)).cos() for j in range(n)]
        kappas = [(centre + half * x).exp() for x in nodes]
        values = [enclosures.weight_moments(model.num_classes, model.rank, k, k * model.d2) for k in kappas]
        columns = list(zip(*values, strict=True))
        polynomials = [arb_poly.interpolate(nodes, [value.mid() for value in column]) for column in columns]
    reach = angle / half
    shrink = 1 / (reach + (reach**2 + 1).sqrt())  # 1/rho
    errors = []
    for column, size in zip(columns, (1 / floor, 1 / floor**2) * 2, strict=True):
        radius = max(float(value.rad()) for value in column)
        bounds = []
        for order, power, factor in ((0, 0, arb(1)), (1, 2, arb(1)), (2, 4, arb(1) / 3)):
            falloff = shrink * (1 + arb(1) / n) ** power
            lost = 4 * size * shrink**n / (1 - falloff)
            bounds.append(((lost + 4 * arb(radius)) * factor * arb(n) ** power / half**order).upper())
        errors.append(bounds)
    return centre, half, polynomials, errors


def _ratio(model: _Model, moments: list[list[Any]], tau: Any) -> tuple[Any, Any]:
    """N and M at a tau."""
    m1, m2, n1, n2 = (moment[0] for moment in moments)
    s = model.a * (1 - model.zeta(tau))
    return 1 + 2 * s * m1 + s**2 * m2, 1 + 2 * s * n1 + s**2 * n2


def _slope(model: _Model, moments: _Moments, u: float, v: float) -> tuple[Any, Any]:
    """Enclosures of W = N'M - NM' and of W' over [u, v], W by its mean value form."""
    at_middle, over = moments.at(u, v)
    tau = _ball(u, v)
    value, _ = _slope_series(model, at_middle, tau.mid())
    _, derivative = _slope_series(model, over, tau)
    return value + derivative * (tau - tau.mid()), derivative


def _slope_series(model: _Model, moments: list[list[Any]], tau: Any) -> tuple[Any, Any]:
    """W and W' from the moments with their derivatives, as power series in tau of two terms.

    With e = -(ds/dtau)/a = dzeta/dtau, the terms without a derivative of a moment are -2 a e times a sum in
    which N M cancels: m_1 - n_1 + s (m_2 - n_2) + s^2 (m_2 n_1 - m_1 n_2).
    """
    from flint import arb_series

    def series(*terms: Any) -> Any:
        return arb_series(list(terms), prec=2)

    (m1, m2, n1, n2), (dm1, dm2, dn1, dn2) = (
        [series(moment[order], moment[order + 1]) for moment in moments] for order in (0, 1)
    )
    zeta = model.zeta(tau)
    rz = model.r * zeta
    speed = zeta * (1 - rz) / (2 - rz)
    e = series(speed, speed * (2 - 4 * rz + rz**2) / (2 - rz) ** 2)
    s = series(model.a * (1 - zeta), -model.a * speed)
    num, den = 1 + 2 * s * m1 + s * s * m2, 1 + 2 * s * n1 + s * s * n2
    gain = (2 * s * dm1 + s * s * dm2) * den - (2 * s * dn1 + s * s * dn2) * num
    slope = gain - 2 * model.a * e * (m1 - n1 + s * (m2 - n2) + s * s * (m2 * n1 - m1 * n2))
    return slope[0], slope[1]


def _bisect(
    function: Callable[[float], Any], low: float, high: float, falling: bool = False
) -> tuple[float, float]:
    """Halve a bracket of the zero of a monotone function as long as its enclosures have a sign."""
    while True:
        middle = (low + high) / 2
        value = function(middle)
        if not (value > 0 or value < 0) or middle in (low, high):
            return low, high
        low, high = (middle, high) if (value > 0) == falling else (low, middle)


def _ball(low: Any, high: Any) -> Any:
    """The smallest ball that holds [low, high]."""
    from flint import arb

    return arb(low).union(arb(high))


def _ends(ball: Any) -> tuple[float, float]:
    """Floats below and above a ball."""
    return np.nextafter(float(ball.lower()), -np.inf).item(), np.nextafter(float(ball.upper()), np.inf).item()
