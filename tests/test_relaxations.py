"""The departures from the simple model: independent routes, limits, and a small run for real."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from experiments.theory import chi_rules, relaxations, tilted_bases
from molrg import LowRankMixture, MoLRG, snr
from molrg.learning.networks import SubspaceDenoiser

LEVELS = [0.05, 0.3, 1.0, 3.0]
SMOKE: dict[str, Any] = {
    "num_classes": 2,
    "rank": 2,
    "delta": 0.2,
    "num_samples": 400,
    "dims": [4, 8],
    "separations": [1.0, 2.0],
    "freedoms": [4.0],
    "lift_points": 10,
    "lift_draws": 20,
    "num_levels": 7,
    "seeds": 3,
}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("tilted", [0, 1, 4])
def test_bases_at_an_angle(tilted: int) -> None:
    bases = tilted_bases.bases_at_angle(3, 4, 40, tilted)
    mixture = MoLRG(bases, 0.3)
    assert mixture.dim == mixture.support_dim == 12
    for k in range(3):
        for other in range(k):
            cosines = torch.linalg.svdvals(bases[k].T @ bases[other]).numpy()
            expected = [np.cos(np.deg2rad(40))] * tilted + [0] * (4 - tilted)
            np.testing.assert_allclose(cosines, expected, atol=1e-12)


def test_student_with_many_degrees_of_freedom_is_gaussian() -> None:
    for rank, delta in [(1, 0.3), (5, 0.2), (10, 0.5)]:
        exact = snr.exact(2, rank, delta, LEVELS).numpy()
        one, two = (relaxations.student(rank, delta, freedom, LEVELS) / exact - 1 for freedom in (500, 1000))
        np.testing.assert_allclose(2 * two, one, atol=1e-3)  # the deviation is of order 1/freedom
        assert np.abs(two).max() < 0.01


def test_student_is_converged(monkeypatch: pytest.MonkeyPatch) -> None:
    cases = [(freedom, rank, delta) for freedom in (3.0, 30.0) for rank, delta in ((1, 0.5), (8, 0.1))]
    coarse = [relaxations.student(rank, delta, freedom, [0.5]) for freedom, rank, delta in cases]
    rule = chi_rules.panel_rule
    for module in (relaxations, chi_rules):
        monkeypatch.setattr(
            module, "panel_rule", lambda breaks: rule(np.linspace(breaks[0], breaks[-1], 2 * len(breaks)))
        )
    for (freedom, rank, delta), value in zip(cases, coarse, strict=True):
        fine = relaxations.student(rank, delta, freedom, [0.5])
        np.testing.assert_allclose(value, fine, rtol=1e-3)


def test_student_against_a_mixture_of_many_variances() -> None:
    """Second route: the class as 40 Gaussians of equal probability, whose posterior mean the library has."""
    freedom, n = 12.0, 40_000
    quantiles = (torch.arange(40, dtype=torch.float64) + 0.5) / 40
    draws = torch.distributions.Gamma(freedom / 2, freedom / 2 - 1)
    torch.manual_seed(0)
    many = draws.sample((400_000,)).double().sort().values
    v = 1 / many[(quantiles * len(many)).long()]
    bases = tilted_bases.bases_at_angle(2, 3, 90, 3)
    denoiser = LowRankMixture(
        [bases[k] for k in (0, 1) for _ in v], 0.2, [float(each) for _ in (0, 1) for each in v]
    )
    data = MoLRG(bases, 0.2)
    x0, _ = data.sample(n, generator(), torch.zeros(n, dtype=torch.int64))
    t = 1 / many[torch.randint(len(many), (n, 1), generator=generator(1))]
    x0 = x0 + (t.sqrt() - 1) * (x0 @ bases[0]) @ bases[0].T
    for sigma in (0.1, 0.4, 1.0):
        x = x0 + sigma * torch.randn(x0.shape, generator=generator(2), dtype=x0.dtype)
        f = denoiser.posterior_mean(x, sigma)
        own = (f @ bases[0]).square().sum(1)
        rest = f.square().sum(1) - own
        ratio = own.mean() / rest.mean()
        error = (own - ratio * rest).std() / rest.mean() / n**0.5
        expected = relaxations.student(3, 0.2, freedom, sigma)[0]
        assert abs(float(ratio) - expected) < 4.5 * error + 0.01 * expected  # 40 variances stand for all


def test_means_against_the_general_mixture() -> None:
    """Second route: the library's mixture with means outside the span, vectors and all."""
    bases = [torch.nn.functional.pad(u, (0, 0, 0, 3)) for u in tilted_bases.bases_at_angle(3, 2, 90, 2)]
    means = 1.5 * torch.eye(9, dtype=torch.float64)[6:]
    mixture = LowRankMixture(bases, 0.3, None, means)
    value, error = snr.estimate(mixture, mixture, LEVELS, 20_000, generator=generator())
    found = relaxations.separated(3, 2, 0.3, 1.5, LEVELS, 20_000, 0)
    assert ((value.numpy() - found[0]) / error.numpy() / 2**0.5).max() < 4.5
    assert (found[1] > found[0]).all()
    exact = snr.exact(3, 2, 0.3, LEVELS).numpy()
    np.testing.assert_allclose(relaxations.separated(3, 2, 0.3, 0.0, LEVELS, 100_000, 0)[0], exact, rtol=0.04)


def test_critical_separation_is_that_of_the_known_class() -> None:
    for num_classes, rank, delta in [(2, 5, 0.2), (4, 3, 0.5)]:
        expected = np.sqrt((num_classes - 1) * rank * (1 - delta**2))
        values = [
            relaxations.critical_separation(num_classes, rank, delta, 20_000, seed) for seed in range(4)
        ]
        assert abs(np.mean(values) - expected) < 4 * np.std(values) / 2 + 0.01


def test_network_with_true_blocks_is_the_optimal_denoiser() -> None:
    found = relaxations.network((4, 4), 0.2, LEVELS)
    np.testing.assert_allclose(found, np.tile(snr.exact(2, 4, 0.2, LEVELS), (3, 1)), rtol=1e-8)


def test_network_against_simulation() -> None:
    """Second route: the network itself, with columns of other lengths and a direction missing."""
    data = MoLRG(torch.eye(9, dtype=torch.float64)[:, :7].split([4, 3], 1), 0.2, [0.7, 0.3])
    net = SubspaceDenoiser(9, 2, 3, 0.2).double()
    with torch.no_grad():
        net.basis.copy_(torch.eye(9)[:, [0, 1, 2, 4, 5, 6]])
        net.basis[:, 3:] *= 0.8**0.5
    found = relaxations.network((3, 3), 0.2, LEVELS, (1.0, 0.8), (0.7, 0.3))
    for average, rows in (("none", found[:2].T), ("pooled", found[2])):
        value, error = snr.estimate(net, data, LEVELS, 20_000, average=average, generator=generator())
        assert (np.abs(value.numpy() - rows) < 4.5 * error.numpy()).all()


def test_thirty_degrees() -> None:
    mixture = MoLRG(tilted_bases.bases_at_angle(2, 5, 30, 5), 0.2)
    value, error = snr.estimate(mixture, mixture, relaxations.PUBLISHED, 20_000, generator=generator())
    found = relaxations.angle30(20_000, 1)[:, 0]
    assert (np.abs(value.numpy() - found) < 4.5 * 2 * error.numpy()).all()


def test_a_lift_that_does_nothing_is_the_simple_model() -> None:
    levels = np.array([0.1, 0.4, 2.0])
    runs = [relaxations.lifted(0.2, "quadratic", 0.0, levels, 150, 200, seed) for seed in range(6)]
    values = np.array([value for value, _ in runs])
    spread = values.std(0, ddof=1) / len(runs) ** 0.5
    assert (np.abs(values.mean(0) - snr.exact(2, 2, 0.2, levels).numpy()) < 4.5 * spread).all()
    sizes = np.array([size for _, size in runs])
    assert (sizes > 0.05).all()
    assert (sizes <= 1).all()


@pytest.mark.parametrize("kind", ["quadratic", "two-layer"])
def test_jacobians(kind: str) -> None:
    phi, jacobian = relaxations.lift(kind, 0.7)
    c = torch.randn(4, generator=generator(), dtype=torch.float64)
    expected = torch.autograd.functional.jacobian(phi, c)
    torch.testing.assert_close(jacobian(c), expected)
    with pytest.raises(ValueError, match="kind must be 'quadratic' or 'two-layer', got 'cubic'"):
        relaxations.lift("cubic", 1.0)


def test_run(tmp_path: Path) -> None:
    found = relaxations.run(**SMOKE, workdir=tmp_path)
    assert {key: value.shape for key, value in found.items()} == {
        **{f"{name}_snr": (5, 3, 7) for name in ("one_angle", "all_angles")},
        **{f"{name}_peak": (5, 3, 4) for name in ("one_angle", "all_angles")},
        **{f"{name}_snr": (2, 3, 7) for name in ("random", "mean_noise", "mean_signal")},
        **{f"{name}_peak": (2, 3, 4) for name in ("random", "mean_noise", "mean_signal")},
        "decay_snr": (4, 3, 7),
        "decay_peak": (4, 3, 4),
        "student_snr": (1, 1, 7),
        "student_peak": (1, 1, 4),
        "critical": (3,),
        "lift_levels": (4,),
        "lift_snr": (4, 3, 4),
        "lift_ess": (4, 3, 4, 2),
        "angle30": (3, 8, 2),
        "levels": (7,),
    }
    assert all(np.isfinite(value).all() for value in found.values())
    # Right angles are the simple case, and so is no decay.
    exact = snr.exact(2, 2, 0.2, found["levels"]).numpy()
    for name in ("one_angle", "all_angles", "decay"):
        np.testing.assert_allclose(found[f"{name}_snr"][0].mean(0), exact, rtol=0.25)


def test_cases_are_summed_up_over_seeds() -> None:
    found = {
        "a_snr": np.array([[[1.0, 2.0], [3.0, 2.0]], [[1.0, 9.0], [1.0, 9.0]], [[5.0, 6.0], [5.0, 1.0]]]),
        "a_peak": np.array(
            [
                [[0.2, 10.0, 1, 0], [0.4, 14.0, 1, 0]],
                [[relaxations.HIGH, 9.0, 0, 0], [relaxations.HIGH, 9.0, 0, 0]],
                [[0.1, 6.0, 1, 0], [0.01, 5.0, 0, 0]],
            ]
        ),
    }
    one, rising, mixed = relaxations.cases(found, "a")
    assert one == pytest.approx((2.0, 12.0, 2.0, 0.3, "one peak"))
    assert (rising.shape, mixed.shape) == ("only rises", "mixed")
    exact = relaxations.cases({"b_snr": found["a_snr"][:1, :1], "b_peak": np.array([[[2, 9, 1, 1]]])}, "b")
    assert exact == [(1.0, 9.0, 0.0, 2.0, "one peak, then a valley")]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seeds": 2}, "seeds must be an integer >= 3, got 2"),
        ({"lift_points": 0}, "lift_points must be an integer >= 10, got 0"),
        ({"num_levels": 3}, "num_levels must be an integer >= 5, got 3"),
        ({"delta": 0.0}, "delta must lie strictly between 0 and 1"),
    ],
)
def test_wrong_arguments(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        relaxations.run(**(SMOKE | change), workdir=tmp_path)
    with pytest.raises(ValueError, match="freedom must be above 2"):
        relaxations.student(2, 0.2, 2.0, 0.5)
