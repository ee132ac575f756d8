r"""Denoisers on points whose noise s is not the conditioning level sigma: exact ones and learned ones.

A denoiser is trained on matched pairs, s = sigma; features are often read with a clean point, s = 0. Here
each denoiser is given every pair, and its output and hidden layers are compared with what the optimum does.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from compendium import resume
from experiments.learned import bench
from experiments.rounding import significant
from molrg.learning import training
from molrg.learning.networks import FeedForward, Preconditioned
from molrg.measuring import features
from molrg.model import noise
from molrg.model.mixture import MoLRG
from molrg.support.checks import integer, noise_levels

__all__ = ["PREDICTIONS", "Function", "blind", "blind_posterior_mean", "measure", "run"]

PREDICTIONS = ("x0", "edm")

Function = Callable[[Tensor, float], Tensor]

_NODES = 49  # of the quadrature over log sigma; the posterior of log sigma is about 1/sqrt(2 n) wide


def run(
    num_classes: int,
    rank: int,
    dim: int,
    delta: float,
    train_size: int,
    test_size: int,
    probe_size: int,
    levels: Sequence[float],
    single_levels: Sequence[float],
    steps: int,
    single_steps: int,
    batch_size: int,
    learning_rate: float,
    width: int,
    depth: int,
    seeds: int,
    workdir: Path,
) -> dict[str, Any]:
    """Train denoisers on matched pairs, and measure them and the optimal ones on all pairs (s, sigma).

    Each seed has its own orthogonal mixture (`span` background) and samples. Inputs have the noise s = 0 and
    s in `levels`, the conditioning sigma is in `levels`; levels of training are log-uniform between the
    lowest and the highest of them, with a cosine schedule. The denoisers are

    `exact`      the posterior mean for sigma;
    `x0`, `edm`  a `FeedForward` network, `Preconditioned` with this prediction; `x0` weights all levels
                 equally in the loss, `edm` as EDM does;
    `blind`      a bare `FeedForward` network without conditioning on sigma, equal weights;
    `blind_exact` the optimal denoiser that is not given sigma, `blind_posterior_mean`;
    `single`     x0-networks each trained at one level of `single_levels`, given that level always.

    Returns a dictionary for each of them, of arrays with axes R = seeds, T = inputs and S = levels (for
    `single`, those of training; 1 for the blind ones): `snr` (R, T, S), denominator `residual`; `energies`
    (R, 3, T, S), mean energy of the output in the own class's subspace, in the other classes', outside all;
    `error` (R, T, S), E||f - x_0||^2; `linear`, `nearest` (R, T, S), the posterior accuracies of `learned`;
    and of the learned ones `features` (R, L, T, S), accuracy of a linear probe on layer l, and `distance`
    (R, T, S), E||f - f*||^2 / E||f*||^2 to the optimal denoiser f* of the same pair. Probes are fitted afresh
    for each pair to `probe_size` training samples, and all else is on `test_size` samples.
    `x0` and `edm` have besides `snr_inside`, `snr_outside` (R, S): the SNR on points whose noise, of level
    sigma as given, is only in the span of the classes, or only outside of it.
    Beside them: `levels`, `inputs`, `single_levels`.

    Raises ValueError for arguments outside their ranges.
    """
    integer("seeds", seeds, 1)
    integer("steps", steps, 1)
    integer("single_steps", single_steps, 1)
    integer("test_size", test_size, num_classes)
    integer("probe_size", probe_size, num_classes * (2 * rank + 10), train_size)
    spread = _spread(levels)
    noise_levels(list(single_levels))
    workdir = Path(workdir)
    inputs = [0.0, *levels]
    draws = [bench.draw(num_classes, rank, dim, delta, train_size, test_size, seed) for seed in range(seeds)]
    shared: dict[str, Any] = {"batch_size": batch_size, "lr": learning_rate, "schedule": training.cosine}
    jobs = []
    for seed, data in enumerate(draws):
        generator = torch.Generator().manual_seed(seed)
        points, equal = data.train[0], training.uniform_weighting

        def network(frequencies: int = 7, generator: torch.Generator = generator) -> FeedForward:
            return FeedForward(dim, width, depth, frequencies, generator=generator)

        x0 = Preconditioned(network(), data.scale, "x0")
        edm = Preconditioned(network(), data.scale, "edm")
        jobs += [
            training.Job(x0, points, spread, steps, weighting=equal, seed=seed, **shared),
            training.Job(edm, points, spread, steps, seed=seed, **shared),
            training.Job(network(0), points, spread, steps, weighting=equal, seed=seed, **shared),
        ]
        for level in single_levels:
            single = Preconditioned(network(), data.scale, "x0")
            jobs.append(
                training.Job(single, points, level, single_steps, weighting=equal, seed=seed, **shared)
            )
    trained = bench.trained(jobs, workdir)
    each = len(jobs) // seeds
    runs = []
    for seed, data in enumerate(draws):
        networks = [result.denoiser for result in trained[seed * each : (seed + 1) * each]]
        given = (data, networks, inputs, list(levels), list(single_levels), probe_size)
        runs.append(resume.arrays(workdir / f"seed-{seed}.npz", _one_seed, *given))
    found: dict[str, Any] = {"inputs": inputs, "levels": list(levels), "single_levels": list(single_levels)}
    for key in runs[0]:
        name, _, quantity = key.partition("/")
        found.setdefault(name, {})[quantity] = significant(np.stack([figures[key] for figures in runs]))
    return found


def blind(
    num_classes: int,
    rank: int,
    dim: int,
    delta: float,
    train_size: int,
    test_size: int,
    levels: Sequence[float],
    steps: int,
    batch_size: int,
    learning_rate: float,
    width: int,
    depth: int,
    seeds: int,
    workdir: Path,
) -> dict[str, Any]:
    """Train the blind networks of `run`, on the same data, with a loss that weights a level by 1/sigma.

    Returns `inputs`, and for each of these T levels of input noise `snr` and `error` (R, T) of the networks.

    Raises ValueError for arguments outside their ranges.
    """
    integer("seeds", seeds, 1)
    spread, inputs = _spread(levels), [0.0, *levels]
    draws = [bench.draw(num_classes, rank, dim, delta, train_size, test_size, seed) for seed in range(seeds)]
    jobs = []
    for seed, data in enumerate(draws):
        network = FeedForward(dim, width, depth, 0, generator=torch.Generator().manual_seed(seed))
        options: dict[str, Any] = {"schedule": training.cosine, "weighting": torch.reciprocal, "seed": seed}
        jobs.append(training.Job(network, data.train[0], spread, steps, batch_size, learning_rate, **options))
    found: dict[str, list[list[float]]] = {"snr": [], "error": []}
    for trained, data in zip(bench.trained(jobs, Path(workdir)), draws, strict=True):
        x0, labels, eps = data.test
        with torch.no_grad():
            outputs = torch.stack([trained.denoiser(x0 + s * eps, 1.0) for s in inputs])
        found["snr"].append(_snr(_energies(outputs, labels, data.mixture)).tolist())
        found["error"].append((outputs - x0).square().sum(-1).mean(-1).tolist())
    return {"inputs": inputs} | {key: significant(np.array(value)) for key, value in found.items()}


def blind_posterior_mean(mixture: MoLRG, x: Tensor, low: float, high: float) -> Tensor:
    r"""Return E[x_0 | x_sigma = x] where log sigma is uniform between log `low` and log `high`, (N, n).

    This is \int p(sigma | x) E[x_0 | x, sigma] d sigma, the best that a denoiser can do that is not given
    sigma, by the trapezoidal rule in log sigma.
    """
    nodes = torch.tensor(np.geomspace(low, high, _NODES))
    ends = torch.ones(_NODES, 1)
    ends[[0, -1]] = 0.5
    parts = []
    for rows in x.split(1000):
        weights = torch.softmax(mixture.log_prob(rows, nodes) + ends.log(), 0)
        parts.append(torch.einsum("sn,sni->ni", weights, mixture.posterior_mean(rows, nodes)))
    return torch.cat(parts)


def _one_seed(
    data: bench.Data,
    networks: Sequence[nn.Module],
    inputs: Sequence[float],
    levels: Sequence[float],
    single_levels: Sequence[float],
    probe_size: int,
) -> dict[str, np.ndarray]:
    """All figures of one seed, named `<denoiser>/<quantity>`, without the axis R."""
    exact = data.mixture.posterior_mean

    def blind(x: Tensor, _: float) -> Tensor:
        return blind_posterior_mean(data.mixture, x, min(levels), max(levels))

    x0, edm, bare, *single = networks
    cases: list[tuple[str, Sequence[bench.Denoiser], Function, Sequence[float]]] = [
        ("exact", [exact] * len(levels), exact, levels),
        ("x0", [x0] * len(levels), exact, levels),
        ("edm", [edm] * len(levels), exact, levels),
        ("blind", [bare], blind, [1.0]),
        ("blind_exact", [blind], blind, [1.0]),
        ("single", single, exact, single_levels),
    ]
    figures: dict[str, np.ndarray] = {}
    for name, denoisers, optimum, given in cases:
        rows = [measure(denoisers, optimum, data, s, given, probe_size) for s in inputs]
        figures |= {f"{name}/{key}": np.stack([row[key] for row in rows], -2) for key in rows[0]}
    basis = torch.cat(data.mixture.bases, 1)
    points, labels, eps = data.test
    inside = eps @ basis @ basis.T
    for name, denoiser in (("x0", x0), ("edm", edm)):
        for part, perturbation in (("inside", inside), ("outside", eps - inside)):
            outputs = [
                bench.activations(denoiser, points + level * perturbation, level)[features.DENOISED]
                for level in levels
            ]
            figures[f"{name}/snr_{part}"] = _snr(_energies(torch.stack(outputs), labels, data.mixture))
    return figures


def measure(
    denoisers: Sequence[bench.Denoiser],
    optimum: Function,
    data: bench.Data,
    input_sigma: float,
    levels: Sequence[float],
    probe_size: int,
) -> dict[str, np.ndarray]:
    """Measure denoiser i, conditioned on levels[i], on points with the noise `input_sigma`; arrays end in S.

    The keys are those that `run` explains; functions, which are not networks, lack features and distance.
    """
    train, test = (
        [
            bench.activations(denoiser, x0[:limit] + input_sigma * eps[:limit], level)
            for denoiser, level in zip(denoisers, levels, strict=True)
        ]
        for (x0, _, eps), limit in ((data.train, probe_size), (data.test, None))
    )
    (x0, labels, eps), found = data.test, bench.readouts(train, test, data)
    output = torch.stack([part[features.DENOISED] for part in test])
    energies = _energies(output, labels, data.mixture)
    found |= {
        "snr": _snr(energies),
        "energies": energies.mean(-1).numpy(),
        "error": (output - x0).square().sum(-1).mean(-1).numpy(),
    }
    if "features" in found:
        best = torch.stack([optimum(x0 + input_sigma * eps, level) for level in levels])
        distance = (output - best).square().sum((1, 2)) / best.square().sum((1, 2))
        found["distance"] = distance.numpy()
    return found


def _energies(output: Tensor, labels: Tensor, mixture: MoLRG) -> Tensor:
    """Mean energy of each class's outputs (S, N, n) in its block, the others', and outside: (3, S, K)."""
    basis = torch.cat(mixture.bases, 1)
    z = output @ basis
    blocks = z.unflatten(-1, (mixture.num_classes, -1)).square().sum(-1)
    outside = (output - z @ basis.T).square().sum(-1)
    own = blocks.gather(-1, labels.expand(len(output), -1)[..., None])[..., 0]
    rest = [own, (blocks.sum(-1) - own).clamp_min(0), outside]
    means = [[part[:, labels == k].mean(-1) for k in range(mixture.num_classes)] for part in rest]
    return torch.stack([torch.stack(each, -1) for each in means]).double()


def _snr(energies: Tensor) -> np.ndarray:
    """Mean over classes of the ratio of mean energies, (S,)."""
    return (energies[0] / energies[1:].sum(0)).mean(-1).numpy()


def _spread(levels: Sequence[float]) -> noise.LogUniform:
    """Levels of training: log-uniform between the lowest and the highest."""
    if len(levels) < 2:
        raise ValueError(f"levels must hold at least two noise levels, got {list(levels)}")
    noise_levels(list(levels))
    return noise.LogUniform(min(levels), max(levels))
