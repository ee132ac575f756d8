"""Readouts fitted to noisy and to denoised MoLRG points: with many labels, and with few."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from molrg.measuring import probes, subspaces
from molrg.model.mixture import MoLRG
from molrg.support.checks import integer

__all__ = ["FEATURES", "FEW", "INPUTS", "READOUTS", "run"]

INPUTS = ("noisy", "clean")
FEATURES = ("x", "f", "h")
READOUTS = ("linear", "nearest", "quadratic")
FEW = ("nearest, x", "nearest, f", "second moment, f", "linear, f", "quadratic, h")

_L2 = 1e-3  # of probes with fewer features than samples: any small value does
_FEW_L2 = 1e-1  # of the quadratic probe, which has more features than samples where labels are few


def run(
    num_classes: int,
    rank: int,
    dim: int,
    delta: float,
    num_levels: int,
    train_per_class: int,
    test_per_class: int,
    seeds: int,
    shots: Sequence[int],
    draws: int,
    few_test_per_class: int,
    workdir: Path,
) -> dict[str, Any]:
    """Fit readouts to x and to f = E[x_0 | x], for noisy and clean input, at levels from 0.01 to 4.

    Each seed has its own orthogonal mixture (`span`), with as many samples of each class as of any other.
    `linear` is a logistic regression, `nearest` the subspace of largest energy (top `rank` singular vectors
    of each class), `quadratic` a logistic regression on squares of the coordinates along the class bases.
    With few labels, `quadratic, h` is a logistic regression on all products of two coordinates of
    h = U^T f, `second moment` names the class whose labelled points have the largest sum of squared inner
    products with the point, and `nearest` uses min(shots, rank) vectors.

    Returns, with R = seeds, I = inputs (INPUTS), S = levels, M = shots:
    `many` (R, I, F, 3, S) accuracies by feature (FEATURES) and readout (READOUTS), fitted to
    `train_per_class` samples a class;
    `few` (M, I, 5, S) mean accuracy of the readouts FEW over `draws` labelled sets, each with its own mixture
    and `few_test_per_class` test samples a class, `few_error` its standard error, and `few_rise`
    (M, I, 5, S) the Student statistic of the change from the lowest level, paired within a draw (0 at that
    level); `levels`, `shots`.

    Raises ValueError for arguments outside their ranges.
    """
    integer("num_levels", num_levels, 2)
    integer("seeds", seeds, 1)
    integer("draws", draws, 2)
    integer("test_per_class", test_per_class, 1)
    integer("few_test_per_class", few_test_per_class, 1)
    integer("train_per_class", train_per_class, rank)
    for shot in shots:
        integer("shots", shot, 1)
    levels = torch.logspace(-2, np.log10(4), num_levels, dtype=torch.float64).tolist()
    shape = (num_classes, rank, dim, delta)
    many = [
        _many(shape, levels, train_per_class, test_per_class, torch.Generator().manual_seed(seed))
        for seed in range(seeds)
    ]
    mean, error, rise = [], [], []
    for shot in shots:
        found = np.stack(
            [
                _few(shape, levels, shot, few_test_per_class, torch.Generator().manual_seed(1000 + draw))
                for draw in range(draws)
            ]
        )
        change = found - found[..., :1]
        mean.append(found.mean(0))
        error.append(found.std(0, ddof=1) / np.sqrt(draws))
        spread = change.std(0, ddof=1) / np.sqrt(draws)
        rise.append(np.divide(change.mean(0), spread, out=np.zeros_like(spread), where=spread > 0))
    return {
        "many": np.round(many, 5),
        "few": np.round(mean, 5),
        "few_error": np.round(error, 5),
        "few_rise": np.round(rise, 3),
        "levels": np.round(levels, 6),
        "shots": list(shots),
    }


def _features(
    mixture: MoLRG, levels: Sequence[float], per_class: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Points x and f, (I, S, N, n), and labels, equally many of each class."""
    labels = torch.arange(mixture.num_classes).repeat_interleave(per_class)
    x0, _ = mixture.sample(len(labels), generator=generator, labels=labels)
    noise = torch.randn(x0.shape, generator=generator)
    x = torch.stack([torch.stack([x0 + (kind == "noisy") * s * noise for s in levels]) for kind in INPUTS])
    f = torch.stack(
        [
            torch.stack([mixture.posterior_mean(p, s) for p, s in zip(points, levels, strict=True)])
            for points in x
        ]
    )
    return x, f, labels


def _many(
    shape: tuple[int, int, int, float],
    levels: Sequence[float],
    train_per_class: int,
    test_per_class: int,
    generator: torch.Generator,
) -> np.ndarray:
    mixture = MoLRG.orthogonal(*shape, generator=generator)
    (classes, rank, *_), frame = shape, torch.cat(mixture.bases, 1)
    x, f, labels = _features(mixture, levels, train_per_class, generator)
    x_test, f_test, test_labels = _features(mixture, levels, test_per_class, generator)
    accuracy = np.empty((len(INPUTS), len(FEATURES), len(READOUTS), len(levels)))
    for i in range(len(INPUTS)):
        pairs = ((x[i], x_test[i]), (f[i], f_test[i]), (f[i] @ frame, f_test[i] @ frame))
        for j, (train, test) in enumerate(pairs):
            squares = [part.square() if j == 2 else (part @ frame).square() for part in (train, test)]
            fits = (
                (probes.fit_logistic(train, labels, _L2, classes), test),
                (subspaces.class_subspaces(train, labels, rank, classes), test),
                (probes.fit_logistic(squares[0], labels, _L2, classes), squares[1]),
            )
            accuracy[i, j] = np.array([fit.accuracy(seen, test_labels).numpy() for fit, seen in fits])
    return accuracy


def _few(
    shape: tuple[int, int, int, float],
    levels: Sequence[float],
    shots: int,
    test_per_class: int,
    generator: torch.Generator,
) -> np.ndarray:
    mixture = MoLRG.orthogonal(*shape, generator=generator)
    classes, rank = shape[:2]
    frame = torch.cat(mixture.bases, 1)
    x, f, labels = _features(mixture, levels, shots, generator)
    x_test, f_test, test_labels = _features(mixture, levels, test_per_class, generator)
    vectors = min(shots, rank)
    accuracy = np.empty((len(INPUTS), len(FEW), len(levels)))
    for i in range(len(INPUTS)):
        h, h_test = _products(f[i] @ frame), _products(f_test[i] @ frame)
        similarity = (f_test[i] @ f[i].mT).square().unflatten(2, (classes, shots)).sum(3)
        rows = (
            subspaces.class_subspaces(x[i], labels, vectors, classes).accuracy(x_test[i], test_labels),
            subspaces.class_subspaces(f[i], labels, vectors, classes).accuracy(f_test[i], test_labels),
            (similarity.argmax(2) == test_labels).double().mean(1),
            probes.fit_logistic(f[i], labels, _L2, classes).accuracy(f_test[i], test_labels),
            probes.fit_logistic(h, labels, _FEW_L2, classes, max_iterations=100).accuracy(
                h_test, test_labels
            ),
        )
        accuracy[i] = torch.stack(rows).numpy()
    return accuracy


def _products(h: Tensor) -> Tensor:
    """All products of two coordinates, (..., D (D + 1) / 2)."""
    i, j = torch.triu_indices(h.shape[-1], h.shape[-1])
    return h[..., i] * h[..., j]
