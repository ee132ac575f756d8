r"""One network for all noise levels against one network for each, and what there is between the two.

The paper's 3-layer MLP learns to denoise MoLRG data: as one diffusion model, whose weights serve every level,
as 14 denoising autoencoders (DAEs), one for each level, and in variants that move one choice at a time. All
networks of a seed start from the same weights and see the same samples.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from experiments.learned import bench
from experiments.learned.bench import INPUTS
from molrg import snr
from molrg.learning import training
from molrg.learning.networks import FeedForward, Preconditioned
from molrg.measuring import features, similarity
from molrg.model import noise
from molrg.model.noise import Distribution, Levels, LogUniform
from molrg.support.checks import fraction, integer

__all__ = ["FEW", "Model", "models", "run"]

FEW = (0, 2, 4, 7, 10)
"""Of the 14 levels, those at which the variants of the DAEs are trained."""

_COMPARED = 1000  # samples whose features are compared


class Model(NamedTuple):
    """How to train the network, or the networks, of one model.

    `trained_on` holds the levels of each of its networks: one entry for all `levels` at which the model is
    read, or one entry for each.
    """

    steps: int
    trained_on: tuple[Distribution, ...]
    levels: tuple[float, ...]
    prediction: str = "x0"
    frequencies: int = 7
    dropout: float = 0.0


def models(dae_steps: int, sharing_steps: int, dropout: float, peak: int) -> dict[str, Model]:
    """The models by name.

    `dae`: a network for each of the 14 levels, `dae_steps` steps each. `diffusion`: one network, as many
    steps as these together. `short`: one network, `dae_steps` steps.

    With `sharing_steps` steps each, one network read at all levels: trained at `one` level, number `peak` of
    the 14, at `three_linear` or `three_log` levels, equally spaced in sigma or log sigma, `seven` (log), the
    paper's `fourteen`, or `continuous` (log sigma uniform); at the 14 levels without being given which,
    `untold`, and with EDM's preconditioning and weighting, `edm`.

    At the levels FEW, a network each: `dae_long` with `sharing_steps` steps; with `dae_steps` steps
    `dae_dropout` and, with EDM's preconditioning and weighting, `dae_edm`.
    """
    levels = tuple(noise.paper_levels().tolist())
    low, high = levels[0], levels[-1]
    few = tuple(levels[i] for i in FEW)
    shared: dict[str, Distribution] = {
        "one": Levels((levels[peak],)),
        "three_linear": Levels(tuple(np.linspace(low, high, 3).tolist())),
        "three_log": Levels(tuple(np.geomspace(low, high, 3).tolist())),
        "seven": Levels(tuple(np.geomspace(low, high, 7).tolist())),
        "fourteen": Levels(levels),
        "continuous": LogUniform(low, high),
    }
    whole = (Levels(levels),)
    each, each_of_few = (tuple(Levels((level,)) for level in grid) for grid in (levels, few))
    return {
        "dae": Model(dae_steps, each, levels),
        "diffusion": Model(len(levels) * dae_steps, whole, levels),
        "short": Model(dae_steps, whole, levels),
        **{name: Model(sharing_steps, (given,), levels) for name, given in shared.items()},
        "untold": Model(sharing_steps, whole, levels, frequencies=0),
        "edm": Model(sharing_steps, whole, levels, prediction="edm"),
        "dae_long": Model(sharing_steps, each_of_few, few),
        "dae_dropout": Model(dae_steps, each_of_few, few, dropout=dropout),
        "dae_edm": Model(dae_steps, each_of_few, few, prediction="edm"),
    }


def run(
    num_classes: int,
    rank: int,
    dim: int,
    delta: float,
    train_size: int,
    test_size: int,
    probe_size: int,
    width: int,
    dae_steps: int,
    sharing_steps: int,
    batch_size: int,
    learning_rate: float,
    dropout: float,
    seeds: int,
    workdir: Path,
) -> dict[str, Any]:
    """Train the networks of `models` on MoLRG data and measure them beside the optimal denoiser.

    Each seed has its own orthogonal mixture (`span` background) and its own samples. Networks of `width` and
    two hidden layers are trained by Adam with a cosine schedule in batches of `batch_size`; those that
    predict x_0 with weight 1 at every level, as in the paper.

    Returns, with axes R = seeds, I = inputs (`learned.INPUTS`), S = levels of the model, L = hidden layers:
    for each model, and for the `optimal` denoiser,
    `snr`, `csnr`, `linear`, `nearest` (R, I, S), `error` (R, S), `features` (R, L, I, S) as
    `learned.measure` gives them;
    `moved` (R, S): E||D(x_sigma) - x_sigma||^2 / (n sigma^2), 0 for the identity;
    `cka`, `distance` (R, L + 1, I, S): linear CKA with, and relative distance from, the same layer at the
    level of the peak, for the hidden layers and, last, the output.
    Also `exact` {`snr`, `csnr`} (I, S) the SNR in closed form, `levels` (S,), `few`, and `peaks` (I,), the
    places among the levels of the largest exact CSNR.

    Raises ValueError for arguments outside their ranges.
    """
    integer("seeds", seeds, 1)
    integer("probe_size", probe_size, num_classes * (2 * rank + 10), train_size)
    integer("test_size", test_size, 10 * num_classes)
    integer("dae_steps", dae_steps, 1)
    integer("sharing_steps", sharing_steps, 1)
    fraction("dropout", dropout)
    levels = noise.paper_levels()
    exact = {
        name: np.stack(
            [snr.exact(num_classes, rank, delta, levels, kind == "noisy", by).numpy() for kind in INPUTS]
        )
        for name, by in (("snr", "residual"), ("csnr", "classes"))
    }
    peaks = exact["csnr"].argmax(1)
    plan = models(dae_steps, sharing_steps, dropout, int(peaks[INPUTS.index("clean")]))
    data = [bench.draw(num_classes, rank, dim, delta, train_size, test_size, seed) for seed in range(seeds)]

    def job(model: Model, seed: int, sigmas: Distribution) -> training.Job:
        start = torch.Generator().manual_seed(seed)
        shape: dict[str, Any] = {"frequencies": model.frequencies, "dropout": model.dropout}
        network = FeedForward(dim, width, **shape, generator=start)
        denoiser = Preconditioned(network, data[seed].scale, model.prediction)
        recipe = (model.steps, batch_size, learning_rate, training.cosine)
        weighting = training.uniform_weighting if model.prediction == "x0" else None
        return training.Job(denoiser, data[seed].train[0], sigmas, *recipe, weighting=weighting, seed=seed)

    jobs = [job(model, seed, s) for model in plan.values() for seed in range(seeds) for s in model.trained_on]
    trained = iter(bench.trained(jobs, Path(workdir)))
    found: dict[str, Any] = {}
    for name, model in plan.items():
        networks = [[next(trained).denoiser for _ in model.trained_on] for _ in range(seeds)]
        pairs = zip(networks, data, strict=True)
        found[name] = _stacked([_figures(each, of, model.levels, probe_size, peaks) for each, of in pairs])
    given = (tuple(levels.tolist()), probe_size, peaks)
    found["optimal"] = _stacked([_figures([of.mixture.posterior_mean], of, *given) for of in data])
    return found | {
        "exact": {name: np.round(value, 4) for name, value in exact.items()},
        "levels": np.round(levels.numpy(), 6),
        "few": list(FEW),
        "peaks": peaks,
    }


def _figures(
    networks: Sequence[bench.Denoiser],
    data: bench.Data,
    levels: tuple[float, ...],
    probe_size: int,
    peaks: Sequence[int],
) -> dict[str, np.ndarray]:
    """All figures of one model of one seed: one network for all levels, or one for each."""
    one = len(networks) == 1
    parts = [
        bench.measure(network, data, group, probe_size)
        for network, group in zip(networks, [levels] if one else [(s,) for s in levels], strict=True)
    ]
    joined = {name: np.concatenate([part[name] for part in parts], -1) for name in parts[0]}
    at = [(networks[0 if one else i], level) for i, level in enumerate(levels)]
    return joined | _steadiness(at, data, [_place(levels, peak) for peak in peaks])


def _place(levels: tuple[float, ...], peak: int) -> int:
    """The index among a model's levels that is nearest to one of the 14, in log sigma."""
    target = noise.paper_levels()[peak].log()
    return int((torch.tensor(levels, dtype=torch.float64).log() - target).abs().argmin())


def _steadiness(
    at: Sequence[tuple[bench.Denoiser, float]], data: bench.Data, peaks: Sequence[int]
) -> dict[str, np.ndarray]:
    x0, eps = data.test[0][:_COMPARED], data.test[2][:_COMPARED]
    found: dict[str, list[np.ndarray]] = {"cka": [], "distance": []}
    moved = np.zeros(len(at))
    for kind, peak in zip(INPUTS, peaks, strict=True):
        layers: dict[str, list[Tensor]] = {}
        for i, (network, level) in enumerate(at):
            x = x0 + level * eps if kind == "noisy" else x0
            for name, values in bench.activations(network, x, level).items():
                layers.setdefault(name, []).append(values)
            if kind == "noisy":
                change = layers[features.DENOISED][i] - x
                moved[i] = float(change.square().mean()) / level**2
        compare = (("cka", similarity.linear_cka), ("distance", similarity.relative_distance))
        for name, measure in compare:
            values_of = [torch.stack(values) for values in layers.values()]
            found[name].append(np.stack([measure(each, each[peak]).numpy() for each in values_of]))
    return {name: np.stack(value, 1) for name, value in found.items()} | {"moved": moved}


def _stacked(seeds: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.round(np.stack([each[name] for each in seeds]), 4) for name in seeds[0]}
