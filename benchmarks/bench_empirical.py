"""The empirical denoiser against straight-line code, PyTorch's fused attention, and smalldiffusion."""

import importlib.util
import math
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from benchmarks.timing import Row, compare, peak_memory
from molrg import EmpiricalDenoiser

Shape = tuple[int, int, int]
SHAPES: tuple[Shape, ...] = ((50, 100_000, 2_000), (784, 10_000, 2_000))
"""Dimension, training points, points to denoise."""
SIGMA = 0.4
PEER_ROWS = 64
"""Rows at a time of straight-line code: the fastest of 16 ... 1024 in 50 dimensions."""


def training_points(shape: Shape) -> Tensor:
    dim, points, _ = shape
    return torch.randn(points, dim, generator=torch.Generator().manual_seed(0))


def noisy_points(shape: Shape) -> Tensor:
    dim, _, rows = shape
    return torch.randn(rows, dim, generator=torch.Generator().manual_seed(1)) * math.sqrt(1 + SIGMA**2)


# --- the contenders: each takes the training points and returns the map x -> E[x_0 | x_sigma = x] ------


def ours(points: Tensor) -> Callable[[Tensor], Tensor]:
    denoiser = EmpiricalDenoiser(points)
    return lambda x: denoiser.posterior_mean(x, SIGMA)


def two_products(points: Tensor, rows: int = PEER_ROWS) -> Callable[[Tensor], Tensor]:
    """Two matrix products and a softmax for some rows at a time."""
    half = points.square().sum(1) / 2

    def denoise(x: Tensor) -> Tensor:
        parts = [torch.softmax((part @ points.T - half) / SIGMA**2, 1) @ points for part in x.split(rows)]
        return torch.cat(parts)

    return denoise


def attention(points: Tensor) -> Callable[[Tensor], Tensor]:
    """The same as attention with queries (x, 1), keys (x_i, -||x_i||^2/2), values (x_i, 0)."""
    keys = torch.cat([points, -points.square().sum(1, keepdim=True) / 2], 1)[None, None]
    values = torch.nn.functional.pad(points, (0, 1))[None, None]

    def denoise(x: Tensor) -> Tensor:
        queries = torch.nn.functional.pad(x, (0, 1), value=1.0)[None, None]
        found = torch.nn.functional.scaled_dot_product_attention(queries, keys, values, scale=1 / SIGMA**2)
        return found[0, 0, :, :-1]

    return denoise


def has_smalldiffusion() -> bool:
    return all(importlib.util.find_spec(name) is not None for name in ("smalldiffusion", "einops"))


def smalldiffusion_models() -> ModuleType:
    """The file with smalldiffusion's models alone; the package asks for a training library on top."""
    package = importlib.util.find_spec("smalldiffusion")
    assert package is not None
    path = f"{(package.submodule_search_locations or ['.'])[0]}/model.py"
    spec = importlib.util.spec_from_file_location("smalldiffusion_model", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def smalldiffusion(points: Tensor) -> Callable[[Tensor], Tensor]:
    """Its IdealDenoiser, whose output is the noise; all pairs are in memory at once."""
    ideal = smalldiffusion_models().IdealDenoiser(list(points))
    sigma = torch.tensor(SIGMA)
    return lambda x: x - SIGMA * ideal(x, sigma)


# --- the rows -------------------------------------------------------------------------------------------


def missing(name: str, target: str) -> Row:
    note = "not measured: pip install --no-deps -r benchmarks/requirements.txt"
    nothing = math.nan
    return Row(name=name, ours=nothing, peer=nothing, ratio=nothing, target=target, note=note)


def title(shape: Shape, peer: str) -> str:
    dim, points, rows = shape
    return f"empirical denoiser {points:,} x {rows:,} in {dim} dimensions / {peer}"


def against(
    contender: Callable[[Tensor], Callable[[Tensor], Tensor]],
    shape: Shape,
    repeats: int,
    peer: str,
    target: str,
    note: str,
) -> Row:
    points, x = training_points(shape), noisy_points(shape)
    mine, theirs = ours(points), contender(points)
    a, b, ratio = compare(lambda: mine(x), lambda: theirs(x), repeats)
    return Row(name=title(shape, peer), ours=a, peer=b, ratio=ratio, target=target, note=note)


def sweep(shape: Shape, levels: int, repeats: int) -> Row:
    denoiser, x = EmpiricalDenoiser(training_points(shape)), noisy_points(shape)
    grid = torch.logspace(-2, 1, levels)
    a, b, ratio = compare(
        lambda: denoiser.posterior_mean(x, grid), lambda: denoiser.posterior_mean(x, SIGMA), repeats
    )
    note = f"one product for all levels; a loop costs {levels}"
    name = title(shape, "one level").replace("denoiser", f"denoiser, {levels} levels,")
    return Row(name=name, ours=a, peer=b, ratio=ratio, target=f"<= {levels}", note=note)


def memory_call(contender: Callable[[Tensor], Callable[[Tensor], Tensor]], shape: Shape) -> Any:
    """Return the call whose peak memory is measured; what it keeps between calls is there already."""
    denoise, x = contender(training_points(shape)), noisy_points(shape)
    denoise(x[:10])
    return lambda: denoise(x)


def memory(shape: Shape) -> list[Row]:
    mine = peak_memory(memory_call, ours, shape)
    contenders = {"two products and softmax": two_products, "smalldiffusion": smalldiffusion}
    lines = []
    for label, contender in contenders.items():
        name = "memory: " + title(shape, label)
        if contender is smalldiffusion and not has_smalldiffusion():
            lines.append(missing(name, "<= 1"))
            continue
        peer = peak_memory(memory_call, contender, shape)
        note = f"MB above the peak of the set-up; the result has {shape[0] * shape[2] * 4 / 1e6:.1f}"
        lines.append(Row(name=name, ours=mine, peer=peer, ratio=mine / peer, target="<= 1", note=note))
    return lines


def run(shapes: tuple[Shape, ...] = SHAPES, repeats: int = 7) -> list[Row]:
    """Return all rows about the empirical denoiser."""
    straight = f"float32; {PEER_ROWS} rows at a time"
    fused = "PyTorch's own kernel; one level, means only"
    lines = [
        against(two_products, s, repeats, "two products and softmax", "<= 1.0", straight) for s in shapes
    ]
    lines += [against(attention, s, repeats, "fused attention", "<= 2", fused) for s in shapes]
    small = (shapes[0][0], shapes[0][1] // 5, shapes[0][2])  # all pairs of the full size would take gigabytes
    if has_smalldiffusion():
        note = "its IdealDenoiser"
        lines.append(against(smalldiffusion, small, repeats, "smalldiffusion", "<= 1.0", note))
    else:
        lines.append(missing(title(small, "smalldiffusion"), "<= 1.0"))
    return [*lines, sweep(small, 20, max(1, repeats // 2)), *memory(small)]
