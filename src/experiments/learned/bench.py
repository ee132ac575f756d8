"""What the experiments on learned denoisers have in common: data of one seed, training, what is measured."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from scipy import stats
from torch import Tensor, nn

from molrg import snr
from molrg.learning import ensembles, training
from molrg.measuring import features, probes, subspaces
from molrg.model.mixture import MoLRG
from molrg.support import devices

__all__ = [
    "INPUTS",
    "Data",
    "Denoiser",
    "Paired",
    "activations",
    "draw",
    "linear_accuracy",
    "measure",
    "neighbourhoods",
    "paired",
    "trained",
]

INPUTS = ("noisy", "clean")

Denoiser = nn.Module | Callable[[Tensor, float], Tensor]
"""D(x, sigma): a network, which may have feature layers, or a function."""

_L2 = 1e-3  # of the linear probes
_AT_ONCE = 2**26  # numbers in the features of one solve


class Data(NamedTuple):
    """A mixture of orthogonal classes, and samples of it with labels and standard normal noise."""

    mixture: MoLRG
    train: tuple[Tensor, Tensor, Tensor]
    test: tuple[Tensor, Tensor, Tensor]

    @property
    def scale(self) -> float:
        """Standard deviation of the entries of x_0, the mean over directions: sqrt(tr Cov / n)."""
        mixture = self.mixture
        rank, classes, delta = mixture.ranks[0], mixture.num_classes, mixture.delta
        return float(np.sqrt((rank + delta**2 * (classes - 1) * rank) / mixture.dim))


def draw(
    num_classes: int, rank: int, dim: int, delta: float, train_size: int, test_size: int, seed: int
) -> Data:
    """Return a new orthogonal mixture (`span` background) and samples of it."""
    generator = torch.Generator().manual_seed(seed)
    mixture = MoLRG.orthogonal(num_classes, rank, dim, delta, generator=generator)

    def samples(size: int) -> tuple[Tensor, Tensor, Tensor]:
        x0, labels = mixture.sample(size, generator=generator)
        return x0, labels, torch.randn(x0.shape, generator=generator)

    return Data(mixture, samples(train_size), samples(test_size))


def trained(jobs: Sequence[training.Job], workdir: Path) -> list[training.Trained]:
    """Train the networks of `jobs` together, on the GPU if there is one; return them on the CPU."""
    results = ensembles.train(jobs, device=devices.best(), checkpoints=workdir / "networks")
    return [result._replace(denoiser=result.denoiser.cpu()) for result in results]


def measure(
    denoiser: Denoiser,
    data: Data,
    levels: Sequence[float],
    probe_size: int,
) -> dict[str, np.ndarray]:
    """Measure a denoiser at each of S levels, on noisy and on clean input (axis I = INPUTS).

    Returns
    -------
    dict
        `snr`, `csnr` (I, S): the class SNR with denominators `residual` and `classes`, on the test samples.
        `error` (S,): E||D(x_sigma, sigma) - x_0||^2 over that of the posterior mean, on the test samples.
        `linear`, `nearest` (I, S): accuracy on the denoised test samples of a linear probe and of the nearest
        class subspace, fitted afresh at each level to `probe_size` denoised training samples (the posterior
        accuracy).
        `features` (L, I, S): accuracy of a linear probe on each of the denoiser's L feature layers; L = 0 for
        a function that is not a network.
    """
    mixture = data.mixture
    classes, rank = mixture.num_classes, mixture.ranks[0]
    size = len(data.test[0]) // classes
    values: dict[str, list[np.ndarray]] = {"linear": [], "nearest": [], "features": []}
    ratios: dict[str, list[np.ndarray]] = {"snr": [], "csnr": []}
    for kind in INPUTS:
        for name, denominator in (("snr", "residual"), ("csnr", "classes")):
            draws = torch.Generator().manual_seed(0)
            given = (mixture, torch.tensor(levels, dtype=torch.float64), size, kind == "noisy", denominator)
            ratios[name].append(snr.estimate(denoiser, *given, generator=draws).value.numpy())
        train, test = (
            _at_levels(denoiser, x0[:limit], noise[:limit] if kind == "noisy" else None, levels)
            for (x0, _, noise), limit in ((data.train, probe_size), (data.test, None))
        )
        labels, test_labels = data.train[1][:probe_size], data.test[1]
        output, test_output = train.pop(features.DENOISED), test.pop(features.DENOISED)
        nearest = subspaces.class_subspaces(output, labels, rank, classes)
        values["nearest"].append(nearest.accuracy(test_output, test_labels).numpy())
        values["linear"].append(linear_accuracy(output, labels, test_output, test_labels, classes))
        pairs = ((train[name], labels, test[name], test_labels) for name in train)
        values["features"].append(np.array([linear_accuracy(*pair, classes) for pair in pairs]))
        if kind == "noisy":
            x0, _, noise = data.test
            error = (test_output - x0).square().sum(-1).mean(-1)
            best = torch.stack(
                [(mixture.posterior_mean(x0 + s * noise, s) - x0).square().sum(-1).mean() for s in levels]
            )
    measured = {name: np.array(value) for name, value in (ratios | values).items()}
    measured["features"] = measured["features"].reshape(len(INPUTS), -1, len(levels)).swapaxes(0, 1)
    return measured | {"error": (error / best).numpy()}


def _at_levels(
    denoiser: Denoiser,
    x0: Tensor,
    noise: Tensor | None,
    levels: Sequence[float],
) -> dict[str, Tensor]:
    """Output and feature layers at every level, (S, N, C) each."""
    parts = [activations(denoiser, x0 if noise is None else x0 + level * noise, level) for level in levels]
    return {name: torch.stack([part[name] for part in parts]) for name in parts[0]}


def activations(denoiser: Denoiser, x: Tensor, level: float) -> dict[str, Tensor]:
    """Return the output of a denoiser and, of a network, its feature layers: (N, C) each."""
    if not isinstance(denoiser, nn.Module):
        return {features.DENOISED: denoiser(x, level)}
    own = getattr(denoiser, "feature_layers", ())
    return features.extract(denoiser, x, level, (*own, features.DENOISED))


def linear_accuracy(
    train: Tensor, labels: Tensor, test: Tensor, test_labels: Tensor, classes: int
) -> np.ndarray:
    """Return the test accuracy (S,) of a linear probe at every level, from features (S, N, C)."""
    each = max(1, _AT_ONCE // train[0].numel())  # levels at a time, which bounds the memory
    parts = [
        probes.fit_logistic(train[i : i + each], labels, _L2, classes).accuracy(
            test[i : i + each], test_labels
        )
        for i in range(0, len(train), each)
    ]
    return torch.cat(parts).numpy()


def neighbourhoods(x0: Tensor, ranks: Sequence[int], most: int, generator: torch.Generator) -> Tensor:
    """Guess U (n, sum of the ranks) of points (N, n) without labels, block by block.

    A block of rank d spans the leading directions of the 10 d points, or `most` if these are fewer, that are
    most parallel to one point. The first of these points is drawn, each next one is that whose direction the
    blocks so far hold least of.
    """
    directions = torch.nn.functional.normalize(x0)
    anchor = int(torch.randint(len(x0), (), generator=generator))
    held = torch.zeros(len(x0))
    blocks = []
    for rank in ranks:
        nearest = (directions @ directions[anchor]).abs().topk(min(10 * rank, most)).indices
        blocks.append(torch.linalg.svd(x0[nearest], full_matrices=False).Vh[:rank].T)
        held += (directions @ blocks[-1]).square().sum(1)
        anchor = int(held.argmin())
    return torch.cat(blocks, 1)


class Paired(NamedTuple):
    """Mean of paired differences, half-width of its 95% interval, the mean's sign where that excludes 0."""

    mean: np.ndarray
    half: np.ndarray
    sign: np.ndarray

    def __str__(self) -> str:
        return f"{self.mean:+.3g} ± {self.half:.2g}"


def paired(first: np.ndarray, second: np.ndarray | float = 0.0) -> Paired:
    """Compare two quantities (R, ...) seed by seed: Student's t over the R >= 2 seeds."""
    change = np.asarray(first) - second
    mean = change.mean(0)
    half = stats.t.ppf(0.975, len(change) - 1) * change.std(0, ddof=1) / np.sqrt(len(change))
    return Paired(mean, half, np.where(np.abs(mean) > half, np.sign(mean), 0).astype(int))
