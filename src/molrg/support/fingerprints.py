"""Fingerprints of networks and tensors: whether a run goes on with what it began with."""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["behaviour", "differences", "digest", "structure"]


def differences(
    first: Mapping[str, Any], second: Mapping[str, Any], where: str = "there", other: str = "here"
) -> str:
    """Return what differs between two runs, "lr (0.1 there, 0.2 here), ..."; empty where nothing does."""
    return ", ".join(
        f"{name} ({first.get(name)} {where}, {second.get(name)} {other})"
        for name in {**second, **first}
        if first.get(name) != second.get(name)
    )


def structure(denoiser: nn.Module) -> str:
    """Return all there is to a network but the values of its weights: modules, shapes, plain attributes."""
    plain = (bool, int, float, str, tuple)
    attributes = [
        (name, key, value)
        for name, module in denoiser.named_modules()
        for key, value in vars(module).items()
        if isinstance(value, plain) and not key.startswith("_") and key != "training"
    ]
    tensors = [*denoiser.named_parameters(), *denoiser.named_buffers()]
    shapes = [(name, tuple(value.shape), str(value.dtype)) for name, value in tensors]
    return f"{denoiser!r} {attributes} {shapes}"


def digest(tensors: list[Tensor]) -> str:
    """Sixteen hexadecimal digits that stand for the values of `tensors`."""
    sha = hashlib.sha256()
    for tensor in tensors:
        content = tensor.detach().cpu().contiguous()
        sha.update(repr((content.dtype, content.shape)).encode())
        sha.update(content.reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()[:16]


def behaviour(function: Callable[[Tensor], Tensor], shapes: Sequence[tuple[int, ...]]) -> str:
    """Return what tells a function from others: its name, and a digest of what it makes of fixed inputs.

    The inputs have the given shapes; those that it cannot take are passed over.
    """
    inner = function.func if isinstance(function, partial) else function
    made = []
    for shape in shapes:
        values = torch.sin(torch.arange(math.prod(shape), dtype=torch.float64)).reshape(shape)
        with suppress(Exception):
            made.append((function(values) * 1e6).round())
    return f"{getattr(inner, '__qualname__', type(inner).__name__)} {digest(made)}"
