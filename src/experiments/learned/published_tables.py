r"""The paper's tables of trained parametric denoisers: two classes that are not the simple case.

The published SNRs are those of U diag(beta) U^T x with a learned U. Here the same network is trained again,
in variants that differ in one thing each: the start of U, the noise levels and weights of the loss, what the
softmax weights know, and constraints on U. All variants and seeds of a setting are trained side by side on
the same points and noise. `optimum` computes what training would end in, for orthogonal classes.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.special import expit
from torch import Tensor, nn

from experiments.learned.bench import neighbourhoods
from experiments.theory.chi_rules import chi_rule
from experiments.theory.tilted_bases import bases_at_angle
from molrg import snr
from molrg.learning import checkpoints
from molrg.learning.networks import subspace_scale
from molrg.model import noise
from molrg.model.coefficients import block_variances, coefficients
from molrg.model.mixture import MoLRG
from molrg.support.checks import choice, integer

__all__ = [
    "DELTA",
    "DIM",
    "LEVELS",
    "PUBLISHED",
    "SETTINGS",
    "VARIANTS",
    "Setting",
    "Variant",
    "block_loss",
    "level_table",
    "loss_weights",
    "optimum",
    "run",
]

DELTA = 0.2
DIM = 50
LEVELS = noise.IMAGE_LEVELS
"""Noise levels of the published tables."""


class Setting(NamedTuple):
    """Two classes with principal angles of `degrees`, and the blocks of the network trained on them."""

    ranks: tuple[int, int]
    priors: tuple[float, float]
    degrees: float
    blocks: tuple[int, int]


SETTINGS = {
    "orthogonal": Setting((5, 5), (0.5, 0.5), 90, (5, 5)),
    "angle": Setting((5, 5), (0.5, 0.5), 30, (5, 5)),
    "priors": Setting((5, 5), (0.8, 0.2), 90, (5, 5)),
    "ranks": Setting((10, 2), (0.5, 0.5), 90, (10, 2)),
    "ranks in equal blocks": Setting((10, 2), (0.5, 0.5), 90, (6, 6)),
}

PUBLISHED: dict[str, list[list[float]]] = {
    "orthogonal": [[24.88, 25.15, 26.95, 35.84, 58.27, 20.84, 4.05, 1.57]],
    "angle": [[16.70, 16.92, 18.39, 25.97, 38.54, 22.88, 14.56, 12.55]],
    "priors": [
        [52.35, 52.43, 52.98, 56.74, 75.61, 134.76, 72.38, 13.56, 4.50],
        [12.15, 12.16, 12.31, 13.10, 17.49, 23.91, 6.05, 1.17, 0.52],
        [38.69, 38.74, 39.17, 41.85, 55.77, 90.54, 35.28, 7.40, 2.81],
    ],
    "ranks": [
        [68.94, 69.00, 69.83, 74.87, 102.24, 195.44, 215.31, 34.17, 8.44],
        [7.75, 7.75, 7.80, 8.08, 8.79, 6.50, 1.80, 0.46, 0.27],
        [24.12, 24.13, 24.28, 25.21, 28.19, 23.34, 8.18, 2.84, 1.45],
    ],
}
"""The published rows: overall, or class 0, class 1 and overall; the last 8 or all 9 of LEVELS."""


class Variant(NamedTuple):
    """What is done otherwise than in the plain run."""

    start: str = "random"
    levels: str = "ddpm"
    weighting: str = "uniform"
    informed: bool = False
    orthonormal: bool = False


VARIANTS = {
    "plain": Variant(),
    "start: neighbourhoods": Variant(start="neighbourhoods"),
    "start: near the truth": Variant(start="truth"),
    "weight: 1/σ²": Variant(weighting="noise"),
    "weight: EDM": Variant(weighting="edm"),
    "weight: 1/σ², near the truth": Variant(start="truth", weighting="noise"),
    "levels: 14": Variant(levels="14"),
    "levels: evenly to 6": Variant(levels="even"),
    "informed, near the truth": Variant(start="truth", informed=True),
    "orthonormal U": Variant(orthonormal=True),
}
"""Variants by name. `levels`: see `level_table`; `weighting`: of the loss of x_0; `informed`: whether the
softmax weights hold the priors and determinants of Proposition 1; `orthonormal`: U is kept so."""

_TABLE = 3500  # a multiple of 500 and of 14
_CHECKPOINT_EVERY = 2500


def level_table(kind: str) -> Tensor:
    """Return 3500 equally likely noise levels, float64, increasing.

    "ddpm": all 500 of a DDPM with linear schedule; "14": `noise.paper_levels()`; "even": evenly spaced, to 6.
    """
    choice("kind", kind, ("ddpm", "14", "even"))
    if kind == "even":
        return 6 * (torch.arange(_TABLE, dtype=torch.float64) + 0.5) / _TABLE
    levels = noise.ddpm_levels(500) if kind == "ddpm" else noise.paper_levels()
    return levels.repeat_interleave(_TABLE // len(levels))


def loss_weights(kind: str, levels: Tensor) -> Tensor:
    """Return the loss weights of `levels`, with mean 1: "uniform", "noise" (1/sigma^2) or "edm".

    EDM's are 1/sigma^2 + 1/s^2 with s the root mean square of the data of ranks 5 and 5.
    """
    choice("kind", kind, ("uniform", "noise", "edm"))
    if kind == "uniform":
        return torch.ones_like(levels)
    weights = levels**-2 + (DIM / (5 + 5 * DELTA**2) if kind == "edm" else 0.0)
    return weights / weights.mean()


def run(
    setting: str,
    seeds: int,
    samples: int,
    test_size: int,
    epochs: Sequence[int],
    batch_size: int,
    learning_rate: float,
    workdir: Path,
) -> dict[str, Any]:
    """Train all VARIANTS of the parametric denoiser on one of the SETTINGS, and read them out.

    K = 2, n = 50, delta = .2, background `span`. Each seed has its own subspaces, `samples` unlabelled points
    and starts. Adam makes epochs[-1] passes over the points in batches of `batch_size`, drawn with
    replacement; the networks are read out after each of `epochs`, with their last weights, on `test_size` new
    points of each class with noise; the denominator is `residual`.

    Returns, with axes T = epochs, R = seeds, V = VARIANTS, S = LEVELS and C = 3 (class 0, class 1, pooled):
    `snr` (T, R, V, S, C), and `snr_averaged` (R, V, S, C) for the running mean of the weights, decay .999;
    `bayes` (S, C), the optimal denoiser's;
    `held` (T, R, V, 2, 2): ||U_k^T Q_l||^2 for class k and learned block l, Q_l an orthonormal basis of it,
    that is, how many of the directions of class k it holds; blocks are ordered to match the classes;
    and at the end
    `lengths` (R, V, r), squared singular values of each block of U, descending in a block;
    `outside` (R, V), share of ||U||^2 outside the span of the classes;
    `cosines` (R, V), root mean square cosine of the principal angles between the two blocks;
    `excess`, `excess_truth` (R, V), the loss of the learned U, and of the true one in the same form, over
    that of the optimal denoiser, less 1, for the levels and weights that the variant is trained on;
    `variants`, `epochs`, `steps`.

    Raises ValueError for arguments outside their ranges.
    """
    given = SETTINGS[choice("setting", setting, tuple(SETTINGS))]
    integer("seeds", seeds, 1)
    integer("samples", samples, 200)
    integer("test_size", test_size, 10)
    integer("batch_size", batch_size, 1)
    marks = [integer(f"epochs[{i}]", epoch, 1) for i, epoch in enumerate(epochs)]
    if not marks or marks != sorted(set(marks)):
        raise ValueError(f"epochs must be increasing, got {list(epochs)}")
    steps = [max(1, epoch * samples // batch_size) for epoch in marks]
    trainings = _Training(given, seeds, samples, batch_size, learning_rate)
    bases, averages = trainings.run(steps, Path(workdir) / "training.safetensors")
    tests = [_test_points(mixture, test_size, seed) for seed, mixture in enumerate(trainings.mixtures)]
    found = {
        "snr": np.stack([_snr(given, each, trainings.mixtures, tests) for each in bases]),
        "snr_averaged": _snr(given, averages, trainings.mixtures, tests),
        "bayes": _bayes(given, trainings.mixtures[0], test_size),
        "held": np.stack([_held(given, each, trainings.mixtures) for each in bases]),
        **_shape(given, bases[-1], trainings.mixtures),
        **_losses(given, bases[-1], trainings.mixtures, tests),
    }
    return {
        **{key: np.round(value, 5) for key, value in found.items()},
        "variants": list(VARIANTS),
        "epochs": marks,
        "steps": steps[-1],
    }


# --- the optimum, computed ----------------------------------------------------------------------------


def block_loss(
    lengths: Sequence[float],
    ranks: tuple[int, int],
    priors: tuple[float, float],
    levels: Sequence[float] | np.ndarray,
    weights: Sequence[float] | np.ndarray,
) -> float:
    r"""Return the loss, less E||x_0||^2, of the true blocks with columns of squared `lengths` (g_0, g_1).

    Two orthogonal classes, weights w of the plain form. In block l the output is g_l beta_l z, z = U_l^T x,
    and E[U_l^T x_0 | x, class k] = z times zeta (l = k) or xi, so that a level contributes

        sum_k pi_k sum_l E[((g_l beta_l)^2 - 2 g_l beta_l (zeta or xi)) E_l],   E_l = ||z||^2 ~ v chi^2_{d_l},

    by a product rule over the two energies. `weights` of the `levels` are normalised to sum 1.
    """
    (y, p), (z, q) = (chi_rule(rank, 2) for rank in ranks)
    sigma = np.asarray(levels, dtype=float)[:, None, None]
    kappa, xi, gain = coefficients(sigma, DELTA)
    shrinks, variances = (xi + gain, xi), block_variances(sigma, DELTA)
    total = 0.0
    for own, prior in enumerate(priors):
        energies = (variances[own] * y[:, None], variances[1 - own] * z)
        w = expit(kappa * (lengths[0] * energies[0] - lengths[1] * energies[1]))
        scales = (lengths[0] * (xi + gain * w), lengths[1] * (xi + gain * (1 - w)))
        aims = shrinks if own == 0 else shrinks[::-1]
        terms = [(g * g - 2 * g * s) * e for g, s, e in zip(scales, aims, energies, strict=True)]
        total = total + prior * np.einsum("syz,y,z->s", terms[0] + terms[1], p, q)
    return float(np.average(total, weights=np.asarray(weights)))


def optimum(
    ranks: tuple[int, int],
    priors: tuple[float, float],
    levels: Sequence[float] | np.ndarray,
    weights: Sequence[float] | np.ndarray,
) -> tuple[float, float]:
    """Return the squared lengths of the two true blocks with the least `block_loss`, to about 1e-3."""
    options = {"xatol": 5e-4, "fatol": 1e-9}
    found = minimize(
        block_loss, [1.0, 1.0], args=(ranks, priors, levels, weights), method="Nelder-Mead", options=options
    )
    return float(found.x[0]), float(found.x[1])


# --- training -----------------------------------------------------------------------------------------


class _Training:
    """All variants and seeds of a setting as one batched network, and what its training needs."""

    def __init__(
        self, setting: Setting, seeds: int, samples: int, batch_size: int, learning_rate: float
    ) -> None:
        self.setting, self.batch_size, self.learning_rate = setting, batch_size, learning_rate
        self.generator = torch.Generator().manual_seed(0)
        draws = [torch.Generator().manual_seed(seed) for seed in range(seeds)]
        self.mixtures = [_mixture(setting, generator) for generator in draws]
        self.data = torch.stack(
            [
                mixture.sample(samples, generator=g)[0].float()
                for mixture, g in zip(self.mixtures, draws, strict=True)
            ]
        )
        starts = [
            _starts(setting, mixture, x0, g)
            for mixture, x0, g in zip(self.mixtures, self.data, draws, strict=True)
        ]
        self.basis = nn.Parameter(torch.stack(starts))  # (R, V, n, r)
        self.average = self.basis.detach().clone()
        self.optimizer = torch.optim.Adam([self.basis], lr=learning_rate, fused=True)
        kinds = list(VARIANTS.values())
        tables = [level_table(kind.levels) for kind in kinds]
        weights = [loss_weights(kind.weighting, table) for kind, table in zip(kinds, tables, strict=True)]
        self.levels = torch.stack(tables).float()
        self.weights = torch.stack(weights).float()
        self.orthonormal = [v for v, kind in enumerate(kinds) if kind.orthonormal]
        self.done = 0

    def step(self) -> None:
        """One update of every network. Its seed's points and noise are the same for all variants."""
        size = (len(self.data), self.batch_size)
        rows = torch.randint(self.data.shape[1], size, generator=self.generator)
        quantiles = torch.randint(_TABLE, size, generator=self.generator)
        eps = torch.randn(*size, self.data.shape[2], generator=self.generator)
        rows += torch.arange(size[0])[:, None] * self.data.shape[1]
        x0 = self.data.flatten(0, 1).index_select(0, rows.flatten()).unflatten(0, size)
        sigma, weights = (
            table.index_select(1, quantiles.flatten()).unflatten(1, size).movedim(0, 1)
            for table in (self.levels, self.weights)
        )
        loss = weights * _errors(self.setting, self.basis, x0, eps, sigma[..., None])
        self.optimizer.zero_grad(set_to_none=True)
        loss.mean(-1).sum().backward()
        self.optimizer.step()
        self.done += 1
        with torch.no_grad():
            for v in self.orthonormal:  # one step of Newton and Schulz towards the polar factor
                u = self.basis[:, v]
                self.basis[:, v] = 1.5 * u - 0.5 * u @ (u.mT @ u)
            self.average.lerp_(self.basis, 1 - min(0.999, self.done / (9 + self.done)))

    def run(self, marks: Sequence[int], checkpoint: Path) -> tuple[list[Tensor], Tensor]:
        """Train to the last of `marks`; returns the bases at all marks, and the averaged ones, float64.

        Goes on from the checkpoint, if there is one.
        """
        from tqdm import tqdm

        seen = self._resume(checkpoint)
        with tqdm(total=marks[-1], initial=self.done, desc="training all variants side by side") as bar:
            while self.done < marks[-1]:
                self.step()
                bar.update()
                if self.done in marks:
                    seen.append(self.basis.detach().double())
                if self.done % _CHECKPOINT_EVERY == 0 or self.done == marks[-1]:
                    self._save(checkpoint, seen)
        return seen, self.average.double()

    def _save(self, checkpoint: Path, seen: list[Tensor]) -> None:
        moments = self.optimizer.state_dict()["state"][0]
        state = {f"adam.{name}": value for name, value in moments.items()}
        state |= {f"seen.{i}": basis for i, basis in enumerate(seen)}
        state |= {
            "basis": self.basis.detach(),
            "average": self.average,
            "generator": self.generator.get_state(),
        }
        checkpoints.save(checkpoint, state, {"done": str(self.done)})

    def _resume(self, checkpoint: Path) -> list[Tensor]:
        try:
            state, metadata = checkpoints.load(checkpoint)
        except FileNotFoundError:
            return []
        self.done = int(metadata["done"])
        with torch.no_grad():
            self.basis.copy_(state["basis"])
        self.average.copy_(state["average"])
        self.generator.set_state(state["generator"])
        moments = {name.removeprefix("adam."): t for name, t in state.items() if name.startswith("adam.")}
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": {0: moments}, "param_groups": groups})
        return [state[f"seen.{i}"] for i in range(sum(name.startswith("seen.") for name in state))]


def _mixture(setting: Setting, generator: torch.Generator) -> MoLRG:
    """The two classes in a random position in R^n."""
    frame = torch.linalg.qr(torch.randn(DIM, sum(setting.ranks), generator=generator, dtype=torch.float64)).Q
    if setting.degrees == 90:
        return MoLRG(list(frame.split(list(setting.ranks), 1)), DELTA, setting.priors)
    flat = bases_at_angle(2, setting.ranks[0], setting.degrees, setting.ranks[0])
    return MoLRG([frame @ basis for basis in flat], DELTA, setting.priors)


def _starts(setting: Setting, mixture: MoLRG, x0: Tensor, generator: torch.Generator) -> Tensor:
    """The start of U in each variant, (V, n, r); variants with the same kind of start share it."""
    columns = sum(setting.blocks)
    random = torch.linalg.qr(torch.randn(DIM, columns, generator=generator)).Q
    truth = torch.cat(mixture.bases, 1).float()  # where blocks and ranks differ, cut at the blocks
    starts = {
        "random": random,
        "neighbourhoods": neighbourhoods(x0, setting.blocks, len(x0) // 10, generator),
        "truth": truth + 0.1 * torch.randn(truth.shape, generator=generator) / DIM**0.5,
    }
    return torch.stack([starts[variant.start] for variant in VARIANTS.values()])


def _errors(setting: Setting, basis: Tensor, x0: Tensor, eps: Tensor, sigma: Tensor) -> Tensor:
    r"""||U diag(beta) U^T x - x_0||^2 - ||x_0||^2 of all networks, (R, V, N).

    `basis` (R, V, n, r), `x0` and `eps` (R, N, n), `sigma` (R, V, N, 1) or broadcast. It is
    y^T (U^T U) y - 2 y^T U^T x_0 with y = diag(beta) U^T x: the variants share the products with x_0 and eps.
    """
    variants, size = basis.shape[1], x0.shape[1]
    flat = basis.movedim(1, 2).flatten(2)  # (R, n, V r)
    products = (torch.cat([x0, eps], 1) @ flat).unflatten(-1, (variants, -1)).movedim(2, 1)
    clean, noisy = products[:, :, :size], products[:, :, size:]
    y = _scaled(setting, clean + sigma * noisy, sigma)
    return ((y @ (basis.mT @ basis) - 2 * clean) * y).sum(-1)


def _scaled(setting: Setting, z: Tensor, sigma: Tensor) -> Tensor:
    """diag(beta) z, z (R, V, N, r): informed variants with the logits' offsets, the others without."""
    informed = torch.tensor([kind.informed for kind in VARIANTS.values()], dtype=z.dtype)[:, None]
    contrast = torch.log((1 + sigma**2) / (DELTA**2 + sigma**2))[..., 0]
    offsets = [np.log(p) - d / 2 * contrast for p, d in zip(setting.priors, setting.blocks, strict=True)]
    return subspace_scale(z, sigma, setting.blocks, DELTA, informed * torch.stack(offsets))


# --- reading out --------------------------------------------------------------------------------------


def _test_points(mixture: MoLRG, size: int, seed: int) -> tuple[Tensor, Tensor]:
    """`size` points of each class, and noise: two tensors (2, N, n)."""
    generator = torch.Generator().manual_seed(1000 + seed)
    x0 = torch.stack([mixture.sample(size, generator, torch.full((size,), k))[0] for k in (0, 1)])
    return x0, torch.randn(x0.shape, generator=generator, dtype=x0.dtype)


def _snr(
    setting: Setting, bases: Tensor, mixtures: Sequence[MoLRG], tests: Sequence[tuple[Tensor, Tensor]]
) -> np.ndarray:
    """The SNR of each class and the pooled one, (R, V, S, 3), for `bases` (R, V, n, r)."""
    energies = torch.stack(
        [_energies(setting, *each) for each in zip(bases, mixtures, tests, strict=True)]
    )  # (R, V, S, 2 for class, 2 for own subspace and the rest)
    priors = torch.tensor(setting.priors, dtype=energies.dtype)[:, None]
    energies = torch.cat([energies, (priors * energies).sum(-2, keepdim=True)], -2)
    return (energies[..., 0] / energies[..., 1]).numpy()


def _energies(setting: Setting, basis: Tensor, mixture: MoLRG, test: tuple[Tensor, Tensor]) -> Tensor:
    """Mean energy of denoised points in the own subspace and in the rest, (V, S, 2, 2); U (V, n, r)."""
    gram, found = basis.mT @ basis, []
    for k in (0, 1):
        own = mixture.bases[k].T @ basis
        clean, noisy = test[0][k] @ basis, test[1][k] @ basis
        for level in LEVELS:
            y = _scaled(setting, clean + level * noisy, torch.full((1, 1, 1), level, dtype=basis.dtype))
            signal = (y @ own.mT).square().sum(-1).mean(-1)
            found.append(torch.stack([signal, ((y @ gram) * y).sum(-1).mean(-1) - signal], -1))
    return torch.stack(found, 1).unflatten(1, (2, -1)).movedim(1, 2)


def _bayes(setting: Setting, mixture: MoLRG, size: int) -> np.ndarray:
    """The optimal denoiser's SNR, (S, 3): exact for orthogonal classes, else from 20 `size` points each."""

    def value(average: str) -> Tensor:
        if setting.degrees == 90:
            return snr.exact_classes(setting.ranks, setting.priors, DELTA, LEVELS, average=average)
        draws = torch.Generator().manual_seed(0)
        return snr.estimate(mixture, mixture, LEVELS, 20 * size, average=average, generator=draws).value

    return torch.cat([value("none"), value("pooled")[:, None]], 1).numpy()


def _blocks(setting: Setting, basis: Tensor, mixture: MoLRG) -> tuple[Tensor, Tensor]:
    """The two blocks of one U (n, r); equal ones in the order that matches the classes better."""
    first, second = basis.split(list(setting.blocks), 1)
    if setting.blocks[0] == setting.blocks[1]:
        (a, b), (c, d) = _overlaps((first, second), mixture).tolist()
        if b + c > a + d:
            return second, first
    return first, second


def _overlaps(blocks: tuple[Tensor, Tensor], mixture: MoLRG) -> Tensor:
    """||U_k^T Q_l||^2, (2, 2), Q_l an orthonormal basis of block l."""
    spans = [torch.linalg.qr(block).Q for block in blocks]
    return torch.stack([torch.stack([(u.T @ q).square().sum() for q in spans]) for u in mixture.bases])


def _held(setting: Setting, bases: Tensor, mixtures: Sequence[MoLRG]) -> np.ndarray:
    rows = [
        torch.stack([_overlaps(_blocks(setting, basis, mixture), mixture) for basis in each])
        for each, mixture in zip(bases, mixtures, strict=True)
    ]
    return torch.stack(rows).numpy()


def _shape(setting: Setting, bases: Tensor, mixtures: Sequence[MoLRG]) -> dict[str, np.ndarray]:
    """`lengths`, `outside` and `cosines` of `run`."""
    lengths, outside, cosines = [], [], []
    for each, mixture in zip(bases, mixtures, strict=True):
        span = torch.linalg.qr(torch.cat(mixture.bases, 1)).Q
        for basis in each:
            blocks = _blocks(setting, basis, mixture)
            lengths.append(torch.cat([torch.linalg.svdvals(block).square() for block in blocks]))
            outside.append(1 - (span.T @ basis).square().sum() / basis.square().sum())
            one, two = (torch.linalg.qr(block).Q for block in blocks)
            cosines.append(((one.T @ two).square().sum() / min(setting.blocks)).sqrt())
    shape = (len(mixtures), len(VARIANTS))
    found = {"lengths": lengths, "outside": outside, "cosines": cosines}
    return {key: torch.stack(values).unflatten(0, shape).numpy() for key, values in found.items()}


def _losses(
    setting: Setting, bases: Tensor, mixtures: Sequence[MoLRG], tests: Sequence[tuple[Tensor, Tensor]]
) -> dict[str, np.ndarray]:
    """`excess` and `excess_truth` of `run`, at 28 quantiles of each variant's levels."""
    kinds = list(VARIANTS.values())
    found = []
    for basis, mixture, (x0, eps) in zip(bases, mixtures, tests, strict=True):
        pair = torch.stack([basis, torch.cat(mixture.bases, 1).expand_as(basis)])
        picked = {kind.levels: level_table(kind.levels)[_TABLE // 56 :: _TABLE // 28] for kind in kinds}
        losses = {
            name: torch.stack(
                [_losses_at(setting, pair, mixture, x0, eps, level) for level in levels.tolist()]
            )
            for name, levels in picked.items()
        }  # (28, 3, V): of the learned U, of the true one, of the optimal denoiser
        means = [
            loss_weights(kind.weighting, picked[kind.levels]) @ losses[kind.levels][:, :, v]
            for v, kind in enumerate(kinds)
        ]
        learned, truth, optimal = torch.stack(means, 1)
        found.append(torch.stack([learned / optimal, truth / optimal]) - 1)
    excess, excess_truth = torch.stack(found, 1).numpy()
    return {"excess": excess, "excess_truth": excess_truth}


def _losses_at(
    setting: Setting, pair: Tensor, mixture: MoLRG, x0: Tensor, eps: Tensor, level: float
) -> Tensor:
    """Mean squared errors at one level, (3, V): of two networks, `pair` (2, V, n, r), and the least one."""
    column = torch.full((1, 1, 1, 1), level, dtype=x0.dtype)
    total = torch.zeros(3, pair.shape[1], dtype=x0.dtype)
    for k, prior in enumerate(setting.priors):
        clean, noisy = (part[k].expand(2, -1, -1) for part in (x0, eps))
        errors = _errors(setting, pair, clean, noisy, column).mean(-1) + x0[k].square().sum(-1).mean()
        best = (mixture.posterior_mean(x0[k] + level * eps[k], level) - x0[k]).square().sum(-1).mean()
        total += prior * torch.cat([errors, best.expand(1, pair.shape[1])])
    return total
