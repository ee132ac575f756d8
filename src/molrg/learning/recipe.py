"""How denoisers of images are trained here unless something else is asked for: the recipe, in one place.

Half of each batch's noise levels are EDM's, half are log-uniform from 0.002 to 5, so that the low end, where
features are read, is trained too. The step size stays on a plateau and falls to 0 at the end, so that a
training can be ended at any time, and continued beyond that from its checkpoint on the plateau. The weights
are averaged.
"""

import os
from collections.abc import Callable

import torch
from torch import Tensor, nn

from molrg.learning import training
from molrg.model.noise import Halves, LogNormal, LogUniform
from molrg.support import devices

__all__ = ["BATCH_SIZE", "EMA", "HOLD", "LEARNING_RATE", "LEVELS", "PLAIN", "SCHEDULE", "mirrored", "train"]

LEVELS = Halves(LogNormal(-1.2, 1.2), LogUniform(0.002, 5.0))
"""From what noise levels are drawn."""
BATCH_SIZE = 64
SCHEDULE = training.Plateau(warm=200, fall=0.1)
"""Where a run is to end; `HOLD` is its plateau, from which it can be continued."""
HOLD = training.Plateau(warm=200, fall=0.0)
LEARNING_RATE = 1e-3
EMA = 0.9995

PLAIN: dict[str, str | int | float] = {
    "levels": "half log-normal(-1.2, 1.2), half log-uniform(0.002, 5)",
    "batch size": BATCH_SIZE,
    "optimizer": "Adam",
    "step size": LEARNING_RATE,
    "warm-up in steps": 200,
    "last part, in which the step size falls to 0": 0.1,
    "averaging of weights": EMA,
    "loss weight": "EDM",
}
"""The recipe in words and numbers: by it a training is known, whatever its code is called."""


def mirrored(shape: tuple[int, int, int]) -> training.Augmentation:
    """Return what mirrors each image of `shape` (C, H, W), left to right, with probability one half."""

    def augment(x: Tensor, generator: torch.Generator) -> Tensor:
        chosen = torch.rand(len(x), generator=generator, device=generator.device) < 0.5
        return torch.where(chosen.to(x.device)[:, None], x.unflatten(1, shape).flip(3).flatten(1), x)

    return augment


def train(
    denoiser: nn.Module,
    images: Tensor,
    steps: int,
    *,
    augment: Callable[[Tensor, torch.Generator], Tensor] | None = None,
    schedule: training.Schedule = SCHEDULE,
    seed: int = 0,
    known_as: str | None = None,
    device: torch.device | str | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> training.Trained:
    """Train `denoiser` on `images` (N, n) for `steps` batches of BATCH_SIZE by the recipe.

    Parameters and errors are those of `training.train`; on CUDA products are taken in bfloat16. Batches are
    drawn on the CPU, the same on every device.
    """
    place = devices.best() if device is None else torch.device(device)
    return training.train(
        denoiser,
        images,
        LEVELS,
        steps=steps,
        batch_size=BATCH_SIZE,
        lr=LEARNING_RATE,
        schedule=schedule,
        ema=EMA,
        augment=augment,
        known_as=known_as,
        precision="bfloat16" if place.type == "cuda" else "full",
        generator=torch.Generator().manual_seed(seed),
        device=place,
        checkpoint=checkpoint,
        progress=progress,
    )
