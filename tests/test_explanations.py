"""What explanations predict: each entry by a second route, and the scores of the contest."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.mixture import GaussianMixture as Reference
from torch import Tensor

from experiments.images import contest, explanations, image_data, readings
from experiments.images.gaussian_mixtures import GaussianMixture, fitted
from molrg import MoLRG
from molrg.images import Images
from molrg.measuring.discriminants import fit_discriminants
from molrg.model.mixture import LowRankMixture


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


def mixture() -> GaussianMixture:
    root = normal(3, 6, 6, seed=1)
    return GaussianMixture(normal(3, 6, seed=2), root @ root.mT / 6, torch.tensor([0.5, 0.3, 0.2]))


def images(x: Tensor, labels: Tensor, classes: int) -> Images:
    """The first half for training; images of one row."""
    half = len(x) // 2
    names = tuple(map(str, range(classes)))
    parts = (x[:half].float(), labels[:half], x[half:].float(), labels[half:])
    return Images("drawn", (1, 1, x.shape[1]), *parts, names, "")


@pytest.mark.parametrize("noisy", [True, False])
def test_a_mixture_with_full_covariances_is_the_library_s_of_full_rank(noisy: bool) -> None:
    own = mixture()
    other = LowRankMixture(
        list(own.vectors), 0.0, list(own.values), own.means, own.priors / own.priors.sum(), "complement"
    )
    x0, eps = normal(50, 6, seed=3), normal(50, 6, seed=4)
    levels = (0.1, 1.0, 3.0)
    found = own.denoised(x0, eps if noisy else None, levels)
    for sigma, (weights, y) in zip(levels, found, strict=True):
        x = x0 + sigma * eps if noisy else x0
        assert torch.allclose(weights, other.posterior_weights(x, sigma), atol=1e-6)
        assert torch.allclose(y, other.posterior_mean(x, sigma), atol=1e-6)


def test_expectation_maximisation_comes_as_far_as_another_implementation() -> None:
    root = normal(4, 3, 3, seed=5)
    x = (normal(4, 500, 3, seed=6) @ root + 3 * normal(4, 1, 3, seed=7)).flatten(0, 1)
    reference = Reference(4, n_init=5, random_state=0, reg_covar=1e-6).fit(x.numpy())
    scores = []
    for seed in range(5):
        found = fitted(x, 4, 200, 1e-6, generator(seed))
        covariances = found.vectors @ torch.diag_embed(found.values) @ found.vectors.mT
        parts = torch.distributions.MultivariateNormal(found.means, covariances)
        scores.append(float((parts.log_prob(x[:, None]) + found.priors.log()).logsumexp(1).mean()))
    assert max(scores) == pytest.approx(reference.score(x.numpy()), abs=0.005)


def test_the_isotropic_fit_finds_the_model_that_drew_the_images() -> None:
    model = MoLRG.orthogonal(3, 5, 40, 0.3, background="complement", generator=generator())
    x, labels = model.sample(12_000, generator())
    found = explanations.isotropic(images(2 * x, labels, 3))
    assert found == pytest.approx((2, 0.3, 0.3), rel=0.03)


@pytest.mark.parametrize("noisy", [True, False])
def test_the_filter_s_scatter_ratio_is_that_of_filtered_images(noisy: bool) -> None:
    data = image_data.get("digits")
    found = explanations.spectrum(data)
    x0, labels = data.train_images.double().repeat(20, 1), data.train_labels.repeat(20)
    eps = normal(*x0.shape)
    covariance = torch.cov(data.train_images.double().T, correction=0)
    for sigma in (0.1, 0.6):
        x = x0 + sigma * eps if noisy else x0
        noise = sigma**2 * torch.eye(x.shape[1], dtype=x.dtype)
        y = (x - found.mean) @ torch.linalg.solve(covariance + noise, covariance)
        means = torch.stack([y[labels == k].mean(0) for k in range(10)])
        within = (y - means[labels]).square().sum()
        biased = float((means[labels] - y.mean(0)).square().sum() / within)
        own = float(found.ratio([sigma], noisy)[0])
        assert own == pytest.approx(biased, rel=0.08)  # of the images' own means, 130 a class
        assert own < biased


def test_class_scatter_is_free_of_the_noise_of_means() -> None:
    labels = torch.arange(600) % 30
    means = 0.1 * normal(30, 50, seed=1)
    means = means - means.mean(0)
    draws = [
        explanations._scatter(means[labels] + normal(600, 50, seed=s), labels).sum() for s in range(10, 90)
    ]
    true = float(means.square().sum(1).mean())
    values = torch.stack(draws)
    assert abs(float(values.mean()) - true) < 4 * float(values.std()) / math.sqrt(len(draws))
    assert true < 0.2 * 50 / 20  # a fifth of what means of 20 images add


@pytest.mark.parametrize("seed", range(6))
def test_the_filter_s_ratio_rises_as_the_proposition_says(seed: int) -> None:
    random = np.random.default_rng(seed)
    s = torch.from_numpy(random.gamma(0.5, size=12) + 0.02)
    b = s * torch.from_numpy(random.uniform(0, 0.5, 12)) ** (1 + seed % 3)
    found = explanations.Spectrum(torch.zeros(12), torch.eye(12), s, b)
    first, second = found.ratio([1e-4, 2e-4], True)
    assert (second > first) == (found.steepness() < 1)
    first, second = found.ratio([1e-4, 2e-4], False)
    assert (second > first) == (found.steepness() < 2)


def test_an_invertible_linear_map_does_not_change_a_linear_discriminant() -> None:
    data = image_data.get("digits")
    inside = data.train_images.std(0) > 0.1
    x = data.train_images[:, inside].double() + 0.5 * normal(len(data.train_images), int(inside.sum()))
    map_ = torch.eye(x.shape[1], dtype=x.dtype) + 0.3 * normal(x.shape[1], x.shape[1], seed=1) / 8
    fits = [fit_discriminants(z[None], data.train_labels, 0.0).predict(z[None]) for z in (x, x @ map_ + 1)]
    assert float((fits[0] == fits[1]).double().mean()) > 0.999
    pooled = x[:, ::2]
    assert (
        float(
            (fit_discriminants(pooled[None], data.train_labels, 0.0).predict(pooled[None]) == fits[0])
            .double()
            .mean()
        )
        < 0.99
    )


def test_a_mixture_gains_nothing_over_the_filter_on_gaussian_images_and_something_on_digits() -> None:
    white = Images(
        "white",
        (1, 8, 8),
        normal(2000, 64).float(),
        torch.zeros(2000, dtype=torch.int64),
        normal(500, 64, seed=1).float(),
        torch.zeros(500, dtype=torch.int64),
        ("one",),
        "",
    )
    assert abs(explanations.patch_gain(white)).max() < 0.05
    assert explanations.patch_gain(image_data.get("digits")).max() > 0.1


def test_a_prediction_has_a_curve_of_each_entry_for_both_inputs(tmp_path: Path) -> None:
    found = explanations.predict("digits", workdir=tmp_path)
    assert found["curves"].shape == (len(explanations.ENTRIES), 2, len(explanations.LEVELS))
    assert np.isfinite(found["curves"]).all()
    # At low noise the class Gaussians' denoiser changes nothing, so that noisy and clean input agree.
    assert np.allclose(found["curves"][2:, 0, 0], found["curves"][2:, 1, 0], rtol=0.01, atol=1e-3)


def test_a_peak_is_where_a_parabola_has_it() -> None:
    levels = np.geomspace(0.01, 1, 21)
    curve = -((np.log(levels) - math.log(0.123)) ** 2)
    assert explanations.peak(levels, curve) == pytest.approx(0.123)
    assert explanations.peak(levels, -levels) is None
    assert explanations.peak(levels, levels) == 1


def reading(heights: list[float], count: int = 2000, seed: int = 0) -> dict[str, object]:
    """What `readings.run` would find: the middle block as said, the others at chance."""
    random = np.random.default_rng(seed)
    accuracy = np.full((3, 2, 4, len(heights)), 0.1)
    accuracy[:, :, 2] = heights
    right = random.random((*accuracy.shape, count)) < accuracy[..., None]
    return {
        "blocks": ["down_blocks.0", "down_blocks.1", "mid_block", "up_blocks.0"],
        "tests": np.packbits(right, axis=-1),
        "validation": accuracy,
        "count": count,
        "levels": list(readings.LEVELS[: len(heights)]),
    }


def test_measured_peaks_are_those_of_the_better_block() -> None:
    heights = [0.4, 0.45, 0.6, 0.45, 0.3]
    found = contest.measured([reading(heights, seed=seed) for seed in range(3)])
    for kind in readings.INPUTS:
        own = found[kind]
        assert (own.block, own.level, own.low, own.high) == ("mid_block", 0.023, 0.023, 0.023)
        assert abs(own.rise[0] - 20) < 4
        assert own.rise[1] < own.rise[0] < own.rise[2]
        assert own.rises
    falling = contest.measured([reading([0.6, 0.5, 0.4, 0.3])])["noisy"]
    assert not falling.rises
    assert falling.level is None


def test_scores_count_octaves_signs_and_order() -> None:
    levels = np.array(readings.LEVELS[:5])
    sizes = (0.06, 0.12, 0.2, 0.3)
    seen = [contest.measured([reading([0.4, 0.4, 0.4 + rise, 0.4, 0.3])])["noisy"] for rise in sizes]
    right = [1 - 10 * rise * np.log(levels / 0.023) ** 2 for rise in sizes]
    assert contest.score("a gain", levels, right, seen) == pytest.approx((1, 4, 1, 1), rel=0.06)
    late = [rise - np.log(levels / levels[3]) ** 2 for rise in sizes]
    found = contest.score("a gain", levels, late, seen)
    assert found.factor == pytest.approx(levels[3] / levels[2], rel=0.06)
    assert contest.score("a gain", levels, [-levels] * 4, seen)[1:3] == (0, 0)
