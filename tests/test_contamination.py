"""The ICR: its exact value against direct integrals, and the estimator against its definition."""

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.special import expit

from experiments.theory import icr as experiment
from molrg import MoLRG, snr
from molrg.measuring.contamination import icr
from molrg.snr import contamination


def direct(rank: int, delta: float, sigma: float, noisy: bool) -> float:
    """The ICR of two classes, by integrals over the energies themselves, with densities from scipy."""
    noise = sigma if noisy else 0.0
    kappa = (1 / (delta**2 + sigma**2) - 1 / (1 + sigma**2)) / 2
    xi, zeta = delta**2 / (delta**2 + sigma**2), 1 / (1 + sigma**2)
    node, weight = np.polynomial.legendre.leggauss(400)

    def rule(high: float) -> tuple[np.ndarray, np.ndarray]:
        return (1 + node) / 2 * high, weight / 2 * high

    root, w_b = rule(np.sqrt(rank) + 9)
    b = (delta**2 + noise**2) * root**2
    w_b = w_b * 2 * root * stats.chi2.pdf(root**2, rank)

    def weight_of(a: np.ndarray) -> np.ndarray:
        return expit(kappa * (a[..., None] - b)) @ w_b

    r, w_r = rule(np.sqrt(rank + 2) + 9)
    w_r = w_r * 2 * r * stats.chi2.pdf(r**2, rank + 2)
    if noisy:
        x, w_x = rule(np.sqrt(rank + 2) + 9 + 9 * noise + noise * np.sqrt(rank))
        density = stats.ncx2.pdf((x / noise) ** 2, rank + 2, (r[:, None] / noise) ** 2) * 2 * x / noise**2
        mean = (density * w_x) @ weight_of(x**2)
    else:
        mean = weight_of(r**2)
    shared = rank * w_r @ (xi + (zeta - xi) * mean) ** 2
    root, w_a = rule(np.sqrt(rank) + 9)
    a = (1 + noise**2) * root**2
    joint = (w_a * 2 * root * stats.chi2.pdf(root**2, rank))[:, None] * w_b
    w = expit(kappa * (a[:, None] - b))
    energy = (xi + (zeta - xi) * w) ** 2 * a[:, None] + (xi + (zeta - xi) * (1 - w)) ** 2 * b
    return float(1 - shared / (joint * energy).sum())


@pytest.mark.parametrize(("rank", "delta", "sigma"), [(1, 0.4, 0.5), (5, 0.3, 0.4), (4, 0.5, 1.5)])
@pytest.mark.parametrize("noisy", [True, False])
def test_two_classes_by_direct_integrals(rank: int, delta: float, sigma: float, noisy: bool) -> None:
    expected = direct(rank, delta, sigma, noisy)
    assert contamination.exact(2, rank, delta, sigma, noisy).item() == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize(("views", "noisy"), [("background and noise", True), ("background", False)])
def test_many_classes_by_the_estimator(views: str, noisy: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    mixture = MoLRG.orthogonal(6, 2, 12, 0.3, generator=generator, dtype=torch.float64)
    for sigma in (0.1, 0.5):
        first, second = experiment.features(mixture, sigma, 12_000, views, generator)
        parts = [each.unflatten(0, (20, -1)) for each in (first, second)]
        values = icr(*parts).numpy()
        exact = contamination.exact(6, 2, 0.3, sigma, noisy).item()
        assert abs(values.mean() - exact) < 4.5 * values.std(ddof=1) / 20**0.5


def test_ends_and_the_bound_by_the_snr() -> None:
    start = 2 * 0.2**2 / (1 + 2 * 0.2**2)
    clean = contamination.exact(3, 5, 0.2, [1e-4, 0.5, 1e3], False)
    noisy = contamination.exact(3, 5, 0.2, [1e-4, 0.5, 1e3])
    assert clean[[0, 2]].tolist() == pytest.approx([start, start], abs=1e-6)
    assert noisy[[0, 2]].tolist() == pytest.approx([start, 1], abs=1e-5)
    for kind, values in ((False, clean), (True, noisy)):
        assert (values >= 1 / (1 + snr.exact(3, 5, 0.2, [1e-4, 0.5, 1e3], kind)) - 1e-9).all()


@pytest.mark.parametrize("model", [(2, 5, 0.2), (10, 3, 0.3), (3, 1, 0.6)])
def test_slopes_at_low_noise(model: tuple[int, int, float]) -> None:
    step, (k, _, delta) = 0.003, model
    rise, share = experiment.start_slopes(*model)
    ratio = snr.exact(*model, step).item() * (k - 1) * delta**2
    shared = (1 - contamination.exact(*model, step).item()) * (1 + (k - 1) * delta**2)
    assert np.log(ratio) / step**2 == pytest.approx(rise, rel=0.01)
    assert np.log(shared) / step**2 == pytest.approx(share, rel=0.01)


def test_the_estimator_is_its_definition_where_samples_abound() -> None:
    """And the trace is unbiased for Gaussian features at few samples, after any linear map."""
    generator = torch.Generator().manual_seed(1)
    spread = torch.linspace(0.5, 3, 6, dtype=torch.float64)
    mix = torch.randn(6, 6, generator=generator, dtype=torch.float64)

    def pair(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
        draws = torch.randn(3, *shape, 6, generator=generator, dtype=torch.float64)
        return (draws[0] * spread + draws[1]) @ mix, (draws[0] * spread + draws[2]) @ mix

    true = 6 / (6 + spread.square().sum().item())
    assert icr(*pair(100_000)).item() == pytest.approx(true, rel=0.02)
    traces = 6 / icr(*pair(4000, 12)) - 6
    error = traces.std().item() / 4000**0.5
    assert abs(traces.mean().item() - spread.square().sum().item()) < 4.5 * error
    assert icr(*pair(50), ridge=1e-12).item() < icr(*pair(50), ridge=0.3).item() + 1
    first, second = pair(200)
    plain = icr(first, second, ridge=1e-9)
    trace = (6 / plain - 3) * (200 - 6 - 2) / 199 - 3
    assert icr(first, second).item() == pytest.approx((6 / (6 + trace)).item(), rel=1e-6)
    assert icr(first.float(), second.float()).item() == pytest.approx(icr(first, second).item(), rel=1e-4)


def test_what_has_no_icr_is_named() -> None:
    h = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    other = h + torch.randn(20, 4, generator=torch.Generator().manual_seed(1))
    with pytest.raises(ValueError, match=r"need N >= D \+ 3 = 7 with ridge=0 samples, got 5"):
        icr(h[:5], other[:5])
    with pytest.raises(ValueError, match="same \\(N, D\\) and type"):
        icr(h, other[:, :2])
    with pytest.raises(ValueError, match="noise covariance is singular"):
        icr(h, torch.cat([other[:, :3], h[:, 3:]], 1))
    with pytest.raises(ValueError, match="the ICR is 0"):
        icr(h, h, ridge=0.1)
    with pytest.raises(ValueError, match="ridge must be"):
        icr(h, other, ridge=-1)
    assert icr(h[:3], other[:3], ridge=0.1).isfinite()
