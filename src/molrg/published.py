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

import hashlib
import inspect
import json
import math
import os
import pickle
import re
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from molrg import checkpoints, sources
from molrg.arguments import integer
from molrg.digest import of_loaded
from molrg.images import Images
from molrg.networks import PREDICTIONS, column

SAFE, BIN = "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"
MODELS = {
    "UNet2DModel": "UNet2DModel",
    "DiTTransformer2DModel": "DiTTransformer2DModel",
    "Transformer2DModel": "DiTTransformer2DModel",  # what diffusers called it until 2024
}
"""The models that can be loaded, by the class in their config.json."""

SCHEDULERS = ("DDPMScheduler", "DDIMScheduler", "PNDMScheduler", "DPMSolverMultistepScheduler")
"""The schedulers whose noise levels are understood."""

HONOURED, HARMLESS = "honoured", "harmless"


def _settings(
    honoured: str, harmless: str, **understood: tuple[Any, ...]
) -> dict[str, str | tuple[Any, ...]]:
    return {
        **dict.fromkeys(honoured.split(), HONOURED),
        **dict.fromkeys(harmless.split(), HARMLESS),
        **understood,
    }


SETTINGS = {
    "UNet2DModel": _settings(
        """sample_size in_channels out_channels time_embedding_dim freq_shift flip_sin_to_cos down_block_types
        mid_block_type up_block_types block_out_channels layers_per_block mid_block_scale_factor
        downsample_padding downsample_type upsample_type act_fn attention_head_dim norm_num_groups
        attn_norm_num_groups norm_eps resnet_time_scale_shift add_attention""",
        "dropout num_train_timesteps",  # of the training; of learned embeddings
        center_input_sample=(False,),  # else it takes images in [0, 1]
        time_embedding_type=("positional",),  # others do not take fractions of a step
        class_embed_type=(None,),  # there is no null class
        num_class_embeds=(None,),
    ),
    "DiTTransformer2DModel": _settings(
        """num_attention_heads attention_head_dim in_channels out_channels num_layers norm_num_groups
        attention_bias sample_size patch_size activation_fn num_embeds_ada_norm upcast_attention
        norm_elementwise_affine norm_eps""",
        "dropout",
        norm_type=("ada_norm_zero",),
        # of the older Transformer2DModel, which was more than a DiT
        double_self_attention=(False,),
        only_cross_attention=(False,),
        use_linear_projection=(False,),
        num_vector_embeds=(None,),
        caption_channels=(None,),
        cross_attention_dim=(None,),
        interpolation_scale=(None,),
        use_additional_conditions=(None,),
        attention_type=("default",),
    ),
    "AutoencoderKL": _settings(
        """in_channels out_channels down_block_types up_block_types block_out_channels layers_per_block act_fn
        latent_channels norm_num_groups scaling_factor shift_factor latents_mean latents_std use_quant_conv
        use_post_quant_conv mid_block_add_attention""",
        "sample_size force_upcast",  # of tiles; of half precision
    ),
    "scheduler": _settings(
        "num_train_timesteps beta_start beta_end beta_schedule trained_betas",
        # how a sampler steps and clips, which says nothing about the model
        """variance_type clip_sample clip_sample_range thresholding dynamic_thresholding_ratio
        sample_max_value timestep_spacing steps_offset set_alpha_to_one skip_prk_steps
        solver_order algorithm_type solver_type lower_order_final euler_at_final
        use_karras_sigmas use_exponential_sigmas use_beta_sigmas use_lu_lambdas flow_shift
        final_sigmas_type lambda_min_clipped time_shift_type tensor_format""",
        rescale_betas_zero_snr=(False, True),
        prediction_type=("epsilon", "v_prediction", "sample"),
        predict_epsilon=(True, False),  # what prediction_type was called until 2022
        use_flow_sigmas=(False,),  # else x_t = (1 - t) x_0 + t eps
        use_dynamic_shifting=(False,),
        timestep_values=(None,),
    ),
}
"""Every setting that a configuration may hold: HONOURED, HARMLESS, or the values that are understood.

Of the values, the first is the one that changes nothing where the class does not know the setting.
"""

_PREDICTIONS = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}
_PARTS = ("unet", "transformer", ".")
_NOTES = {"_class_name", "_diffusers_version", "_name_or_path"}  # of who wrote a configuration
_FIRST_STAGE = re.compile("VQ|Autoencoder|VAE")
_VARIANT = re.compile(r"diffusion_pytorch_model\.([\w-]+)\.(?:safetensors|bin)")
_WEIGHTS = {".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"}
_NAME = re.compile(r"(\w[\w.-]*/\w[\w.-]*)(?:@([\w./-]+))?")
_ROUNDOFF = 1e-6  # by which a level in float32 may lie outside the range
_CHUNK = 256  # images in a file of latents


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
    classes is told its null class. Nothing is clipped.

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
        told: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.model: Any = model
        self.shape, self.name, self.digest, self.vae = shape, name, digest, vae
        self.prediction, self._told = _PREDICTIONS[prediction], tuple(told)
        self._levels = levels
        self.sigma_range = (levels[0].item(), levels[-1].item())
        self._null_class = getattr(model.config, "num_embeds_ada_norm", None)
        self.feature_layers = tuple(f"model.{block}" for block in _blocks(model))

    @property
    def image_side(self) -> int | None:
        """The side of the images whose latents the model takes; None where it works on pixels."""
        if self.vae is None:
            return None
        return self.shape[1] * latent_factor(_json(self.vae / "config.json"))

    def read_as(self) -> list[str]:
        """Return lines that say as what the checkpoint was read, and where each of it was read from.

        Of the model, what it predicts, the schedule, the timesteps, and the scaling of the latents.
        """
        return list(self._told)

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
        if x.ndim != 2 or x.shape[1] != math.prod(self.shape):
            raise ValueError(
                f"x must have shape (N, {math.prod(self.shape)}) for images of shape {self.shape}, "
                f"got {tuple(x.shape)}"
            )
        level = column(sigma, x)
        skip, out = PREDICTIONS[self.prediction](level, 1.0)
        images = (x / (1 + level**2).sqrt()).unflatten(1, self.shape).to(self.model.dtype)
        steps = self.timesteps(sigma).flatten().float().to(x.device).expand(len(x))
        if self._null_class is None:
            output = self.model(images, steps, return_dict=False)[0]
        else:
            label = torch.full((len(x),), self._null_class, device=x.device)
            output = self.model(images, steps, class_labels=label, return_dict=False)[0]
        return torch.addcmul(skip * x, out, output[:, : self.shape[0]].flatten(1).to(x.dtype))

    def check(self, shape: tuple[int, int, int]) -> None:
        """Raise ValueError unless the model is one of images of `shape` (C, H, W)."""
        if tuple(shape) == self.shape:
            return
        help = "Choose other data, or bring them to this size"
        if self.vae is None and self.shape[0] == 4:
            help = (
                "If its 4 channels are latents, encode the images with published.latents(vae, data, folder)"
            )
        if self.vae is not None:
            help = "It works on latents: encode the images with published.latents(vae, data, folder, side)"
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
    return _schedule(_find(name_or_folder, allow_bin, scheduler).scheduler).levels


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
    found = _find(name_or_folder, allow_bin, scheduler)
    name, files = str(name_or_folder), found.files
    schedule = _schedule(found.scheduler)
    own_shape = _shape(files, shape)
    digest = found.digest()
    told = found.told(own_shape, schedule)
    denoiser = Published(
        files.read(), schedule.levels, schedule.prediction, own_shape, name, digest, found.vae, told
    )
    if shape is not None:
        denoiser.check(shape)
    sources.note(f"published/{name}", digest)
    return denoiser.eval()


def digest_of(
    name_or_folder: str | Path, *, allow_bin: bool | None = None, scheduler: str | Path | None = None
) -> str:
    """Return the `digest` of the denoiser that `load` would return, from what is on this machine.

    Raises FileNotFoundError where it is not, and as `load`.
    """
    return _find(name_or_folder, allow_bin, scheduler, fetch=False).digest()


@sources.reader("published/")
def _present(name: str) -> str | None:
    try:
        return digest_of(name.removeprefix("published/"))
    except FileNotFoundError:
        return None


@dataclass(frozen=True)
class ModelFiles:
    """The files of one model: its configuration, which was checked, and its weights."""

    kind: str  # its class in diffusers
    folder: Path
    config: dict[str, Any]
    weights: Path

    @property
    def config_file(self) -> Path:
        return self.folder / "config.json"

    def digest(self) -> str:
        """Return the SHA-256 of weights and configuration; raises ValueError for a damaged cache."""
        return _digest_of(self.weights, self.config_file)

    def read(self) -> nn.Module:
        """Return the model with its weights, all of which are there, finite, and fit; else ValueError."""
        return _read(self)


def autoencoder(name_or_folder: str | Path, *, allow_bin: bool | None = None) -> ModelFiles:
    """Return the files of an AutoencoderKL, in a folder or in `vae/` of a pipeline; nothing is read yet.

    Raises FileNotFoundError and ValueError as `load`.
    """
    root = _folder(name_or_folder, _allowed(allow_bin))
    part = root / "vae" if (root / "vae" / "config.json").is_file() else root
    config = _json(part / "config.json") if (part / "config.json").is_file() else {}
    if config.get("_class_name") != "AutoencoderKL":
        raise ValueError(
            f"{name_or_folder} holds no AutoencoderKL: it is looked for in vae/ and the folder itself"
        )
    _check_autoencoder(part / "config.json", config)
    return ModelFiles("AutoencoderKL", part, config, _weights_file(part, _allowed(allow_bin)))


def latent_factor(config: Mapping[str, Any]) -> int:
    """Return by how much the latents of an autoencoder, by its configuration, are smaller than its images."""
    return int(2 ** (len(config["block_out_channels"]) - 1))


def latent_scaling(config: Mapping[str, Any], name: str = "the autoencoder") -> tuple[Tensor, Tensor]:
    """Return b and s, (c, 1, 1) or (1, 1, 1), of z = s (m - b) for the encoder's means m, as in diffusers.

    b = latents_mean and s = scaling_factor / latents_std where the configuration has both; otherwise
    b = shift_factor, or 0, and s = scaling_factor. Raises ValueError, which says `name`, for what is not
    finite, not positive, of another length, or has but one of the two.
    """
    scale = config.get("scaling_factor", _default("AutoencoderKL", "scaling_factor"))
    shift, mean, std = (config.get(key) for key in ("shift_factor", "latents_mean", "latents_std"))
    if not _is_number(scale) or scale <= 0:
        raise ValueError(f"{name}: scaling_factor must be a finite number > 0, got {scale!r}")
    if shift is not None and not _is_number(shift):
        raise ValueError(f"{name}: shift_factor must be a finite number or null, got {shift!r}")
    if mean is None and std is None:
        return torch.tensor(float(shift or 0)).view(1, 1, 1), torch.tensor(float(scale)).view(1, 1, 1)
    if mean is None or std is None or shift:
        raise ValueError(
            f"{name}: latents_mean {mean!r}, latents_std {std!r} and shift_factor {shift!r} are understood "
            "as the first two together, or the third alone"
        )
    channels = config["latent_channels"]
    for key, values, low in (("latents_mean", mean, -math.inf), ("latents_std", std, 0)):
        right = isinstance(values, list | tuple) and len(values) == channels
        if not right or not all(_is_number(value) and value > low for value in values):
            raise ValueError(
                f"{name}: {key} must be {channels} finite numbers{' > 0' if low == 0 else ''}, one for each "
                f"latent channel, got {values!r}"
            )
    return torch.tensor(mean).float().view(-1, 1, 1), (float(scale) / torch.tensor(std).float()).view(
        -1, 1, 1
    )


@dataclass(frozen=True)
class _Schedule:
    levels: Tensor
    prediction: str
    told: tuple[str, str, str]  # what it predicts, the schedule, the timesteps


@dataclass(frozen=True)
class _Checkpoint:
    """Where the files of a checkpoint are."""

    name: str
    given: Path  # the folder of that name
    files: ModelFiles
    scheduler: Path  # its configuration
    vae: Path | None

    def digest(self) -> str:
        return _digest_of(self.files.weights, self.files.config_file, self.scheduler)

    def told(self, shape: tuple[int, int, int], schedule: _Schedule) -> list[str]:
        def at(path: Path) -> str:
            return os.path.relpath(path, self.given)

        scaling = "scaling of latents: none, it works on what it is given (no autoencoder beside it)"
        if self.vae is not None:
            file = self.vae / "config.json"
            b, s = (", ".join(f"{v:g}" for v in part.flatten()) for part in latent_scaling(_json(file)))
            scaling = f"scaling of latents: z = s (m - b), s = {s}, b = {b} ({at(file)})"
        prediction, betas, steps = (f"{line} ({at(self.scheduler)})" for line in schedule.told)
        channels, height, width = shape
        return [
            f"model: {self.name}, {self.files.kind} on {channels} x {height} x {width} values "
            f"({at(self.files.config_file)}, {at(self.files.weights)})",
            prediction,
            betas,
            steps,
            scaling,
        ]


def _find(
    name_or_folder: str | Path,
    allow_bin: bool | None,
    scheduler: str | Path | None = None,
    fetch: bool = True,
) -> _Checkpoint:
    folder = Path(os.path.abspath(_folder(name_or_folder, _allowed(allow_bin), fetch)))
    part, config = _model_part(folder, str(name_or_folder))
    kind = MODELS[config["_class_name"]]
    _check_settings(part / "config.json", config, kind, kind)
    homes = [part, *part.parents[:3]]  # the pipeline's folder is one of them: the first with an index,
    indexed = [i for i, home in enumerate(homes) if (home / "model_index.json").is_file()]
    homes = homes[: indexed[0] + 1] if indexed else homes
    file = _scheduler_file(homes, scheduler, str(name_or_folder))
    if not indexed:  # or else that of the scheduler
        home = file.parent.parent if file.parent.name == "scheduler" else file.parent
        homes = homes[: 1 + (homes.index(home) if home in homes else part != folder)]
    files = ModelFiles(kind, part, config, _weights_file(part, _allowed(allow_bin)))
    return _Checkpoint(str(name_or_folder), folder, files, file, _first_stage(homes))


def _blocks(model: nn.Module) -> list[str]:
    """The names of the encoder's, middle and decoder's blocks of a UNet, or of the blocks of a DiT."""
    found = []
    for name in ("down_blocks", "mid_block", "up_blocks", "transformer_blocks"):
        part = getattr(model, name, None)
        if isinstance(part, nn.ModuleList):
            found += [f"{name}.{i}" for i in range(len(part))]
        elif part is not None:
            found.append(name)
    return found


def _allowed(allow_bin: bool | None) -> bool:
    return os.environ.get("MOLRG_ALLOW_BIN") == "1" if allow_bin is None else allow_bin


def _folder(name_or_folder: str | Path, allow_bin: bool, fetch: bool = True) -> Path:
    """The folder of a checkpoint: the given one, or the one into which the name was fetched."""
    given = Path(name_or_folder).expanduser()
    if given.is_dir():
        return given
    if given.exists():
        raise ValueError(f"{given} is a file: give the folder of the checkpoint, with its config.json")
    match = _NAME.fullmatch(str(name_or_folder))
    if not match:
        raise FileNotFoundError(
            f"no checkpoint {str(name_or_folder)!r}: there is no such folder ({given.absolute()}), and it is "
            "not a name on the Hugging Face Hub, which reads owner/name, such as google/ddpm-cifar10-32"
        )
    return _fetched(match[1], match[2], allow_bin, fetch)


def _fetched(name: str, revision: str | None, allow_bin: bool, fetch: bool) -> Path:
    """Fetch the files that are needed of a repository on the Hub, or take those fetched before."""
    from huggingface_hub import constants, snapshot_download

    parts = ["", "unet/", "transformer/", "vae/"]
    wanted = ["model_index.json", "scheduler_config.json", "scheduler/scheduler_config.json"]
    wanted += [part + file for part in parts for file in ("config.json", SAFE)]

    def folder_with(files: list[str]) -> Path:
        return Path(
            snapshot_download(name, revision=revision, allow_patterns=files, local_files_only=not fetch)
        )

    try:
        folder = folder_with(wanted)
        with_config = [folder / part for part in parts if (folder / part / "config.json").is_file()]
        if allow_bin and not all((part / SAFE).is_file() for part in with_config):
            folder = folder_with([*wanted, *(part + BIN for part in parts)])
    except Exception as error:  # of the network, the Hub or its client: in each case it is not here
        reason = f"{type(error).__name__}: {(str(error).strip() or 'no reason').splitlines()[0]}"
        raise FileNotFoundError(
            f"published checkpoint {name!r} not found: there is no such folder ({Path(name).absolute()}), it "
            f"is not in {constants.HF_HUB_CACHE}, and the Hugging Face Hub did not give it ({reason}). Check "
            f"the name and the connection, or run `hf download {name} --local-dir FOLDER` elsewhere "
            "and give that folder"
        ) from error
    return folder


def _model_part(folder: Path, name: str) -> tuple[Path, dict[str, Any]]:
    """The folder that holds the model's configuration, and the configuration."""
    found = []
    for part in _PARTS:
        path = folder / part / "config.json"
        if path.is_file():
            config = _json(path)
            if config.get("_class_name") in MODELS:
                return path.parent, config
            found.append(f"{path} is of a {config.get('_class_name')}")
    known = ", ".join(sorted(set(MODELS.values())))
    if found:
        raise ValueError(f"{name} holds no model that can be loaded ({'; '.join(found)}): known are {known}")
    raise FileNotFoundError(
        f"{name} holds no model: looked for config.json of a {known} in "
        f"{', '.join(str((folder / part).resolve()) for part in _PARTS)}"
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object")
    return content


def _scheduler_file(homes: Sequence[Path], given: str | Path | None, name: str) -> Path:
    """The configuration of the scheduler: the given one, or the nearest."""
    if given is not None:
        path = Path(os.path.abspath(Path(given).expanduser()))
        path = path / "scheduler_config.json" if path.is_dir() else path
        if not path.is_file():
            raise FileNotFoundError(f"scheduler: there is no {path}, the scheduler_config.json of {name}")
        return path
    places = [home / part / "scheduler_config.json" for home in homes for part in ("scheduler", ".")]
    found = next((path for path in places if path.is_file()), None)
    if found is None:
        raise FileNotFoundError(
            f"{name} has no scheduler, so that its noise levels and what it predicts are not known: looked "
            f"for scheduler_config.json in {', '.join(str(path.parent) for path in places)}. Pass "
            "scheduler=FOLDER with the scheduler_config.json of its training, or put that file into "
            f"{places[0].parent}"
        )
    return found


def _first_stage(homes: Sequence[Path]) -> Path | None:
    """The folder of the autoencoder in whose latents a model works; refuses all but an AutoencoderKL.

    It is looked for in the model's folder and those that hold it, up to that of the pipeline.
    """
    parts: dict[Path, str] = {}
    for home in homes:
        index = _json(home / "model_index.json") if (home / "model_index.json").is_file() else {}
        for key, value in index.items():
            if (
                not key.startswith("_")
                and isinstance(value, list)
                and len(value) == 2
                and value[1] is not None
            ):
                if key not in ("unet", "transformer", "scheduler", "vae"):
                    raise ValueError(
                        f"{home / 'model_index.json'} has the part {key} ({value[1]}): models of pixels, or "
                        "of the latents of a vae (AutoencoderKL), are known, and nothing else beside them"
                    )
                if key == "vae":
                    parts[home / key] = value[1]
        for config in sorted(home.glob("*/config.json")):
            kind = str(_json(config).get("_class_name"))
            if config.parent not in homes and (_FIRST_STAGE.search(kind) or config.parent.name == "vae"):
                parts.setdefault(config.parent, kind)
    for folder, kind in parts.items():
        if not (folder / "config.json").is_file():
            raise FileNotFoundError(
                f"{folder.parent / 'model_index.json'} has a vae, and there is no {folder}"
            )
        written = _json(folder / "config.json").get("_class_name")
        if folder.name != "vae" or {kind, written} != {"AutoencoderKL"}:
            raise ValueError(
                f"{folder} is a first stage {written or kind}: only a vae, AutoencoderKL, is known"
            )
        _check_autoencoder(folder / "config.json", _json(folder / "config.json"))
    return next(iter(parts), None)


def _default(kind: str, key: str) -> Any:
    """The value that diffusers takes for a setting that a configuration does not have."""
    import diffusers

    return inspect.signature(getattr(diffusers, kind)).parameters[key].default


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _check_settings(path: Path, config: Mapping[str, Any], kind: str, settings: str) -> None:
    """Refuse by its name every setting of the configuration `path` that is not in SETTINGS[settings]."""
    import diffusers

    known = SETTINGS[settings]
    if unknown := sorted(config.keys() - known.keys() - _NOTES):
        raise ValueError(
            f"{path} has settings that are not known, and might change what the model takes or returns: "
            + ", ".join(f"{key} ({config[key]!r})" for key in unknown)
        )
    parameters = inspect.signature(getattr(diffusers, kind)).parameters
    for key, allowed in known.items():
        if isinstance(allowed, str) or key not in config:
            continue
        if key not in parameters and key != "predict_epsilon":  # diffusers passes over it
            allowed = allowed[:1]
        if not any(type(config[key]) is type(value) and config[key] == value for value in allowed):
            raise ValueError(
                f"{path} has {key} {config[key]!r}: known for a {kind} is {' or '.join(map(repr, allowed))}, "
                "others change what it takes or returns"
            )


def _check_autoencoder(path: Path, config: Mapping[str, Any]) -> None:
    _check_settings(path, config, "AutoencoderKL", "AutoencoderKL")
    for key in ("in_channels", "latent_channels"):
        integer(f"{path}: {key}", config.get(key), 1)
    if not isinstance(config.get("block_out_channels"), list):
        raise ValueError(
            f"{path}: block_out_channels must be a list, got {config.get('block_out_channels')!r}"
        )
    latent_scaling(config, str(path))


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


def _schedule(path: Path) -> _Schedule:
    """Noise levels of all timesteps and what the model predicts, by the scheduler's configuration."""
    import diffusers

    config = _json(path)
    kind = config.get("_class_name")
    if kind not in SCHEDULERS:
        raise ValueError(f"{path} is of the scheduler {kind}: known are {', '.join(SCHEDULERS)}")
    _check_settings(path, config, kind, "scheduler")
    prediction = _prediction(path, config)
    steps = config.get("num_train_timesteps", _default(kind, "num_train_timesteps"))
    trained = config.get("trained_betas")
    integer(f"{path}: num_train_timesteps", steps, 2)
    for key in ("beta_start", "beta_end"):
        value = config.get(key, _default(kind, key))
        if not _is_number(value) or not 0 < value < 1:
            raise ValueError(f"{path} has {key} {value!r}: it must lie strictly between 0 and 1")
    if trained is not None and (not isinstance(trained, list) or len(trained) != steps):
        raise ValueError(
            f"{path} has trained_betas that are not a list of num_train_timesteps {steps} numbers"
        )
    with _quiet_diffusers():
        try:
            scheduler = getattr(diffusers, kind).from_config(config)
        except Exception as error:  # whatever diffusers makes of values that it does not expect
            raise ValueError(f"{path} is not understood by the {kind} of diffusers: {error}") from error
    # 1 - abar from the betas in float64: from the scheduler's abar in float32 it would lose four digits.
    betas = scheduler.betas.double()
    levels = torch.expm1(-torch.log1p(-betas).cumsum(0)).sqrt()
    if levels[-1].isinf():  # pure noise, where the schedule ends there
        levels = levels[:-1]
    if not ((betas > 0) & (betas <= 1)).all() or not levels.isfinite().all() or not (levels.diff() > 0).all():
        raise ValueError(
            f"the noise levels of {path} must be finite, at least two, and increase with the timestep: the "
            f"betas must lie strictly between 0 and 1, got {betas.min():.4g} to {betas.max():.4g}"
        )
    name = f"beta_schedule {scheduler.config.beta_schedule}" if trained is None else "trained_betas"
    unsaid = "" if config.keys() & {"prediction_type", "predict_epsilon"} else ", as it says nothing else"
    if trained is None and scheduler.config.beta_schedule != "squaredcos_cap_v2":
        name += f" from {scheduler.config.beta_start:g} to {scheduler.config.beta_end:g}"
    if scheduler.config.get("rescale_betas_zero_snr"):
        name += ", rescaled to end in pure noise"
    return _Schedule(
        levels,
        prediction,
        (
            f"prediction type: {prediction}{unsaid}",
            f"schedule: {name}, sigma from {levels[0]:.4g} to {levels[-1]:.4g}",
            f"timesteps: {len(levels)}",
        ),
    )


def _prediction(path: Path, config: Mapping[str, Any]) -> str:
    """What the model predicts; diffusers dropped `predict_epsilon`, which says the same, in 2023."""
    old = {True: "epsilon", False: "sample", None: None}[config.get("predict_epsilon")]
    new = config.get("prediction_type", old)
    if old is not None and new != old:
        raise ValueError(
            f"{path} has predict_epsilon {config['predict_epsilon']} and prediction_type {new!r}, which "
            "contradict each other: leave the one that is right"
        )
    return str(new or "epsilon")


def _weights_file(part: Path, allow_bin: bool) -> Path:
    """The file with a model's weights; safetensors wherever there are some."""
    names = sorted(path.name for path in part.iterdir() if path.is_file())
    shards = [name for name in names if name.endswith(".index.json") or re.search(r"-\d+-of-\d+\.", name)]
    wanted = SAFE if SAFE in names else BIN
    if wanted in names and f"{wanted}.index.json" in names:
        raise ValueError(
            f"{part} holds {wanted} and {wanted}.index.json, which names other files: which of them are the "
            "weights cannot be told. Remove the one that is not"
        )
    if wanted in names:
        if wanted == SAFE or allow_bin:
            return part / wanted
        raise ValueError(
            f"{part} holds its weights as {BIN} alone, a pickle. To have it read all the same, by "
            "torch.load(weights_only=True), which runs no code in it, pass allow_bin=True or set the "
            "environment variable MOLRG_ALLOW_BIN=1"
        )
    save = "load it in diffusers and write it by save_pretrained"
    if shards:
        raise ValueError(
            f"{part} holds its weights in shards ({', '.join(shards[:3])}), and one file, {SAFE}, is needed: "
            f'{save}(folder, max_shard_size="100GB")'
        )
    variants = [match for match in map(_VARIANT.fullmatch, names) if match]
    if variants:
        raise ValueError(
            f"{part} holds its weights as a variant alone "
            f"({', '.join(f'{match[1]}: {match[0]}' for match in variants)}), and {SAFE} is needed: "
            f"{save} without variant"
        )
    others = [name for name in names if Path(name).suffix in _WEIGHTS]
    pickles = [name for name in others if not name.endswith(".safetensors")]
    found = f"only {', '.join(others)}, which is not read" if others else "none"
    refused = "Pickles (.pt, .pth, .ckpt, .pkl) can run code and are refused; " if pickles else ""
    raise FileNotFoundError(
        f"no weights in {part.resolve()}: looked for {SAFE}, found {found}. {refused}diffusers' "
        "save_pretrained writes the file that is needed, in one part and without variant. Of a "
        f"repository that has but an older {BIN}, pass allow_bin=True or set MOLRG_ALLOW_BIN=1"
    )


def _digest_of(*files: Path | None) -> str:
    """SHA-256 of the contents of files; one in the cache of the Hub, which knows it, is checked."""
    digests = []
    for path in files:
        if path is None:
            continue
        with path.open("rb") as file:
            digests.append(hashlib.file_digest(file, "sha256").hexdigest())
        blob = path.resolve()  # the cache keeps a large file under its SHA-256
        if blob.parent.name == "blobs" and len(blob.name) == 64 and blob.name != digests[-1]:
            raise ValueError(
                f"{path} is damaged: expected SHA-256 {blob.name}, actual {digests[-1]}. Delete {blob} and "
                "load it again"
            )
    return hashlib.sha256(repr(digests).encode()).hexdigest()


def _read(files: ModelFiles) -> nn.Module:
    """The model with its weights, all of which must be there, fit, and be finite."""
    import diffusers

    _check_readable(files.weights)
    # diffusers sees these two files alone, whatever lies beside them
    with tempfile.TemporaryDirectory() as alone, _quiet_diffusers():
        (Path(alone) / "config.json").write_text(json.dumps(files.config), encoding="utf-8")
        (Path(alone) / files.weights.name).symlink_to(files.weights.resolve())
        try:
            model, info = getattr(diffusers, files.kind).from_pretrained(
                alone,
                use_safetensors=files.weights.name == SAFE,
                low_cpu_mem_usage=False,
                output_loading_info=True,
                local_files_only=True,
            )
        except Exception as error:  # whatever a configuration or weights that do not fit lead to
            first = "; ".join(line.strip() for line in str(error).splitlines()[:3])
            raise ValueError(
                f"{files.weights} does not hold the weights of the {files.kind} in {files.folder}: "
                f"{type(error).__name__}: {first}"
            ) from error
    wrong = [
        f"{len(info[key])} {key.replace('_', ' ')} ({', '.join(sorted(map(str, info[key]))[:3])} ...)"
        for key in ("missing_keys", "unexpected_keys", "mismatched_keys")
        if info[key]
    ]
    if wrong:
        raise ValueError(
            f"{files.weights} does not fit the {files.kind} of {files.config_file}: {', '.join(wrong)}"
        )
    network: nn.Module = model.eval()
    if bad := [name for name, value in network.state_dict().items() if not value.isfinite().all()]:
        raise ValueError(f"{files.weights} holds weights that are NaN or infinite: {', '.join(bad[:3])}")
    return network


def _check_readable(weights: Path) -> None:
    """Raise ValueError unless the file holds named tensors and nothing else; no code in it is run."""
    if weights.name == SAFE:
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(weights, "pt"):
                return
        except SafetensorError as error:
            raise ValueError(
                f"{weights} is damaged or not a safetensors file ({error}): fetch it again"
            ) from error
    try:
        content = torch.load(weights, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(weights))
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{weights} is refused: it is a damaged pickle, or asks for more than tensors, which could run "
            f"code ({str(error).splitlines()[0]})"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError) as error:
        raise ValueError(f"{weights} is damaged: {error}") from error
    if not isinstance(content, dict) or not all(isinstance(each, Tensor) for each in content.values()):
        raise ValueError(f"{weights} must hold a dictionary of tensors and nothing else")


@contextmanager
def _quiet_diffusers() -> Iterator[None]:
    """Keep diffusers from logging what is known, such as fields of older versions; errors pass."""
    from diffusers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        logging.set_verbosity(before)


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
    made_of = (data.digest, files.digest(), height, width, of_loaded(_encode))
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
