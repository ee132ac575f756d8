"""Fingerprints of networks and tensors: whether a run goes on with what it began with."""

import hashlib

import torch
from torch import Tensor, nn

__all__ = ["digest", "structure"]


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
