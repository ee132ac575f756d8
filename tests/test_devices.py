"""Code for GPUs, without one: on devices that are pretended, with the results of the CPU.

What is drawn comes from generators that draw the same on all, so that results can be compared.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pretended
import pytest
import torch
from test_capacity_or_optimization import SMOKE as CAPACITY
from torch import Tensor

from experiments.images import clean_or_noisy, denoised, memorization
from experiments.images import readings as block_readings
from experiments.learned import capacity_or_optimization
from experiments.theory import k_subspaces
from molrg import MoLRG, snr
from molrg.learning import ensembles, training
from molrg.learning.networks import MLP, FeedForward, Preconditioned
from molrg.measuring import feature_store, features, probes, similarity
from molrg.measuring import subspaces as class_spaces
from molrg.model import memorizing, noise
from molrg.support import devices

Task = Callable[[torch.device, Path], Iterable[Any]]


def generator(seed: int = 0, device: torch.device | str = "cpu") -> torch.Generator:
    return torch.Generator(device).manual_seed(seed)


DATA = torch.randn(100, 5, generator=generator())
LABELS = torch.arange(100) % 3


def network(kind: type[MLP] | type[FeedForward] = MLP, **options: Any) -> Preconditioned:
    return Preconditioned(kind(5, 16, generator=generator(), **options), 1.0)


def job(sigmas: Any, **options: Any) -> training.Job:
    return training.Job(network(FeedForward), DATA, sigmas, steps=6, batch_size=8, **options)


def one_network(device: torch.device, folder: Path) -> Iterable[Any]:
    def run(steps: int) -> training.Trained:
        return training.train(
            network(dropout=0.1), DATA, noise.LogNormal(-1.2, 1.2), steps=steps, batch_size=8, device=device,
            checkpoint=folder / "network.safetensors", checkpoint_every=0, progress=False,
        )  # fmt: skip

    run(3)
    return [run(6).losses]  # takes up the checkpoint


def many_networks(device: torch.device, folder: Path) -> Iterable[Any]:
    mixture = MoLRG.orthogonal(2, 2, 5, generator=generator())
    jobs = [job(0.1), job(1.0, seed=1), job(noise.LogNormal(-1.2, 1.2), lr=1e-2)]
    jobs.append(job((0.1, 0.5), target=lambda x, sigma: mixture.posterior_mean(x, 0.5)))
    options: dict[str, Any] = {"device": device, "checkpoints": folder, "progress": False}
    first = ensembles.train(jobs, **options)
    again = ensembles.train(jobs, **options)  # from the checkpoint
    return [each.losses for each in (*first, *again)]


def a_stack(device: torch.device, _: Path) -> Iterable[Any]:
    stack = ensembles.Stack([network(FeedForward), network(FeedForward)])
    stack.to(device)
    mapped = ensembles.Stack([network(), network()])
    mapped.to(device)
    return [stack(DATA.to(device), 0.5), mapped(DATA.to(device), 0.5)]


def layers(device: torch.device, _: Path) -> Iterable[Any]:
    own = network().to(device)
    here = features.extract(own, DATA, 0.5, batch_size=30)
    assert all(values.device.type == "cpu" for values in here.values())
    there = features.extract(own, DATA.to(device), 0.5, batch_size=30)
    assert all(values.device == device for values in there.values())
    return [*here.values(), *there.values()]


def stored_layers(device: torch.device, folder: Path) -> Iterable[Any]:
    found = feature_store.sweep(
        network().to(device), DATA, [0.1, 1.0], folder=folder / "features", batch_size=30, progress=False
    )
    return [found[name] for name in found.layers]


def exact_denoisers(device: torch.device, _: Path) -> Iterable[Any]:
    mixture, x = MoLRG.orthogonal(2, 2, 5, generator=generator()), DATA.to(device)
    memory = memorizing.EmpiricalDenoiser(DATA, LABELS)
    found = [mixture.posterior_mean(x, [0.1, 0.5]), mixture.score(x, 0.5), mixture.log_prob(x, 0.5)]
    found += [mixture.sample(20, generator=generator(device=device))[0]]
    found += snr.estimate(mixture, mixture, [0.1, 0.5], 100, generator=generator(device=device))
    return [*found, memory.posterior_mean(x, 0.5), memory.log_prob(x, 0.5), *memory.nearest(x)]


def readings(device: torch.device, _: Path) -> Iterable[Any]:
    """Labels may be of the CPU."""
    there = torch.stack([DATA, DATA.square()]).to(device)
    linear = probes.select_logistic(there, LABELS, generator=generator())
    subspaces = class_spaces.class_subspaces(there, LABELS, 2)
    found = [linear.accuracy(there, LABELS), subspaces.accuracy(there, LABELS), subspaces.snr(there, LABELS)]
    found += [similarity.linear_cka(there[0], there[1]), similarity.relative_distance(there[0], there[1])]
    return [*found, k_subspaces.k_subspaces(there[0], 3, 2, generator=generator()).labels]


def arrays(found: dict[str, Any]) -> Iterable[Any]:
    return [value for value in found.values() if isinstance(value, np.ndarray)]


def capacity_page(_: torch.device, folder: Path) -> Iterable[Any]:
    every = capacity_or_optimization.variations

    def chosen(*arguments: Any) -> Any:
        return [each for each in every(*arguments) if each[2].told_weights or each[2].exact_targets][:4]

    with mock.patch.object(capacity_or_optimization, "variations", chosen):
        found = capacity_or_optimization.run(**CAPACITY, workdir=folder)
    del found["nearest"]  # outputs after so few steps hardly span a subspace: weights off by 1e-7 change it
    return arrays(found)


def reading_of_blocks(_: torch.device, folder: Path) -> Iterable[Any]:
    small: dict[str, Any] = {"labels": 200, "validation": 100, "tests": 150, "levels": (0.1, 1.0)}
    small |= {"dataset": "digits", "prior": "digits", "channels": (32, 48), "seed": 0}
    found = block_readings.run(**small, images=block_readings.UNTRAINED, workdir=folder)
    return [found["snr"], block_readings.right(found).mean(-1)]


def conditioning_page(_: torch.device, folder: Path) -> Iterable[Any]:
    small: dict[str, Any] = {"inputs": [1.0], "levels": [0.5], "train_samples": 300, "test_samples": 180}
    return arrays(clean_or_noisy.run("digits", "mlp", seed=0, draws=3, **small, smoke=True, workdir=folder))


def denoised_page(_: torch.device, folder: Path) -> Iterable[Any]:
    return arrays(denoised.run("digits", "mlp", 0, [0.3], 100, smoke=True, workdir=folder))


def memorization_page(_: torch.device, folder: Path) -> Iterable[Any]:
    small = memorization.settings("digits", "times", "small", seeds=1, smoke=True)
    return arrays(memorization.run(**small, workdir=folder))


LIBRARY: list[Task] = [
    one_network, many_networks, a_stack, layers, stored_layers, exact_denoisers, readings,
]  # fmt: skip
PAGES: list[Task] = [capacity_page, reading_of_blocks, conditioning_page, denoised_page, memorization_page]


def run(task: Task, device: torch.device, folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    monkeypatch.setenv("MOLRG_NETWORKS", str(folder / "networks"))
    torch.manual_seed(0)
    return [torch.as_tensor(value).cpu() for value in task(device, folder)]


@pytest.mark.parametrize("task", LIBRARY + PAGES, ids=lambda task: task.__name__)
def test_results_are_those_of_the_cpu(task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ensembles, "vmap", pretended.vmap)
    # What pages measure is of networks after training, which enlarges roundoff, and rounded for the file.
    rtol, atol = (1e-3, 1e-4) if task in PAGES else (1e-5, 1e-6)
    expected = run(task, torch.device("cpu"), tmp_path / "cpu", monkeypatch)
    assert expected
    for kind in pretended.KINDS:
        with pretended.device(kind) as device:
            assert devices.best().type == kind
            found = run(task, device, tmp_path / kind, monkeypatch)
        torch.testing.assert_close(found, expected, rtol=rtol, atol=atol, check_dtype=kind == "cuda")


@pytest.mark.parametrize("kind", pretended.KINDS)
def test_pretended_devices_refuse_what_devices_refuse(kind: str) -> None:
    here = torch.ones(3)
    with pretended.device(kind) as device:
        there = here.to(device)
        assert there.device == torch.zeros(2, device=device).device == (there + 1).mean().device == device
        assert there.cpu().device == (here * 2).device == torch.device("cpu")
        refused: list[Callable[[], Any]] = [
            lambda: there + here,
            lambda: torch.stack([here, there]),
            lambda: here[there > 0],
            lambda: torch.randn(3, generator=generator(), device=device),
            lambda: torch.randn(3, generator=generator(device=device)),
            lambda: there.numpy(),
        ]
        if kind == "mps":
            refused += [lambda: there.double(), lambda: torch.zeros(2, dtype=torch.float64, device=device)]
        for operation in refused:
            with pytest.raises((RuntimeError, TypeError)):
                operation()
        weights = torch.nn.Linear(3, 2).to(device)
        weights(there).sum().backward()
        gradient = weights.weight.grad
        assert isinstance(gradient, Tensor)
        assert gradient.device == device
