r"""The empirical denoiser of N samples of a MoLRG, read out beside the optimal denoiser of the distribution.

With `span` background nothing outside the span of the classes enters (the data have no part there, and noise
there shifts all squared distances alike), so that the run takes place in K d dimensions whatever n is.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from compendium import resume
from molrg.measuring import probes
from molrg.model.memorizing import EmpiricalDenoiser
from molrg.model.mixture import BACKGROUNDS, MoLRG, energies
from molrg.support.checks import choice, integer, noise_levels

__all__ = ["INPUTS", "SPLITS", "distance", "divergences", "leading_gap", "run", "true_weight"]

SPLITS = ("train", "test")
INPUTS = ("noisy", "clean")

_L2 = 1e-3  # of the linear probes
_DRAWS = 20_000  # samples for the information density


def run(
    num_classes: int,
    rank: int,
    dim: int,
    delta: float,
    background: str,
    per_class: Sequence[int],
    queries: int,
    lowest: float,
    highest: float,
    num_levels: int,
    seeds: int,
    workdir: Path,
) -> dict[str, Any]:
    """Denoise training points and fresh points by the posterior mean of N samples, for a range of N.

    Each seed has its own orthogonal mixture and its own samples; `per_class` lists the training points of a
    class, each set containing the smaller ones. Of the training points, and of fresh ones, `queries` a class
    are denoised (training points in turn, with fresh noise, where there are fewer), at `num_levels` levels
    from `lowest` to `highest`, evenly spaced in log sigma.

    Returns, with axes R = seeds, N = sizes of the training set, P = SPLITS, I = inputs (INPUTS), S = levels:
    `snr`, `snr_bayes` (R, N, P, I, S) the mean over classes of the SNR (denominator `residual`) of the
    empirical denoiser, and of the optimal one on the same points; `loss`, `loss_bayes`, alike, the mean
    squared error, `gap` the mean squared difference of the two denoisers; `entropy` and `largest`, alike, the
    mean entropy of the posterior weights of the training points, in nats, and their mean largest weight;
    `subspace`, `subspace_bayes`, alike, the accuracy of the nearest true subspace on the denoised points;
    `classes`, alike, that of the class with the largest total weight;
    `linear`, `linear_bayes` (R, N, I, S) that of a linear probe fitted to the denoised training points and
    tested on the denoised fresh ones; `own` (R, N, I, S) the mean weight of the training point that the input
    was made of, `own_bound` its lower bound, the mean of 1/(1 + (N - 1) e^-i), and `information` (R, I, S)
    the mean of the information density i(x_0; x_sigma), for clean input that at x_sigma = x_0, both from
    20,000 fresh points; `levels` (S,), `sizes` (N,).

    Raises ValueError for arguments outside their ranges.
    """
    integer("seeds", seeds, 1)
    integer("queries", queries, 2)
    choice("background", background, BACKGROUNDS)
    sizes = [integer("per_class", size, 1) for size in per_class]
    if sizes != sorted(set(sizes)) or not sizes:
        raise ValueError(f"per_class must list one or more different sizes in rising order, got {per_class}")
    noise_levels([lowest, highest])
    if not lowest < highest:
        raise ValueError(f"lowest must be below highest, got {lowest} and {highest}")
    if integer("num_classes", num_classes, 2) * integer("rank", rank, 1) > integer("dim", dim, 1):
        raise ValueError(
            f"orthogonal classes need num_classes * rank <= dim, got {num_classes} * {rank} > {dim}"
        )
    levels = np.geomspace(lowest, highest, integer("num_levels", num_levels, 2))
    ambient = num_classes * rank if background == "span" else dim
    runs = []
    for seed in range(seeds):
        generator = torch.Generator().manual_seed(seed)
        mixture = MoLRG.orthogonal(num_classes, rank, ambient, delta, background, generator)
        given = (mixture, sizes, queries, torch.from_numpy(levels), generator)
        runs.append(resume.arrays(Path(workdir) / f"seed-{seed}.npz", _one_seed, *given))
    return {
        **{key: np.stack([each[key] for each in runs]).astype(np.float32) for key in runs[0]},
        "levels": levels,
        "sizes": num_classes * np.array(sizes),
    }


def divergences(
    mixture: MoLRG, num_points: int, levels: Tensor, sets: int, queries: int, generator: torch.Generator
) -> dict[str, np.ndarray]:
    """Compare p_N, the density of noisy training points, with p, that of all noisy points: (sets, 2, S) each.

    Of `sets` training sets of independent points: `divergence`, the Monte Carlo estimates of KL(p_N || p) and
    KL(p || p_N), and `gap`, the mean squared difference of the two denoisers under p_N and under p, from
    `queries` points that all levels share.
    """
    found: dict[str, list[list[Tensor]]] = {"divergence": [], "gap": []}
    for _ in range(sets):
        points, _ = mixture.sample(num_points, generator=generator)
        denoiser = EmpiricalDenoiser(points)
        fresh, _ = mixture.sample(queries, generator=generator)
        turn = torch.arange(queries) % num_points
        for values in found.values():
            values.append([])
        for sign, x0 in ((1, points[turn]), (-1, fresh)):
            noise = torch.randn(x0.shape, generator=generator, dtype=x0.dtype)
            pair = []
            for level in levels.tolist():
                x = x0 + level * noise
                ratio = denoiser.log_prob(x, level) - mixture.log_prob(x, level)
                gap = (denoiser.posterior_mean(x, level) - mixture.posterior_mean(x, level)).square().sum(-1)
                pair.append((sign * ratio.mean(), gap.mean()))
            for values, part in zip(found.values(), zip(*pair, strict=True), strict=True):
                values[-1].append(torch.stack(part))
    return {key: torch.stack([torch.stack(each) for each in value]).numpy() for key, value in found.items()}


def leading_gap(
    mixture: MoLRG, sigma: float, num_samples: int, generator: torch.Generator
) -> tuple[float, float]:
    """Return lim N E||f_N - f||^2 at noisy fresh points, with its Monte Carlo standard error.

    E[ rho(x) ( tr Cov(x_0 | x; tau) + ||f(x, tau) - f(x, sigma)||^2 ) ], tau = sigma/sqrt 2 and
    rho = (4 pi sigma^2)^{-n/2} p_tau(x)/p_sigma(x)^2, for orthogonal classes of one rank.
    """
    x0, _ = mixture.sample(num_samples, generator=generator)
    x = x0 + sigma * torch.randn(x0.shape, generator=generator, dtype=x0.dtype)
    tau, rank = sigma / 2**0.5, mixture.ranks[0]
    keep, extra = (c.item() for c in mixture.coefficients(torch.tensor([tau], dtype=torch.float64)))
    weights, mean = mixture.posterior_weights(x, tau), mixture.posterior_mean(x, tau)
    energy = energies((x @ torch.cat(mixture.bases, 1)).unflatten(1, (mixture.num_classes, -1)))
    total = x.square().sum(1) if mixture.background == "complement" else energy.sum(1)
    within = tau**2 * (rank * (keep + extra) + (mixture.support_dim - rank) * keep)
    second = (weights * ((keep + extra) ** 2 * energy + keep**2 * (total[:, None] - energy))).sum(1)
    spread = within + second - mean.square().sum(1)
    shift = (mean - mixture.posterior_mean(x, sigma)).square().sum(1)
    log_rho = mixture.log_prob(x, tau) - 2 * mixture.log_prob(x, sigma)
    rho = torch.exp(log_rho - mixture.dim / 2 * np.log(4 * np.pi * sigma**2))
    values = rho * (spread + shift)
    return values.mean().item(), values.std().item() / num_samples**0.5


def distance(
    mixture: MoLRG, num_points: int, sigma: float, sets: int, queries: int, generator: torch.Generator
) -> float:
    """Return E||f_N - f||^2 at `queries` noisy fresh points, a mean over `sets` training sets."""
    found = []
    for _ in range(sets):
        denoiser = EmpiricalDenoiser(mixture.sample(num_points, generator=generator)[0])
        x, _ = mixture.sample(queries, generator=generator)
        x += sigma * torch.randn(x.shape, generator=generator, dtype=x.dtype)
        gap = denoiser.posterior_mean(x, sigma) - mixture.posterior_mean(x, sigma)
        found.append(gap.square().sum(1).mean().item())
    return float(np.mean(found))


def true_weight(
    mixture: MoLRG, per_class: int, sigma: float, queries: int, generator: torch.Generator
) -> float:
    """Return the mean posterior weight of the training point that a noisy one is made of, at one level.

    The set holds `per_class` points of each class, of which `queries` are taken (in turn if there are less).
    """
    labels = torch.arange(mixture.num_classes).repeat(per_class)
    points, _ = mixture.sample(len(labels), generator=generator, labels=labels)
    x0 = points[torch.arange(queries) % len(points)]
    noise = torch.randn(x0.shape, generator=generator, dtype=x0.dtype)
    denoiser, level = EmpiricalDenoiser(points), torch.tensor([sigma], dtype=x0.dtype)
    log_prob = denoiser.log_prob(x0 + sigma * noise, sigma)
    return _own_weight(denoiser, log_prob, noise, level).mean().item()


def _one_seed(
    mixture: MoLRG, sizes: list[int], queries: int, levels: Tensor, generator: torch.Generator
) -> dict[str, np.ndarray]:
    def draw(size: int) -> tuple[Tensor, Tensor]:
        labels = torch.arange(mixture.num_classes).repeat(size)
        return mixture.sample(len(labels), generator=generator, labels=labels)

    pool, fresh = draw(sizes[-1]), draw(queries)
    noise = [torch.randn(fresh[0].shape, generator=generator) for _ in SPLITS]
    density = _information_density(mixture, levels, generator)
    rows = []
    for size in sizes:
        known = mixture.num_classes * size
        turn = torch.arange(len(fresh[0])) % known
        points = [(pool[0][turn], pool[1][turn], noise[0]), (*fresh, noise[1])]
        denoiser = EmpiricalDenoiser(pool[0][:known], pool[1][:known])
        rows.append(
            _readouts(mixture, denoiser, points, levels)
            | {"own_bound": torch.sigmoid(density - np.log(max(known - 1, 1e-9))).mean(-1)}
        )
    values = {key: np.stack([row[key].numpy() for row in rows]) for key in rows[0]}
    return values | {"information": density.mean(-1).numpy()}


def _information_density(mixture: MoLRG, levels: Tensor, generator: torch.Generator) -> Tensor:
    """log p(x_sigma | x_0)/p(x_sigma) of fresh points at noisy x_sigma and at x_0: (I, S, draws)."""
    x0, _ = mixture.sample(_DRAWS, generator=generator)
    x0 = x0.double()
    noise = torch.randn(x0.shape, generator=generator, dtype=torch.float64)
    values = []
    for kind in INPUTS:
        eps = noise if kind == "noisy" else torch.zeros_like(noise)
        for level in levels.tolist():
            own = -0.5 * (mixture.dim * np.log(2 * np.pi * level**2) + eps.square().sum(1))
            values.append(own - mixture.log_prob(x0 + level * eps, level))
    return torch.stack(values).unflatten(0, (len(INPUTS), -1))


def _readouts(
    mixture: MoLRG,
    denoiser: EmpiricalDenoiser,
    points: Sequence[tuple[Tensor, Tensor, Tensor]],
    levels: Tensor,
) -> dict[str, Tensor]:
    """All figures of one training set; `points` are samples, labels and noise of the two splits."""
    rows: list[list[dict[str, Tensor]]] = []
    outputs: dict[tuple[str, str], Tensor] = {}
    own = []
    for split, (x0, labels, noise) in zip(SPLITS, points, strict=True):
        rows.append([])
        for kind in INPUTS:
            perturbation = noise if kind == "noisy" else None
            found = _at_levels(denoiser.posterior, x0, perturbation, levels)
            mean, weights, log_prob, entropy, largest = found
            (bayes,) = _at_levels(lambda *at: (mixture.posterior_mean(*at),), x0, perturbation, levels)
            ours, theirs = (_figures(mixture, f, x0, labels) for f in (mean, bayes))
            rows[-1].append(
                ours
                | {f"{key}_bayes": value for key, value in theirs.items()}
                | {"entropy": entropy.mean(-1), "largest": largest.mean(-1)}
                | {"gap": (mean - bayes).square().sum(-1).mean(-1)}
                | {"classes": (weights.argmax(-1) == labels).double().mean(-1)}
            )
            if split == "train":
                own.append(_own_weight(denoiser, log_prob, perturbation, levels).mean(-1))
            outputs[split, kind] = mean
            outputs[split, f"{kind} bayes"] = bayes
    values = {
        key: torch.stack([torch.stack([cell[key].double() for cell in row]) for row in rows])
        for key in rows[0][0]
    }
    for name, suffix in (("linear", ""), ("linear_bayes", " bayes")):
        read = []
        for kind in INPUTS:
            train, test = (outputs[split, f"{kind}{suffix}"] for split in SPLITS)
            probe = probes.fit_logistic(train, points[0][1], _L2, mixture.num_classes)
            read.append(probe.accuracy(test, points[1][1]))
        values[name] = torch.stack(read)
    return values | {"own": torch.stack(own)}


def _own_weight(
    denoiser: EmpiricalDenoiser, log_prob: Tensor, noise: Tensor | None, levels: Tensor
) -> Tensor:
    """Weight N(x; x_i, sigma^2 I) / (M p(x)) of the training point x_i that x was made of: (S, Q)."""
    distance = 0.0 if noise is None else noise.square().sum(1)
    own = -0.5 * (denoiser.dim * torch.log(2 * torch.pi * levels**2)[:, None] + distance)
    return torch.exp(own - log_prob - np.log(denoiser.num_points))


def _at_levels(
    function: Callable[[Tensor, Any], tuple[Tensor, ...]], x0: Tensor, noise: Tensor | None, levels: Tensor
) -> tuple[Tensor, ...]:
    """`function(x, sigma)` at all levels, (S, ...) each; clean input shares one call."""
    if noise is None:
        return function(x0, levels)
    parts = [function(torch.add(x0, noise, alpha=level), level) for level in levels.tolist()]
    return tuple(torch.stack(part) for part in zip(*parts, strict=True))


def _figures(mixture: MoLRG, output: Tensor, x0: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """SNR, mean squared error and nearest-subspace accuracy of denoised points (S, Q, n): (S,) each."""
    blocks = torch.cat(mixture.bases, 1)
    z = output @ blocks
    energy = energies(z.unflatten(-1, (mixture.num_classes, -1)))
    own = torch.nn.functional.one_hot(labels, mixture.num_classes).bool()
    signal = torch.where(own, energy, 0.0).sum(-1)
    rest = torch.where(own, 0.0, energy).sum(-1)
    if mixture.background == "complement":
        rest = rest + (output - z @ blocks.T).square().sum(-1)
    share = own.to(energy.dtype)
    return {
        "snr": ((signal @ share) / (rest @ share)).mean(-1),
        "loss": (output - x0).square().sum(-1).mean(-1),
        "subspace": (energy.argmax(-1) == labels).double().mean(-1),
    }
