"""The latents of images under a published autoencoder, computed once and kept."""

import hashlib
import inspect
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from molrg.images.checkpoint_files import autoencoder, latent_factor, latent_scaling
from molrg.images.reading import Images
from molrg.learning import checkpoints
from molrg.support.checks import integer

__all__ = ["latents"]

_CHUNK = 256  # images in a file of latents


def latents(
    vae: str | Path,
    data: Images,
    folder: Path,
    side: int | None = None,
    *,
    allow_bin: bool | None = None,
    device: torch.device | str | None = None,
    batch_size: int = 16,
) -> Images:
    """Return `data` in the latent space of an autoencoder (AutoencoderKL of diffusers): `shape` is (C, h, w).

        z = s (m(x) - b),    m(x) the mean of the encoder's Gaussian,

    with s and b of `latent_scaling`. Values of z have scale 1 and are
    not confined to [-1, 1]. `digest` stands for the images, the autoencoder and `side`.

    Parameters
    ----------
    vae
        Folder or name of the autoencoder, or of a pipeline with one, such as facebook/DiT-XL-2-256.
    data
        Grey or colour images; grey ones are given to it three times.
    folder
        Where latents are kept, in files of 256 images under a digest of images, weights and code: what is
        there is not encoded again, and a stopped run goes on.
    side
        Bring the images to side x side first (bilinear, antialiased). None: as they are.
    allow_bin
        As in `load`.
    device
        Where the encoder runs; the CPU without it.
    batch_size
        Images in a forward pass.

    Raises FileNotFoundError and ValueError as `load`, and ValueError for images that do not fit.
    """
    files = autoencoder(vae, allow_bin=allow_bin)
    config = files.config
    channels, factor = config["in_channels"], latent_factor(config)
    if data.shape[0] not in (1, channels):
        raise ValueError(f"{vae} takes images of {channels} channels, and {data.name} has {data.shape[0]}")
    height, width = data.shape[1:] if side is None else (integer("side", side, 1), side)
    if height % factor or width % factor:
        raise ValueError(
            f"{vae} takes images whose sides are multiples of {factor}, got {height} x {width}: "
            "choose `side` accordingly"
        )
    made_of = (data.digest, files.digest(), height, width, inspect.getsource(_encode))
    digest = hashlib.sha256(repr(made_of).encode()).hexdigest()
    encoder: list[nn.Module] = []  # read only if there is something to encode

    def encoded(images: Tensor, file: Path) -> Tensor:
        try:
            return checkpoints.load(file)[0]["latents"]
        except (FileNotFoundError, ValueError):  # not there, or damaged: made once more
            pass
        if not encoder:
            encoder.append(files.read().to(device or "cpu"))
        batches = images.unflatten(1, data.shape).split(integer("batch_size", batch_size, 1))
        values = torch.cat([_encode(encoder[0], batch, (height, width)) for batch in batches])
        checkpoints.save(file, {"latents": values}, {})
        return values

    def all_encoded(images: Tensor, name: str) -> Tensor:
        files = (place / f"{name}-{i:05d}.safetensors" for i in count())
        return torch.cat(
            [encoded(rows, file) for rows, file in zip(images.split(_CHUNK), files, strict=False)]
        )

    place = Path(folder) / f"{data.name}-{digest[:16]}"
    return replace(
        data,
        name=f"{data.name}-latents",
        shape=(config["latent_channels"], height // factor, width // factor),
        train_images=all_encoded(data.train_images, "train"),
        test_images=all_encoded(data.test_images, "test"),
        digest=digest,
    )


def _encode(vae: Any, images: Tensor, size: tuple[int, int]) -> Tensor:
    """Scaled latents (B, c * h * w), on the CPU, of images (B, C, H, W) brought to `size`."""
    images = images.to(vae.device)
    if tuple(images.shape[2:]) != size:
        images = functional.interpolate(images, size, mode="bilinear", antialias=True)
    with torch.no_grad():
        mean = vae.encode(images.expand(-1, vae.config.in_channels, -1, -1)).latent_dist.mode()
    b, s = latent_scaling(vae.config)
    return (s * (mean.cpu() - b)).flatten(1)
