r"""Noisy input: whether the SNR of the optimal denoiser has a peak, and where.

K orthogonal, equally likely classes of rank d with background delta (`span`, or the denominator `classes`).
Everything depends on sigma through one variable, the log-contrast

    eta = log((1 + sigma^2) / (delta^2 + sigma^2)),

which falls from eta_0 = 2 log(1/delta) at sigma = 0 to 0 at sigma = inf. With r = e^(eta_0 - eta), the ratio
zeta/xi of the two shrinkages, D = d (cosh eta - 1) and lambda = dD/d eta = d sinh eta, Theorem 1 for noisy
input reads

    SNR = e^eta/(K-1) [(r e^D + K - 1) / (r + e^D + K - 2)]^2,

and the exact value, with the moments a_j = E[w_k^j A]/(v_A d), b_j = E[w_l^j B_l]/(v_B d) of the weights of
the own class and of another, which depend on K, d and eta alone,

    SNR = e^eta/(K-1) (1 + 2(r-1) a_1 + (r-1)^2 a_2) / (1 + 2(r-1) b_1 + (r-1)^2 b_2).

Since the weights are posterior probabilities, (K-1) b_1 = e^eta (1 - a_1) and (K-1) b_2 = e^eta (a_1 - a_2).
"""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from scipy.optimize import brentq
from scipy.special import gammaln, logsumexp
from scipy.stats import chi2

from molrg.snr import enclosures, quadrature
from molrg.snr.peaks import Peak
from molrg.support.checks import Levels, boolean, fraction, integer, noise_levels, positive

__all__ = [
    "ExactCurve",
    "Law",
    "boundary_at_rate",
    "certify_exact_boundary",
    "certify_single_peak",
    "exact_boundary",
    "joint_boundary",
    "large_rank_law",
    "level",
    "log_contrast",
    "log_undecided",
    "moments",
    "small_delta_law",
    "theorem_boundary",
    "theorem_peak",
    "wide_boundary",
]


class Law(NamedTuple):
    """Place and height of a peak to leading order."""

    sigma: float
    height: float


# --- coordinates ------------------------------------------------------------------------------------


def log_contrast(delta: float, sigma: Levels) -> np.ndarray:
    """Return eta = log((1 + sigma^2) / (delta^2 + sigma^2)) at the levels sigma, shape (S,).

    Raises ValueError unless 0 < delta < 1 and sigma is in [1e-12, 1e12].
    """
    d2, s2 = fraction("delta", delta) ** 2, noise_levels(sigma)[0].numpy() ** 2
    return np.log1p((1 - d2) / (d2 + s2))


def level(delta: float, eta: float) -> float:
    """Return the noise level at which the log-contrast is eta: sigma^2 = (1 - e^(eta-eta_0))/(e^eta - 1).

    Raises ValueError unless 0 < delta < 1 and 0 < eta < eta_0 = 2 log(1/delta).
    """
    top = -2 * np.log(fraction("delta", delta))
    if not 0 < eta < top:
        raise ValueError(f"eta must lie strictly between 0 and 2 log(1/delta) = {top:.6g}, got {eta!r}")
    return float(np.sqrt(np.expm1(eta - top) / -np.expm1(eta)))


# --- where the peak disappears ----------------------------------------------------------------------


def theorem_boundary(num_classes: int, rank: float) -> float:
    r"""Return delta_c: Theorem 1's noisy-input SNR has a peak for delta < delta_c, and only falls otherwise.

    d (1-delta^2)^2 / (2 delta^2) = log(K+1), that is delta_c = sqrt(1 + t^2) - t with t^2 = log(K+1)/(2d)
    (proved in the book, `theory/phase_diagram`). `rank` may be any real number > 0.

    Raises ValueError unless num_classes >= 2 and rank > 0.

    Statement: `thm-phase-boundary`.
    """
    integer("num_classes", num_classes, 2)
    return float(np.exp(-np.arcsinh(np.sqrt(np.log(num_classes + 1) / (2 * positive("rank", rank))))))


def exact_boundary(num_classes: int, rank: int) -> float:
    """Return delta_c of the exact value: its noisy-input SNR starts upwards at sigma = 0 for delta < delta_c.

    It solves a_1 - b_1 = 1/2 at eta = eta_0 (what of this is proved says `theory/phase_diagram`). Relative
    error below 1e-9.

    Raises ValueError unless 2 <= num_classes <= 10^7 and rank >= 1.

    Statement: `thm-phase-exact`.
    """
    if integer("num_classes", num_classes, 2) > 10**7:  # phi^(K-1) magnifies the rounding of phi by K
        raise ValueError(f"num_classes must be at most 10^7, got {num_classes}: use boundary_at_rate")
    integer("rank", rank, 1)

    def excess(eta: float) -> float:
        own, _, other, _ = moments(num_classes, rank, eta)
        return own - other - 0.5

    low = high = float(-2 * np.log(theorem_boundary(num_classes, rank)))
    while excess(low) > 0:
        low *= 0.8
    while excess(high) < 0:
        high *= 1.25
    return float(np.exp(-brentq(excess, low, high, xtol=1e-11) / 2))


def boundary_at_rate(rate: float, rank: int) -> float:
    """Return delta_c of the exact value for K = 1 + e^(rate rank) classes, which may be beyond all floats.

    As `exact_boundary`, with a_1 = sum_v psi(v) phi(v)^(K-1) by the trapezoidal rule throughout and all
    factors as logarithms: phi = 1 - q with q = E[1 - e^{-e^t}], t = v + scale Y, which is as small as 1/K.
    Relative error below 1e-8.

    Raises ValueError unless rate > 0 and rank >= 10, which makes the densities of chi^2 smooth at 0.

    Statement: `prop-phase-limits`.
    """
    start = -2 * math.log(joint_boundary(rate))
    log_others, step = rate * integer("rank", rank, 10), 0.5
    largest = (math.sqrt(rank) + 9) ** 2  # of chi^2, up to 1e-35; e^t weighs values e^eta times as large

    def log_average(log_f: Callable, v: np.ndarray, scale: float, degrees: int, top: float) -> np.ndarray:
        y = np.arange(step, top * scale, step) / scale
        density = chi2.logpdf(y, degrees) + math.log(step / scale)
        logs = (log_f(np.minimum(each + scale * y, 6)) + density for each in v)
        return np.array([np.logaddexp.reduce(row) for row in logs])

    def log_hit(t: np.ndarray) -> np.ndarray:
        """log(1 - e^{-e^t})."""
        return np.where(t < -30, t, np.log(-np.expm1(-np.exp(np.maximum(t, -30)))))

    def excess(eta: float) -> float:
        own, other = math.expm1(eta) / 2, -math.expm1(-eta) / 2
        v = np.arange(-own * largest - 40, 5, step)
        log_q = log_average(log_hit, v, other, rank, largest * math.exp(eta))
        log_psi = log_average(lambda t: t - np.exp(t), v, own, rank + 2, largest)
        exact = np.log(-np.log1p(-np.exp(np.clip(log_q, -30, -1e-12))))  # log(-log phi)
        log_rate = log_others + np.where(log_q < -30, log_q, exact)
        share = step * float(np.exp(log_psi - np.exp(np.minimum(log_rate, 6))).sum())
        return share - math.exp(eta - log_others) * (1 - share) - 0.5

    low, high = 0.9 * start, 1.1 * start
    while excess(low) > 0:
        low *= 0.9
    while excess(high) < 0:
        high *= 1.1
    return math.exp(-brentq(excess, low, high, xtol=1e-9) / 2)


def certify_exact_boundary(num_classes: int, rank: int, below: float, above: float) -> bool:
    """Whether ball arithmetic proves that a boundary of the exact value lies between two backgrounds.

    That is, a_1 - b_1 > 1/2 at delta = `below`, where the SNR starts upwards and so has a peak, and
    a_1 - b_1 < 1/2 at delta = `above`, where it starts downwards. Needs python-flint.

    Raises ValueError unless num_classes >= 2, rank >= 1 and 0 < below < above < 1.
    """
    from flint import arb, ctx

    if not fraction("below", below) < fraction("above", above):
        raise ValueError(f"below must be less than above, got below={below!r} and above={above!r}")
    with ctx.workprec(400):
        squares = [arb(delta) ** 2 for delta in (below, above)]
        excess = []
        for d2 in squares:
            own, _, other, _ = enclosures.weight_moments(num_classes, rank, (1 / d2 - 1) / 2, (1 - d2) / 2)
            excess.append(own - other - arb(0.5))
    return bool(excess[0] > 0 and excess[1] < 0)


def joint_boundary(load: float, exact: bool = True) -> float:
    r"""Return the limit of delta_c as K, d -> inf with log(K)/d -> load.

    Exact value: the Kullback-Leibler divergence of N(0, 1) from N(0, delta^2) equals the load,
    (1/delta^2 - 1 - 2 log(1/delta)) / 2 = load. Theorem 1: their symmetrised divergence does,
    (1/delta - delta)^2 / 2 = load.

    Raises ValueError unless load > 0.

    Statement: `prop-phase-limits`.
    """
    load = positive("load", load)
    if not exact:
        return float(np.exp(-np.arcsinh(np.sqrt(load / 2))))
    top = float(np.arccosh(1 + load)) * 2 + 1
    return float(np.exp(-brentq(lambda eta: np.expm1(eta) - eta - 2 * load, 0, top, xtol=1e-14) / 2))


def wide_boundary(num_classes: int) -> float:
    r"""Return s_c = lim d^(1/2) 2^(1/2) (1 - delta_c) of the exact value, for d -> inf at fixed K.

    There the logits become s g_l + s^2 [l = k] with standard normal g, and E[w_k] = (K+1)/(2K) at s = s_c.
    Theorem 1 has sqrt(log(K+1)) in its place.

    Raises ValueError unless num_classes >= 2.

    Statement: `prop-phase-limits`.
    """
    others = integer("num_classes", num_classes, 2) - 1
    g = np.arange(-12, 12, 0.02)  # the trapezoidal rule: the integrands are analytic and vanish at both ends
    normal = 0.02 * np.exp(-g * g / 2) / np.sqrt(2 * np.pi)

    def excess(s: float) -> float:
        v = np.arange(-s * s - 12 * s - 40, 6, 0.05)[:, None]
        growth = np.exp(np.minimum(v + s * s + s * g, 6))
        own = (growth * np.exp(-growth)) @ normal
        rest = np.exp(-np.exp(np.minimum(v + s * g, 6))) @ normal
        return 0.05 * float(own @ rest**others) - (others + 2) / (2 * (others + 1))

    return float(brentq(excess, 0.3, 2 + np.sqrt(2 * np.log(others + 1)), xtol=1e-11))


# --- Theorem 1's peak -------------------------------------------------------------------------------


def theorem_peak(num_classes: int, rank: float, delta: float, noisy_input: bool = True) -> Peak | None:
    r"""Return the peak of Theorem 1's SNR, or None where it only falls (noisy input, delta >= delta_c).

    With x = e^D and tau(t) = t + K - 2 - (K-1)/t, it is the only root of

        x + K-2 - 3(K-1)/x - r - (K-1)/r - (K-1)(K-2)/(r x) = 2 lambda tau(r)   for noisy input,
        tau(x) = lambda tau(r)                                                  for clean input.

    Raises ValueError unless num_classes >= 2, rank > 0, 0 < delta < 1 and noisy_input is True or False.

    Statement: `prop-phase-place`.
    """
    others = integer("num_classes", num_classes, 2) - 1
    rank, top = positive("rank", rank), -2 * np.log(fraction("delta", delta))
    lowest = 1e-6 * top
    if boolean("noisy_input", noisy_input):
        lowest = float(np.arccosh(1 + np.log(others + 2) / rank))
        if lowest >= top:
            return None

    def rise(eta: float) -> float:
        """The equation's left side minus its right side, divided by x, which may be enormous."""
        y, r, slope = np.exp(-rank * (np.cosh(eta) - 1)), np.exp(top - eta), rank * np.sinh(eta)
        tau = (r - 1) * (r + others) / r
        if not noisy_input:
            return float((1 - y) * (1 + others * y) - slope * tau * y)
        rest = others - 1 - r - others / r - 2 * slope * tau
        return float(1 + rest * y - others * (3 + (others - 1) / r) * y * y)

    eta = brentq(rise, lowest, top, xtol=1e-14, rtol=1e-14)
    if not 0 < eta < top:
        return None
    sigma = level(delta, eta)
    front = np.exp(eta if noisy_input else top) / others
    y, r = np.exp(-rank * (np.cosh(eta) - 1)), np.exp(top - eta)
    return Peak(sigma, float(front * ((r + others * y) / (1 + (r + others - 1) * y)) ** 2), 1, 0, None)


def certify_single_peak(num_classes: int, rank: int, smallest_delta: float = 0.01) -> int:
    r"""Prove by ball arithmetic that Theorem 1's noisy-input SNR has no more than one interior extremum.

    For all delta >= `smallest_delta` and all sigma > 0: in each of the boxes into which the rectangle of eta
    and z = eta_0 - eta is cut, M, the difference of the two sides of the equation of `theorem_peak`, has one
    sign, or -dM/dz is positive wherever M = 0. So M changes sign at most once, from rising to falling.

    Returns the number of boxes looked at. Raises ValueError for arguments outside their ranges, RuntimeError
    where 100,000 boxes do not suffice. Needs python-flint.
    """
    from flint import arb, ctx

    others = integer("num_classes", num_classes, 2) - 1
    integer("rank", rank, 1)
    top = -2 * float(np.log(fraction("smallest_delta", smallest_delta))) + 1e-9

    def ball(low: float, high: float) -> arb:
        return arb(low).union(arb(high))

    boxes, looked_at, precision = [(0.0, top, 0.0, top)], 0, ctx.prec
    try:
        ctx.prec = 64
        while boxes:
            eta_low, eta_high, z_low, z_high = boxes.pop()
            if eta_low + z_low > top:
                continue
            looked_at += 1
            if looked_at > 100_000:
                raise RuntimeError(f"no proof for K={num_classes}, d={rank} within 100,000 boxes")
            eta, r = ball(eta_low, eta_high), ball(z_low, z_high).exp()
            gap, slope = 2 * rank * (eta / 2).sinh() ** 2, rank * eta.sinh()
            y, sum_, tau = (-gap).exp(), r + others / r, r + (others - 1) - others / r
            sign = 1 + (others - 1 - sum_ - 2 * slope * tau) * y
            sign -= others * (3 + (others - 1) / r) * y * y
            if sign > 0 or sign < 0:
                continue
            fall = 2 * tau * (slope**2 - gap - rank) + r - others / r - others * (others - 1) * y / r
            fall += slope * (3 * sum_ - (others - 1) + others * y * (6 + 2 * (others - 1) / r))
            if fall > 0:
                continue
            if eta_high - eta_low > z_high - z_low:
                cut = (eta_low + eta_high) / 2
                boxes += [(eta_low, cut, z_low, z_high), (cut, eta_high, z_low, z_high)]
            else:
                cut = (z_low + z_high) / 2
                boxes += [(eta_low, eta_high, z_low, cut), (eta_low, eta_high, cut, z_high)]
    finally:
        ctx.prec = precision
    return looked_at


# --- the exact value's peak -------------------------------------------------------------------------


def moments(num_classes: int, rank: int, eta: float) -> tuple[float, float, float, float]:
    """Return a_1, a_2, b_1, b_2 of the noisy-input weights at the log-contrast eta > 0, by quadrature.

    Statement: `prop-phase-contrast`.
    """
    own, other = float(np.expm1(eta)) / 2, float(-np.expm1(-eta)) / 2
    a1, a2, b1, b2 = (float(each) / rank for each in quadrature.weight_moments(num_classes, rank, own, other))
    return a1, a2, b1, b2


class ExactCurve:
    """The exact noisy-input SNR of one (K, d), for all delta at once and with its slope.

    The logarithms of a_1, a_2, b_1, b_2 are interpolated in eta on (0, `high`], by Chebyshev polynomials on
    panels that halve towards 0; relative error below 1e-6. Beyond `high` other classes have no effect.

    Statement: `prop-phase-contrast`.
    """

    _BREAKS = np.array([0, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1])

    def __init__(self, num_classes: int, rank: int, smallest_delta: float = 0.01, nodes: int = 14):
        self.num_classes, self.rank = integer("num_classes", num_classes, 2), integer("rank", rank, 1)
        top = -2 * float(np.log(fraction("smallest_delta", smallest_delta)))
        self.high = min(top, 2 * float(np.arccosh(np.exp(30 / self.rank))))
        unit = np.cos((np.arange(integer("nodes", nodes, 4)) + 0.5) * np.pi / nodes)
        self._fits = [
            np.polynomial.chebyshev.chebfit(
                unit,
                np.log([moments(num_classes, rank, (low + (high - low) * (x + 1) / 2)) for x in unit]),
                nodes - 1,
            )
            for low, high in pairwise((self.high * self._BREAKS).tolist())
        ]

    def log_snr(self, delta: float, eta: np.ndarray) -> np.ndarray:
        """Return log SNR at eta in (0, min(high, eta_0)]."""
        return self._parts(delta, eta)[0]

    def slope(self, delta: float, eta: np.ndarray) -> np.ndarray:
        """Return d log SNR / d log sigma at eta in (0, min(high, eta_0))."""
        d2 = fraction("delta", delta) ** 2
        s2 = -np.expm1(eta + np.log(d2)) / np.expm1(eta)
        return self._parts(delta, eta)[1] * -2 * s2 * (1 - d2) / ((1 + s2) * (d2 + s2))

    def peaks(self, delta: float, points: int = 400) -> list[Peak]:
        """Return the maxima over sigma that a scan of `points` values of eta shows, refined by bisection."""
        top = min(self.high, -2 * float(np.log(fraction("delta", delta))) * (1 - 1e-9))
        eta = top * (np.arange(1, integer("points", points, 5) + 1) / points) ** 2
        rise = self._parts(delta, eta)[1]
        maxima = np.flatnonzero((rise[:-1] > 0) & (rise[1:] <= 0))
        minima = int(((rise[:-1] <= 0) & (rise[1:] > 0)).sum())
        found = []
        for i in maxima:
            place = brentq(lambda x: self._parts(delta, np.array([x]))[1][0], eta[i], eta[i + 1], xtol=1e-13)
            height = float(np.exp(self.log_snr(delta, np.array([place]))[0]))
            found.append(Peak(level(delta, place), height, len(maxima), minima, None))
        return found

    def _parts(self, delta: float, eta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """log SNR and its derivative in eta."""
        (a1, a2, b1, b2), (a1s, a2s, b1s, b2s) = self._moments(eta)
        r = np.exp(-2 * np.log(delta) - eta)
        q = r - 1
        over, under = 1 + 2 * q * a1 + q * q * a2, 1 + 2 * q * b1 + q * q * b2
        over_s = -2 * r * (a1 + q * a2) + 2 * q * a1s + q * q * a2s
        under_s = -2 * r * (b1 + q * b2) + 2 * q * b1s + q * q * b2s
        return eta + np.log(over / under / (self.num_classes - 1)), 1 + over_s / over - under_s / under

    def _moments(self, eta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The four moments and their derivatives in eta, (4, S) each."""
        breaks = self.high * self._BREAKS
        panel = np.clip(np.searchsorted(breaks, eta) - 1, 0, len(self._fits) - 1)
        values, slopes = np.empty((4, len(eta))), np.empty((4, len(eta)))
        for i in np.unique(panel):
            here, width = panel == i, breaks[i + 1] - breaks[i]
            unit = 2 * (eta[here] - breaks[i]) / width - 1
            values[:, here] = np.exp(np.polynomial.chebyshev.chebval(unit, self._fits[i]))
            slope = np.polynomial.chebyshev.chebder(self._fits[i])
            slopes[:, here] = values[:, here] * np.polynomial.chebyshev.chebval(unit, slope) * 2 / width
        return values, slopes


# --- laws of the exact peak -------------------------------------------------------------------------


def small_delta_law(num_classes: int, rank: int, delta: float, noisy_input: bool = True) -> Law:
    r"""Return the leading behaviour of the exact value's peak for delta -> 0 at fixed K and d.

        noisy: sigma^2 = (2 delta^4 / ((d+2) c))^(2/(d+4)),  SNR = (d+2)/(d+4) sigma^2 / ((K-1) delta^4),
        clean: sigma^2 = (4 delta^4 / (d c))^(2/(d+4)),      SNR = d/(d+4) sigma^4 / ((K-1) delta^6),

    with c = lim e^(eta d/2) b_2 for noisy and c = 1/Gamma(d/2) int s^(d/2-1) (e^s + K-1)^-2 ds for clean
    input: a point is undecided when its own energy happens to be small, which has probability ~ sigma^d.

    Raises ValueError for arguments outside their ranges.

    Statement: `prop-phase-exact-laws`.
    """
    integer("num_classes", num_classes, 2)
    integer("rank", rank, 1)
    log_delta = math.log(fraction("delta", delta))
    if boolean("noisy_input", noisy_input):
        log_s2 = math.log(2 / (rank + 2)) + 4 * log_delta - log_undecided(num_classes, rank)
        factor, power, front = (rank + 2) / (rank + 4), 1, -4
    else:
        reach = math.sqrt(rank) + math.sqrt(math.log(num_classes)) + 9
        t, weight = quadrature.panel_rule(np.linspace(0, reach, 8 * math.ceil(reach) + 1))  # s = t^2
        logs = (rank - 1) * np.log(t) - 2 * np.logaddexp(t * t, math.log(num_classes - 1))
        log_mass = logsumexp(logs, b=2 * weight) - gammaln(rank / 2)
        log_s2 = math.log(4 / rank) + 4 * log_delta - log_mass
        factor, power, front = rank / (rank + 4), 2, -6
    log_s2 *= 2 / (rank + 4)
    height = factor / (num_classes - 1) * math.exp(power * log_s2 + front * log_delta)
    return Law(math.exp(log_s2 / 2), height)


def log_undecided(num_classes: int, rank: int) -> float:
    r"""Return the logarithm of lim e^(eta d/2) b_2 for eta -> inf.

    The own energy enters near 0, where its density is a power. With s its logit, T the sum of e^logit of the
    others, the limit is

        1/(d Gamma(d/2)) int s^(d/2-1) E[w_l^2 Y] ds,  w_l = e^(Y/2) / (e^s + T),  Y ~ chi^2_d,

    which factorises over the classes as in `molrg.snr.exact`, and for large d is beyond the range of floats.
    """
    v, weight = quadrature.panel_rule(np.concatenate([np.arange(-3.0 * rank - 60, 4), [4.0]]))
    gamma = gammaln(rank / 2)

    def log_average(scale: float, power: int, extra: int) -> np.ndarray:
        """log int r^(rank-1+extra) e^(power t - e^t) dr, t = v + scale r^2; with e^(-r^2/2) if scale < 1."""
        bulk = quadrature.radii(rank, 12)
        values = np.empty_like(v)
        for start in range(0, len(v), quadrature.ROWS):
            at = v[start : start + quadrature.ROWS, None]
            reach = np.sqrt((4.5 - at) / scale)  # beyond, e^(-e^t) is below e^{-90}
            turns = np.sqrt(np.maximum((quadrature.TRANSITION - at) / scale, 0))
            breaks = [np.minimum(bulk, reach), reach * np.linspace(0, 1, 13), np.minimum(turns, reach)]
            r, weights = quadrature.panel_rule(np.sort(np.concatenate(breaks, 1), 1))
            t = at + scale * r * r
            with np.errstate(divide="ignore"):  # log 0 at the end of an empty panel
                logs = (rank - 1 + extra) * np.log(r) if rank + extra > 1 else np.zeros_like(r)
                logs += power * t - np.exp(t) - (0.5 * r * r if scale < 1 else 0)
                values[start : start + quadrature.ROWS] = logsumexp(logs, axis=1, b=weights)
        return values

    own = math.log(2) - gamma + log_average(1.0, 0, 0)
    density = math.log(2) - rank / 2 * math.log(2) - gamma
    phi, two = density + log_average(0.5, 0, 0), density + log_average(0.5, 2, 2)
    return float(logsumexp(own + two + (num_classes - 2) * phi, b=weight)) - math.log(rank)


def large_rank_law(num_classes: int, rank: float, delta: float) -> Law:
    r"""Return the leading behaviour of the exact noisy-input peak for d -> inf at fixed K and delta.

        cosh(eta/2)^d = alpha (pi d / 32)^(1/2),  SNR = e^-eta (1 - 4/(d eta)) / ((K-1) delta^4),
        alpha = 2q + q^2/2 + (K-1) (2q + 3 q^2/2) / (q+1)^2,  q = 1/delta^2 - 1:

    two classes are confused with the probability of a Gaussian test, cosh(eta/2)^-d up to a power of d.

    Raises ValueError unless num_classes >= 2, rank > 0, 0 < delta < 1, and rank is so large that the law has
    a peak at some sigma > 0.

    Statement: `prop-phase-exact-laws`.
    """
    others = integer("num_classes", num_classes, 2) - 1
    rank, d2 = positive("rank", rank), fraction("delta", delta) ** 2
    q = 1 / d2 - 1
    alpha = 2 * q + q * q / 2 + others * (2 * q + 1.5 * q * q) / (q + 1) ** 2
    growth = np.log(alpha * np.sqrt(np.pi * rank / 32)) / rank
    if growth <= 0 or (eta := 2 * float(np.arccosh(np.exp(growth)))) >= -np.log(d2):
        raise ValueError(f"rank {rank:g} is too small for this law at delta = {delta:g}: pass a larger one")
    return Law(level(delta, eta), float(np.exp(-eta) * (1 - 4 / (rank * eta)) / (d2 * d2 * others)))
