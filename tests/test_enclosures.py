"""Enclosures of the exact SNR: they hold it, they are narrow, and their parts keep what they promise."""

from typing import Any

import numpy as np
import pytest
from flint import arb, ctx

from molrg import snr
from molrg.snr import enclosures

POINTS = [  # K=2, d=2, delta=.3: sigma, clean, noisy; by a two-dimensional integral
    (0.4, 32.5540382077707, 10.5622383368502),
    (1.0, 22.0291555795681, 2.84920609937745),
    (0.1, 12.9446880049675, 11.7374481986971),
]


@pytest.mark.parametrize(("sigma", "clean", "noisy"), POINTS)
def test_known_points(sigma: float, clean: float, noisy: float) -> None:
    for noisy_input, value in ((True, noisy), (False, clean)):
        ball = enclosures.snr(2, 2, 0.3, sigma, noisy_input)
        assert abs(ball - value) < 1e-13 * value
        assert ball.rad() < 1e-15 * ball


@pytest.mark.parametrize(
    ("num_classes", "rank", "delta"), [(2, 1, 0.1), (3, 5, 0.2), (1000, 3, 0.5), (2, 30, 0.05), (50, 50, 0.5)]
)
def test_quadrature_agrees_with_the_enclosures(num_classes: int, rank: int, delta: float) -> None:
    for sigma in (1e-3, 0.3, 1.0, 10.0):
        for noisy_input in (True, False):
            ball = enclosures.snr(num_classes, rank, delta, sigma, noisy_input)
            value = float(snr.exact(num_classes, rank, delta, sigma, noisy_input))
            assert abs(ball - value) < 1e-12 * value
            assert ball.rad() < 1e-12 * value


def test_moments_by_a_direct_integral() -> None:
    """Two classes of rank 2: with t = pY - qZ, a Laplace variable, the moments are one-dimensional."""
    from scipy.integrate import quad

    own, other = 1.5, 0.3

    def moment(power: int, mine: float, rival: float) -> float:
        """E[sigmoid(mine Y - rival Z)^power Y]/2, Y, Z exponential of mean 2."""

        def inner(y: float) -> float:
            values = quad(
                lambda z: (1 + np.exp(rival * z - mine * y)) ** -power * np.exp(-z / 2) / 2, 0, 150, limit=200
            )
            return values[0] * y * np.exp(-y / 2) / 4

        return float(quad(inner, 0, 150, epsabs=1e-12, limit=200)[0])

    with ctx.workprec(200):
        balls = enclosures.weight_moments(2, 2, own, other)
    expected = [moment(i, own, other) for i in (1, 2)] + [moment(i, other, own) for i in (1, 2)]
    assert [float(ball) for ball in balls] == pytest.approx(expected, abs=1e-9)


def test_without_weights_to_learn_from_all_classes_are_alike() -> None:
    with ctx.workprec(200):
        for num_classes in (2, 7):
            balls = enclosures.weight_moments(num_classes, 3, arb(10) ** -12, arb(10) ** -13)
            for ball, i in zip(balls, (1, 2, 1, 2), strict=True):
                assert abs(ball - arb(num_classes) ** -i) < 1e-10


def test_windows_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    """A longer window, with other nodes and another period, gives overlapping balls."""
    with ctx.workprec(300):
        short = enclosures.weight_moments(5, 2, arb(2), arb(1) / 4)
        monkeypatch.setattr(enclosures, "WINDOWS", (75,))
        long = enclosures.weight_moments(5, 2, arb(2), arb(1) / 4)
    assert all(a.overlaps(b) for a, b in zip(short, long, strict=True))
    assert all(a.rad() < 1e-16 for a in (*short, *long))


@pytest.mark.parametrize(("part", "coarse"), [("_STEP", 1.0), ("_SMALL", -15.0)])
def test_every_error_is_in_the_radius(part: str, coarse: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a coarse outer sum, or a short window and inner sum, the balls are wide and still right."""
    with ctx.workprec(300):
        narrow = enclosures.weight_moments(3, 2, arb(2), arb(1) / 4)
        monkeypatch.setattr(enclosures, part, coarse)
        if part == "_SMALL":
            monkeypatch.setattr(enclosures, "WINDOWS", (25,))
        enclosures._grid.cache_clear()
        wide = enclosures.weight_moments(3, 2, arb(2), arb(1) / 4)
        enclosures._grid.cache_clear()
    assert all(a.contains(b.mid()) for a, b in zip(wide, narrow, strict=True))
    assert all(a.rad() > 1e5 * b.rad() for a, b in zip(wide, narrow, strict=True))
    assert all(a.rad() < 0.01 for a in wide)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((1, 5, 0.2, 1.0), "num_classes must be an integer >= 2, got 1"),
        ((2, 0, 0.2, 1.0), "rank must be an integer >= 1, got 0"),
        ((2, 5, 1.0, 1.0), "delta must lie strictly between 0 and 1"),
        ((2, 5, 0.2, -1.0), "sigma must be finite and positive, got -1"),
        ((2, 5, 0.2, 1.0, "no"), "noisy_input must be True or False"),
        ((2, 2000, 0.01, 1e-3), "rank 2000 is too large for 2 classes"),
    ],
)
def test_wrong_arguments_are_named(arguments: tuple[Any, ...], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        enclosures.snr(*arguments)


def test_wrong_scales_are_named() -> None:
    for own, other in ((0.1, 0.2), (2.0, 0.5), (1.0, 0.0)):
        with pytest.raises(ValueError, match="0 < q <= p and q < 1/2"):
            enclosures.weight_moments(2, 2, own, other)


def test_precision_of_the_caller_is_left_alone() -> None:
    before = ctx.prec
    enclosures.snr(2, 2, 0.3, 1.0)
    assert ctx.prec == before
