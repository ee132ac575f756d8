r"""Published diffusion models: checkpoints in the format of diffusers, as denoisers.

    denoiser = published.load("path/to/checkpoint")          # nothing touches the network
    denoiser = published.load("google/ddpm-cifar10-32")      # by name: fetched once, then kept
    denoiser(x, 0.3)                                         # x (N, n): images in [-1, 1], or latents
    denoiser.timesteps(0.3), denoiser.levels(), denoiser.sigma_range

`UNet2DModel` and `DiTTransformer2DModel` are read, from the folder of a pipeline (`unet/` or `transformer/`,
`scheduler/`, `vae/`) or with `config.json`, weights and `scheduler_config.json` side by side. A name is
`owner/name`, or `owner/name@revision` for one version of it. The scheduler may also lie up to two folders
above the one beside the model, as with the checkpoints of a training run. What a configuration may say is
listed in `SETTINGS`; all else is refused, by its name. Weights are read from
`diffusion_pytorch_model.safetensors`; an older `diffusion_pytorch_model.bin` only where that is asked for,
with `allow_bin=True` or the environment variable MOLRG_ALLOW_BIN=1, and without running any code in it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from molrg.images.checkpoint_files import ModelFiles, find, latent_factor, read_json, read_schedule
from molrg.images.image_networks import check_flat, run
from molrg.images.network_layers import blocks
from molrg.learning.networks import column
from molrg.learning.predictions import skip_and_out
from molrg.support import data_read
from molrg.support.checks import integer

__all__ = ["Published", "digest_of", "levels_of", "load", "timesteps"]

_PREDICTIONS = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}
_ROUNDOFF = 1e-6  # by which a level in float32 may lie outside the range


class Published(nn.Module):
    r"""A variance-preserving checkpoint as a denoiser of x_sigma = x_0 + sigma eps; made by `load`.

    The model was trained at timesteps t = 0 ... T - 1 on sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps, which is
    sqrt(abar_t) (x_0 + sigma_t eps) with sigma_t = sqrt((1 - abar_t)/abar_t). Hence with
    z = x / sqrt(1 + sigma^2), by what the model predicts,

        epsilon         D(x, sigma) = x - sigma eps(z, t)
        v_prediction    D(x, sigma) = x/(1 + sigma^2) - sigma/sqrt(1 + sigma^2) v(z, t)
        sample          D(x, sigma) = x_0(z, t)

    and t = t(sigma) is linear in log sigma between neighbouring steps, with t(sigma_t) = t: sinusoidal
    embeddings take fractions of a step. Output channels for a learned variance are left out, and a model of
    classes is given its null class. Nothing is clipped.

    `shape` is (C, H, W), `sigma_range` (sigma_0, sigma_{T-1}), `feature_layers` the blocks, `digest` the
    SHA-256 of weights and configurations, `vae` the folder of the autoencoder in whose latents the model
    works, or None. `read_as()` tells all this for a reader.
    """

    def __init__(
        self,
        model: nn.Module,
        levels: Tensor,
        prediction: str,
        shape: tuple[int, int, int],
        name: str,
        digest: str = "",
        vae: Path | None = None,
        read_as: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.model: Any = model
        self.shape, self.name, self.digest, self.vae = shape, name, digest, vae
        self.prediction, self._read_as = _PREDICTIONS[prediction], tuple(read_as)
        self._levels = levels
        self.sigma_range = (levels[0].item(), levels[-1].item())
        self._null_class = getattr(model.config, "num_embeds_ada_norm", 0)
        self.feature_layers = tuple(f"model.{block}" for block in blocks(model))

    @property
    def image_side(self) -> int | None:
        """The side of the images whose latents the model takes; None where it works on pixels."""
        if self.vae is None:
            return None
        return self.shape[1] * latent_factor(read_json(self.vae / "config.json"))

    def read_as(self) -> list[str]:
        """Return lines that say as what the checkpoint was read, and where each of it was read from.

        Of the model, what it predicts, the schedule, the timesteps, and the scaling of the latents.
        """
        return list(self._read_as)

    def levels(self) -> Tensor:
        """Return the noise level sigma_t of every timestep t = 0 ... T - 1, (T,) float64, increasing."""
        return self._levels.clone()

    def timesteps(self, sigma: float | Tensor) -> Tensor:
        """Return t(sigma), float64 of the shape of sigma, on the CPU.

        Raises ValueError for a level outside `sigma_range`.
        """
        return timesteps(self._levels, sigma, self.name)

    def forward(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """Return D(x, sigma), (N, n)."""
        check_flat(x, self.shape)
        level = column(sigma, x)
        skip, out = skip_and_out(level, self.prediction)
        images = (x / (1 + level**2).sqrt()).unflatten(1, self.shape).to(self.model.dtype)
        steps = self.timesteps(sigma).flatten().float().to(x.device).expand(len(x))
        output = run(self.model, images, steps, self._null_class)
        return torch.addcmul(skip * x, out, output[:, : self.shape[0]].flatten(1).to(x.dtype))

    def check(self, shape: tuple[int, int, int]) -> None:
        """Raise ValueError unless the model is one of images of `shape` (C, H, W)."""
        if tuple(shape) == self.shape:
            return
        help = "Choose other data, or bring them to this size"
        if self.vae is not None or self.shape[0] == 4:
            known = "It works on latents" if self.vae is not None else "If its 4 channels are latents"
            help = f"{known}: encode the images with molrg.images.latents.latents(vae, data, folder, side)"
        raise ValueError(
            f"the checkpoint {self.name} is one of images of shape {self.shape} (channels, height, width), "
            f"and the data have shape {tuple(shape)}. {help}"
        )


def levels_of(
    name_or_folder: str | Path, *, allow_bin: bool | None = None, scheduler: str | Path | None = None
) -> Tensor:
    """Return the noise levels of the denoiser that `load` would return, without reading its weights.

    Raises as `load` for what is not there or not known.
    """
    return read_schedule(find(name_or_folder, allow_bin, scheduler).scheduler).levels


def timesteps(levels: Tensor, sigma: float | Sequence[float] | Tensor, name: str = "the model") -> Tensor:
    """Return t(sigma), see `Published`, for the `levels` of all timesteps; float64 of the shape of sigma.

    Raises ValueError, which says `name`, for a sigma outside the levels.
    """
    wanted = torch.as_tensor(sigma, dtype=torch.float64, device="cpu").detach()
    low, high = levels[0].item(), levels[-1].item()
    inside = (wanted >= low * (1 - _ROUNDOFF)) & (wanted <= high * (1 + _ROUNDOFF))
    if not inside.all():
        raise ValueError(
            f"sigma must lie from {low:.4g} to {high:.4g}, the noise levels that {name} was trained "
            f"on, got {wanted[~inside].flatten()[0].item():.4g}"
        )
    steps = np.interp(wanted.log().numpy(), levels.log().numpy(), np.arange(len(levels)))
    return torch.as_tensor(steps, dtype=torch.float64)


def load(
    name_or_folder: str | Path,
    shape: tuple[int, int, int] | None = None,
    *,
    allow_bin: bool | None = None,
    scheduler: str | Path | None = None,
) -> Published:
    """Return a published model as a denoiser, in evaluation mode, on the CPU, in float32.

    Parameters
    ----------
    name_or_folder
        A folder in the format of diffusers; where there is no such folder, the `owner/name` of a repository
        on the Hugging Face Hub, which is then fetched.
    shape
        (C, H, W) of the data that it is for; None: as it was trained.
    allow_bin
        Whether weights may be read from an older `.bin`, by `torch.load(weights_only=True)`, where there are
        no safetensors. None: only if the environment variable MOLRG_ALLOW_BIN is 1.
    scheduler
        The folder with the `scheduler_config.json` of its training, or that file. None: it is looked for in
        the model's folder, in `scheduler/` beside it, and so in up to two folders above.

    Raises
    ------
    FileNotFoundError
        Where there is no such folder or name, or no weights or scheduler of it: what, where it was looked
        for, and how to get it.
    ValueError
        For another kind of model, scheduler or first stage, a setting that is not in `SETTINGS` or out of
        range, a refused or damaged file, weights that do not fit the model or are not finite, or data of
        another shape.
    """
    found = find(name_or_folder, allow_bin, scheduler)
    schedule, own_shape, digest = read_schedule(found.scheduler), _shape(found.files, shape), found.digest()
    denoiser = Published(
        found.files.read(),
        schedule.levels,
        schedule.prediction,
        own_shape,
        found.name,
        digest,
        found.vae,
        found.read_as(own_shape, schedule),
    )
    if shape is not None:
        denoiser.check(shape)
    data_read.note(f"published/{found.name}", digest)
    return denoiser.eval()


def digest_of(
    name_or_folder: str | Path, *, allow_bin: bool | None = None, scheduler: str | Path | None = None
) -> str:
    """Return the `digest` of the denoiser that `load` would return, from what is on this machine.

    Raises FileNotFoundError where it is not, and as `load`.
    """
    return find(name_or_folder, allow_bin, scheduler, fetch=False).digest()


@data_read.reader("published/")
def _present(name: str) -> str | None:
    try:
        return digest_of(name.removeprefix("published/"))
    except FileNotFoundError:
        return None


def _shape(files: ModelFiles, data_shape: tuple[int, int, int] | None) -> tuple[int, int, int]:
    """The (C, H, W) of what a model takes; refuses one that asks for more than that and a timestep."""
    config, path = files.config, files.config_file
    channels, size = integer(f"{path}: in_channels", config.get("in_channels"), 1), config.get("sample_size")
    out = config.get("out_channels")
    if (channels if out is None else out) not in (channels, 2 * channels):
        raise ValueError(
            f"{path} has {channels} channels in and {out} out: as many, or twice with a learned variance, "
            "are needed"
        )
    if size is None and files.kind == "UNet2DModel":
        if data_shape is None:
            raise ValueError(f"{path} says no image size (sample_size): pass the shape (C, H, W) of the data")
        size = data_shape[1:]
    pair = files.kind == "UNet2DModel" and isinstance(size, list | tuple) and len(size) == 2
    sides: Any = size if pair else (size, size)
    height, width = (integer(f"{path}: sample_size", side, 1) for side in sides)
    return channels, height, width
