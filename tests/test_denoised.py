"""What a denoiser keeps of an image: the pieces against independent sums, and a small run for real."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.fft
import scipy.stats
import torch

from experiments.images import denoised
from molrg import images
from molrg.model import noise

SMOKE: dict[str, Any] = {
    "dataset": "digits",
    "model": "unet",
    "seed": 0,
    "levels": [0.005, 0.3, 3.0],
    "test_samples": 100,
    "smoke": True,
}


@pytest.fixture(scope="module", autouse=True)
def networks(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MOLRG_NETWORKS", str(tmp_path_factory.mktemp("networks")))
        yield


@pytest.fixture(scope="module")
def data() -> images.Images:
    return images.load("digits")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return denoised.run(**SMOKE, workdir=tmp_path_factory.mktemp("smoke"))


def test_cosine_transform_is_scipys() -> None:
    picture = np.random.default_rng(0).normal(size=(7, 5))
    rows, columns = denoised.dct(7).numpy(), denoised.dct(5).numpy()
    expected = scipy.fft.dctn(picture, norm="ortho")
    np.testing.assert_allclose(rows @ picture @ columns.T, expected, atol=1e-12)


def test_pieces_add_up_to_the_whole_image(data: images.Images) -> None:
    """Parseval: bands make up the product of two images, and so do the three parts."""
    mean = data.train_images.mean(0)
    pieces = denoised.Pieces(data, mean)
    x, labels = data.test_images[:50], data.test_labels[:50]
    y = x.flip(1) + 0.1
    a, b = pieces.coordinates(x, labels), pieces.coordinates(y, labels)
    for left, right, u, v in ((a, a, x, x), (a, b, x, y)):
        products = pieces.products(left, right)
        whole = ((u - mean) * (v - mean)).sum(1).double().mean()
        bands, parts = products[: pieces.num_bands], products[pieces.num_bands :][:3]
        torch.testing.assert_close(bands.sum(), whole, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(parts.sum(), whole, rtol=1e-5, atol=1e-5)
    assert (pieces.products(a, a) > 0).all()


def test_own_part_is_the_projection_on_the_class_basis(data: images.Images) -> None:
    mean = data.train_images.mean(0)
    pieces = denoised.Pieces(data, mean)
    x, labels = data.test_images[:40], data.test_labels[:40]
    found = pieces.products(*[pieces.coordinates(x, labels)] * 2)[pieces.num_bands :]
    own, outside = [], []
    spans = []
    for label in range(10):
        members = (data.train_images[data.train_labels == label] - mean).numpy()
        spans.append(np.linalg.svd(members, full_matrices=False)[2][: denoised.RANK])
    basis = np.linalg.qr(np.concatenate(spans).T)[0]
    for picture, label in zip((x - mean).numpy(), labels.tolist(), strict=True):
        own.append(np.square(spans[label] @ picture).sum())
        outside.append(np.square(picture - basis @ (basis.T @ picture)).sum())
    assert found[0].item() == pytest.approx(np.mean(own), rel=1e-4)
    assert found[2].item() == pytest.approx(np.mean(outside), rel=1e-3)
    # Directions 1, 2, 3-4, 5-8 ...: the first three groups are the first four singular vectors.
    four = [
        np.square(spans[y][:4] @ v).sum() for v, y in zip((x - mean).numpy(), labels.tolist(), strict=True)
    ]
    assert found[3:6].sum().item() == pytest.approx(np.mean(four), rel=1e-4)


def test_waves_lie_in_the_band_of_their_frequency(data: images.Images) -> None:
    """A pure wave of 3 cycles per image is in the band from 3 to 4 cycles, and nowhere else."""
    pieces = denoised.Pieces(data, torch.zeros(data.dim))
    x = torch.arange(8)
    wave = torch.cos(math.pi * (2 * x + 1) * 6 / 16).expand(8, 8).reshape(1, -1)
    bands = pieces.products(*[pieces.coordinates(wave, torch.tensor([0]))] * 2)[: pieces.num_bands]
    assert bands.argmax() == denoised.BANDS.index(3.0)
    assert (bands / bands.sum())[denoised.BANDS.index(3.0)] == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("samples", [30, 8])
def test_principal_components_are_numpys(samples: int) -> None:
    points = torch.randn(samples, 12, generator=torch.Generator().manual_seed(0))
    rank = min(samples, 5)
    values, vectors = denoised.principal(points, rank)
    _, singular, right = np.linalg.svd(points.double().numpy(), full_matrices=False)
    np.testing.assert_allclose(values, np.square(singular[:rank]) / samples, rtol=1e-6)
    np.testing.assert_allclose(np.abs((right[:rank] @ vectors.numpy()).diagonal()), 1, atol=1e-6)
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(rank), atol=1e-10)


def test_gaussian_denoiser_is_the_dense_solution_and_shrinks_as_it_should(data: images.Images) -> None:
    """C (C + sigma^2)^{-1}; on the points that it was made from, a component of variance v keeps the share
    (v / (v + sigma^2))^2 of its power with clean input, and v / (v + sigma^2) with noisy input.
    """
    points, sigma = data.train_images, 0.4
    gaussian = denoised.Gaussian(points)
    mean, covariance = points.double().mean(0), torch.cov(points.double().T, correction=0)
    gain = torch.linalg.solve(covariance + sigma**2 * torch.eye(data.dim), covariance)
    expected = mean + (points[:9].double() - mean) @ gain
    torch.testing.assert_close(gaussian(points[:9], sigma).double(), expected, rtol=1e-4, atol=1e-4)

    def power(x: torch.Tensor) -> torch.Tensor:
        return ((x - gaussian.mean) @ gaussian.vectors).square().mean(0)[:20]

    v = gaussian.variances[:20]
    torch.testing.assert_close(power(points), v, rtol=1e-3, atol=1e-5)
    share = v / (v + sigma**2)
    torch.testing.assert_close(power(gaussian(points, sigma)) / v, share**2, rtol=2e-3, atol=1e-4)
    noisy = points + sigma * torch.randn(points.shape, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(power(gaussian(noisy, sigma)) / v, share, rtol=0.15, atol=0.0)


def test_mixture_has_the_moments_of_the_classes(data: images.Images) -> None:
    mixture = denoised.fit_mixture(data.train_images, data.train_labels, 10, 8)
    assert mixture.background == "complement"
    traces = []
    for label in range(10):
        members = data.train_images[data.train_labels == label].double()
        covariance = torch.cov(members.T, correction=0)
        torch.testing.assert_close(mixture.means[label].double(), members.mean(0), rtol=0, atol=1e-5)
        basis = mixture.bases[label].double()
        torch.testing.assert_close(
            (basis.T @ covariance @ basis).diagonal(), mixture.variances[label].double(), rtol=1e-5, atol=1e-6
        )
        traces.append(covariance.trace() * len(members) / len(data.train_images))
    fitted = sum(mixture.covariance(k).trace() * mixture.priors[k].double() for k in range(10))
    assert float(fitted) == pytest.approx(float(sum(traces)), rel=1e-4)
    with pytest.raises(ValueError, match="class 10 needs 2 points or more"):
        denoised.fit_mixture(data.train_images, data.train_labels, 11, 8)


def test_half_level() -> None:
    levels = np.geomspace(0.01, 100, 401)
    kept = np.stack([s**2 / (s**2 + levels**2) for s in (0.05, 1.0, 3.0)])
    np.testing.assert_allclose(denoised.half_level(kept, levels), np.array([0.05, 1, 3]), rtol=1e-3)
    # Clean input: the square, at a factor sqrt(sqrt(2) - 1).
    np.testing.assert_allclose(
        denoised.half_level(kept**2, levels),
        math.sqrt(math.sqrt(2) - 1) * np.array([0.05, 1.0, 3.0]),
        rtol=1e-3,
    )
    edges = denoised.half_level(np.array([[0.9, 0.8, 0.7], [0.4, 0.6, 0.3], [1, 0.2, 0.8]]), [0.1, 1, 10])
    assert edges[:2].tolist() == [math.inf, 0]
    assert 0.1 < edges[2] < 1


def test_fine_first_is_kendalls_tau() -> None:
    order = np.array([[8.0, 4, 2, 1], [1, 2, 3, 4], [3, 1, 4, 2]])
    expected = [-scipy.stats.kendalltau(range(4), each).statistic for each in order]
    np.testing.assert_allclose(denoised.fine_first(order), expected)
    assert denoised.fine_first(order)[0] == 1
    assert denoised.fine_first(np.array([np.inf, np.inf, 1.0])) == pytest.approx(2 / 3)  # a tie counts 0


def test_figures_have_the_stated_axes(found: dict[str, Any]) -> None:
    pieces = found["num_bands"] + 3 + found["num_directions"]
    assert found["power"].shape == found["cross"].shape == (3, 5, 2, 3, pieces)
    assert found["clean"].shape == (5, pieces)
    assert found["fixed"].shape == (3, 5, 2, 3)
    assert found["distance"].shape == (3, 2, 5, 2, 3)
    assert sum(found["band_sizes"]) == 64
    assert len(found["band_edges"]) == len(found["band_sizes"]) == found["num_bands"]
    assert (found["test_images"], found["left_out"]) == (100, [])
    assert found["fixed_clean"].mean() > 0.8


def test_at_low_noise_all_is_kept_and_baselines_shrink(found: dict[str, Any]) -> None:
    kept = found["power"].mean(1) / found["clean"].mean(0)
    # Of the images' finest pieces, even the least noise that is told leaves a little less.
    np.testing.assert_allclose(kept[:, :, 0], 1, atol=0.05)
    assert (kept[1, 0, -1] < 0.1).all()  # the Gaussian, clean input, sigma = 3
    assert (found["cross"] ** 2 <= found["power"] * found["clean"][None, :, None, None] * (1 + 1e-4)).all()
    # The distance of a baseline to itself is 0, and between the two it is one number.
    assert found["distance"][1, 0].max() == found["distance"][2, 1].max() == 0
    np.testing.assert_array_equal(found["distance"][1, 1], found["distance"][2, 0])


def test_error_of_the_gaussian_is_that_of_its_denoised_images(
    data: images.Images, found: dict[str, Any]
) -> None:
    """||f - x_0||^2 from the pieces (clean - 2 cross + power) against the images themselves, all blocks."""
    gaussian = denoised.Gaussian(data.train_images)
    order = torch.randperm(len(data.test_images), generator=torch.Generator().manual_seed(0))
    for block in range(5):
        x0 = data.test_images[order[20 * block : 20 * block + 20]]
        eps = torch.randn(x0.shape, generator=torch.Generator().manual_seed(1 + block))
        error = (gaussian(x0 + 0.3 * eps, 0.3) - x0).square().sum(1).mean().item()
        bands = slice(found["num_bands"])
        clean, cross, power = (
            found["clean"][block],
            found["cross"][1, block, 1, 1],
            found["power"][1, block, 1, 1],
        )
        assert (clean - 2 * cross + power)[bands].sum() == pytest.approx(error, rel=1e-3)


def test_a_stopped_run_goes_on(
    found: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = denoised._block, []

    def stopping(*arguments: Any) -> Any:
        calls.append(arguments[-1])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(denoised, "_block", stopping)
    with pytest.raises(KeyboardInterrupt):
        denoised.run(**SMOKE, workdir=tmp_path)
    again = denoised.run(**SMOKE, workdir=tmp_path)
    assert calls == [0, 1, 1, 2, 3, 4]
    for name in ("power", "cross", "fixed", "distance"):
        np.testing.assert_array_equal(again[name], found[name])


def test_a_published_checkpoint_is_read_at_its_own_levels(tmp_path: Path, tiny_checkpoint: Path) -> None:
    found = denoised.run(**SMOKE | {"model": str(tiny_checkpoint)}, workdir=tmp_path / "work")
    assert found["left_out"] == [0.005]
    assert found["levels"] == [0.3, 3.0]
    assert np.isfinite(found["power"]).all()


def test_strip(tmp_path: Path) -> None:
    """The noisy picture, and what the Gaussian makes of the clean one, drawn here once more."""
    arguments = {key: value for key, value in SMOKE.items() if key != "test_samples"}
    found = denoised.strip(**arguments, workdir=tmp_path)
    assert found["levels"] == SMOKE["levels"]
    assert found["images"].shape == (4, 3, 3, 8, 8, 1)
    data = images.load("digits")
    clean = data.test_images[int((data.test_labels == 1).nonzero()[0])][None]
    drawn = denoised.Gaussian(data.train_images)(clean, 0.3).clamp(-1, 1)
    np.testing.assert_allclose(found["images"][3, 1, 0].ravel() / 127.5 - 1, drawn[0], atol=0.005)
    np.testing.assert_allclose(found["images"][0, 0, 0].ravel() / 127.5 - 1, clean[0], atol=0.03)


@pytest.mark.parametrize(
    ("change", "error", "named"),
    [
        ({"seed": -1}, ValueError, "seed must be an integer >= 0, got -1"),
        ({"levels": []}, ValueError, "non-empty"),
        ({"test_samples": 4}, ValueError, "test_samples must be an integer >= 5, got 4"),
        ({"dataset": "mnist"}, ValueError, "unknown data set 'mnist'"),
        ({"model": "cnn"}, ValueError, "model must be mlp, unet, dit, unet-36m, dit-b, or"),
    ],
)
def test_wrong_values_are_named(tmp_path: Path, change: dict[str, Any], error: type, named: str) -> None:
    with pytest.raises(error, match=named):
        denoised.run(**(SMOKE | change), workdir=tmp_path)
    assert not list(tmp_path.iterdir())


def test_levels_are_the_published_ones_and_three_more() -> None:
    assert (*noise.IMAGE_LEVELS, 3.257, 5.315, 8.401) == denoised.LEVELS
