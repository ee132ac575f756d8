r"""The paper's parametric denoiser, trained on MoLRG data: does it become the optimal one?

D(x, sigma) = U diag(beta) U^T x has the form of the posterior mean, with U learned from unlabelled samples.
Its loss has local minima, in which blocks of the learned U mix directions of several classes. So each data
set is learned from several random starts and from one that the data suggest, and the network with the least
denoising loss is read out.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from experiments.learned import bench
from experiments.learned.bench import INPUTS
from molrg import snr
from molrg.learning import training
from molrg.learning.networks import SubspaceDenoiser, subspace_denoise
from molrg.model import noise
from molrg.model.mixture import MoLRG
from molrg.support.checks import integer

__all__ = ["DENOMINATORS", "INPUTS", "run"]

DENOMINATORS = ("residual", "classes")


def run(
    num_classes: int,
    rank: int,
    dim: int,
    delta: float,
    train_size: int,
    test_size: int,
    epochs: int,
    learning_rate: float,
    batch_size: int,
    restarts: int,
    seeds: int,
    workdir: Path,
) -> dict[str, Any]:
    """Train the parametric denoiser on MoLRG data and read it out beside the optimal denoiser.

    Each seed has its own orthogonal mixture (`span` background), its own `train_size` training samples
    without labels, and T starts of U, trained side by side by Adam for `epochs` passes in batches of
    `batch_size`, at the noise levels of `noise.paper_levels()` with equal probability and weight. The first
    `restarts` starts are random, the last one spans neighbourhoods of K samples (`bench.neighbourhoods`).
    SNRs are estimated from `test_size` samples; classifiers are fitted to the denoised training samples with
    their labels and tested on `test_size` denoised samples.

    Returns, with axes R = seeds, T = restarts + 1, I = inputs (INPUTS), D = denominators (DENOMINATORS) and
    S = levels:
    `snr`, `snr_error` (R, I, D, S) the chosen network's SNR and its standard error;
    `snr_starts` (R, T, I, S) the SNR of every start, denominator `residual`;
    `exact` (I, D, S) the optimal denoiser's, `theorem` (I, S) that of Theorem 1;
    `recovery` (R, T) the share of the classes' subspaces in the matched blocks of the learned U,
    mean over k of ||U_k^T Q_k||^2 / d, Q_k an orthonormal basis of the block: 1 if found, d/n by chance;
    `excess_loss` (R, T) the denoising loss on the training samples over that of the optimal denoiser, less 1;
    `chosen` (R,) the start with the least loss;
    `linear`, `nearest` (R, I, S) the accuracies of a linear probe and of the nearest subspace on the chosen
    start's output, `linear_exact`, `nearest_exact` (R, I, S) on that of the optimal denoiser;
    `levels`, `inputs`, `denominators`, `steps`.

    Raises ValueError for arguments outside their ranges.
    """
    integer("restarts", restarts, 1)
    integer("seeds", seeds, 1)
    integer("epochs", epochs, 1)
    # So many that every class has more than d samples, up to a chance of about 1e-5 a class.
    integer("train_size", train_size, num_classes * (2 * rank + 10))
    integer("test_size", test_size, 2 * num_classes)
    steps = max(1, epochs * train_size // integer("batch_size", batch_size, 1))
    levels = noise.paper_levels()

    def one_seed(seed: int) -> dict[str, np.ndarray]:
        generator = torch.Generator().manual_seed(seed)
        mixture = MoLRG.orthogonal(num_classes, rank, dim, delta, generator=generator)
        train = mixture.sample(train_size, generator=generator)
        sizes = (dim, num_classes, rank, delta)
        denoisers = [SubspaceDenoiser(*sizes, generator=generator) for _ in range(restarts + 1)]
        most = train_size // num_classes  # no more than a class has
        with torch.no_grad():
            denoisers[-1].basis.copy_(bench.neighbourhoods(train[0], mixture.ranks, most, generator))
        trained = training.train(
            _Starts(denoisers),
            train[0],
            levels,
            steps=steps,
            batch_size=batch_size * len(denoisers),
            lr=learning_rate,
            weighting=training.uniform_weighting,
            generator=generator,
            checkpoint=Path(workdir) / f"starts-{seed}.safetensors",
        )
        with torch.no_grad():
            for denoiser, basis in zip(denoisers, next(trained.denoiser.parameters()), strict=True):
                denoiser.basis.copy_(basis)
            return _figures(mixture, denoisers, train, test_size, generator)

    runs = [one_seed(seed) for seed in range(seeds)]
    model = (num_classes, rank, delta, levels)
    exact = [[snr.exact(*model, kind == "noisy", by).numpy() for by in DENOMINATORS] for kind in INPUTS]
    theorem = [snr.theorem(*model, kind == "noisy").numpy() for kind in INPUTS]
    values = {key: np.stack([each[key] for each in runs]) for key in runs[0]}
    values |= {"exact": np.array(exact), "theorem": np.array(theorem), "levels": levels.numpy()}
    return {
        **{key: np.round(value, 6) for key, value in values.items()},
        "inputs": list(INPUTS),
        "denominators": list(DENOMINATORS),
        "steps": steps,
    }


class _Starts(nn.Module):
    """T parametric denoisers trained side by side: part t of a batch goes to denoiser t alone."""

    def __init__(self, starts: list[SubspaceDenoiser]) -> None:
        super().__init__()
        self.basis = nn.Parameter(torch.stack([start.basis.detach() for start in starts]))
        self.num_classes, self.delta = starts[0].num_classes, starts[0].delta

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        parts, levels = (part.unflatten(0, (len(self.basis), -1)) for part in (x, sigma[:, None]))
        return subspace_denoise(self.basis, parts, levels, self.num_classes, self.delta).flatten(0, 1)


def _figures(
    mixture: MoLRG,
    denoisers: Sequence[SubspaceDenoiser],
    train: tuple[Tensor, Tensor],
    test_size: int,
    generator: torch.Generator,
) -> dict[str, np.ndarray]:
    """All figures of one seed's denoisers."""
    perturbation = torch.randn(train[0].shape, generator=generator)
    best = _loss(mixture.posterior_mean, train[0], perturbation)
    losses = np.array([_loss(denoiser, train[0], perturbation) for denoiser in denoisers])
    chosen = denoisers[int(losses.argmin())]
    test = mixture.sample(test_size, generator=generator)
    test_perturbation = torch.randn(test[0].shape, generator=generator)
    data = bench.Data(mixture, (*train, perturbation), (*test, test_perturbation))
    read, read_exact = (
        bench.accuracies(denoise, data, noise.paper_levels().tolist(), len(train[0]))
        for denoise in (chosen.forward, mixture.posterior_mean)
    )

    def estimates(denoiser: SubspaceDenoiser, kind: str, denominator: str) -> snr.Estimate:
        size = test_size // mixture.num_classes
        draws = torch.Generator().manual_seed(0)  # the same samples for every start and both denominators
        levels = noise.paper_levels()
        return snr.estimate(denoiser, mixture, levels, size, kind == "noisy", denominator, generator=draws)

    of_chosen = [[estimates(chosen, kind, by) for by in DENOMINATORS] for kind in INPUTS]
    return {
        "snr": np.array([[each.value.numpy() for each in row] for row in of_chosen]),
        "snr_error": np.array([[each.standard_error.numpy() for each in row] for row in of_chosen]),
        "snr_starts": np.array(
            [[estimates(each, kind, "residual").value.numpy() for kind in INPUTS] for each in denoisers]
        ),
        "recovery": np.array([_recovery(mixture, denoiser) for denoiser in denoisers]),
        "excess_loss": losses / best - 1,
        "chosen": np.asarray(losses.argmin()),
        "linear": read["linear"],
        "nearest": read["nearest"],
        "linear_exact": read_exact["linear"],
        "nearest_exact": read_exact["nearest"],
    }


def _loss(denoiser: Callable[[Tensor, float], Tensor], x0: Tensor, perturbation: Tensor) -> float:
    """The training loss on all samples, with one draw of the noise."""
    levels = noise.paper_levels().tolist()
    return float(
        np.mean([(denoiser(x0 + level * perturbation, level) - x0).square().mean() for level in levels])
    )


def _recovery(mixture: MoLRG, denoiser: SubspaceDenoiser) -> float:
    """Mean over classes of ||U_k^T Q_k||^2 / d, with the learned blocks matched to the classes."""
    overlaps = np.array(
        [
            [
                float((basis.T @ learned).square().sum()) / denoiser.rank
                for learned in denoiser.orthonormal_bases()
            ]
            for basis in mixture.bases
        ]
    )
    return float(overlaps[linear_sum_assignment(overlaps, maximize=True)].mean())
