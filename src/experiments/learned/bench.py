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

__all__ = ["INPUTS", "Data", "Paired", "draw", "measure", "paired", "trained"]

INPUTS = ("noisy", "clean")

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


def trained(
    jobs: Sequence[training.Job], workdir: Path, checkpoint_every: int = 1000
) -> list[training.Trained]:
    """Train the networks of `jobs` together, on the GPU if there is one; return them on the CPU."""
    results = ensembles.train(
        jobs, device=devices.best(), checkpoints=workdir / "networks", checkpoint_every=checkpoint_every
    )
    return [result._replace(denoiser=result.denoiser.cpu()) for result in results]


def measure(
    denoiser: nn.Module | Callable[[Tensor, float], Tensor],
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
            _activations(denoiser, x0[:limit], noise[:limit] if kind == "noisy" else None, levels)
            for (x0, _, noise), limit in ((data.train, probe_size), (data.test, None))
        )
        labels, test_labels = data.train[1][:probe_size], data.test[1]
        output, test_output = train.pop(features.DENOISED), test.pop(features.DENOISED)
        nearest = subspaces.class_subspaces(output, labels, rank, classes)
        values["nearest"].append(nearest.accuracy(test_output, test_labels).numpy())
        values["linear"].append(_linear(output, labels, test_output, test_labels, classes))
        values["features"].append(
            np.array([_linear(train[name], labels, test[name], test_labels, classes) for name in train])
        )
        if kind == "noisy":
            x0, _, noise = data.test
            error = (test_output - x0).square().sum(-1).mean(-1)
            best = torch.stack(
                [(mixture.posterior_mean(x0 + s * noise, s) - x0).square().sum(-1).mean() for s in levels]
            )
    measured = {name: np.array(value) for name, value in (ratios | values).items()}
    measured["features"] = measured["features"].reshape(len(INPUTS), -1, len(levels)).swapaxes(0, 1)
    return measured | {"error": (error / best).numpy()}


def _activations(
    denoiser: nn.Module | Callable[[Tensor, float], Tensor],
    x0: Tensor,
    noise: Tensor | None,
    levels: Sequence[float],
) -> dict[str, Tensor]:
    """Output and feature layers at every level, (S, N, C) each."""
    inputs = [x0 if noise is None else x0 + level * noise for level in levels]
    if not isinstance(denoiser, nn.Module):
        outputs = [denoiser(x, level) for x, level in zip(inputs, levels, strict=True)]
        return {features.DENOISED: torch.stack(outputs)}
    own = getattr(denoiser, "feature_layers", ())
    parts = [
        features.extract(denoiser, x, level, (*own, features.DENOISED))
        for x, level in zip(inputs, levels, strict=True)
    ]
    return {name: torch.stack([part[name] for part in parts]) for name in parts[0]}


def _linear(train: Tensor, labels: Tensor, test: Tensor, test_labels: Tensor, classes: int) -> np.ndarray:
    """Test accuracy of a linear probe at every level, in chunks of levels that bound the memory."""
    each = max(1, _AT_ONCE // train[0].numel())
    parts = [
        probes.fit_logistic(train[i : i + each], labels, _L2, classes).accuracy(
            test[i : i + each], test_labels
        )
        for i in range(0, len(train), each)
    ]
    return torch.cat(parts).numpy()


class Paired(NamedTuple):
    """Mean of paired differences, half-width of its 95% interval, and the mean's sign where that excludes 0."""

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
