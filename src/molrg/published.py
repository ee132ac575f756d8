r"""Published diffusion models: checkpoints in the format of diffusers, as denoisers.

    denoiser = published.load("path/to/checkpoint")          # nothing touches the network
    denoiser = published.load("google/ddpm-cifar10-32")      # by name: fetched once, then kept
    denoiser(x, 0.3)                                         # x (N, n): images in [-1, 1], or latents
    denoiser.timesteps(0.3), denoiser.levels(), denoiser.sigma_range

`UNet2DModel` and `DiTTransformer2DModel` are read, from the folder of a pipeline (`unet/` or `transformer/`,
`scheduler/`, `vae/`) or with `config.json`, weights and `scheduler_config.json` side by side. A name is
`owner/name`, or `owner/name@revision` for one version of it. Weights are read from
`diffusion_pytorch_model.safetensors`; an older `diffusion_pytorch_model.bin` only where that is asked for,
with `allow_bin=True` or the environment variable MOLRG_ALLOW_BIN=1, and without running any code in it.
"""

import hashlib
import json
import math
import os
import pickle
import re
import zipfile
from collections.abc import Iterator, Sequence
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
"""The schedulers whose noise levels are understood; without one, DDPM's usual levels are taken."""

_PREDICTIONS = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}
_PARTS = ("unet", "transformer", ".")
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
    works, or None.
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
    ) -> None:
        super().__init__()
        self.model: Any = model
        self.shape, self.name, self.digest, self.vae = shape, name, digest, vae
        self.prediction = _PREDICTIONS[prediction]
        self._levels = levels
        self.sigma_range = (levels[0].item(), levels[-1].item())
        self._null_class = getattr(model.config, "num_embeds_ada_norm", None)
        self.feature_layers = tuple(f"model.{block}" for block in _blocks(model))

    @property
    def image_side(self) -> int | None:
        """The side of the images whose latents the model takes; None where it works on pixels."""
        if self.vae is None:
            return None
        side: int = self.shape[1] * _vae_factor(_json(self.vae / "config.json"))
        return side

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


def levels_of(name_or_folder: str | Path, *, allow_bin: bool | None = None) -> Tensor:
    """Return the noise levels of the denoiser that `load` would return, without reading its weights.

    Raises as `load` for what is not there or not known.
    """
    return _schedule(_find(name_or_folder, _allowed(allow_bin)).scheduler, str(name_or_folder))[0]


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

    Raises
    ------
    FileNotFoundError
        Where there is no such folder or name, or no weights in it: what, where it was looked for, and how
        to get it.
    ValueError
        For another kind of model or scheduler, a refused or damaged file, weights that do not fit the
        model, or data of another shape.
    """
    found = _find(name_or_folder, _allowed(allow_bin))
    name, config = str(name_or_folder), found.config
    _check_conditioning(found.kind, config, name)
    levels, prediction = _schedule(found.scheduler, name)
    size = config.get("sample_size")
    if size is None:
        if shape is None:
            raise ValueError(f"{name} says no image size (sample_size): pass the shape (C, H, W) of the data")
        size = shape[1:]
    height, width = (size, size) if isinstance(size, int) else size
    digest = found.digest()
    model = _read(found.kind, found.part, found.weights)
    own_shape = (config["in_channels"], height, width)
    denoiser = Published(model, levels, prediction, own_shape, name, digest, found.vae)
    if shape is not None:
        denoiser.check(shape)
    sources.note(f"published/{name}", digest)
    return denoiser.eval()


def digest_of(name_or_folder: str | Path, *, allow_bin: bool | None = None) -> str:
    """Return the `digest` of the denoiser that `load` would return, from what is on this machine.

    Raises FileNotFoundError where it is not, and as `load`.
    """
    return _find(name_or_folder, _allowed(allow_bin), fetch=False).digest()


@sources.reader("published/")
def _present(name: str) -> str | None:
    try:
        return digest_of(name.removeprefix("published/"))
    except FileNotFoundError:
        return None


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

    with s the autoencoder's scaling_factor and b its shift_factor, or 0. Values of z have scale 1 and are
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
    root = _folder(vae, _allowed(allow_bin))
    part = root / "vae" if (root / "vae" / "config.json").is_file() else root
    config = _json(part / "config.json") if (part / "config.json").is_file() else {}
    if config.get("_class_name") != "AutoencoderKL":
        raise ValueError(f"{vae} holds no AutoencoderKL: it is looked for in vae/ and the folder itself")
    channels, factor = config["in_channels"], _vae_factor(config)
    if data.shape[0] not in (1, channels):
        raise ValueError(f"{vae} takes images of {channels} channels, and {data.name} has {data.shape[0]}")
    height, width = data.shape[1:] if side is None else (integer("side", side, 1), side)
    if height % factor or width % factor:
        raise ValueError(
            f"{vae} takes images whose sides are multiples of {factor}, got {height} x {width}: "
            "choose `side` accordingly"
        )
    weights = _weights_file(part, _allowed(allow_bin))
    made_of = (data.digest, _digest_of(weights, part / "config.json"), height, width, of_loaded(_encode))
    digest = hashlib.sha256(repr(made_of).encode()).hexdigest()
    encoder: list[nn.Module] = []  # read only if there is something to encode

    def encoded(images: Tensor, file: Path) -> Tensor:
        try:
            return checkpoints.load(file)[0]["latents"]
        except (FileNotFoundError, ValueError):  # not there, or damaged: made once more
            pass
        if not encoder:
            encoder.append(_read("AutoencoderKL", part, weights).to(device or "cpu"))
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


def _vae_factor(config: dict[str, Any]) -> int:
    """By how much the latents of an autoencoder are smaller than its images."""
    return 2 ** (len(config["block_out_channels"]) - 1)


def _encode(vae: Any, images: Tensor, size: tuple[int, int]) -> Tensor:
    """Scaled latents (B, c * h * w), on the CPU, of images (B, C, H, W) brought to `size`."""
    images = images.to(vae.device)
    if tuple(images.shape[2:]) != size:
        images = functional.interpolate(images, size, mode="bilinear", antialias=True)
    with torch.no_grad():
        mean = vae.encode(images.expand(-1, vae.config.in_channels, -1, -1)).latent_dist.mode()
    return ((mean - (vae.config.shift_factor or 0.0)) * vae.config.scaling_factor).flatten(1).cpu()


@dataclass(frozen=True)
class _Checkpoint:
    """Where the files of a checkpoint are."""

    part: Path  # the folder with the model's configuration and weights
    config: dict[str, Any]
    weights: Path
    scheduler: Path | None  # its configuration
    vae: Path | None

    @property
    def kind(self) -> str:
        return MODELS[self.config["_class_name"]]

    def digest(self) -> str:
        return _digest_of(self.weights, self.part / "config.json", self.scheduler)


def _find(name_or_folder: str | Path, allow_bin: bool, fetch: bool = True) -> _Checkpoint:
    folder = _folder(name_or_folder, allow_bin, fetch)
    part, config = _model_part(folder, str(name_or_folder))
    places = [folder / "scheduler", part, part.parent / "scheduler"]
    schedulers = [place / "scheduler_config.json" for place in places]
    scheduler = next((path for path in schedulers if path.is_file()), None)
    vae = folder / "vae" if (folder / "vae" / "config.json").is_file() else None
    return _Checkpoint(part, config, _weights_file(part, allow_bin), scheduler, vae)


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
                return folder / part, config
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
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object")
    return content


def _check_conditioning(kind: str, config: dict[str, Any], name: str) -> None:
    """Refuse models that ask for more than a noisy image and a timestep, and unknown embeddings of it."""
    channels = config.get("in_channels")
    if not isinstance(channels, int):
        raise ValueError(f"the config.json of {name} must say in_channels, got {channels!r}")
    out = config.get("out_channels") or channels
    if out not in (channels, 2 * channels):
        raise ValueError(
            f"{name} has {channels} channels in and {out} out: as many, or twice with a learned variance, "
            "are needed"
        )
    if kind == "UNet2DModel":
        embedding = config.get("time_embedding_type", "positional")
        if embedding != "positional":
            raise ValueError(
                f"{name} embeds the noise level as {embedding!r}: only 'positional' timesteps are known"
            )
        if config.get("class_embed_type") or config.get("num_class_embeds"):
            raise ValueError(f"{name} asks for a class and has no null class: unconditional UNets are known")
    elif config.get("norm_type", "ada_norm_zero") != "ada_norm_zero":
        raise ValueError(
            f"{name} has norm_type {config['norm_type']!r}: only a DiT, 'ada_norm_zero', is known"
        )


def _schedule(path: Path | None, name: str) -> tuple[Tensor, str]:
    """Noise levels of all timesteps and what the model predicts, by the scheduler's configuration."""
    import diffusers

    config = {"_class_name": "DDPMScheduler"} if path is None else _json(path)
    kind = config.get("_class_name")
    if kind not in SCHEDULERS:
        raise ValueError(f"{name} has the scheduler {kind}: known are {', '.join(SCHEDULERS)}")
    with _quiet_diffusers():
        scheduler = getattr(diffusers, kind).from_config(config)
    prediction = scheduler.config.prediction_type
    if prediction not in _PREDICTIONS:
        raise ValueError(f"{name} predicts {prediction!r}: known are {', '.join(_PREDICTIONS)}")
    # 1 - abar from the betas in float64: from the scheduler's abar in float32 it would lose four digits.
    log_abar = torch.log1p(-scheduler.betas.double()).cumsum(0)
    levels = (torch.expm1(-log_abar)).sqrt()
    levels = levels[levels.isfinite()]  # the last one is pure noise where the schedule ends there
    if len(levels) < 2 or not (levels.diff() > 0).all() or levels[0] <= 0:
        raise ValueError(f"the noise levels of {name} must be at least two, and increase with the timestep")
    return levels, prediction


def _weights_file(part: Path, allow_bin: bool) -> Path:
    """The file with a model's weights; safetensors wherever there are some."""
    if (part / SAFE).is_file():
        return part / SAFE
    if (part / BIN).is_file():
        if allow_bin:
            return part / BIN
        raise ValueError(
            f"{part} holds its weights as {BIN} alone, a pickle. To have it read all the same, by "
            "torch.load(weights_only=True), which runs no code in it, pass allow_bin=True or set the "
            "environment variable MOLRG_ALLOW_BIN=1"
        )
    others = sorted(
        path.name
        for path in part.iterdir()
        if path.suffix in (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
    )
    found = f"only {', '.join(others)}, which is not read" if others else "none"
    raise FileNotFoundError(
        f"no weights in {part.resolve()}: looked for {SAFE}, found {found}. Pickles (.pt, .pth, .ckpt, .pkl) "
        "can run code and are refused; diffusers' save_pretrained writes the file that is needed. Of a "
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


def _read(kind: str, part: Path, weights: Path) -> nn.Module:
    """The model with its weights, all of which must be there and fit."""
    import diffusers

    _check_readable(weights)
    with _quiet_diffusers():
        try:
            model, info = getattr(diffusers, kind).from_pretrained(
                part,
                use_safetensors=weights.name == SAFE,
                low_cpu_mem_usage=False,
                output_loading_info=True,
                local_files_only=True,
            )
        except (RuntimeError, OSError, ValueError, TypeError) as error:
            first = "; ".join(line.strip() for line in str(error).splitlines()[:3])
            raise ValueError(
                f"{weights} does not hold the weights of the {kind} in {part}: {first}"
            ) from error
    wrong = [
        f"{len(info[key])} {key.replace('_', ' ')} ({', '.join(sorted(map(str, info[key]))[:3])} ...)"
        for key in ("missing_keys", "unexpected_keys", "mismatched_keys")
        if info[key]
    ]
    if wrong:
        raise ValueError(f"{weights} does not fit the {kind} of {part / 'config.json'}: {', '.join(wrong)}")
    network: nn.Module = model.eval()
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
