"""The benchmarks at tiny sizes: what they compare agrees, and every row is complete. No times are tested."""

import math
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks import (
    bench_empirical,
    bench_ensembles,
    bench_features,
    bench_images,
    bench_mixture,
    bench_probes,
    run,
    timing,
)
from molrg import MoLRG
from molrg.images import image_networks
from molrg.learning.networks import MLP
from molrg.measuring import feature_store, features

SMALL = [(12, 3, 2), (12, 10, 2)]  # orthogonal classes, and classes at angles


def complete(row: timing.Row) -> bool:
    sense, bound = row["target"].split()
    return sense in ("<=", ">=") and float(bound) > 0 and row["name"] in run.line(row)


@pytest.mark.parametrize("shape", SMALL)
@pytest.mark.parametrize("background", ["span", "complement"])
def test_straight_line_code_computes_the_posterior_mean(shape: bench_mixture.Shape, background: str) -> None:
    mixture = bench_mixture.model(shape, background)
    x = bench_mixture.noisy_points(mixture, 50)
    expected = bench_mixture.ours(mixture)(x)
    torch.testing.assert_close(bench_mixture.straight_line(mixture)(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", SMALL)
@pytest.mark.parametrize("contender", [*bench_mixture.DENSE.values(), bench_mixture.azula])
def test_other_libraries_compute_the_posterior_mean(
    shape: bench_mixture.Shape, contender: Callable[[MoLRG], Callable[[Tensor], Tensor]]
) -> None:
    if contender is bench_mixture.azula:
        pytest.importorskip("einops")
        pytest.importorskip("azula")
    mixture = bench_mixture.model(shape, "complement")
    x = bench_mixture.noisy_points(mixture, 50)
    expected = bench_mixture.ours(mixture)(x)
    torch.testing.assert_close(contender(mixture)(x), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("shape", SMALL)
def test_azula_computes_the_general_posterior_mean(shape: bench_mixture.Shape) -> None:
    pytest.importorskip("einops")
    pytest.importorskip("azula")
    mixture = bench_mixture.general(shape, "complement")
    x = bench_mixture.noisy_points(mixture, 50)
    expected = bench_mixture.ours(mixture)(x)
    torch.testing.assert_close(bench_mixture.azula(mixture)(x), expected, rtol=1e-3, atol=1e-4)


def test_features_are_those_of_the_plain_pass() -> None:
    network = MLP(784, width=16, depth=2, generator=torch.Generator().manual_seed(0)).eval()
    x = torch.randn(20, 784, generator=torch.Generator().manual_seed(1))
    found = features.extract(network, x, 0.5, [*network.feature_layers, "denoised"], batch_size=8)
    torch.testing.assert_close(found["denoised"], bench_features.plain(network, x, 8))


def test_one_thread_is_for_every_library_and_only_for_a_while() -> None:
    from threadpoolctl import threadpool_info

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    with timing.one_thread():
        assert torch.get_num_threads() == 1
        assert {pool["num_threads"] for pool in threadpool_info()} == {1}
    assert torch.get_num_threads() == 2
    torch.set_num_threads(before)


def test_rows_of_the_mixture() -> None:
    shape = SMALL[0]
    assert "one thread" in bench_mixture.against_dense(shape, 20, 1, "scipy")["note"]
    rows = [
        bench_mixture.against_straight_line(shape, 20, 1),
        bench_mixture.against_two_products(shape, 20, 1),
        bench_mixture.general_against_simple(shape, 20, 1),
        bench_mixture.sweep(shape, 20, 3, 1),
        *[bench_mixture.against_dense(shape, 20, 1, name) for name in bench_mixture.DENSE],
    ]
    assert all(complete(row) and row["ratio"] > 0 for row in rows)
    for build in (bench_mixture.model, bench_mixture.general):
        assert complete(bench_mixture.against_azula(shape, 20, 1, build))


@pytest.mark.parametrize("name", ["two_products", "attention", "smalldiffusion"])
def test_other_code_computes_the_empirical_denoiser(name: str) -> None:
    if name == "smalldiffusion" and not bench_empirical.has_smalldiffusion():
        pytest.skip("smalldiffusion is a peer of the benchmarks alone: `make bench` installs it")
    shape = (12, 300, 40)
    points, x = bench_empirical.training_points(shape), bench_empirical.noisy_points(shape)
    found = getattr(bench_empirical, name)(points)(x)
    torch.testing.assert_close(found, bench_empirical.ours(points)(x), rtol=1e-4, atol=1e-5)


def test_rows_of_the_empirical_denoiser(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_empirical, "peak_memory", lambda *arguments: 1.0)
    rows = bench_empirical.run(((12, 300, 40),), repeats=1)
    assert all(complete(row) for row in rows)
    monkeypatch.setattr(bench_empirical, "has_smalldiffusion", lambda: False)
    rows = bench_empirical.run(((12, 300, 40),), repeats=1)
    assert sum(math.isnan(row["ratio"]) for row in rows) == 2


def test_row_without_azula_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_mixture, "has_azula", lambda: False)
    row = bench_mixture.against_azula(SMALL[0], 20, 1)
    assert math.isnan(row["ratio"])
    assert "pip install --no-deps -r benchmarks/requirements.txt" in run.line(row)


def test_rows_of_features_and_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert all(complete(row) for row in bench_features.run(rows=20, width=16, repeats=1))
    if find_spec("sklearn"):
        for name, size in {"SAMPLES": 200, "TEST": 100, "DIM": 16}.items():
            monkeypatch.setattr(bench_probes, name, size)
        assert all(complete(row) for row in bench_probes.run(noise_levels=1, layers=2))  # type: ignore[arg-type]


def allocate(megabytes: int) -> Callable[[], Tensor]:
    return lambda: torch.ones(megabytes * 250_000)


def test_peak_memory_sees_an_allocation() -> None:
    assert 90 < timing.peak_memory(allocate, 100) < 130


def test_verdict() -> None:
    assert run.verdict(1.2, "<= 1.25") == "met"
    assert run.verdict(1.5, "<= 1.25") == "missed by 20%"
    assert run.verdict(8, ">= 7") == "met"
    assert run.verdict(3.5, ">= 7") == "missed by 50%"


def test_ensembles_are_compared_with_the_loop_over_the_same_networks() -> None:
    rows = bench_ensembles.run(networks=2, width=8, steps=3, repeats=1)
    assert len(rows) >= 3
    assert all(complete(row) for row in rows)
    sizes = (64, 8), (8, 8), (8, 50)  # 50 coordinates and 14 of the noise level
    passes = (2, 3, 3)  # nothing flows back to the input
    expected = sum(2 * 2 * 512 * times * a * b for times, (a, b) in zip(passes, sizes, strict=True))
    assert bench_ensembles.products_per_step(2, 8, 512) == expected


IMAGE_CASES = [
    bench_images.Case("UNet", image_networks.unet, (1, 8, 8), (8, (1, 2), 1), 4, 2, 6, 2),
    bench_images.Case("DiT", image_networks.dit, (3, 8, 8), (32, 2, 2), 4, 2, 6, 2),
]


@pytest.mark.parametrize("case", IMAGE_CASES)
def test_the_plain_diffusers_loop_computes_the_same(case: bench_images.Case) -> None:
    denoiser = case.denoiser("cpu").eval()
    for parameter in denoiser.parameters():  # the DiT starts as the identity
        nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(parameter.numel()))
    model: Any = denoiser.network.model
    flat = case.data("cpu")
    images, sigma = flat.unflatten(1, case.shape), torch.linspace(0.1, 2.0, case.images)
    expected = bench_images.plain_denoise(model, images, sigma).flatten(1)
    torch.testing.assert_close(denoiser(flat, sigma), expected, rtol=1e-4, atol=1e-5)
    layers = features.default_layers(denoiser)
    names = [name.removeprefix("network.model.") for name in layers]
    plain = bench_images.plain_features(model, images, [0.2, 1.0], names, 4, torch.zeros_like)
    ours = feature_store.sweep(denoiser, flat, [0.2, 1.0], added=0.0, layers=layers, progress=False)
    for name, layer in zip(names, layers, strict=True):
        torch.testing.assert_close(ours[layer, :], plain[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("fast", [False, True])
def test_rows_of_image_networks(fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda module: module)  # which takes a minute
    for case in IMAGE_CASES:
        rows = bench_images.rows(case, "cpu", fast, 1, 1e12)
        assert all(complete(row) and row["ratio"] > 0 for row in rows)
        assert ("bfloat16" in rows[0]["note"]) == fast


def test_operations_of_image_networks_are_those_counted_by_hand() -> None:
    model: Any = image_networks.unet((1, 8, 8), 8, (1,), 1).model
    forward, step = bench_images.operations(model, (1, 8, 8), "cpu")
    seen = []

    def count(module: nn.Module, _inputs: Any, output: Tensor) -> None:
        positions = output[0].numel() // len(module.weight)  # type: ignore[arg-type]
        seen.append(2 * positions * module.weight.numel())  # type: ignore[operator]

    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.register_forward_hook(count)
    bench_images.plain_denoise(model, torch.zeros(1, 1, 8, 8), torch.ones(1))
    attentions, positions, width = 4, 64, 8  # one in the way down, one in the middle, two in the way up
    assert forward == sum(seen) + attentions * 2 * 2 * positions**2 * width
    assert 2 * forward < step <= 3 * forward
