"""Networks for images: training, and features of all layers over noise levels, against plain diffusers loops.

The other side is float32, uncompiled, and takes one layer at a time: a pass, with one hook, for each layer
and noise level. On a GPU our side computes in bfloat16, in training compiled and with images channels-last.
"""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.bench_ensembles import product_rate
from benchmarks.timing import Row, compare
from molrg.images import image_networks
from molrg.learning import training
from molrg.learning.networks import Preconditioned
from molrg.measuring import feature_store, features
from molrg.model import noise

SIGMA_DATA = 0.5


@dataclass(frozen=True)
class Case:
    """A network for images of `shape`, and how much of it is timed; `layers` None: all."""

    name: str
    build: Callable[..., nn.Module]
    shape: tuple[int, int, int]
    sizes: tuple[Any, ...]
    batch: int
    steps: int
    images: int
    levels: int
    layers: tuple[str, ...] | None = None

    def denoiser(self, device: str) -> Preconditioned:
        inner = self.build(self.shape, *self.sizes, generator=torch.Generator().manual_seed(0))
        return Preconditioned(inner, SIGMA_DATA).to(device)

    def data(self, device: str) -> Tensor:
        generator = torch.Generator().manual_seed(1)
        return torch.randn(self.images, math.prod(self.shape), generator=generator).to(device)


_GREY, _COLOUR = (1, 28, 28), (3, 32, 32)
_LARGE = ("network.model.down_blocks.0", "network.model.mid_block", "network.model.up_blocks.3")
CASES = {
    "cpu": (
        Case("UNet, 0.7 M weights", image_networks.unet, _GREY, (16, (1, 2, 4), 1), 64, 2, 64, 2),
        Case("DiT, 2.1 M weights", image_networks.dit, _COLOUR, (128, 6, 4), 64, 2, 64, 2),
        Case("UNet, 36 M weights", image_networks.unet, _COLOUR, (128, (1, 2, 2, 2)), 4, 1, 4, 2, _LARGE),
    ),
    "cuda": (
        Case("UNet, 0.7 M weights", image_networks.unet, _GREY, (16, (1, 2, 4), 1), 512, 50, 4096, 4),
        Case("DiT-S/2, 33 M weights", image_networks.dit, _COLOUR, (), 256, 50, 1024, 4),
        Case("UNet, 36 M weights", image_networks.unet, _COLOUR, (128, (1, 2, 2, 2)), 256, 20, 1024, 4),
    ),
}
"""Sizes that take a minute or two; 36 M weights are too many for more than three layers on a CPU."""


def plain_denoise(model: Any, x: Tensor, sigma: Tensor) -> Tensor:
    """EDM's denoiser of a diffusers model, for images (N, C, H, W)."""
    s = sigma[:, None, None, None]
    root = (s**2 + SIGMA_DATA**2).sqrt()
    told = {}
    if hasattr(model, "transformer_blocks"):
        told["class_labels"] = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    output = model(x / root, 25 * sigma.log(), **told).sample
    return SIGMA_DATA**2 / root**2 * x + s * SIGMA_DATA / root * output


def plain_training(model: Any, images: Tensor, steps: int, batch: int) -> float:
    """Train by Adam with a running mean of the weights; returns the seconds that the steps take."""
    from diffusers.training_utils import EMAModel

    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    mean = EMAModel(model.parameters(), decay=0.999)
    model.train()
    start = time.perf_counter()
    for _ in range(steps):
        x0 = images[torch.randint(len(images), (batch,), device=images.device)]
        sigma = (-1.2 + 1.2 * torch.randn(batch, device=images.device)).exp()
        x = x0 + sigma[:, None, None, None] * torch.randn_like(x0)
        weight = (sigma**2 + SIGMA_DATA**2) / (sigma * SIGMA_DATA) ** 2
        loss = (weight * (plain_denoise(model, x, sigma) - x0).square().mean((1, 2, 3))).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        mean.step(model.parameters())
    loss.item()  # waits for the device
    return time.perf_counter() - start


def our_training(denoiser: Preconditioned, images: Tensor, steps: int, batch: int, fast: bool) -> float:
    return training.train(
        denoiser,
        images,
        noise.LogNormal(),
        steps=steps,
        batch_size=batch,
        lr=1e-4,
        precision="bfloat16" if fast else "full",
        compile=fast,
        progress=False,
    ).seconds


def plain_features(
    model: nn.Module,
    images: Tensor,
    levels: Sequence[float],
    layers: Sequence[str],
    batch: int,
    draw: Callable[[Tensor], Tensor] = torch.randn_like,
) -> dict[str, Tensor]:
    """Mean over positions of each layer's activations, (S, N, C), one layer and level at a time."""
    model.eval()
    found: dict[str, Tensor] = {}
    for layer in layers:
        parts: list[Tensor] = []

        def keep(_module: nn.Module, _inputs: Any, output: Any, parts: list[Tensor] = parts) -> None:
            output = output[0] if isinstance(output, tuple) else output
            parts.append(output.mean((2, 3) if output.ndim == 4 else 1).cpu())

        handle = model.get_submodule(layer).register_forward_hook(keep)
        with torch.no_grad():
            for sigma in levels:
                for x0 in images.split(batch):
                    plain_denoise(model, x0 + sigma * draw(x0), torch.full((len(x0),), sigma).to(x0))
        handle.remove()
        found[layer] = torch.cat(parts).unflatten(0, (len(levels), -1))
    return found


def our_features(
    denoiser: Preconditioned,
    images: Tensor,
    levels: Sequence[float],
    layers: Sequence[str],
    batch: int,
    fast: bool,
) -> feature_store.Features:
    return feature_store.sweep(
        denoiser,
        images,
        levels,
        layers=layers,
        batch_size=batch,
        precision="bfloat16" if fast else "full",
        progress=False,
    )


def operations(model: nn.Module, shape: tuple[int, int, int], device: str) -> tuple[float, float]:
    """Operations of products and convolutions for one image: of a pass, and of a training step."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    x = torch.zeros(1, *shape, device=device)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        loss = plain_denoise(model, x, torch.ones(1, device=device)).sum()
        forward = counter.get_total_flops()
        loss.backward()
    model.zero_grad(set_to_none=True)
    return float(forward), float(counter.get_total_flops())


def rows(case: Case, device: str, fast: bool, repeats: int, rate: float) -> list[Row]:
    """Return the rows of training and of extraction; `rate` is that of a large product in our precision."""
    denoiser, plain = case.denoiser(device), case.denoiser(device)
    model: Any = plain.network.model
    flat = case.data(device)
    images = flat.unflatten(1, case.shape)
    forward, step = operations(model, case.shape, device)
    how = "bfloat16" if fast else "float32"

    def note(operations: float, count: int, seconds: float) -> str:
        share = operations * count / seconds / rate
        return f"{how} on {device}: {count / seconds:.3g} images/s, {share:.0%} of a large product's rate"

    def step_times() -> tuple[float, float]:
        theirs = plain_training(model, images, case.steps, case.batch) / case.steps
        return theirs, our_training(denoiser, flat, case.steps, case.batch, fast) / case.steps

    step_times()  # warms up, and compiles
    pairs = [step_times() for _ in range(repeats)]
    theirs, ours = (statistics.median(times) for times in zip(*pairs, strict=True))
    trained = Row(
        name=f"step of the plain diffusers loop / of training, {case.name}, batches of {case.batch}",
        ours=theirs,
        peer=ours,
        ratio=statistics.median(a / b for a, b in pairs),
        target=">= 3" if fast else ">= 1",
        note=("compiled, " if fast else "") + note(step, case.batch, ours),
    )

    layers = features.default_layers(denoiser) if case.layers is None else case.layers
    inner = [name.removeprefix("network.model.") for name in layers]
    levels = noise.edm_levels(case.levels, 0.1, 1.0).tolist()
    theirs, ours, ratio = compare(
        lambda: plain_features(model, images, levels, inner, case.batch),
        lambda: our_features(denoiser, flat, levels, layers, case.batch, fast),
        repeats,
    )
    count = len(layers)
    extracted = Row(
        name=f"a pass for each layer / features of {count} layers at once, {case.name}",
        ours=theirs,
        peer=ours,
        ratio=ratio,
        target=f">= {count - 1}",
        note=f"{case.levels} levels; {count} passes become 1, which saves {count - 1}; "
        f"{note(forward, case.levels * case.images, ours)}",
    )
    return [trained, extracted]


def run(repeats: int = 5) -> list[Row]:
    """Return two rows for each network, on the GPU where there is one."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    fast = device == "cuda"
    rate = product_rate(device, 8192 if fast else 2048, torch.bfloat16 if fast else torch.float32)
    found = []
    for case in CASES[device]:
        found += rows(case, device, fast, repeats if case.layers is None else 2, rate)
    return found
