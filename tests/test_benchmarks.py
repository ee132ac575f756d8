"""The benchmarks at tiny sizes: what they compare agrees, and every row is complete. No times are tested."""

import math
from collections.abc import Callable
from importlib.util import find_spec

import pytest
import torch
from torch import Tensor

from benchmarks import (
    bench_empirical,
    bench_ensembles,
    bench_features,
    bench_mixture,
    bench_probes,
    run,
    timing,
)
from molrg import MoLRG, features
from molrg.networks import MLP

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
