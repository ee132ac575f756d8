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
    "accuracies",
    "activations",
    "draw",
    "linear_accuracy",
    "measure",
    "neighbourhoods",
    "paired",
    "readouts",
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
    denoiser: Denoiser, data: Data, levels: Sequence[float], probe_size: int
) -> dict[str, np.ndarray]:
    """Measure a denoiser at each of S levels, on noisy and on clean input (axis I = INPUTS).

    Returns what `accuracies` returns and, on the test samples, `snr`, `csnr` (I, S), the class SNR with
    denominators `residual` and `classes`, and `error` (S,), E||D(x_sigma, sigma) - x_0||^2 over that of the
    posterior mean.
    """
    mixture, (x0, _, noise) = data.mixture, data.test
    found = accuracies(denoiser, data, levels, probe_size)
    sigma, size = torch.tensor(levels, dtype=torch.float64), len(x0) // mixture.num_classes
    for name, denominator in (("snr", "residual"), ("csnr", "classes")):
        ratios = [
            snr.estimate(
                denoiser, mixture, sigma, size, kind == "noisy", denominator,
                generator=torch.Generator().manual_seed(0),
            )
            for kind in INPUTS
        ]  # fmt: skip
        found[name] = np.array([ratio.value.numpy() for ratio in ratios])
    noisy = [x0 + s * noise for s in levels]
    outputs = [activations(denoiser, x, s)[features.DENOISED] for x, s in zip(noisy, levels, strict=True)]
    best = [mixture.posterior_mean(x, s) for x, s in zip(noisy, levels, strict=True)]
    error, least = ((torch.stack(f) - x0).square().sum(-1).mean(-1) for f in (outputs, best))
    return found | {"error": (error / least).numpy()}


def accuracies(
    denoiser: Denoiser, data: Data, levels: Sequence[float], probe_size: int
) -> dict[str, np.ndarray]:
    """Fit readouts afresh at each level to `probe_size` training samples (the posterior accuracy).

    Returns the accuracies on the test samples of `readouts` of the outputs, `linear`, `nearest` (I, S), and
    `features` (L, I, S), those of a linear probe on each of the denoiser's L feature layers; L = 0 for a
    function that is not a network.
    """
    kinds = []
    for kind in INPUTS:
        train, test = (
            [activations(denoiser, x0[:limit] + (kind == "noisy") * s * noise[:limit], s) for s in levels]
            for (x0, _, noise), limit in ((data.train, probe_size), (data.test, None))
        )
        kinds.append(readouts(train, test, data))
    found = {name: np.stack([each[name] for each in kinds], -2) for name in kinds[0]}
    return {"features": np.zeros((0, len(INPUTS), len(levels)))} | found


def readouts(
    train: Sequence[dict[str, Tensor]], test: Sequence[dict[str, Tensor]], data: Data
) -> dict[str, np.ndarray]:
    """Return the test accuracies of readouts of `activations` at S levels, fitted to the training ones.

    `linear`, `nearest` (S,), of a linear probe and of the nearest class subspace of the output, and, where
    there are L feature layers, `features` (L, S), of linear probes on these.
    """
    classes, rank = data.mixture.num_classes, data.mixture.ranks[0]
    labels, test_labels = data.train[1][: len(train[0][features.DENOISED])], data.test[1]

    def linear(name: str) -> np.ndarray:
        seen, fresh = (torch.stack([part[name] for part in parts]) for parts in (train, test))
        return linear_accuracy(seen, labels, fresh, test_labels, classes)

    seen, fresh = (torch.stack([part[features.DENOISED] for part in parts]) for parts in (train, test))
    nearest = subspaces.class_subspaces(seen, labels, rank, classes).accuracy(fresh, test_labels)
    found = {"linear": linear(features.DENOISED), "nearest": nearest.numpy()}
    hidden = [linear(name) for name in train[0] if name != features.DENOISED]
    return found | ({"features": np.stack(hidden)} if hidden else {})


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
