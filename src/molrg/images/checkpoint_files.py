"""The files of a published checkpoint: found or fetched, checked, and read without running code in them."""

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
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from molrg.support.checks import integer

__all__ = [
    "BIN",
    "HARMLESS",
    "HONOURED",
    "MODELS",
    "SAFE",
    "SCHEDULERS",
    "SETTINGS",
    "ModelFiles",
    "autoencoder",
    "find",
    "latent_factor",
    "latent_scaling",
    "read_json",
    "read_schedule",
]

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
_PARTS = ("unet", "transformer", ".")
_NOTES = {"_class_name", "_diffusers_version", "_name_or_path"}  # of who wrote a configuration
_FIRST_STAGE = re.compile("VQ|Autoencoder|VAE")
_VARIANT = re.compile(r"diffusion_pytorch_model\.([\w-]+)\.(?:safetensors|bin)")
_SHARD = re.compile(r"\.index\.json$|-\d+-of-\d+\.")
_WEIGHTS = {".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"}
_NAME = re.compile(r"(\w[\w.-]*/\w[\w.-]*)(?:@([\w./-]+))?")


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
        import diffusers

        _check_readable(self.weights)
        # diffusers sees these two files alone, whatever lies beside them
        with tempfile.TemporaryDirectory() as alone, _quiet_diffusers():
            (Path(alone) / "config.json").write_text(json.dumps(self.config), encoding="utf-8")
            (Path(alone) / self.weights.name).symlink_to(self.weights.resolve())
            try:
                model, info = getattr(diffusers, self.kind).from_pretrained(
                    alone,
                    use_safetensors=self.weights.name == SAFE,
                    low_cpu_mem_usage=False,
                    output_loading_info=True,
                    local_files_only=True,
                )
            except Exception as error:  # whatever a configuration or weights that do not fit lead to
                first = "; ".join(line.strip() for line in str(error).splitlines()[:3])
                raise ValueError(
                    f"{self.weights} does not hold the weights of the {self.kind} in {self.folder}: "
                    f"{type(error).__name__}: {first}"
                ) from error
        wrong = [
            f"{len(info[key])} {key.replace('_', ' ')} ({', '.join(sorted(map(str, info[key]))[:3])} ...)"
            for key in ("missing_keys", "unexpected_keys", "mismatched_keys")
            if info[key]
        ]
        if wrong:
            raise ValueError(
                f"{self.weights} does not fit the {self.kind} of {self.config_file}: {', '.join(wrong)}"
            )
        network: nn.Module = model.eval()
        if bad := [name for name, value in network.state_dict().items() if not value.isfinite().all()]:
            raise ValueError(f"{self.weights} holds weights that are NaN or infinite: {', '.join(bad[:3])}")
        return network


def autoencoder(name_or_folder: str | Path, *, allow_bin: bool | None = None) -> ModelFiles:
    """Return the files of an AutoencoderKL, in a folder or in `vae/` of a pipeline; nothing is read yet.

    Raises FileNotFoundError and ValueError as `load`.
    """
    root = _folder(name_or_folder, _allowed(allow_bin))
    part = root / "vae" if (root / "vae" / "config.json").is_file() else root
    if _kind(part) != "AutoencoderKL":
        raise ValueError(
            f"{name_or_folder} holds no AutoencoderKL: it is looked for in vae/ and the folder itself"
        )
    config = _autoencoder_config(part)
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
        mean, std, channels = [shift or 0], [1], 1
    elif mean is None or std is None or shift:
        raise ValueError(
            f"{name}: latents_mean {mean!r}, latents_std {std!r} and shift_factor {shift!r} are understood "
            "as the first two together, or the third alone"
        )
    else:
        channels = config["latent_channels"]
    for key, values, low in (("latents_mean", mean, -math.inf), ("latents_std", std, 0)):
        right = isinstance(values, list | tuple) and len(values) == channels
        if not right or not all(_is_number(value) and value > low for value in values):
            raise ValueError(
                f"{name}: {key} must be {channels} finite numbers{' > 0' if low == 0 else ''}, one for each "
                f"latent channel, got {values!r}"
            )
    b, s = (torch.tensor(values).float().view(-1, 1, 1) for values in (mean, std))
    return b, float(scale) / s


class _Schedule(NamedTuple):
    levels: Tensor
    prediction: str
    read_as: tuple[str, str, str]  # what it predicts, the schedule, the timesteps


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

    def read_as(self, shape: tuple[int, int, int], schedule: _Schedule) -> list[str]:
        def at(*paths: Path) -> str:
            return f"({', '.join(os.path.relpath(path, self.given) for path in paths)})"

        scaling = "scaling of latents: none, it works on what it is given (no autoencoder beside it)"
        if self.vae is not None:
            file = self.vae / "config.json"
            b, s = (", ".join(f"{v:g}" for v in part.flatten()) for part in latent_scaling(read_json(file)))
            scaling = f"scaling of latents: z = s (m - b), s = {s}, b = {b} {at(file)}"
        return [
            f"model: {self.name}, {self.files.kind} on {' x '.join(map(str, shape))} values "
            + at(self.files.config_file, self.files.weights),
            *(f"{line} {at(self.scheduler)}" for line in schedule.read_as),
            scaling,
        ]


def find(
    name_or_folder: str | Path,
    allow_bin: bool | None,
    scheduler: str | Path | None = None,
    fetch: bool = True,
) -> _Checkpoint:
    root = Path(os.path.abspath(_folder(name_or_folder, _allowed(allow_bin), fetch)))
    part, kind, config = _model_part(root, str(name_or_folder))
    homes = [part, *part.parents[:3]]  # the pipeline's folder is one of them: the first with an index,
    indexed = [i for i, home in enumerate(homes) if (home / "model_index.json").is_file()]
    homes = homes[: indexed[0] + 1] if indexed else homes
    file = _scheduler_file(homes, scheduler, str(name_or_folder))
    if not indexed:  # or else that of the scheduler
        home = file.parent.parent if file.parent.name == "scheduler" else file.parent
        homes = homes[: 1 + (homes.index(home) if home in homes else part != root)]
    files = ModelFiles(kind, part, config, _weights_file(part, _allowed(allow_bin)))
    return _Checkpoint(str(name_or_folder), root, files, file, _first_stage(homes))


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
    indices = (f"{SAFE}.index.json", "model.safetensors.index.json")  # which name shards: see `_weights_file`
    wanted += [part + file for part in parts for file in ("config.json", SAFE, *indices)]

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


def _model_part(folder: Path, name: str) -> tuple[Path, str, dict[str, Any]]:
    """The folder that holds the model's configuration, the model's class, and the checked configuration."""
    parts = [folder / part for part in _PARTS]
    kinds = {part: _kind(part) for part in parts if (part / "config.json").is_file()}
    for part, written in kinds.items():
        if kind := MODELS.get(written):
            config = read_json(part / "config.json")
            _check_settings(part / "config.json", config, kind, kind)
            return part, kind, config
    known = ", ".join(sorted(set(MODELS.values())))
    if kinds:
        found = "; ".join(f"{part / 'config.json'} is of a {kind}" for part, kind in kinds.items())
        raise ValueError(f"{name} holds no model that can be loaded ({found}): known are {known}")
    raise FileNotFoundError(
        f"{name} holds no model: looked for config.json of a {known} in "
        f"{', '.join(str(part.resolve()) for part in parts)}"
    )


def _kind(folder: Path) -> str:
    """The class in the configuration of a folder; empty without one."""
    file = folder / "config.json"
    return str(read_json(file).get("_class_name")) if file.is_file() else ""


def read_json(path: Path) -> dict[str, Any]:
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
        file = home / "model_index.json"
        for key, value in (read_json(file) if file.is_file() else {}).items():
            named = not key.startswith("_") and isinstance(value, list) and len(value) == 2
            if not named or value[1] is None or key in ("unet", "transformer", "scheduler"):
                continue
            if key != "vae":
                raise ValueError(
                    f"{file} has the part {key} ({value[1]}): models of pixels, or of the latents of a vae "
                    "(AutoencoderKL), are known, and nothing else beside them"
                )
            parts[home / key] = value[1]
        for folder in sorted(config.parent for config in home.glob("*/config.json")):
            kind = _kind(folder)
            if folder not in homes and (_FIRST_STAGE.search(kind) or folder.name == "vae"):
                parts.setdefault(folder, kind)
    for folder, kind in parts.items():
        written = _kind(folder)
        if not written:
            raise FileNotFoundError(
                f"{folder.parent / 'model_index.json'} has a vae, and there is no {folder}"
            )
        if folder.name != "vae" or {kind, written} != {"AutoencoderKL"}:
            raise ValueError(f"{folder} is a first stage {written}: only a vae, AutoencoderKL, is known")
        _autoencoder_config(folder)
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


def _autoencoder_config(folder: Path) -> dict[str, Any]:
    """The configuration of an AutoencoderKL, all of which is understood."""
    path = folder / "config.json"
    config = read_json(path)
    _check_settings(path, config, "AutoencoderKL", "AutoencoderKL")
    for key in ("in_channels", "latent_channels"):
        integer(f"{path}: {key}", config.get(key), 1)
    if not isinstance(blocks := config.get("block_out_channels"), list):
        raise ValueError(f"{path}: block_out_channels must be a list, got {blocks!r}")
    latent_scaling(config, str(path))
    return config


def read_schedule(path: Path) -> _Schedule:
    """Noise levels of all timesteps and what the model predicts, by the scheduler's configuration."""
    import diffusers

    config = read_json(path)
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
        raise ValueError(f"{path} has trained_betas that are no list of num_train_timesteps {steps} numbers")
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
    made = scheduler.config
    unsaid = "" if config.keys() & {"prediction_type", "predict_epsilon"} else ", as it says nothing else"
    name = "trained_betas" if trained is not None else f"beta_schedule {made.beta_schedule}"
    if trained is None and made.beta_schedule != "squaredcos_cap_v2":
        name += f" from {made.beta_start:g} to {made.beta_end:g}"
    if made.get("rescale_betas_zero_snr"):
        name += ", rescaled to end in pure noise"
    lines = (
        f"prediction type: {prediction}{unsaid}",
        f"schedule: {name}, sigma from {levels[0]:.4g} to {levels[-1]:.4g}",
        f"timesteps: {len(levels)}",
    )
    return _Schedule(levels, prediction, lines)


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
    wanted = SAFE if SAFE in names else BIN
    if wanted in names and f"{wanted}.index.json" in names:
        raise ValueError(
            f"{part} holds {wanted} and {wanted}.index.json, which names other files: which of them are the "
            "weights is not clear. Remove the one that is not"
        )
    if SAFE in names or (BIN in names and allow_bin):
        return part / wanted
    if BIN in names:
        raise ValueError(
            f"{part} holds its weights as {BIN} alone, a pickle. To have it read all the same, by "
            "torch.load(weights_only=True), which runs no code in it, pass allow_bin=True or set the "
            "environment variable MOLRG_ALLOW_BIN=1"
        )
    save = f"and one file, {SAFE}, is needed: load it in diffusers and write it by save_pretrained"
    if shards := list(filter(_SHARD.search, names)):
        raise ValueError(
            f"{part} holds its weights in shards ({', '.join(shards[:3])}), {save}"
            '(folder, max_shard_size="100GB")'
        )
    if variants := [f"{match[1]}: {match[0]}" for match in map(_VARIANT.fullmatch, names) if match]:
        raise ValueError(
            f"{part} holds its weights as a variant alone ({', '.join(variants)}), {save} without variant"
        )
    others = [name for name in names if Path(name).suffix in _WEIGHTS]
    found = f"only {', '.join(others)}, which is not read" if others else "none"
    if any(not name.endswith(".safetensors") for name in others):
        found += ". Pickles (.pt, .pth, .ckpt, .pkl) can run code and are refused"
    raise FileNotFoundError(
        f"no weights in {part.resolve()}: looked for {SAFE}, found {found}. diffusers' save_pretrained "
        "writes the file that is needed, in one part and without variant. Of a repository that has but an "
        f"older {BIN}, pass allow_bin=True or set MOLRG_ALLOW_BIN=1"
    )


def _digest_of(*files: Path) -> str:
    """SHA-256 of the contents of files; one in the cache of the Hub, which knows it, is checked."""
    digests = []
    for path in files:
        with path.open("rb") as file:
            digests.append(hashlib.file_digest(file, "sha256").hexdigest())
        blob = path.resolve()  # the cache keeps a large file under its SHA-256
        if blob.parent.name == "blobs" and len(blob.name) == 64 and blob.name != digests[-1]:
            raise ValueError(
                f"{path} is damaged: expected SHA-256 {blob.name}, actual {digests[-1]}. Delete {blob} and "
                "load it again"
            )
    return hashlib.sha256(repr(digests).encode()).hexdigest()


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
