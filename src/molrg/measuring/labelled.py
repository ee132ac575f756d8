"""Checks of features and of their labels, and the share of labels that are predicted."""

import math

import torch
from torch import Tensor

from molrg.support.checks import integer
from molrg.support.devices import widest

__all__ = [
    "LARGEST",
    "SMALLEST",
    "binary_scale",
    "check_features",
    "check_labels",
    "check_training",
    "floating",
    "share_correct",
]

SMALLEST, LARGEST = 1e-30, 1e30
"""Of the largest magnitude of features: quotients and sums of such numbers stay inside float32."""
_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def floating(name: str, features: Tensor) -> Tensor:
    """Return features (..., N, D) as they can be computed with: float16 and bfloat16 become float32.

    Raises ValueError unless they are a floating-point tensor that is not empty, of finite numbers, of which
    the largest of each N x D is from 1e-30 to 1e30 in magnitude, or all are 0.
    """
    if not isinstance(features, Tensor) or not features.is_floating_point():
        kind = features.dtype if isinstance(features, Tensor) else type(features).__name__
        raise ValueError(
            f"{name} must be a floating-point tensor, got {kind}; use torch.as_tensor(...).float()"
        )
    if features.ndim < 2 or 0 in features.shape:
        raise ValueError(
            f"{name} must not be empty, and have samples and dimensions, got {tuple(features.shape)}"
        )
    features = features if features.dtype.itemsize > 2 else features.float()
    largest = _largest(features, (-2, -1))
    wrong = ~((largest <= LARGEST) & (largest >= SMALLEST) | (largest == 0))
    if wrong.any():
        found = largest[wrong][0].item()
        if not math.isfinite(found):
            raise ValueError(f"{name} must be finite, found NaN or infinity")
        raise ValueError(
            f"{name} must reach a magnitude from {SMALLEST:g} to {LARGEST:g}, the largest is {found:.3g}; "
            "multiply all by one number"
        )
    return features


def binary_scale(values: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Return powers of two by which division is exact and brings the largest magnitude over `axes` near 1.

    Squares and their sums then neither overflow nor vanish. The axes are kept, of size 1; values that are all
    below 1e-30 are left alone.
    """
    largest = _largest(values, axes, keepdim=True).cpu()
    exponent = torch.where(largest < SMALLEST, 0, torch.frexp(largest).exponent)
    return torch.ldexp(torch.ones_like(largest), exponent).to(values.device)


def _largest(values: Tensor, axes: tuple[int, ...], keepdim: bool = False) -> Tensor:
    return torch.maximum(values.amax(axes, keepdim), -values.amin(axes, keepdim))


def check_features(features: Tensor, probes: int | None = None, dim: int | None = None) -> Tensor:
    """Return features (P, N, D) as `floating` does; raises ValueError also for other shapes than a fit's."""
    if isinstance(features, Tensor) and features.ndim != 3:
        raise ValueError(
            f"features must be (probes, samples, dimensions), got {tuple(features.shape)}; "
            "give one probe as features[None]"
        )
    features = floating("features", features)
    if (probes is not None and features.shape[0] != probes) or (dim is not None and features.shape[2] != dim):
        raise ValueError(f"features must be ({probes}, N, {dim}) as in the fit, got {tuple(features.shape)}")
    return features


def check_labels(labels: Tensor, shape: tuple[int, ...], num_classes: int | None = None) -> Tensor:
    """Return labels, (N,) or (P, N) for `shape` (P, N), as int64; raises ValueError outside 0 ... K - 1."""
    kind = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
    if kind not in _INTEGERS:
        raise ValueError(f"labels must be an integer tensor of class numbers, got {kind}")
    if tuple(labels.shape) not in (tuple(shape), tuple(shape[1:])):
        raise ValueError(
            f"labels must have shape {tuple(shape[1:])} or {tuple(shape)}, got {tuple(labels.shape)}"
        )
    low, high = labels.min().item(), labels.max().item()
    if low < 0 or high >= (num_classes or math.inf):
        allowed = "be at least 0" if num_classes is None else f"lie in 0 ... {num_classes - 1}"
        raise ValueError(f"labels must {allowed}, found {low if low < 0 else high}")
    return labels.to(torch.int64)


def check_training(features: Tensor, labels: Tensor, num_classes: int | None) -> tuple[Tensor, Tensor, int]:
    """Return features (P, N, D), labels on their device, and the number of classes, at least 2.

    Raises ValueError as `check_features` and `check_labels`.
    """
    features = check_features(features)
    if num_classes is not None:
        num_classes = integer("num_classes", num_classes, 2)
    labels = check_labels(labels, features.shape[:2], num_classes).to(features.device)
    return features, labels, num_classes or max(2, int(labels.max()) + 1)


def share_correct(predicted: Tensor, labels: Tensor) -> Tensor:
    """Return the share (P,), float64, of predictions (P, N) that are the labels, (N,) or (P, N)."""
    correct = predicted == check_labels(labels, predicted.shape).to(predicted.device)
    return correct.to(widest(predicted.device)).mean(1)
