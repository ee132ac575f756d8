"""Readouts: Bayes accuracy and information against simulation and direct integrals, moment readouts."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp

from experiments.theory import class_information
from molrg import MoLRG, snr
from molrg.measuring import probes


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def simulated(num_classes: int, rank: int, rho: float, points: int = 100_000) -> tuple[float, float, float]:
    """Accuracy of the largest energy, E log(1 / w_y) and its standard error, from drawn energies."""
    chi = np.random.default_rng(0).chisquare(rank, (points, num_classes))
    logits = chi * (1 - 1 / rho) / 2
    logits[:, 0] *= rho
    loss = logsumexp(logits, 1) - logits[:, 0]
    return float((logits.argmax(1) == 0).mean()), loss.mean(), loss.std() / math.sqrt(points)


def plane_information(rank: int, rho: float, panels: int = 80) -> float:
    """I(y; x) of two classes by a product rule over both energies."""
    node, weight = np.polynomial.legendre.leggauss(20)
    half = (math.sqrt(rank) + 9) / panels / 2
    r = ((2 * np.arange(panels) + 1)[:, None] * half + half * node).ravel()
    density = np.tile(weight, panels) * r ** (rank - 1) * np.exp(-r * r / 2)
    density /= density.sum()
    own, other = (rho - 1) / 2 * r[:, None] ** 2, (1 - 1 / rho) / 2 * r**2
    return float(math.log(2) - density @ np.logaddexp(0, other - own) @ density)


@pytest.mark.parametrize(
    ("num_classes", "rank", "delta", "sigma"),
    [(2, 5, 0.2, 0.3), (3, 5, 0.2, 1.0), (10, 1, 0.5, 0.5), (100, 20, 0.1, 2.0)],
)
def test_accuracy_and_information_against_simulation(
    num_classes: int, rank: int, delta: float, sigma: float
) -> None:
    rho = float(class_information.contrast(delta, sigma))
    accuracy, loss, error = simulated(num_classes, rank, rho)
    bayes = float(class_information.bayes_accuracy(num_classes, rank, delta, sigma))
    assert abs(bayes - accuracy) < 4.5 * math.sqrt(bayes * (1 - bayes) / 100_000)
    information = float(class_information.mutual_information(num_classes, rank, delta, sigma))
    assert abs(information - (math.log(num_classes) - loss)) < 4.5 * error


@pytest.mark.parametrize("rank", [1, 2, 7, 40])
@pytest.mark.parametrize(("delta", "sigma"), [(0.02, 0.05), (0.2, 0.3), (0.9, 0.1), (0.5, 20.0)])
def test_information_against_plane_integral(rank: int, delta: float, sigma: float) -> None:
    rho = float(class_information.contrast(delta, sigma))
    value = float(class_information.mutual_information(2, rank, delta, sigma))
    assert value == pytest.approx(plane_information(rank, rho), abs=1e-11)


def test_bayes_accuracy_in_closed_form() -> None:
    """K = 2: the ratio of two chi-squares is an F variable; for d = 2 it is rho / (1 + rho)."""
    from scipy.stats import f

    for rank, delta, sigma in [(1, 0.01, 0.1), (2, 0.3, 0.4), (30, 0.9, 1e-3), (200, 0.5, 30.0)]:
        rho = float(class_information.contrast(delta, sigma))
        value = float(class_information.bayes_accuracy(2, rank, delta, sigma))
        assert value == pytest.approx(f(rank, rank).cdf(rho), abs=1e-12)
    rho = float(class_information.contrast(0.3, 0.4))
    assert float(class_information.bayes_accuracy(2, 2, 0.3, 0.4)) == pytest.approx(
        rho / (1 + rho), abs=1e-13
    )


@settings(max_examples=12)
@given(
    num_classes=st.integers(2, 1000),
    rank=st.integers(1, 200),
    delta=st.floats(0.01, 0.95),
    sigma=st.floats(1e-3, 50),
)
def test_noise_only_takes_away(num_classes: int, rank: int, delta: float, sigma: float) -> None:
    levels = [sigma, 1.1 * sigma]
    for function, low, high in (
        (class_information.bayes_accuracy, 1 / num_classes, 1.0),
        (class_information.mutual_information, 0.0, math.log(num_classes)),
    ):
        less, more = function(num_classes, rank, delta, levels).tolist()
        clean = float(function(num_classes, rank, delta, sigma, noisy_input=False))
        assert low - 1e-10 <= more <= less + 1e-11
        assert less <= clean + 1e-11
        assert clean <= high + 1e-11


def mixture_with_angles() -> MoLRG:
    g = generator(3)
    bases = [torch.linalg.qr(torch.randn(9, r, generator=g, dtype=torch.float64)).Q for r in (1, 2, 3)]
    return MoLRG(bases, 0.3, priors=[0.2, 0.3, 0.5])


@pytest.mark.parametrize("sigma", [0.05, 0.5, 3.0])
def test_the_denoiser_is_one_to_one_on_the_span(sigma: float) -> None:
    """The least eigenvalue of its Jacobian on the span is at least xi, for any angles, ranks, priors."""
    mixture = mixture_with_angles()
    basis = mixture.frame(torch.float64, torch.device("cpu")).basis
    assert basis is not None
    points, _ = mixture.sample(20, generator=generator())
    for x in points + sigma * torch.randn(points.shape, generator=generator(1), dtype=torch.float64):
        jacobian: Any = torch.autograd.functional.jacobian(
            lambda v: mixture.posterior_mean(v[None], sigma)[0], x
        )
        inner = basis.T @ jacobian @ basis
        assert (inner - inner.T).abs().max() < 1e-12
        assert torch.linalg.eigvalsh(inner)[0] >= 0.09 / (0.09 + sigma**2) - 1e-12


@pytest.mark.parametrize("noisy", [True, False])
def test_nearest_subspace_on_the_denoised_point_is_bayes(noisy: bool) -> None:
    mixture = MoLRG.orthogonal(4, 3, 15, 0.3, generator=generator(), dtype=torch.float64)
    x, _ = mixture.sample(3000, generator=generator(1))
    bases = torch.stack(mixture.bases)
    for sigma in (0.03, 0.3, 3.0):
        seen = x + sigma * torch.randn(x.shape, generator=generator(2), dtype=x.dtype) if noisy else x
        denoised = mixture.posterior_mean(seen, sigma)
        nearest = torch.einsum("ni,kij->nkj", denoised, bases).square().sum(-1).argmax(1)
        assert (nearest == mixture.posterior_weights(seen, sigma).argmax(1)).all()


def class_means_readout(
    num_classes: int, rank: int, delta: float, sigma: float, noisy: bool, outside: int
) -> float:
    """Accuracy of a linear discriminant fitted to points themselves, mean over 40 training sets."""
    dim = num_classes * rank + outside
    mixture = MoLRG.orthogonal(num_classes, rank, dim, delta, generator=generator(), dtype=torch.float64)
    g, scores = generator(5), []
    for _ in range(40):
        parts = []
        for per_class in (400, 500):
            labels = torch.arange(num_classes).repeat_interleave(per_class)
            x, _ = mixture.sample(len(labels), generator=g, labels=labels)
            parts.append((x + noisy * sigma * torch.randn(x.shape, generator=g, dtype=x.dtype), labels))
        (train, labels), (test, test_labels) = parts
        means = train.reshape(num_classes, -1, dim).mean(1)
        weights = torch.linalg.solve(train.T @ train / len(train), means.T)
        scores.append(((test @ weights).argmax(1) == test_labels).double().mean().item())
    return float(np.mean(scores))


@pytest.mark.parametrize("outside", [0, 10])
def test_linear_accuracy_of_points_against_a_fitted_discriminant(outside: int) -> None:
    expected = class_information.linear_accuracy(
        4, 3, 0.3, 0.2, denoised=False, outside=outside, generator=generator(1)
    )
    assert class_means_readout(4, 3, 0.3, 0.2, True, outside) == pytest.approx(
        float(expected.value), abs=0.015
    )
    assert expected.standard_error < 0.002


def denoised_sets(per_class: int, seed: int, sigma: float) -> tuple[torch.Tensor, torch.Tensor]:
    mixture = MoLRG.orthogonal(3, 5, 15, 0.2, generator=generator(), dtype=torch.float64)
    labels = torch.arange(3).repeat_interleave(per_class)
    x, _ = mixture.sample(len(labels), generator=generator(seed), labels=labels)
    return mixture.posterior_mean(x, sigma), labels


def test_linear_accuracy_against_fitted_probes() -> None:
    """Logistic regression on denoised clean points, mean over 30 training sets."""
    test, test_labels = denoised_sets(2000, 999, 0.5)
    scores = []
    for seed in range(30):
        train, labels = denoised_sets(500, seed, 0.5)
        scores.append(probes.fit_logistic(train[None], labels).accuracy(test[None], test_labels).item())
    expected = class_information.linear_accuracy(3, 5, 0.2, 0.5, noisy_input=False, generator=generator(1))
    error = np.std(scores) / math.sqrt(30)
    assert abs(np.mean(scores) - float(expected.value)) < 4 * error + 0.005
    assert float(expected.value) > float(
        class_information.linear_accuracy(3, 5, 0.2, 0.01, noisy_input=False, generator=generator(1)).value
    )


@pytest.mark.parametrize(("shots", "outside"), [(1, 0), (3, 6)])
def test_second_moment_readout_of_points(shots: int, outside: int) -> None:
    """For points themselves the labelled ones are Gaussian, and the expression is exact."""
    classes, rank, sigma = 3, 4, 0.4
    dim = classes * rank + outside
    mixture = MoLRG.orthogonal(classes, rank, dim, 0.3, generator=generator(), dtype=torch.float64)
    g, scores = generator(4), []
    for _ in range(150):
        sets = []
        for per_class in (shots, 100):
            labels = torch.arange(classes).repeat_interleave(per_class)
            x, _ = mixture.sample(len(labels), generator=g, labels=labels)
            sets.append(x + sigma * torch.randn(x.shape, generator=g, dtype=x.dtype))
        sums = (sets[1] @ sets[0].T).square().unflatten(1, (classes, shots)).sum(2)
        scores.append((sums.argmax(1) == labels).double().mean().item())
    expected = class_information.moment_accuracy(
        shots, classes, rank, 0.3, sigma, denoised=False, outside=outside, generator=generator(1)
    )
    error = np.std(scores) / math.sqrt(150)
    assert abs(np.mean(scores) - float(expected.value)) < 4 * error + 0.003


def test_many_shots_are_bayes() -> None:
    levels = [0.1, 0.5, 2.0]
    for noisy in (True, False):
        value = class_information.moment_accuracy(
            100_000, 3, 5, 0.2, levels, noisy, generator=generator()
        ).value
        torch.testing.assert_close(
            value, class_information.bayes_accuracy(3, 5, 0.2, levels, noisy), atol=0.01, rtol=0
        )


@pytest.mark.parametrize("noisy", [True, False])
@pytest.mark.parametrize("denoised", [True, False])
def test_two_classes_have_one_half(noisy: bool, denoised: bool) -> None:
    value = class_information.linear_accuracy(
        2, 4, 0.3, [0.1, 1.0], noisy, denoised, generator=generator()
    ).value
    torch.testing.assert_close(value, torch.full_like(value, 0.5), atol=1e-12, rtol=0)


def test_linear_accuracy_of_snr() -> None:
    for k in (2, 3, 10):
        curve = class_information.linear_accuracy_of_snr(k, np.geomspace(1 / (k - 1), 1e7, 30))
        assert float(curve[0]) == pytest.approx(1 / k, abs=1e-9)
        assert float(curve[-1]) == pytest.approx(0.5, abs=2e-3)
        assert (curve.diff() > -1e-12).all()
    found = class_information.linear_accuracy_of_snr(3, np.array([0.5, 1.0, 25.0]))
    for value, q in zip(found.tolist(), (1, 6 / 5, 2502 / 101), strict=True):  # orthant of three normals
        assert value == pytest.approx(1 / 4 + math.asin(q / (1 + q)) / (2 * math.pi), abs=1e-12)


def test_energies_at_their_means_give_the_snr_formula() -> None:
    """With many dimensions the energies of points of one class hardly vary, and the SNR tells all."""
    value = class_information.linear_accuracy(
        3, 2000, 0.5, 0.1, num_samples=2000, generator=generator()
    ).value
    expected = class_information.linear_accuracy_of_snr(3, snr.exact(3, 200, 0.5, 0.1))
    assert float(value) == pytest.approx(float(expected), abs=0.01)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: class_information.bayes_accuracy(1, 5, 0.2, 0.5),
            "num_classes must be an integer >= 2, got 1",
        ),
        (lambda: class_information.mutual_information(2, 0, 0.2, 0.5), "rank must be an integer >= 1, got 0"),
        (lambda: class_information.contrast(1.0, 0.5), "delta must lie strictly between 0 and 1"),
        (
            lambda: class_information.linear_accuracy(3, 5, 0.2, 0.5, outside=-1),
            "outside must be an integer >= 0",
        ),
        (
            lambda: class_information.moment_accuracy(0, 3, 5, 0.2, 0.5),
            "shots must be an integer >= 1, got 0",
        ),
        (
            lambda: class_information.moment_accuracy(1, 3, 5, 0.2, 0.5, outside=3),
            "outside must be 0 with denoised",
        ),
        (
            lambda: class_information.linear_accuracy(3, 5, 0.2, 0.5, num_samples=1),
            "num_samples must be an integer >= 2",
        ),
        (
            lambda: class_information.linear_accuracy(3, 5, 0.2, 0.5, denoised=2),  # type: ignore[arg-type]
            "denoised must be True or False",
        ),
        (lambda: class_information.linear_accuracy_of_snr(3, -1.0), "the SNR must be positive, got -1"),
    ],
)
def test_wrong_arguments(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
