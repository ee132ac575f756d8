r"""Read classes out of features: many logistic regressions in one solve, subspace energies, image SNR.

Features are (P, N, D): P *probes* (noise levels x layers x seeds), N samples, D dimensions. Labels are
(N,), shared by the probes, or (P, N). Every quantity of the P probes is computed at once, in chunks over P
that bound the memory, and does not depend on which probes share a call.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from molrg.measuring.labelled import SMALLEST, binary_scale, check_features, check_training, share_correct
from molrg.support.checks import fraction, integer, numbers

__all__ = [
    "CHUNK_ELEMENTS",
    "L2_GRID",
    "LogisticProbes",
    "fit_logistic",
    "select_logistic",
    "select_logistic_curve",
]

L2_GRID = (1e-1, 1e-2, 1e-3, 1e-4)
CHUNK_ELEMENTS = 2**26
"""Bound on the elements of one chunk's working copy of the features (256 MB in float32)."""
_HISTORY = 10  # pairs that L-BFGS remembers
_FLOOR = 1e-4  # least curvature that the preconditioner assumes, against nearly dependent features


@dataclass(frozen=True)
class LogisticProbes:
    """P fitted multinomial logistic regressions on standardised features.

    weight (P, K, D) and bias (P, K) act on (x - mean) / scale, mean and scale (P, D) from the training
    set; l2 (P,) is the penalty used, loss (P,) the penalised training loss, iterations (P,) counts L-BFGS
    steps, converged (P,) says whether the largest gradient entry came under the tolerance.
    validation_accuracy (P, L) holds one column per l2 of the grid where a grid was searched, else None.
    """

    weight: Tensor
    bias: Tensor
    mean: Tensor
    scale: Tensor
    l2: Tensor
    loss: Tensor
    iterations: Tensor
    converged: Tensor
    validation_accuracy: Tensor | None = None

    def logits(self, features: Tensor) -> Tensor:
        """Return the class scores (P, N, K) of features (P, N, D)."""
        features = check_features(features, len(self.weight), self.weight.shape[2])
        features = features.to(self.weight.dtype)
        weight = self.weight / self.scale[:, None]
        parts = []
        for rows in _chunks(features):
            centred = features[rows] - self.mean[rows, None]
            parts.append(weight[rows] @ centred.mT + self.bias[rows, :, None])
        return torch.cat(parts).mT

    def predict(self, features: Tensor) -> Tensor:
        """Return the most likely class (P, N) of features (P, N, D)."""
        return self.logits(features).argmax(2)

    def accuracy(self, features: Tensor, labels: Tensor) -> Tensor:
        """Return the share of correct predictions (P,), float64."""
        return share_correct(self.predict(features), labels)


def fit_logistic(
    features: Tensor,
    labels: Tensor,
    l2: float | Tensor = 1e-3,
    num_classes: int | None = None,
    tolerance: float = 1e-4,
    max_iterations: int = 500,
) -> LogisticProbes:
    r"""Fit P multinomial logistic regressions at once by full-batch L-BFGS.

    Each minimises, over W (K, D) and b (K,), with features z standardised by their training mean and
    standard deviation (features that are constant, or spread by less than 1e-30, become 0),

        1/N sum_i [ logsumexp(W z_i + b) - (W z_i + b)_{y_i} ] + l2/2 ||W||^2,

    scikit-learn's `LogisticRegression(C=1 / (l2 * N))` on standardised features. It stops where the
    largest entry of the gradient is at most `tolerance`, as scikit-learn does.

    features (P, N, D) floating point, labels (N,) or (P, N) integers in [0, num_classes); l2 > 0, a number
    or (P,). num_classes defaults to the largest label plus one.

    Method. L-BFGS starts from the inverse of the Hessian at W = 0, Sigma/K + l2 I with the covariance Sigma
    of the standardised features. The logits are linear along a search direction, so
    that a step costs two matrix products whatever its line search does, which is Newton's method in one
    dimension.

    Raises ValueError for wrong shapes, types or ranges and for features that are not finite, or whose largest
    magnitude is not from 1e-30 to 1e30. float16 features are computed with in float32.
    """
    features, labels, num_classes = check_training(features, labels, num_classes)
    penalty = _penalties(l2, features)
    return _fit(features, labels, num_classes, penalty, *_stopping(tolerance, max_iterations))


def select_logistic(
    features: Tensor,
    labels: Tensor,
    l2_grid: Sequence[float] = L2_GRID,
    num_classes: int | None = None,
    validation: float = 0.2,
    tolerance: float = 1e-4,
    max_iterations: int = 500,
    generator: torch.Generator | None = None,
) -> LogisticProbes:
    """Fit P logistic regressions as `fit_logistic` does, each with the l2 that a validation split chooses.

    A random `validation` share of the samples (the same for all probes) is held out; every l2 of the grid
    is fitted to the rest, from the largest on and each from the solution before it; the most accurate one
    (the larger where equal) is fitted again to all samples.

    Raises ValueError as `fit_logistic`, or for an empty grid or a share outside (0, 1).
    """
    search = _search(features, labels, l2_grid, num_classes, validation, tolerance, max_iterations, generator)
    return search.fit(search.accuracy.argmax(1))


def select_logistic_curve(
    features: Tensor,
    labels: Tensor,
    l2_grid: Sequence[float] = L2_GRID,
    num_classes: int | None = None,
    validation: float = 0.2,
    tolerance: float = 1e-4,
    max_iterations: int = 500,
    generator: torch.Generator | None = None,
) -> LogisticProbes:
    """Fit the P logistic regressions of one curve with one l2 for all, as `select_logistic` does otherwise.

    It is the l2 of highest validation accuracy in the mean over the probes (the larger where equal). A choice
    per level would add its own noise to the curve, and a step where it changes. Call it once for each curve,
    with the features (P, N, D) of all its levels.

    Raises ValueError as `select_logistic`.
    """
    search = _search(features, labels, l2_grid, num_classes, validation, tolerance, max_iterations, generator)
    return search.fit(search.accuracy.mean(0).argmax().expand(len(features)))


class _Search(NamedTuple):
    """Validation accuracy (P, G) of an l2 grid, from the largest on, and what the last fit needs."""

    accuracy: Tensor
    features: Tensor
    grid: Tensor  # (P, G)
    start: Tensor  # (P, K, D + 1), the solution of the smallest l2
    labels: Tensor
    num_classes: int
    tolerance: float
    max_iterations: int

    def fit(self, best: Tensor) -> LogisticProbes:
        """Fit all samples with the l2 numbers `best` (P,)."""
        penalty = self.grid.gather(1, best[:, None])[:, 0]
        stopping = self.tolerance, self.max_iterations
        found = _fit(self.features, self.labels, self.num_classes, penalty, *stopping, self.start)
        return replace(found, validation_accuracy=self.accuracy)


def _search(
    features: Tensor,
    labels: Tensor,
    l2_grid: Sequence[float],
    num_classes: int | None,
    validation: float,
    tolerance: float,
    max_iterations: int,
    generator: torch.Generator | None,
) -> _Search:
    features, labels, num_classes = check_training(features, labels, num_classes)
    tolerance, max_iterations = _stopping(tolerance, max_iterations)
    if len(l2_grid) == 0:
        raise ValueError("l2_grid must hold at least one value, for example (1e-2, 1e-3, 1e-4)")
    grid = torch.stack([_penalties(l2, features) for l2 in sorted(l2_grid, reverse=True)], 1)
    held = round(fraction("validation", validation) * features.shape[1])
    if not 0 < held < features.shape[1]:
        raise ValueError(
            f"validation {validation} of {features.shape[1]} samples leaves an empty part; use more samples"
        )
    device = generator.device if generator is not None else torch.device("cpu")
    order = torch.randperm(features.shape[1], generator=generator, device=device).to(features.device)
    kept, out = order[held:], order[:held]
    accuracies, starts = [], []
    for rows in _chunks(features):
        chunk, target = features[rows], labels if labels.ndim == 1 else labels[rows]
        data, start, scores = _standardise(chunk[:, kept]), None, []
        for penalty in grid[rows].T:
            fit = _solve(data, target[..., kept], num_classes, penalty, tolerance, max_iterations, start)
            scores.append(_probes(data, fit).accuracy(chunk[:, out], target[..., out]))
            start = fit.theta
        accuracies.append(torch.stack(scores, 1))
        starts.append(fit.theta)
    return _Search(
        torch.cat(accuracies),
        features,
        grid,
        torch.cat(starts),
        labels,
        num_classes,
        tolerance,
        max_iterations,
    )


def _fit(
    features: Tensor,
    labels: Tensor,
    num_classes: int,
    penalty: Tensor,
    tolerance: float,
    max_iterations: int,
    start: Tensor | None = None,
) -> LogisticProbes:
    """Fit all probes, chunk by chunk, with penalties (P,), from `start` (P, K, D + 1)."""
    parts = []
    for rows in _chunks(features):
        target = labels if labels.ndim == 1 else labels[rows]
        begin = None if start is None else start[rows]
        data = _standardise(features[rows])
        parts.append(
            _probes(data, _solve(data, target, num_classes, penalty[rows], tolerance, max_iterations, begin))
        )
    return _join(parts)


class _Data(NamedTuple):
    """Standardised features with a last column of ones, and what was done to them."""

    inputs: Tensor  # (P, N, D + 1)
    mean: Tensor  # (P, D)
    scale: Tensor  # (P, D)
    covariance: Tensor  # (P, D + 1, D + 1), of the inputs


class _Solution(NamedTuple):
    theta: Tensor  # (P, K, D + 1), the bias last
    l2: Tensor
    loss: Tensor
    iterations: Tensor
    converged: Tensor


def _standardise(features: Tensor) -> _Data:
    probes, samples, dim = features.shape
    mean = features.mean(1)
    inputs = features.new_ones(probes, samples, dim + 1)
    torch.sub(features, mean[:, None], out=inputs[..., :dim])
    unit = binary_scale(inputs, (1,))
    inputs /= unit
    covariance = inputs.mT @ inputs / samples
    spread = covariance.diagonal(dim1=1, dim2=2).sqrt()
    # The mean of equal numbers is off by rounding: a spread of that size is none.
    rounding = 10 * torch.finfo(features.dtype).eps * mean.abs()
    constant = torch.nn.functional.pad(rounding.clamp_min(SMALLEST), (0, 1), value=-1) >= spread * unit[:, 0]
    inverse = torch.where(constant, 0.0, 1 / spread)
    inputs *= inverse[:, None]
    covariance *= inverse[:, None] * inverse[:, :, None]
    scale = torch.where(constant, 1.0, spread * unit[:, 0])[:, :dim]
    return _Data(inputs, mean, scale, covariance)


def _solve(
    data: _Data,
    labels: Tensor,
    num_classes: int,
    l2: Tensor,
    tolerance: float,
    max_iterations: int,
    start: Tensor | None = None,
) -> _Solution:
    """Minimise the penalised loss of each probe; class-major (P, K, N) logits keep the products fast."""
    inputs = data.inputs
    probes, samples, dim = inputs.shape
    truth = torch.nn.functional.one_hot(labels, num_classes).mT.to(inputs.dtype).expand(probes, -1, -1)
    truth = truth.contiguous()
    penalty = l2[:, None, None].expand(-1, 1, dim).clone()
    penalty[..., -1] = 0

    hessian = data.covariance / num_classes
    hessian.diagonal(dim1=1, dim2=2).add_(penalty[:, 0] + _FLOOR)
    preconditioner = torch.cholesky_inverse(torch.linalg.cholesky(hessian))

    def gradient(theta: Tensor, logits: Tensor) -> Tensor:
        return (torch.softmax(logits, 1) - truth) @ inputs / samples + penalty * theta

    theta = inputs.new_zeros(probes, num_classes, dim) if start is None else start.clone()
    logits = theta @ inputs.mT
    slope = gradient(theta, logits)
    history: list[tuple[Tensor, Tensor, Tensor]] = []
    iterations = torch.zeros(probes, dtype=torch.int64, device=inputs.device)
    for _ in range(max_iterations):
        active = slope.abs().amax((1, 2)) > tolerance
        if not active.any():
            break
        iterations += active
        step = _direction(slope, history, preconditioner) * active[:, None, None]
        change = step @ inputs.mT
        length = _line_search(logits, change, truth, theta, step, slope, penalty)
        step = step * length[:, None, None]
        theta = theta + step
        logits = logits + change.mul_(length[:, None, None])
        previous, slope = slope, gradient(theta, logits)
        bend = slope - previous
        curvature = _dot(step, bend)
        # A probe at rest has no new pair: weight 0 leaves it out of the recursion.
        weight = torch.where(curvature > 0, 1 / curvature.clamp_min(torch.finfo(curvature.dtype).tiny), 0)
        history = [*history[1 - _HISTORY :], (step, bend, weight)]
    converged = slope.abs().amax((1, 2)) <= tolerance
    fit = (torch.logsumexp(logits, 1) - (truth * logits).sum(1)).mean(1)
    loss = fit + (penalty * theta.square()).sum((1, 2)) / 2
    return _Solution(theta, l2, loss, iterations, converged)


def _direction(slope: Tensor, history: list[tuple[Tensor, Tensor, Tensor]], preconditioner: Tensor) -> Tensor:
    """Return the L-BFGS direction (two-loop recursion) of each probe, from the scaled preconditioner."""
    direction, weights = -slope, []
    for step, bend, weight in reversed(history):
        amount = weight * _dot(step, direction)
        weights.append(amount)
        direction = direction - amount[:, None, None] * bend
    direction = direction @ preconditioner
    if history:
        step, bend, weight = history[-1]
        size = _dot(bend, bend @ preconditioner)
        scale = torch.where(weight > 0, _dot(step, bend) / size.clamp_min(torch.finfo(size.dtype).tiny), 1)
        direction = direction * scale[:, None, None]
    for (step, bend, weight), amount in zip(history, reversed(weights), strict=True):
        amount = amount - weight * _dot(bend, direction)
        direction = direction + amount[:, None, None] * step
    return direction


def _line_search(
    logits: Tensor, change: Tensor, truth: Tensor, theta: Tensor, step: Tensor, slope: Tensor, penalty: Tensor
) -> Tensor:
    """Return the length (P,) of each step, where the slope along it has fallen to a tenth."""
    samples = logits.shape[2]
    begin = _dot(slope, step).abs()
    linear = _dot(penalty * step, theta) - _dot(truth, change) / samples
    quadratic = _dot(penalty * step, step)
    low = torch.zeros_like(begin)
    high = torch.full_like(begin, torch.inf)
    length = torch.ones_like(begin)
    for _ in range(20):
        weighted = torch.softmax(logits + length[:, None, None] * change, 1) * change
        mean = weighted.sum(1)
        first = mean.sum(1) / samples + linear + length * quadratic
        if (first.abs() <= 0.1 * begin).all():
            break
        second = ((weighted * change).sum((1, 2)) - mean.square().sum(1)) / samples + quadratic
        low, high = torch.where(first < 0, length, low), torch.where(first > 0, length, high)
        newton = length - first / second.clamp_min(torch.finfo(second.dtype).tiny)
        # The loss is convex: its minimum stays bracketed, and bisection takes over where Newton leaves.
        middle = torch.where(high.isfinite(), (low + high) / 2, 2 * length)
        inside = (newton > low) & (newton < high) & (newton < 10 * length)
        length = torch.where(first.abs() <= 0.1 * begin, length, torch.where(inside, newton, middle))
    return length


def _dot(left: Tensor, right: Tensor) -> Tensor:
    return (left * right).sum((1, 2))


def _probes(data: _Data, fit: _Solution) -> LogisticProbes:
    return LogisticProbes(
        weight=fit.theta[..., :-1],
        bias=fit.theta[..., -1],
        mean=data.mean,
        scale=data.scale,
        l2=fit.l2,
        loss=fit.loss,
        iterations=fit.iterations,
        converged=fit.converged,
    )


def _join(parts: list[LogisticProbes]) -> LogisticProbes:
    names = ("weight", "bias", "mean", "scale", "l2", "loss", "iterations", "converged")
    return LogisticProbes(**{name: torch.cat([getattr(part, name) for part in parts]) for name in names})


def _chunks(features: Tensor) -> list[slice]:
    """Split the probes so that a chunk's working copy stays within CHUNK_ELEMENTS."""
    probes, samples, dim = features.shape
    size = max(1, CHUNK_ELEMENTS // (samples * (dim + 1)))
    return [slice(first, min(first + size, probes)) for first in range(0, probes, size)]


def _penalties(l2: float | Tensor, features: Tensor) -> Tensor:
    penalty = numbers("l2", l2).to(features.device, features.dtype)
    if penalty.ndim == 1 and len(penalty) != len(features):
        raise ValueError(
            f"l2 must be a number or one per probe ({len(features)},), got {tuple(penalty.shape)}"
        )
    if not (torch.isfinite(penalty) & (penalty > 0)).all():
        raise ValueError(f"l2 must be finite and positive, got {l2}")
    return penalty.expand(len(features)).clone()


def _stopping(tolerance: float, max_iterations: int) -> tuple[float, int]:
    return fraction("tolerance", tolerance), integer("max_iterations", max_iterations, 1)
