"""The rule for a peak: its error rates and power by simulation, its formulas against SciPy and by hand."""

import math

import numpy as np
import pytest
from scipy import stats

from molrg.measuring import curves

RNG = np.random.default_rng
SHAPES = ("flat", "falling", "rising", "plateau, then fall", "cliff, then plateau")
"""Curves without a peak; on the last two one of rise and fall is certain, and all hangs on the other."""


def truth(shape: str, levels: int) -> np.ndarray:
    ramp, plateau = np.linspace(0, 0.05, levels), np.zeros(levels - 1)
    return {
        "flat": 0 * ramp,
        "falling": -ramp,
        "rising": ramp,
        "plateau, then fall": np.append(plateau, -0.4),
        "cliff, then plateau": np.append(-0.4, plateau),
    }[shape]


def seeds(rng: np.random.Generator, curve: np.ndarray, number: int, walk: bool = False) -> np.ndarray:
    """Scores (R, L) of networks whose curves wobble, independently at each level or as random walks."""
    wobble = 0.01 * rng.standard_normal((number, len(curve)))
    return 0.6 + curve + (wobble.cumsum(1) if walk else wobble)


def images(rng: np.random.Generator, curve: np.ndarray, number: int, alike: float) -> np.ndarray:
    """0/1 scores (1, N, L) of accuracy 0.6 + curve; `alike` correlates the levels of an image."""
    shared, own = rng.standard_normal((number, 1)), rng.standard_normal((number, len(curve)))
    return (math.sqrt(alike) * shared + math.sqrt(1 - alike) * own < stats.norm.ppf(0.6 + curve))[None]


def crossed(rng: np.random.Generator, curve: np.ndarray, number: int, seed_share: float) -> np.ndarray:
    """Scores (R, 40, L) with parts of the network (of variance `seed_share`), of the image and of both."""
    size = len(curve)
    network = math.sqrt(seed_share) * rng.standard_normal((number, 1, size))
    image = math.sqrt(40 * (1 - seed_share)) * rng.standard_normal((1, 40, size))
    return 100 * curve + network + image + rng.standard_normal((number, 40, size))


def assert_rare(hits: int, trials: int, rate: float = curves.ERROR_RATE) -> None:
    """At most what a rate of 5% gives in 999 of 1,000 runs of a test."""
    assert hits <= stats.binom.isf(1e-3, trials, rate), f"{hits} of {trials}"


@pytest.mark.parametrize("levels", [5, 12])
@pytest.mark.parametrize("number", [2, 3, 5])
@pytest.mark.parametrize("shape", SHAPES)
def test_seeds_without_a_peak_seldom_show_one(shape: str, number: int, levels: int) -> None:
    """Level chosen by one other network, or by cross-fitting."""
    curve, sigma, rng = truth(shape, levels), np.arange(1, levels + 1), RNG(number)
    trials, found, crossfit = 300, 0, 0
    for trial in range(trials):
        found += curves.judge(seeds(rng, curve, number), sigma, curves.choose(seeds(rng, curve, 1))).has_peak
        crossfit += curves.cross_fit(seeds(rng, curve, number, trial % 2 == 0), sigma).has_peak
    assert_rare(found, trials)
    assert_rare(crossfit, trials)


@pytest.mark.parametrize(("number", "alike"), [(60, 0.0), (60, 0.8), (1500, 0.8)])
@pytest.mark.parametrize("shape", SHAPES)
def test_images_without_a_peak_seldom_show_one(shape: str, number: int, alike: float) -> None:
    curve, sigma, rng = truth(shape, 9), np.arange(1, 10), RNG(number)
    trials, found, crossfit = 300, 0, 0
    for _ in range(trials):
        chosen = curves.choose(images(rng, curve, 200, alike))
        scores = images(rng, curve, number, alike)
        found += curves.judge(scores, sigma, chosen).has_peak
        crossfit += curves.cross_fit(scores, sigma).has_peak
    assert_rare(found, trials)
    assert_rare(crossfit, trials)


def test_a_handful_of_discordant_images_is_no_rise() -> None:
    """Exact rate over all outcomes: of m images that change, each gets better or worse by a fair coin."""
    for number, m in [(number, m) for number in (30, 100, 1500) for m in range(1, 21)]:
        rate = 0.0
        for better in range(m + 1):
            scores = np.zeros((1, number, 2))
            scores[0, :better, 1] = scores[0, better:m, 0] = 1
            rate += stats.binom.pmf(better, m, 0.5) * (curves.judge(scores, [1, 2], 1).verdict == "rises")
        assert rate <= curves.ERROR_RATE, (number, m)


@pytest.mark.parametrize("seed_share", [0.02, 0.3, 0.7, 0.98])
@pytest.mark.parametrize("number", [3, 5])
def test_seeds_that_share_their_images_are_not_surer_than_the_images(number: int, seed_share: float) -> None:
    """Where most of the error is that of the images, seeds agree on a rise that other images do not show."""
    curve, sigma, rng = truth("plateau, then fall", 6), np.arange(1, 7), RNG(5)
    trials, fixed, halves, validated = 300, 0, 0, 0
    for _ in range(trials):
        scores = crossed(rng, curve, number + 3, seed_share)
        fixed += curves.judge(scores[:number], sigma, 2).has_peak
        halves += curves.cross_fit(scores[:number], sigma).has_peak
        validated += curves.cross_fit(scores[:number, :20], sigma, scores[:number, 20:]).has_peak
    for hits in (fixed, halves, validated):
        assert_rare(hits, trials)


def test_usual_cross_fitting_would_see_rises_that_are_not_there() -> None:
    """Why only the folds before it choose a fold's level; the usual way doubles the error rate."""
    rng, trials, usual, ours = RNG(2), 1000, 0, 0
    for _ in range(trials):
        scores = seeds(rng, np.zeros(9), 12)
        others = (scores.sum(0) - scores).argmax(1)
        rise = scores[np.arange(12), others] - scores[:, 0]
        usual += stats.ttest_1samp(rise, 0, alternative="greater").pvalue < 0.05
        ours += curves.cross_fit(scores, np.arange(1, 10)).verdict in ("rises", "peak")
    assert usual > 1.6 * 0.05 * trials
    assert_rare(ours, trials)


@pytest.mark.parametrize("rise", [0.01, 0.02, 0.04])
def test_power_is_the_share_of_rises_seen(rise: float) -> None:
    """Simulated with the true spread; the power is computed from the observed one, which varies by run."""
    curve, sigma = np.array([0, rise, -0.3]), [1, 2, 3]
    rng, trials = RNG(1), 300
    for scores, chosen in (
        (lambda: seeds(rng, curve, 6), 1),
        (lambda: images(rng, curve, 1500, 0.8), 1),
    ):
        shapes = [curves.judge(scores(), sigma, chosen) for _ in range(trials)]
        seen = np.mean([shape.has_peak for shape in shapes])
        told = np.mean([shape.power(rise) for shape in shapes])
        assert abs(seen - told) < 3.3 * math.sqrt(0.25 / trials)


def test_clear_shapes_are_named() -> None:
    sigma, rng = [0.01, 0.1, 1, 10], RNG(0)
    for curve, verdict in (
        ([0, 0.1, 0.1, -0.2], "peak"),
        ([0, 0.1, 0.2, 0.3], "rises"),
        ([0, -0.1, -0.2, -0.3], "falls"),
        ([0, 0, 0, 0], "no change seen"),
        ([0, -0.2, -0.2, -0.1], "falls"),
    ):
        for scores in (seeds(rng, np.array(curve), 5), images(rng, np.array(curve), 3000, 0.5)):
            shape = curves.cross_fit(scores, sigma)
            assert shape.verdict == verdict
            assert shape.has_peak == (verdict == "peak")
            if verdict == "peak":
                assert shape.level in (0.1, 1)
                assert set(shape.judged) <= {0.1, 1}
            if verdict == "rises":
                assert (shape.level, shape.judged) == (10, (10,))


def test_intervals_and_power_are_students() -> None:
    """Against SciPy's own t test, and the power by its definition as a chance over the estimated error."""
    scores = seeds(RNG(0), np.array([0, 0.02, -0.01]), 4)
    shape = curves.judge(scores, [1, 2, 3], 1)
    assert (shape.unit, shape.units) == ("training seed", 4)
    for found, end in ((shape.rise, 0), (shape.fall, 2)):
        assert found is not None
        test = stats.ttest_1samp(scores[:, 1] - scores[:, end], 0)
        interval = test.confidence_interval(0.9)
        assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
        assert found.mean == pytest.approx((scores[:, 1] - scores[:, end]).mean())
    assert shape.rise is not None
    error = shape.rise.error * np.sqrt(stats.chi2.ppf((np.arange(10**5) + 0.5) / 10**5, 3) / 3)
    power = stats.norm.sf((stats.t.isf(0.05, 3) * error - 0.02) / shape.rise.error).mean()
    assert shape.power(0.02) == pytest.approx(power, abs=1e-4)


def test_images_have_edwards_correction_and_seeds_the_error_of_their_images() -> None:
    scores = np.zeros((1, 40, 2))
    scores[0, :9, 1] = scores[0, 9:11, 0] = 1  # 9 better, 2 worse
    rise = curves.judge(scores, [1, 2], 1).rise
    assert rise is not None
    error = math.sqrt((11 - 49 / 40) / 39 / 40)
    assert (rise.mean, rise.error, rise.degrees) == pytest.approx((7 / 40, error, 39))
    assert rise.low == pytest.approx((7 - 1) / 40 - stats.t.isf(0.05, 39) * error)
    assert rise.high == pytest.approx((7 + 1) / 40 + stats.t.isf(0.05, 39) * error)

    scores = crossed(RNG(0), np.zeros(2), 3, 0.5)
    shape = curves.judge(scores, [1, 2], 1)
    assert shape.rise is not None
    change = scores[..., 1] - scores[..., 0]
    variance = change.mean(1).var(ddof=1) / 3 + change.mean(0).var(ddof=1) / 40
    assert (shape.rise.error, shape.rise.degrees) == pytest.approx((math.sqrt(variance), 2))
    assert shape.rise.high - shape.rise.mean == pytest.approx(stats.t.isf(0.05, 2) * math.sqrt(variance))
    assert (shape.unit, shape.units) == ("training seed", 3)


def test_what_cross_fitting_chooses_and_judges() -> None:
    """Each seed at the level that the seeds before it choose, on other images; never by its own scores."""
    scores = np.array([[0, 9, 0, 0], [0, 1, 12, 0], [0, 2, 4, -1], [0, 3, 6, -2]], dtype=float)
    shape = curves.cross_fit(scores, [1, 2, 3, 4])  # chosen: 1, then 2 (10 < 12), then 2
    assert shape.rise is not None
    assert shape.fall is not None
    assert (shape.rise.mean, shape.fall.mean) == pytest.approx(((1 + 4 + 6) / 3, (1 + 5 + 8) / 3))
    assert (shape.level, shape.judged, shape.units) == (3, (2, 3), 3)

    validation = scores[:, [0, 2, 1, 3]]
    shape = curves.cross_fit(scores, [1, 2, 3, 4], validation)  # chosen: 2, then 1, then 1
    assert shape.rise is not None
    assert shape.rise.mean == pytest.approx((12 + 2 + 3) / 3)
    assert shape.level == 2

    network = images(RNG(0), np.array([0, 0.1, 0]), 100, 0.5)
    other = images(RNG(1), np.array([0, 0, 0.3]), 50, 0.5)
    assert curves.cross_fit(network, [1, 2, 3], other) == curves.judge(network, [1, 2, 3], 2)
    shape = curves.cross_fit(network, [1, 2, 3])
    assert (shape.unit, shape.units) == ("test image", 90)
    paired = np.repeat(scores[:, None], 40, axis=1) + RNG(0).standard_normal((4, 40, 1))
    shape = curves.cross_fit(paired, [1, 2, 3, 4])
    assert shape.rise is not None
    assert shape.rise.mean == pytest.approx(11 / 3)
    chosen, judged = 0, 0
    for image in range(40):  # each image either chooses the second seed's level or is judged
        moved = paired.copy()
        moved[0, image, 2] += 1000
        chosen += curves.cross_fit(moved, [1, 2, 3, 4]).judged == (3,)
        moved = paired.copy()
        moved[:, image, 0] += 1e-3
        shifted = curves.cross_fit(moved, [1, 2, 3, 4]).rise
        judged += shifted is not None and shifted.mean != pytest.approx(11 / 3, abs=1e-9)
    assert (chosen, judged) == (20, 20)


def test_power_at_the_lowest_level_is_that_of_a_middling_rise() -> None:
    scores = seeds(RNG(0), np.zeros(4), 5)
    scores[:, 1:] += RNG(1).standard_normal((5, 3)) * [0.001, 0.05, 0.5]
    assert curves.judge(scores, [1, 2, 3, 4], 0).power(0.1) == curves.judge(scores, [1, 2, 3, 4], 2).power(
        0.1
    )
    assert 0.05 < curves.judge(scores, [1, 2, 3, 4], 0).power(0.02) < 0.99


@pytest.mark.parametrize(
    ("scores", "reason"),
    [
        (np.zeros((1, 5)), "single training seed"),
        (np.zeros((1, 1, 5)), "single training seed"),
        (RNG(0).random((1, 29, 5)), "29 test images"),
        (np.outer([1, 2, 3], np.ones(5)) / 7 + [0, 0.1, 0.1, 0.1, 0.2], "differ by the same"),
    ],
)
def test_too_few_units_have_no_verdict(scores: np.ndarray, reason: str) -> None:
    shapes = (curves.judge(scores, range(1, 6), 2), curves.cross_fit(scores, range(1, 6)))
    for shape in shapes:
        assert shape.verdict == "not testable"
        assert reason in shape.reason
        assert reason in shape.sentence()
        assert (shape.rise, shape.level, shape.power(1), shape.has_peak) == (None, None, 0, False)
    harm = curves.no_harm(scores[..., 1] - scores[..., 0], 0.5)
    assert harm.outcome == "not testable"
    assert reason in harm.sentence()


def test_two_seeds_can_be_judged_but_not_cross_fitted() -> None:
    for scores in (seeds(RNG(0), np.zeros(5), 2), crossed(RNG(0), np.zeros(5), 2, 0.5)):
        assert curves.judge(scores, range(1, 6), 1).units == 2
        assert "single training seed" in curves.cross_fit(scores, range(1, 6)).reason


def test_the_sentence_tells_verdict_place_size_unit_and_power() -> None:
    scores = images(RNG(0), np.array([0, 0.05, -0.1]), 1500, 0.8)
    shape = curves.judge(scores, [0.01, 0.1, 1], 1)
    assert shape.rise is not None
    mean, low, high = (f"{100 * value:.3g}" for value in (shape.rise.mean, shape.rise.low, shape.rise.high))
    chances = ", ".join(f"{shape.power(rise):.0%}" for rise in (0.005, 0.01, 0.02))
    for part in (
        "peak; chosen level sigma = 0.1: rise ",
        f"{mean} (90%: {low} to {high}) points",
        "1500 test images",
        f"a rise of 0.5, 1, 2 points in {chances} of cases",
    ):
        assert part in shape.sentence()
    assert "points" not in shape.sentence(1, "", [0.3])
    assert f"a rise of 0.3 in {shape.power(0.3):.0%}" in shape.sentence(1, "", [0.3])


def test_no_harm_names_its_outcome() -> None:
    noise = RNG(0).standard_normal(2000) * 0.1
    noise -= noise.mean()
    for shift, outcome in ((0, "equivalent"), (-0.003, "undecided"), (-0.05, "worse"), (0.05, "better")):
        harm = curves.no_harm((noise + shift)[None], 0.005)
        assert harm.outcome == outcome
        assert harm.sentence().startswith("equivalent within 0.5 points" if shift == 0 else outcome)
        assert (harm.unit, harm.units) == ("test image", 2000)
    assert curves.no_harm((noise - 0.05)[None], 0.1).outcome == "equivalent"
    few = curves.no_harm([-0.01, 0.0, 0.01], 0.01)
    assert (few.outcome, few.unit, few.units) == ("undecided", "training seed", 3)


@pytest.mark.parametrize("number", [3, 200])
def test_a_harm_of_the_margin_is_seldom_called_equivalent(number: int) -> None:
    """And no difference as often as the power says; two sides, so that the rate is near 5% but not above."""
    rng, trials, margin = RNG(0), 1500, 1.0
    spread = 0.3 * math.sqrt(number)
    draw = (lambda: rng.standard_normal(3)) if number == 3 else (lambda: rng.standard_normal((1, number)))
    assert_rare(
        sum(curves.no_harm(spread * draw() - margin, margin).outcome == "equivalent" for _ in range(trials)),
        trials,
    )
    assert_rare(
        sum(curves.no_harm(spread * draw(), margin).outcome == "worse" for _ in range(trials)), trials
    )
    harms = [curves.no_harm(spread * draw(), margin) for _ in range(trials)]
    seen = np.mean([harm.outcome == "equivalent" for harm in harms])
    exact = curves._equivalence_power(curves.Difference(0, 0.3, 2 if number == 3 else 199, 0), margin)
    assert abs(seen - exact) < 3.3 * math.sqrt(0.25 / trials)


GOOD = RNG(0).random((3, 5))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: curves.judge(np.where(GOOD > 0.5, np.nan, GOOD), range(1, 6), 0),
            "finite, got nan at index",
        ),
        (lambda: curves.judge(GOOD[:, :1], [1], 0), "two levels"),
        (lambda: curves.judge(GOOD, range(1, 5), 0), "5 levels in their last axis, levels has 4"),
        (lambda: curves.judge(GOOD, [1, 2, 2, 3, 4], 0), "increase, got 2 before 2"),
        (lambda: curves.judge(GOOD, [0, 1, 2, 3, 4], 0), "positive"),
        (lambda: curves.judge(GOOD, range(1, 6), 5), "chosen must be an integer from 0 to 4"),
        (lambda: curves.judge(GOOD[0], range(1, 6), 0), r"shape \(seeds, images, levels\)"),
        (lambda: curves.judge([["a", "b"]], [1, 2], 0), "array of numbers"),
        (lambda: curves.choose(GOOD[:0]), "not be empty"),
        (lambda: curves.cross_fit(GOOD, range(1, 6), GOOD[:2]), "networks and levels"),
        (lambda: curves.no_harm(GOOD[0], 0), "margin must be > 0"),
        (lambda: curves.no_harm(GOOD[0], -1), "margin"),
        (lambda: curves.no_harm([np.inf, 1], 1), "finite"),
        (lambda: curves.judge(GOOD, range(1, 6), 1).power(0), "size must be > 0"),
    ],
)
def test_bad_input_is_refused_by_name(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()  # type: ignore[operator]
