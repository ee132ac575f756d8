r"""Why a learned denoiser falls short of the optimal one: one property of its training varied at a time.

A diffusion model (`networks.FeedForward`) is trained on MoLRG data at `noise.paper_levels()`, and so are its
variations. Three of them have help that no practitioner has: `exact targets` teach the posterior mean itself
in place of x_0 (distillation), `told weights` give the exact posterior weights of the classes as an input,
and n = K d leaves out all directions without data, which gives the span of the classes away.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import rankdata
from torch import Tensor, nn

from compendium import resume
from experiments.learned import bench
from experiments.rounding import significant
from molrg import snr
from molrg.learning import training
from molrg.learning.networks import FeedForward, Preconditioned, subspace_denoise
from molrg.learning.training import Job
from molrg.model import noise
from molrg.model.coefficients import coefficients
from molrg.model.mixture import MoLRG
from molrg.snr import denoising_error
from molrg.support.checks import integer

__all__ = ["WINDOWS", "Setting", "first_step", "kernel", "rank_correlation", "run", "variations"]

WINDOWS = 40
"""How many means the losses of a training are reported in."""

_KEPT = ("snr", "csnr", "linear", "nearest")


@dataclass(frozen=True)
class Setting:
    """How a network is made and trained; `prediction` is one of `networks.PREDICTIONS`."""

    width: int
    depth: int
    steps: int
    batch_size: int
    learning_rate: float
    train_size: int
    dim: int
    decaying: bool = True
    prediction: str = "x0"
    weighting: str = "uniform"
    exact_targets: bool = False
    told_weights: bool = False


def variations(base: Setting, span: int) -> list[tuple[str, str, Setting]]:
    """Return factor, label and setting of every network: the base, and what differs from it.

    `span` is K d. Most differ in one thing; those of the factor `recipe` gather what helped.
    """
    found = [("base", "base", base)]

    def vary(factor: str, label: str, **changes: Any) -> None:
        found.append((factor, label, replace(base, **changes)))

    for width in (base.width // 4, base.width // 2, 2 * base.width):
        vary("width", f"width {width}", width=width)
    for depth in (1, base.depth + 1, base.depth + 2):
        vary("depth", f"depth {depth}", depth=depth)
    for steps in (base.steps // 4, base.steps // 2, 2 * base.steps, 4 * base.steps):
        vary("steps", f"{steps} steps", steps=steps)
    for times in (0.3, 3.0, 10.0):
        rate = round(times * base.learning_rate, 12)
        vary("step size", f"step size {rate:g}", learning_rate=rate)
    vary("step size", "constant step size", decaying=False)
    for prediction in ("eps", "v", "edm"):
        vary("prediction", f"predicts {prediction}", prediction=prediction)
    for weighting in ("edm", "1/sigma^2"):
        vary("weighting", f"weighting {weighting}", weighting=weighting)
    for size in (base.batch_size // 4, 4 * base.batch_size):
        vary("batch", f"batch {size}", batch_size=size)
    many = 8 * base.train_size
    for size in (base.train_size // 12, base.train_size // 3, many):
        vary("samples", f"{size} samples", train_size=size)
    vary("help", "exact targets", exact_targets=True)
    vary("help", "exact targets, predicts edm", exact_targets=True, prediction="edm")
    vary("help", "told weights", told_weights=True)
    for dim in (span, max(span, base.dim // 2), 2 * base.dim):
        for prediction in ("x0", "edm"):
            vary("dimension", f"n = {dim}, predicts {prediction}", dim=dim, prediction=prediction)

    def combine(label: str, times: float, **changes: Any) -> None:
        rate = round(times * base.learning_rate, 12)
        vary("recipe", label, **({"steps": 4 * base.steps, "learning_rate": rate} | changes))

    combine("long, fast", 3)
    combine("long, fast, predicts edm", 3, prediction="edm")
    combine("long, fast, many samples", 3, train_size=many)
    combine("long, faster, many samples", 10, train_size=many)
    combine("long, fast, many samples, large batch", 3, train_size=many, batch_size=4 * base.batch_size)
    combine("long, fast, many samples, exact targets", 3, train_size=many, exact_targets=True)
    for name, width in (("half", base.width // 2), ("twice", 2 * base.width)):
        combine(f"the same, {name} the width", 3, train_size=many, exact_targets=True, width=width)
    return found


def run(
    num_classes: int,
    rank: int,
    dim: int,
    delta: float,
    width: int,
    depth: int,
    steps: int,
    batch_size: int,
    learning_rate: float,
    train_size: int,
    probe_size: int,
    seeds: int,
    measured: Sequence[int],
    workdir: Path,
) -> dict[str, Any]:
    """Train the base and all its `variations`, from `seeds` starts and data sets each, and measure them.

    The base has Adam's step size `learning_rate`, falling along a cosine, predicts x_0, and weighs all levels
    alike. Networks are measured on `probe_size` fresh samples; probes are fitted to as many training samples.
    `measured` are the places in `noise.paper_levels()` of the levels at which this is done.

    Returns, with axes C = settings, R = seeds, I = `learned.INPUTS`, S = levels measured:
    `snr`, `csnr`, `linear`, `nearest` (C, R, I, S) as `learned.measure`, `features` (C, R, I, S) the accuracy
    of its linear probe on the last hidden layer;
    `distance` (C, R, I, S) E||D - E[x_0|x]||^2 / E||E[x_0|x]||^2;
    `excess` (C, R, S) E||D - E[x_0|x]||^2 in units of the least error possible: the error's excess over it;
    `overfit` (C, R, S) by how much the error on fresh samples, in units of the least possible on them, is
    above that on the training samples with fresh noise;
    `curve` (C, R, WINDOWS) means of the training loss times n over equal parts of the steps; with exact
    targets it does not contain the least possible error;
    `csnr_exact` (I, S), `error_exact`, `error_linear` (S,) the least error and that of the best linear
    denoiser; `training_exact`, `training_linear` their means over all levels trained on;
    `labels`, `factors` (C,); `levels` (S,); `total_steps` of all networks.

    Raises ValueError for arguments outside their ranges.
    """
    integer("seeds", seeds, 1)
    span = integer("num_classes", num_classes, 2) * integer("rank", rank, 1)
    integer("dim", dim, span)
    integer("width", width, 4)
    integer("depth", depth, 2)
    integer("batch_size", batch_size, 4)
    integer("steps", steps, 4)
    # So many that every class has more than d of the fewest samples, up to a small chance.
    integer("train_size", train_size, 12 * num_classes * (2 * rank + 10))
    integer("probe_size", probe_size, num_classes * (2 * rank + 10))
    everywhere = noise.paper_levels()
    levels = everywhere[[integer("measured", place, 0, len(everywhere) - 1) for place in measured]]
    base = Setting(width, depth, steps, batch_size, learning_rate, train_size, dim)
    chosen = variations(base, span)
    model = (num_classes, rank, delta)
    least = denoising_error.exact(*model, levels)
    data: dict[tuple[int, int, int], bench.Data] = {}
    for _, _, setting in chosen:
        for seed in range(seeds):
            key = (setting.dim, setting.train_size, seed)
            if key not in data:
                data[key] = bench.draw(num_classes, rank, key[0], delta, key[1], probe_size, seed)
    targets = {key: _posterior_mean(each) for key, each in data.items()}
    places = [
        (setting, (setting.dim, setting.train_size, seed))
        for _, _, setting in chosen
        for seed in range(seeds)
    ]
    jobs = [_job(setting, data[key], key[2], targets[key]) for setting, key in places]
    trained = bench.trained(jobs, Path(workdir))
    figures = [
        resume.arrays(
            Path(workdir) / "figures" / f"{i}.npz", _figures, each.denoiser, data[key], levels, least
        )
        for i, (each, (_, key)) in enumerate(zip(trained, places, strict=True))
    ]
    values = {name: np.array([each[name] for each in figures]) for name in figures[0]}
    values["curve"] = np.array(
        [_windows(each.losses) * setting.dim for each, (setting, _) in zip(trained, places, strict=True)]
    )
    values = {name: value.reshape(len(chosen), seeds, *value.shape[1:]) for name, value in values.items()}
    values["csnr_exact"] = np.array(
        [snr.exact(*model, levels, kind == "noisy", "classes").numpy() for kind in bench.INPUTS]
    )
    values["error_exact"], values["error_linear"] = (
        least.numpy(),
        denoising_error.linear(*model, levels).numpy(),
    )
    for name, function in (("exact", denoising_error.exact), ("linear", denoising_error.linear)):
        values[f"training_{name}"] = function(*model, everywhere).mean().numpy()
    return {
        **{name: significant(value) for name, value in values.items()},
        "levels": np.round(levels.numpy(), 6),
        "factors": [factor for factor, _, _ in chosen],
        "labels": [label for _, label, _ in chosen],
        "total_steps": sum(job.steps for job in jobs),
    }


class _ToldWeights(nn.Module):
    """A denoiser that predicts x_0 and is given the exact posterior weights of the classes beside x."""

    basis: Tensor

    def __init__(self, network: FeedForward, mixture: MoLRG, sigma_data: float) -> None:
        super().__init__()
        self.network = network
        self.sigma_data, self.delta, self.num_classes = sigma_data, mixture.delta, mixture.num_classes
        self.register_buffer("basis", torch.cat(mixture.bases, 1))
        self.feature_layers = tuple(f"network.{name}" for name in network.feature_layers)

    def forward(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        level = torch.as_tensor(sigma, dtype=x.dtype, device=x.device).reshape(-1, 1)
        energies = (x @ self.basis).unflatten(-1, (self.num_classes, -1)).square().sum(-1)
        weights = torch.softmax(coefficients(level, self.delta).kappa * energies, -1)
        scaled = x / (level**2 + self.sigma_data**2).sqrt()
        output = self.network(torch.cat([scaled, weights], -1), level.log().flatten() / 4)
        return self.sigma_data * output[:, : x.shape[1]]


def _posterior_mean(data: bench.Data) -> training.Target:
    mixture, basis = data.mixture, torch.cat(data.mixture.bases, 1)

    def target(x: Tensor, sigma: Tensor) -> Tensor:
        return subspace_denoise(basis.to(x), x, sigma[:, None], mixture.num_classes, mixture.delta)

    return target


def _inverse_square(sigma: Tensor) -> Tensor:
    return sigma**-2


def _job(setting: Setting, data: bench.Data, seed: int, target: training.Target) -> Job:
    start = torch.Generator().manual_seed(1000 + seed)
    extra = data.mixture.num_classes if setting.told_weights else 0
    network = FeedForward(setting.dim + extra, setting.width, setting.depth, generator=start)
    denoiser = (
        _ToldWeights(network, data.mixture, data.scale)
        if setting.told_weights
        else Preconditioned(network, data.scale, setting.prediction)
    )
    weightings = {"uniform": training.uniform_weighting, "edm": None, "1/sigma^2": _inverse_square}
    return Job(
        denoiser,
        data.train[0],
        noise.paper_levels(),
        setting.steps,
        setting.batch_size,
        setting.learning_rate,
        training.cosine if setting.decaying else training.constant,
        weighting=weightings[setting.weighting],
        target=target if setting.exact_targets else None,
        seed=seed,
    )


def _figures(denoiser: nn.Module, data: bench.Data, levels: Tensor, least: Tensor) -> dict[str, np.ndarray]:
    """All that is measured of one network."""
    measured = bench.measure(denoiser, data, levels.tolist(), len(data.test[0]))
    figures = {name: measured[name] for name in _KEPT} | {"features": measured["features"][-1]}
    return figures | _distances(denoiser, data, levels, least)


@torch.no_grad()
def _distances(denoiser: nn.Module, data: bench.Data, levels: Tensor, least: Tensor) -> dict[str, np.ndarray]:
    """`distance`, `excess` and `overfit` of one network, as `run` describes them."""
    x0, _, eps = data.test
    seen, _, seen_eps = (part[: len(x0)] for part in data.train)
    noisy, clean, overfit = [], [], []
    for level in levels.tolist():
        best, output = _both(denoiser, data, x0 + level * eps, level)
        noisy.append((_energy(output - best), _energy(best)))
        fresh = _energy(output - x0) / _energy(best - x0)
        best, output = _both(denoiser, data, seen + level * seen_eps, level)
        overfit.append(fresh - _energy(output - seen) / _energy(best - seen))
        best, output = _both(denoiser, data, x0, level)
        clean.append((_energy(output - best), _energy(best)))
    apart, size = np.array([noisy, clean]).transpose(2, 0, 1)
    return {"distance": apart / size, "excess": apart[0] / least.numpy(), "overfit": np.array(overfit)}


def _both(denoiser: nn.Module, data: bench.Data, x: Tensor, level: float) -> tuple[Tensor, Tensor]:
    return data.mixture.posterior_mean(x, level), denoiser(x, level)


def _energy(values: Tensor) -> float:
    return float(values.square().sum(1).mean())


def _windows(losses: Tensor) -> np.ndarray:
    """Means over WINDOWS equal parts, each of at least one step."""
    edges = np.linspace(0, len(losses), WINDOWS + 1).astype(int).tolist()
    return np.array([float(losses[a : max(b, a + 1)].mean()) for a, b in pairwise(edges)])


def first_step(
    mixture: MoLRG, sigma: float, layers: int, num_points: int, generator: torch.Generator
) -> Callable[[Tensor, float], Tensor]:
    """Return what the first step of training makes of a wide network that starts at 0, up to a factor.

    The network has `layers` hidden layers of infinitely many ReLUs without biases, and is trained at one
    level. A gradient step of its last layer adds a multiple of x -> E[x_0 k(x_sigma, x)], where k is the
    arc-cosine kernel of the last hidden layer; here the mean is over `num_points` points and their mirror
    images.
    """
    x0, _ = mixture.sample(num_points, generator=generator)
    x = x0 + sigma * torch.randn(x0.shape, generator=generator, dtype=x0.dtype)
    length = x.norm(dim=1)

    def denoiser(point: Tensor, _sigma: float) -> Tensor:
        own = point.norm(dim=1, keepdim=True)
        cosine = (point @ x.T / (own * length)).clamp(-1, 1)
        odd = kernel(cosine, layers) - kernel(-cosine, layers)
        return own * (odd * length) @ x0 / (2 * num_points)

    return denoiser


def kernel(cosine: Tensor, layers: int) -> Tensor:
    """Return the arc-cosine kernel (of order 1) of `layers` hidden layers, for unit vectors of a cosine."""
    for _ in range(layers):
        cosine = cosine.clamp(-1, 1)
        angle = torch.arccos(cosine)
        cosine = ((1 - cosine**2).sqrt() + cosine * (torch.pi - angle)) / torch.pi
    return cosine


def rank_correlation(first: np.ndarray, second: np.ndarray, draws: int = 2000) -> np.ndarray:
    """Return Spearman's correlation and the ends of its 95% bootstrap interval, (3,).

    Of (C,) values it is that of the C pairs; of (C, S) values it is the mean over rows of that of the S pairs
    in each, 0 for a row that is constant. The C entries are resampled `draws` times, with seed 0.
    """
    chance = np.random.default_rng(0)
    chosen = chance.integers(len(first), size=(draws, len(first)))
    if first.ndim == 1:
        value = _spearman(first, second)
        sampled = _spearman(first[chosen], second[chosen])
    else:
        each = _spearman(first, second)
        value, sampled = each.mean(), each[chosen].mean(1)
    return np.array([value, *np.quantile(sampled, [0.025, 0.975])])


def _spearman(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Along the last axis."""
    a, b = (rankdata(each, axis=-1) for each in (first, second))
    a, b = a - a.mean(-1, keepdims=True), b - b.mean(-1, keepdims=True)
    size = np.sqrt((a**2).sum(-1) * (b**2).sum(-1))
    return np.divide((a * b).sum(-1), size, out=np.zeros_like(size), where=size > 0)
