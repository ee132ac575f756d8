r"""Whether a measured curve over noise levels rises, falls or has a peak, where, and how sure that is.

Scores, such as 0/1 correctness, come with an axis per source of chance:

- (R, N, L): R networks (training seeds), N test images, the same for all networks, L noise levels;
- (R, L): R networks, each with one score per level, such as an SNR or an accuracy.

The **unit** is what is counted as independent. It is the training seed where R > 1, and the verdict is about
the way of training; it is the test image where R = 1, and the verdict is about this one network. Draws of
probe images or of noise are not units: average the scores over them first.

With D_u the score of unit u at the level of the peak less that at the lowest level (the rise; or less that at
the highest level, the fall), a verdict rests on the one-sided Student test of E[D] <= 0 at 5%,

    low = mean(D) - t error - step > 0,   t the 95% quantile of Student's t with (units - 1) degrees:

- test images (at least 30): error^2 = var(D) / N. Where scores are multiples of h (1 for 0/1), step = h / N
  is Edwards's correction for continuity, without which a handful of changed images would pass too often;
- training seeds: D_r the mean over images, error^2 = var(D_r) / R + var(D_i) / N, D_i the mean over seeds.
  The second term, as the seeds share their test images, is left out where there is one score per seed.
  R - 1 degrees, those of the first term, make the test conservative (Mickey and Brown).

A peak is a rise *and* a fall, both significant. A curve that is flat, never rises or never falls violates one
of the two, so that a peak is seen in at most 5% of such curves whatever the correlation between levels: the
intersection-union test (Berger). This needs the level of the peak to be chosen on other units than those on
which its height is judged:

- one network: `judge(test, levels, choose(validation))`, validation and test images of that network;
- several seeds: `judge` with a level that *other* seeds, other data or an argument chose. Validation images
  of the same seeds do not do: where the networks' own curves wobble, they choose the wobble;
- `cross_fit` where nothing else exists. It judges each fold at the level that the folds *before* it chose.
  Given these the level is fixed, so that the folds add up as independent ones do (Luedtke and van der Laan).
  The usual cross-fitting, where each fold's level is chosen on all others, does not: its folds are correlated
  through their choices, and it sees a rise in up to a quarter of flat curves.

Sources: R. L. Berger, Technometrics 24 (1982) 295; D. J. Schuirmann, J. Pharmacokin. Biopharm. 15 (1987) 657;
A. R. Luedtke, M. J. van der Laan, Ann. Statist. 44 (2016) 713; M. R. Mickey, M. B. Brown, Ann. Math. Statist.
37 (1966) 639; A. L. Edwards, Psychometrika 13 (1948) 185.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy import stats

from molrg.support.checks import Levels, integer, noise_levels, nonnegative

__all__ = [
    "ERROR_RATE",
    "FEWEST_IMAGES",
    "FOLDS",
    "Difference",
    "Harm",
    "Shape",
    "Unit",
    "choose",
    "cross_fit",
    "judge",
    "no_harm",
]

ERROR_RATE = 0.05
"""Of each one-sided test; all intervals are two-sided 90% intervals, whose ends are these tests."""
FOLDS = 10
"""Of the images of one network in `cross_fit`; a training seed is a fold of its own."""
FEWEST_IMAGES = 30
"""Below, the mean of 0/1 differences is too far from a normal variable."""

Unit = Literal["training seed", "test image"]


@dataclass(frozen=True)
class Difference:
    """Mean of paired differences, its standard error, degrees of freedom and correction for continuity."""

    mean: float
    error: float
    degrees: int
    step: float

    @property
    def _half(self) -> float:
        return float(stats.t.isf(ERROR_RATE, self.degrees)) * self.error + self.step * (self.error > 0)

    @property
    def low(self) -> float:
        """Lower end of the 90% interval; above 0 where the mean is significantly positive."""
        return self.mean - self._half

    @property
    def high(self) -> float:
        """Upper end of the 90% interval; below 0 where the mean is significantly negative."""
        return self.mean + self._half

    def power(self, size: float) -> float:
        """Return the probability that a true mean of `size` > 0 is seen, given this error: noncentral t.

        Raises ValueError unless `size` is a finite number > 0.
        """
        if nonnegative("size", size) == 0:
            raise ValueError("size must be > 0: a difference of 0 is not there to be seen")
        if self.error == 0:
            return 1.0
        limit, shift = stats.t.isf(ERROR_RATE, self.degrees), (size - self.step) / self.error
        if self.degrees > 1000 or abs(shift) > 30:  # the noncentral t is normal there, and slow or NaN
            return float(stats.norm.sf(limit - shift))
        return float(stats.nct.sf(limit, self.degrees, shift))


@dataclass(frozen=True)
class Shape:
    """What a curve does over the noise level, at the level chosen for its peak.

    Attributes
    ----------
    verdict
        `peak` (rise and fall both significant), `rises` (the rise alone), `falls` (the fall alone),
        `no change seen` (neither) or `not testable`.
    level
        The level chosen, in `cross_fit` that of all data together; None if not testable.
    judged
        The levels, in increasing order, at which a fold was judged; one outside `cross_fit`.
    rise, fall
        Height at the chosen level over the lowest and over the highest level; None if not testable.
    reference
        The difference that power is computed from: the rise to `level`; where that is the lowest level, the
        rise with the median error of the other levels.
    unit, units
        What counts as independent, and how many of them were judged.
    reason
        Why the curve is not testable, else empty.
    """

    verdict: Literal["peak", "rises", "falls", "no change seen", "not testable"]
    level: float | None
    judged: tuple[float, ...]
    rise: Difference | None
    fall: Difference | None
    reference: Difference | None
    unit: Unit
    units: int
    reason: str = ""

    @property
    def has_peak(self) -> bool:
        """Whether the verdict is `peak`."""
        return self.verdict == "peak"

    def power(self, rise: float) -> float:
        """Return the probability of seeing a rise of that size, in the scores' unit, at a level once chosen.

        0 where the curve is not testable. A peak needs its fall to be seen as well.
        """
        return 0.0 if self.reference is None else self.reference.power(rise)

    def sentence(
        self, scale: float = 100.0, name: str = "points", rises: Sequence[float] = (0.5, 1, 2)
    ) -> str:
        """Return the verdict as a line of text, in scores times `scale`, with the power for `rises` of these.

        `scale` 1 and `name` "" are for scores that are not shares, with `rises` that suit them.
        """
        if self.rise is None or self.fall is None:
            return f"not testable: {self.reason}"
        word = f" {name}" if name else ""
        at = f"sigma = {self.level:g}"
        if len(self.judged) > 1:
            at += f" (folds judged at {self.judged[0]:g} to {self.judged[-1]:g})"
        chances = ", ".join(f"{self.power(size / scale):.0%}" for size in rises)
        return (
            f"{self.verdict}; chosen level {at}: rise {_told(self.rise, scale)}{word}, "
            f"fall {_told(self.fall, scale)}{word}; {self.units} {self.unit}s; "
            f"would see a rise of {', '.join(f'{size:g}' for size in rises)}{word} in {chances} of cases"
        )


@dataclass(frozen=True)
class Harm:
    """Whether paired differences are zero but for a margin: what `no_harm` returns.

    `outcome` is `equivalent` (the 90% interval lies inside the margin), otherwise `worse` or `better` (it
    excludes 0), `undecided`, or `not testable` for the `reason` given. `equivalence_power` is the probability
    of `equivalent` where the true difference is 0.
    """

    outcome: Literal["equivalent", "worse", "better", "undecided", "not testable"]
    margin: float
    difference: Difference | None
    equivalence_power: float
    unit: Unit
    units: int
    reason: str = ""

    def sentence(self, scale: float = 100.0, name: str = "points") -> str:
        """Return the outcome as a line of text, in differences times `scale`."""
        if self.difference is None:
            return f"not testable: {self.reason}"
        word = f" {name}" if name else ""
        outcome = self.outcome + (
            f" within {scale * self.margin:g}{word}" if self.outcome == "equivalent" else ""
        )
        return (
            f"{outcome}: difference {_told(self.difference, scale)}{word}, margin {scale * self.margin:g}; "
            f"{self.units} {self.unit}s; no difference would be called equivalent in "
            f"{self.equivalence_power:.0%} of cases"
        )


def choose(scores: Any) -> int:
    """Return the index of the level whose mean of scores (R, N, L) or (R, L) is highest, the first of equals.

    Raises ValueError for other shapes, less than two levels, or scores that are not finite.
    """
    return int(_scores(scores).mean((0, 1)).argmax())


def judge(scores: Any, levels: Levels, chosen: int) -> Shape:
    """Judge the curve of scores (R, N, L) or (R, L) over increasing levels at level number `chosen`.

    `chosen` must not depend on the units judged, see the module. One seed without scores per image, or with
    fewer than 30 images, is not testable.

    Raises ValueError for wrong shapes, scores that are not finite, less than two levels, levels that are not
    positive and increasing, or `chosen` outside 0 to L - 1.
    """
    values, sigma = _curve(scores, levels)
    chosen = integer("chosen", chosen, 0, len(sigma) - 1)
    return _verdict(values, np.full(values.shape[:2], chosen), sigma, chosen)


def cross_fit(scores: Any, levels: Levels, validation: Any = None) -> Shape:
    """Judge the curve of scores (R, N, L) or (R, L) where no other data have chosen the level of its peak.

    One network: its images fall into 10 folds, by a fixed shuffle; each but the first is judged at the level
    that the folds before it choose. Several seeds: each but the first is judged at the level that the seeds
    before it choose, on other images: on `validation` (R, N', L) or (R, L), scores of the same networks, or,
    where that is None and there are scores per image, on one half of the images, the other half being judged.
    One network with `validation` is judged at the level that this chooses.

    Two seeds are not testable, as one is left to judge; three leave two, with one degree of freedom.

    Raises ValueError as `judge`, or if `validation` has other networks or levels.
    """
    values, sigma = _curve(scores, levels)
    seeds, images, _ = values.shape
    if _untestable(values):
        return judge(values, sigma, 0)
    shuffle = np.random.default_rng(0).permutation(images)
    if validation is not None:
        basis = _scores(validation)
        if (len(basis), basis.shape[2]) != (seeds, len(sigma)):
            raise ValueError(
                f"validation must have the networks and levels of scores, {seeds} and {len(sigma)}, "
                f"got {len(basis)} and {basis.shape[2]}"
            )
    elif seeds > 1 and images > 1:
        basis, values = np.split(values[:, shuffle], [images // 2], axis=1)
    else:
        basis = values
    if seeds > 1:
        before = basis.mean(1).cumsum(0)[:-1].argmax(1)
        picked = np.repeat(before[:, None], values.shape[1], axis=1)
        judged = values[1:] if seeds > 2 else values[1:].mean(1, keepdims=True)  # not by the images of one
        return _verdict(judged, picked[:, : judged.shape[1]], sigma, choose(basis))
    if validation is not None:
        return judge(values, sigma, choose(basis))
    folds = np.array_split(shuffle, FOLDS)
    sums = np.stack([values[0, fold].sum(0) for fold in folds]).cumsum(0)
    order = np.concatenate(folds[1:])
    picked = np.repeat(sums[:-1].argmax(1), [len(fold) for fold in folds[1:]])
    return _verdict(values[:, order], picked[None], sigma, choose(values))


def no_harm(differences: Any, margin: float) -> Harm:
    r"""Test paired differences (R, N) or (R,), treatment less control, for equivalence within +- `margin`.

    Two one-sided tests at 5% (Schuirmann): equivalent where -margin < low and high < margin, with the 90%
    interval of the module, R seeds and N images as there. A difference of `margin` or more is called
    equivalent in at most 5% of cases; "not significantly worse" proves nothing.

    Raises ValueError for wrong shapes, differences that are not finite, or a margin that is not > 0.
    """
    values = _finite("differences", differences, (1, 2), "(seeds, images) or (seeds,)")
    values = values[:, None] if values.ndim == 1 else values
    if nonnegative("margin", margin) == 0:
        raise ValueError("margin must be > 0: no data show that a difference is exactly 0")
    unit, units = _unit(values)
    reason = _untestable(values)
    if not reason:
        found = _difference(values, _resolution(values))
        reason = _spreadless(found, unit)
    if reason:
        return Harm("not testable", margin, None, 0.0, unit, units, reason)
    outcome: Literal["equivalent", "worse", "better", "undecided"] = "undecided"
    if -margin < found.low and found.high < margin:
        outcome = "equivalent"
    elif found.high < 0:
        outcome = "worse"
    elif found.low > 0:
        outcome = "better"
    return Harm(outcome, margin, found, _equivalence_power(found, margin), unit, units)


def _verdict(values: np.ndarray, picked: np.ndarray, sigma: np.ndarray, best: int) -> Shape:
    """Judge (R, N, L) at level numbers `picked` (R, N); `best` is the level to report."""
    unit, units = _unit(values)
    reason = _untestable(values)
    if not reason:
        resolution = _resolution(values) if unit == "test image" else 0.0
        height = np.take_along_axis(values, picked[..., None], 2)[..., 0]
        rise = _difference(height - values[..., 0], resolution)
        fall = _difference(height - values[..., -1], resolution)
        reason = _spreadless(rise, unit) or _spreadless(fall, unit)
    if reason:
        return Shape("not testable", None, (), None, None, None, unit, units, reason)
    verdict: Literal["peak", "rises", "falls", "no change seen"]
    if rise.low > 0:
        verdict = "peak" if fall.low > 0 else "rises"
    else:
        verdict = "falls" if fall.low > 0 else "no change seen"
    judged = tuple(float(sigma[i]) for i in np.unique(picked))
    reference = _reference(values, best, resolution)
    return Shape(verdict, float(sigma[best]), judged, rise, fall, reference, unit, units)


def _difference(values: np.ndarray, resolution: float) -> Difference:
    """Mean of differences (R, N) with the error of the module's text."""
    seeds, images = values.shape
    if seeds == 1:
        error, step = values[0].std(ddof=1) / math.sqrt(images), resolution / images
        return Difference(float(values.mean()), float(error), images - 1, step)
    variance = values.mean(1).var(ddof=1) / seeds
    if images > 1:
        variance += values.mean(0).var(ddof=1) / images
    return Difference(float(values.mean()), math.sqrt(variance), seeds - 1, 0.0)


def _reference(values: np.ndarray, best: int, resolution: float) -> Difference:
    levels = [best] if best > 0 else range(1, values.shape[2])
    rises = [_difference(values[..., i] - values[..., 0], resolution) for i in levels]
    return sorted(rises, key=lambda rise: rise.error)[len(rises) // 2]


def _equivalence_power(found: Difference, margin: float) -> float:
    """P(interval inside the margin | true mean 0), a mean over 200 quantiles of the estimated error."""
    middle = (np.arange(200) + 0.5) / 200
    error = found.error * np.sqrt(stats.chi2.ppf(middle, found.degrees) / found.degrees)
    room = margin - found.step - stats.t.isf(ERROR_RATE, found.degrees) * error
    if found.error == 0:
        return float(room[0] > 0)
    return float((2 * stats.norm.cdf(room.clip(0) / found.error) - 1).mean())


def _unit(values: np.ndarray) -> tuple[Unit, int]:
    several = len(values) > 1 or values.shape[1] == 1
    return ("training seed", len(values)) if several else ("test image", values.shape[1])


def _untestable(values: np.ndarray) -> str:
    """Why (R, N, ...) holds too few units, or nothing."""
    seeds, images = values.shape[:2]
    if seeds == 1 and images == 1:
        return "a single training seed has no spread; judge a network by its scores per image"
    if seeds == 1 and images < FEWEST_IMAGES:
        return f"{images} test images of one network; {FEWEST_IMAGES} are needed, or several training seeds"
    return ""


def _spreadless(found: Difference, unit: Unit) -> str:
    if unit == "test image" or found.error > 1e-9 * abs(found.mean) or found.mean == 0:
        return ""
    return f"all training seeds differ by the same {found.mean:g}, which is no spread to judge by"


def _resolution(values: np.ndarray) -> float:
    """Smallest step between two scores, apart from rounding: 1 for 0/1, near 0 for continuous ones."""
    extent = float(np.ptp(values)) or 1.0
    steps = np.diff(np.unique(np.round(values / extent, 6)))
    return extent * float(steps.min()) if len(steps) else 0.0


def _told(found: Difference, scale: float) -> str:
    return f"{scale * found.mean:.3g} (90%: {scale * found.low:.3g} to {scale * found.high:.3g})"


def _curve(scores: Any, levels: Levels) -> tuple[np.ndarray, np.ndarray]:
    values, sigma = _scores(scores), noise_levels(levels)[0].numpy()
    if len(sigma) != values.shape[2]:
        raise ValueError(f"scores have {values.shape[2]} levels in their last axis, levels has {len(sigma)}")
    wrong = np.flatnonzero(np.diff(sigma) <= 0)
    if len(wrong):
        i = int(wrong[0])
        raise ValueError(f"levels must increase, got {sigma[i]:g} before {sigma[i + 1]:g}; sort them")
    return values, sigma


def _scores(scores: Any) -> np.ndarray:
    """Scores as (R, N, L) float64."""
    values = _finite("scores", scores, (2, 3), "(seeds, images, levels) or (seeds, levels)")
    values = values[:, None] if values.ndim == 2 else values
    if values.shape[2] < 2:
        raise ValueError("a curve needs at least two levels in its last axis, got one")
    return values


def _finite(name: str, given: Any, ndims: tuple[int, ...], shape: str) -> np.ndarray:
    try:
        values = np.asarray(given, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be an array of numbers {shape}: {error}") from error
    if values.ndim not in ndims or values.size == 0:
        raise ValueError(f"{name} must have shape {shape} and not be empty, got {values.shape}")
    if not np.isfinite(values).all():
        where = tuple(int(i) for i in np.argwhere(~np.isfinite(values))[0])
        raise ValueError(f"{name} must be finite, got {values[where]} at index {where}")
    return values
