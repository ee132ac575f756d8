"""The exact SNR of two classes at an angle: against orthogonal classes, dense sums and simulation."""

import numpy as np
import pytest
import torch

from experiments.theory.tilted_bases import bases_at_angle
from molrg import MoLRG, snr


@pytest.mark.parametrize(("rank", "delta"), [(1, 0.3), (5, 0.2), (60, 0.05)])
@pytest.mark.parametrize("noisy", [True, False])
@pytest.mark.parametrize("denominator", ["residual", "classes"])
def test_right_angles_are_orthogonal_classes(rank: int, delta: float, noisy: bool, denominator: str) -> None:
    levels = [0.005, 0.2, 1.0, 15.0]
    expected = snr.exact(2, rank, delta, levels, noisy)
    found = snr.exact_angle(rank, delta, 90, levels, noisy, denominator)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)
    near = snr.exact_angle(rank, delta, 90 - 1e-6, levels, noisy, denominator)
    torch.testing.assert_close(near, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("denominator", ["residual", "classes"])
@pytest.mark.parametrize("noisy", [True, False])
def test_rank_one_by_a_plain_sum(noisy: bool, denominator: str) -> None:
    """Two coordinates, the posterior mean of the library on a fine grid of the plane."""
    mixture = MoLRG(bases_at_angle(2, 1, 35.0, 1), 0.4)
    side, sigma = np.linspace(-9, 9, 1201), 0.5
    p, q = np.meshgrid(side, side, indexing="ij")
    density = torch.from_numpy(np.exp(-(p**2 + q**2) / 2).ravel())
    u = mixture.bases[0][:, 0]
    v = torch.stack([-u[1], u[0]])
    noise = sigma**2 if noisy else 0.0
    x = torch.outer(torch.from_numpy(p.ravel()), u) * (1 + noise) ** 0.5
    x = x + torch.outer(torch.from_numpy(q.ravel()), v) * (0.4**2 + noise) ** 0.5
    f = mixture.posterior_mean(x, sigma)
    outside = v if denominator == "residual" else mixture.bases[1][:, 0]
    expected = (density @ (f @ u) ** 2) / (density @ (f @ outside) ** 2)
    found = snr.exact_angle(1, 0.4, 35.0, sigma, noisy, denominator)
    assert found.item() == pytest.approx(expected.item(), rel=1e-9)


@pytest.mark.parametrize("angle", [10.0, 30.0])
def test_simulation(angle: float) -> None:
    generator = torch.Generator().manual_seed(0)
    mixture = MoLRG(bases_at_angle(2, 3, angle, 3), 0.2)
    levels = [0.02, 0.3, 1.5]
    for noisy in (True, False):
        value, error = snr.estimate(mixture, mixture, levels, 10_000, noisy, generator=generator)
        assert ((value - snr.exact_angle(3, 0.2, angle, levels, noisy)).abs() < 4.5 * error).all()


@pytest.mark.parametrize("wrong", [0, 91, -30, float("nan")])
def test_angles_out_of_range_are_named(wrong: float) -> None:
    with pytest.raises(ValueError, match="degrees"):
        snr.exact_angle(3, 0.2, wrong, 1.0)
