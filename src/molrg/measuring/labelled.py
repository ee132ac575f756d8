"""Checks of features with labels, and the share of labels that are predicted."""

import torch
from torch import Tensor

from molrg.support.checks import integer
from molrg.support.devices import widest

__all__ = ["check_features", "check_labels", "check_training", "share_correct"]


def share_correct(predicted: Tensor, labels: Tensor) -> Tensor:
    if labels.shape not in (predicted.shape, predicted.shape[1:]):
        raise ValueError(
            f"labels must have shape {tuple(predicted.shape[1:])} or {tuple(predicted.shape)}, "
            f"got {tuple(labels.shape)}"
        )
    correct = predicted == labels.to(predicted.device)
    return correct.to(widest(predicted.device)).mean(1)


def check_features(features: Tensor, probes: int | None = None, dim: int | None = None) -> None:
    if not isinstance(features, Tensor) or features.ndim != 3 or not features.is_floating_point():
        found = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise ValueError(
            f"features must be a floating-point tensor (probes, samples, dimensions), got {found}; "
            "give one probe as features[None]"
        )
    if 0 in features.shape:
        raise ValueError(f"features must not be empty, got shape {tuple(features.shape)}")
    if (probes is not None and features.shape[0] != probes) or (dim is not None and features.shape[2] != dim):
        raise ValueError(f"features must be ({probes}, N, {dim}) as in the fit, got {tuple(features.shape)}")


def check_labels(labels: Tensor, features: Tensor, num_classes: int) -> Tensor:
    shape = tuple(features.shape[:2])
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.is_complex():
        raise ValueError("labels must be an integer tensor of class numbers")
    if tuple(labels.shape) not in (shape, shape[1:]):
        raise ValueError(f"labels must have shape {shape[1:]} or {shape}, got {tuple(labels.shape)}")
    low, high = labels.min().item(), labels.max().item()
    if low < 0 or high >= num_classes:
        raise ValueError(f"labels must lie in 0 ... {num_classes - 1}, found {low if low < 0 else high}")
    return labels.to(features.device, torch.int64)


def check_training(features: Tensor, labels: Tensor, num_classes: int | None) -> tuple[Tensor, int]:
    check_features(features)
    if not torch.isfinite(features.sum((1, 2))).all() and not torch.isfinite(features).all():
        raise ValueError("features must be finite, found NaN or infinity")
    if num_classes is None:
        num_classes = max(2, int(labels.max()) + 1) if isinstance(labels, Tensor) and labels.numel() else 2
    num_classes = integer("num_classes", num_classes, 2)
    return check_labels(labels, features, num_classes), num_classes
