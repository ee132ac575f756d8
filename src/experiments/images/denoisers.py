"""The denoisers of the image pages: each is trained once, and every page that asks for it gets the same.

    data, denoiser, losses = denoisers.get(images.load("digits"), "unet", seed=0, smoke=True)

A trained network is kept in `paths.networks_folder()` under a digest of its data, its settings and the code
that trains it, so that it is taken up only where training would give the same again. Trainings that are meant
for a GPU do not start on a processor, unless MOLRG_ALLOW_CPU=1 says so.
"""

import hashlib
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from compendium import code_digest
from compendium.paths import networks_folder
from molrg.images import Images, image_networks, latents, published
from molrg.learning import networks, training
from molrg.model import noise
from molrg.support import devices
from molrg.support.checks import choice, integer

__all__ = [
    "MODELS",
    "SETTINGS",
    "SMOKE",
    "Ready",
    "build",
    "get",
    "levels_line",
    "place",
    "reads_many",
    "refuse_days",
    "small_data",
    "trained",
    "usable_levels",
]

SETTINGS: dict[str, dict[str, int]] = {
    "mlp": {"width": 512, "depth": 4, "steps": 4000, "batch_size": 256},
    "unet": {"width": 16, "depth": 1, "steps": 1500, "batch_size": 64},
    "dit": {"width": 128, "depth": 6, "steps": 1500, "batch_size": 64},
    "unet-36m": {"width": 128, "depth": 2, "steps": 100_000, "batch_size": 512},
    "dit-b": {"width": 768, "depth": 12, "steps": 100_000, "batch_size": 256},
}
"""Of the first three, what a processor core trains in half an hour at most; the others are for a GPU."""

MODELS = tuple(SETTINGS)

SMOKE: dict[str, dict[str, int]] = {
    "mlp": {"width": 32, "depth": 2, "steps": 50, "batch_size": 64},
    "unet": {"width": 8, "depth": 1, "steps": 5, "batch_size": 16},
    "dit": {"width": 32, "depth": 2, "steps": 5, "batch_size": 16},
    "unet-36m": {"width": 8, "depth": 2, "steps": 5, "batch_size": 16},
    "dit-b": {"width": 32, "depth": 3, "steps": 5, "batch_size": 16},
}
"""Sizes that train in a second, for tests."""


class Ready(NamedTuple):
    """A denoiser and the data that it is one of."""

    data: Images
    """What was asked for, or its latents where the model works on latents."""
    denoiser: nn.Module
    losses: Tensor | None
    """The training loss of every step; None of a published model."""


def get(data: Images, model: str, seed: int, smoke: bool) -> Ready:
    """Return the denoiser `model` of `data`, with the data in the form that it takes.

    model is one of MODELS, trained with SETTINGS, or with SMOKE if `smoke`; or the folder or the name
    `owner/name` of a published checkpoint (see `published`), for which `seed` and `smoke` change nothing.
    Latents are kept beside the trained networks. A published denoiser has a `sigma_range`: see
    `usable_levels`.

    Raises ValueError for an unknown model and for data of another shape, FileNotFoundError for a checkpoint
    that is not there.
    """
    if model in MODELS:
        result = trained(data, model, **(SMOKE if smoke else SETTINGS)[model], seed=seed)
        return Ready(data, result.denoiser, result.losses)
    if not Path(model).expanduser().exists() and "/" not in model:
        raise ValueError(
            f"model must be {', '.join(MODELS)}, or the folder or the name (owner/name) of a published "
            f"checkpoint, got {model!r}"
        )
    denoiser = published.load(model)
    if denoiser.vae is not None:
        folder = networks_folder() / "latents"
        data = latents.latents(denoiser.vae, data, folder, denoiser.image_side, device=devices.best())
    denoiser.check(data.shape)
    return Ready(data, denoiser.to(devices.best()), None)


def reads_many(model: str) -> bool:
    """Whether pages read tens of thousands of images: with networks for a GPU, and published ones on one."""
    return SETTINGS[model]["steps"] > 10_000 if model in MODELS else devices.best().type != "cpu"


def small_data(dataset: str, model: str) -> str:
    """Return the data for a run of `model` in seconds: digits, but a published model is for its own."""
    return "digits" if model in MODELS else dataset


def usable_levels(denoiser: nn.Module, levels: Sequence[float]) -> tuple[float, ...]:
    """Return those of `levels` that the denoiser takes: all, or those in its `sigma_range` if it has one.

    The lowest level of a DDPM is 0.01, for example. Raises ValueError where none is left.
    """
    low, high = getattr(denoiser, "sigma_range", (0.0, float("inf")))
    usable = tuple(level for level in levels if low <= level <= high)
    if not usable:
        raise ValueError(
            f"none of the levels {tuple(levels)} lies in the denoiser's range, {low:.4g} to {high:.4g}"
        )
    return usable


def levels_line(model: str, levels: Sequence[float], left_out: Sequence[float]) -> str:
    """Return the line in which pages say at which levels a model was read, and which were left out.

    A published model's timestep stands beside each level.
    """
    words = [f"{level:g}" for level in levels]
    if model not in MODELS:
        steps = published.timesteps(published.levels_of(model), levels, model).tolist()
        words = [f"{level} (t = {step:.1f})" for level, step in zip(words, steps, strict=True)]
    rest = ", ".join(f"{level:g}" for level in left_out)
    outside = f"; left out, as it was not trained on them: {rest}" if rest else ""
    return f"noise levels sigma: {', '.join(words)}{outside}"


def build(
    data: Images, model: str, width: int, depth: int, seed: int, multipliers: Sequence[int] | None = None
) -> networks.Preconditioned:
    """Return an untrained denoiser of `data`.

    model is `mlp` (`depth` residual blocks of `width`), `unet` (levels of `multipliers` times `width`
    channels, 1, 2 and 4 times by default, `depth` layers in each block), `dit` (`depth` blocks of `width`
    channels on patches of 4 x 4 pixels, 2 x 2 for sides below 16), `unet-36m` (as `unet`, four levels of 1,
    2, 2 and 2) or `dit-b` (as `dit`, on patches of 2 x 2).
    """
    generator = torch.Generator().manual_seed(integer("seed", seed, 0))
    inner: nn.Module
    if choice("model", model, MODELS) == "mlp":
        inner = networks.MLP(data.dim, width, depth, generator=generator)
    elif model in ("unet", "unet-36m"):
        multipliers = multipliers or ((1, 2, 4) if model == "unet" else (1, 2, 2, 2))
        inner = image_networks.unet(data.shape, width, multipliers, depth, generator=generator)
    else:
        patch = 4 if model == "dit" and min(data.shape[1:]) >= 16 else 2
        inner = image_networks.dit(data.shape, width, depth, patch, generator=generator)
    return networks.Preconditioned(inner, float(data.train_images.std()))


def trained(
    data: Images, model: str, width: int, depth: int, steps: int, batch_size: int, seed: int
) -> training.Trained:
    """Return the denoiser that `build` makes, after `steps` batches of `batch_size` training images.

    Noise levels are spread a little wider and higher than EDM's; the step size, 1e-3 at most, falls along a
    cosine. On CUDA products are taken in bfloat16. A run that was stopped goes on.

    Raises ValueError for arguments outside their ranges, RuntimeError as `refuse_days`.
    """
    file = place(data, model, width, depth, steps, batch_size, seed)
    denoiser = build(data, model, width, depth, seed)
    if not file.exists():
        refuse_days(denoiser, data, steps * batch_size)
    return training.train(
        denoiser,
        data.train_images,
        noise.LogNormal(-0.8, 1.4),
        steps=steps,
        batch_size=batch_size,
        schedule=training.cosine,
        ema=0.995,
        precision="bfloat16" if devices.best().type == "cuda" else "full",
        generator=torch.Generator().manual_seed(seed),
        device=devices.best(),
        checkpoint=file,
    )


def refuse_days(denoiser: nn.Module, data: Images, images: int) -> None:
    """Raise RuntimeError where a training that sees `images` images would take days.

    That is without a GPU, from ten million images on, unless the environment variable MOLRG_ALLOW_CPU is 1.
    The message says the hours, by the time that the gradient of one image takes here.
    """
    if images < 10_000_000 or devices.best().type != "cpu" or os.environ.get("MOLRG_ALLOW_CPU") == "1":
        return
    began = time.perf_counter()
    denoiser(data.train_images[:4], 1.0).square().mean().backward()
    hours = (time.perf_counter() - began) / 4 * images / 3600
    raise RuntimeError(
        f"training on {data.name} for {images:,} images is meant for a GPU, and there is none here: it would "
        f"take about {hours:,.0f} hours. Choose a smaller model, run it on a machine with a GPU, or set "
        "MOLRG_ALLOW_CPU=1 to start all the same"
    )


def place(data: Images, model: str, width: int, depth: int, steps: int, batch_size: int, seed: int) -> Path:
    """Return the file in which `trained` keeps its network."""
    settings = (width, depth, steps, batch_size, seed)
    made_of = (data.digest, model, *settings, devices.best().type, code_digest.of_loaded(trained))
    key = hashlib.sha256(repr(made_of).encode()).hexdigest()[:16]
    return networks_folder() / f"{data.name}-{model}-{seed}-{key}.safetensors"
