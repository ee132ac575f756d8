"""Features: the activations of all named layers of a denoiser from one forward pass."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from molrg.support.checks import Levels, integer, noise_levels

__all__ = [
    "DENOISED",
    "Reduce",
    "check",
    "default_layers",
    "evaluating",
    "extract",
    "grid_mean",
    "spatial_mean",
    "stream",
    "watching",
]

DENOISED = "denoised"
"""The layer name under which the denoiser's own output D(x, sigma) is returned."""

Reduce = Callable[[Tensor], Tensor]
"""What to keep of a layer's activations: (B, ...) -> (B, C)."""


def spatial_mean(activations: Tensor) -> Tensor:
    """Average over positions: maps (B, C, H, W) over H and W, tokens (B, T, C) over T; (B, C) as it is.

    Raises ValueError for activations of other shapes.
    """
    if activations.ndim == 4:
        return activations.mean((2, 3))
    if activations.ndim == 3:
        return activations.mean(1)
    return _vectors(activations)


def grid_mean(size: int = 4) -> Reduce:
    """Return a `reduce` that averages over each patch of a size x size grid, and flattens: (B, C size^2).

    It tells where in the image, roughly. Maps (B, C, H, W) are cut into patches of as equal sides as
    `adaptive_avg_pool2d` makes them, at most one per position; tokens (B, T, C), T a square, as the map of
    sqrt(T) x sqrt(T) that they are; (B, C) is kept as it is.

    Raises ValueError unless size >= 1, for tokens that fill no square, and for activations of other shapes.
    """
    return partial(_grid_mean, integer("size", size, 1))


def _grid_mean(size: int, activations: Tensor) -> Tensor:
    if activations.ndim == 3:
        tokens = activations.shape[1]
        side = math.isqrt(tokens)
        if side**2 != tokens:
            raise ValueError(f"grid_mean needs a square number of tokens, got {tokens}; use spatial_mean")
        activations = activations.mT.unflatten(2, (side, side))
    if activations.ndim != 4:
        return _vectors(activations)
    # The slices run on every device; MPS has adaptive_avg_pool2d for divisible sides alone.
    for axis in (2, 3):
        side = activations.shape[axis]
        count = min(size, side)
        bounds = [(i * side // count, -(-(i + 1) * side // count)) for i in range(count)]
        means = [activations.narrow(axis, low, high - low).mean(axis) for low, high in bounds]
        activations = torch.stack(means, axis)
    return activations.flatten(1)


def _vectors(activations: Tensor) -> Tensor:
    if activations.ndim != 2:
        raise ValueError(
            "activations must be vectors (B, C), tokens (B, T, C) or maps (B, C, H, W), "
            f"got {tuple(activations.shape)}; give a `reduce` of your own, or other layers"
        )
    return activations


def extract(
    denoiser: nn.Module,
    x: Tensor,
    sigma: Levels,
    layers: Sequence[str] | None = None,
    *,
    batch_size: int = 512,
    reduce: Reduce = spatial_mean,
) -> dict[str, Tensor]:
    """Return the activations of `layers` on `x`, each (N, C), from one forward pass.

    Parameters
    ----------
    denoiser
        A module with forward(x, sigma). It runs in evaluation mode, without gradients; its mode and its
        hooks are afterwards as they were.
    x
        (N, n), noisy or clean, floating point and finite. Batches are brought to the device and the precision
        of the denoiser's weights; results lie on the device of x.
    sigma
        The level with which the denoiser is called: a number, or N of them, from 1e-12 to 1e12.
    layers
        Module names as in `named_modules`, and "denoised" for the denoiser's output; None: the denoiser's
        `feature_layers`, or if it has none, the entries of its outermost module lists.
    batch_size
        Rows in a forward pass. Beside the results, memory holds one batch's activations.
    reduce
        What to keep of (B, ...) activations. For a layer that returns a tuple, of its first entry.

    Raises
    ------
    ValueError
        For an unknown layer (lists the valid ones), a layer that the forward pass does not run, or wrong
        shapes, types or ranges; an error in the denoiser passes through, with all hooks removed.
    """
    chosen = check(denoiser, x, sigma, layers, batch_size)
    results: dict[str, Tensor] = {}

    def store(name: str, rows: slice, values: Tensor) -> None:
        if name not in results:
            results[name] = values.new_empty((len(x), *values.shape[1:]), device=x.device)
        results[name][rows] = values

    for _ in _passes(denoiser, x, sigma, chosen, batch_size, reduce, store):
        pass
    return {name: results[name] for name in chosen}


def stream(
    denoiser: nn.Module,
    x: Tensor,
    sigma: Levels,
    layers: Sequence[str] | None = None,
    *,
    batch_size: int = 512,
    reduce: Reduce = spatial_mean,
) -> Iterator[tuple[slice, dict[str, Tensor]]]:
    """Yield (rows, activations of x[rows]) batch by batch, on the denoiser's device; arguments as `extract`.

    For what need not be kept, such as a classifier's predictions over many samples. Arguments are checked at
    the call, before the first batch.
    """
    chosen = check(denoiser, x, sigma, layers, batch_size)
    batch: dict[str, Tensor] = {}

    def store(name: str, rows: slice, values: Tensor) -> None:
        # A copy, since what follows in the pass may work in place.
        batch[name] = values.expand(rows.stop - rows.start, *values.shape[1:]).clone()

    def batches() -> Iterator[tuple[slice, dict[str, Tensor]]]:
        for rows in _passes(denoiser, x, sigma, chosen, batch_size, reduce, store):
            yield rows, {name: batch[name] for name in chosen}
            batch.clear()

    return batches()


def default_layers(denoiser: nn.Module) -> tuple[str, ...]:
    """Return the denoiser's `feature_layers`; if it has none, the entries of its outermost module lists."""
    own = getattr(denoiser, "feature_layers", None)
    if own is not None:
        names = tuple(own)
    else:
        lists = [name for name, module in denoiser.named_modules() if isinstance(module, nn.ModuleList)]
        outermost = [name for name in lists if not any(name.startswith(f"{other}.") for other in lists)]
        names = tuple(
            f"{name}.{entry}"
            for name in outermost
            for entry, _ in denoiser.get_submodule(name).named_children()
        )
    if not names:
        options = [name for name, _ in denoiser.named_modules() if name] + [DENOISED]
        raise ValueError(f"the denoiser names no feature layers; choose layers from: {', '.join(options)}")
    return names


def check(
    denoiser: nn.Module, x: Tensor, sigma: Levels, layers: Sequence[str] | None, batch_size: int
) -> dict[str, nn.Module]:
    """Return the chosen modules by layer name; raises ValueError for anything that is wrong."""
    integer("batch_size", batch_size, 1)
    if not isinstance(x, Tensor) or not x.is_floating_point():
        kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"x must be a floating-point tensor (N, n), got {kind}; scale images to [-1, 1]")
    if x.ndim != 2 or 0 in x.shape:
        raise ValueError(f"x must have shape (N, n) with N >= 1, got {tuple(x.shape)}; flatten images")
    if not x.sum().isfinite() and not x.isfinite().all():
        raise ValueError("x must be finite, found NaN or infinity")
    levels, _ = noise_levels(sigma)
    if len(levels) not in (1, len(x)):
        raise ValueError(f"sigma must be a number or have shape ({len(x)},), got ({len(levels)},)")
    names = default_layers(denoiser) if layers is None else tuple(layers)
    modules = dict(denoiser.named_modules())
    valid = [name for name in modules if name] + [DENOISED]
    if unknown := [name for name in names if name not in valid]:
        raise ValueError(f"unknown layers {unknown}; valid ones: {', '.join(valid)}")
    return {name: denoiser if name == DENOISED else modules[name] for name in names}


def _passes(
    denoiser: nn.Module,
    x: Tensor,
    sigma: Levels,
    chosen: dict[str, nn.Module],
    batch_size: int,
    reduce: Reduce,
    store: Callable[[str, slice, Tensor], None],
) -> Iterator[slice]:
    """Run the denoiser over the batches; yields their rows when all layers' values have gone to `store`.

    A layer that sees the noise level alone gives one row for all samples. Of several calls of a layer in a
    pass, the last is stored last.
    """
    like = next((each for each in denoiser.parameters() if each.is_floating_point()), x)
    if not isinstance(sigma, Tensor):
        levels, scalar = noise_levels(sigma)
        sigma = levels.item() if scalar else levels.to(x.dtype)
    for first in range(0, len(x), batch_size):
        rows = slice(first, min(first + batch_size, len(x)))
        level = sigma[rows] if isinstance(sigma, Tensor) and sigma.numel() > 1 else sigma
        seen: set[str] = set()

        def keep(name: str, values: Tensor, rows: slice = rows, seen: set[str] = seen) -> None:
            store(name, rows, reduce(values))
            seen.add(name)

        with torch.no_grad(), evaluating(denoiser), watching(chosen, keep):
            denoiser(x[rows].to(like), level.to(like.device) if isinstance(level, Tensor) else level)
        if missing := [name for name in chosen if name not in seen]:
            raise ValueError(f"the forward pass does not run the layers {missing}; choose others")
        yield rows


@contextmanager
def watching(modules: dict[str, nn.Module], keep: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Pass each module's output, or the first of its outputs, to `keep` as soon as it is there."""

    def hook(name: str, _module: nn.Module, _inputs: Any, output: Any) -> None:
        keep(name, output[0] if isinstance(output, tuple) else output)

    handles = []
    try:
        for name, module in modules.items():
            handles.append(module.register_forward_hook(partial(hook, name)))
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Run in evaluation mode; afterwards each submodule is in the mode it was in."""
    training = [part for part in module.modules() if part.training]
    for part in training:
        part.training = False
    try:
        yield
    finally:
        for part in training:
            part.training = True
