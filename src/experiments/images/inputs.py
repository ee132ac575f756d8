"""What image files and checkpoints are accepted, and what is said of those refused: each kind is tried.

The files are made on the fly: images of 8 x 6 pixels, networks with two blocks.
"""

import importlib
import json
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from molrg import images
from molrg.images import published

__all__ = ["ARCHIVES", "CHECKPOINTS", "FOLDERS", "Make", "read_checkpoint", "read_images", "tried"]

Make = Callable[[Path], object]
"""Writes one kind of input into an empty folder; returns the path to read, where it is not the folder."""


def tried(make: Make, read: Callable[[Path], str]) -> tuple[bool, str]:
    """Whether an input of a kind is accepted, and as what it is read or why it is refused.

    Raises whatever reading raises but ValueError and FileNotFoundError, the two that explain.
    """
    with tempfile.TemporaryDirectory(prefix="molrg-") as place:
        folder = Path(place).resolve() / "FOLDER"
        folder.mkdir()
        made = make(folder)
        given = made if isinstance(made, Path) else folder
        try:
            accepted, said = True, read(given)
        except (ValueError, FileNotFoundError) as error:
            accepted, said = False, str(error)
        return accepted, " ".join(said.replace(f"{folder.parent}/", "").split())


def read_images(path: Path) -> str:
    """As what a folder or an archive of images is read, in one line."""
    data = images.load(path)
    return f"{' x '.join(map(str, data.shape))} values, {data.modes}, 0 ... {data.maximum} scaled to -1 ... 1"


def read_checkpoint(path: Path) -> str:
    """As what a checkpoint is read: its kind, what it predicts, where the weights come from."""
    model, prediction, *_ = published.load(path, allow_bin=False).read_as()
    return f"{model.partition(', ')[2]}; {prediction}"


# --- images -----------------------------------------------------------------------------------------


def _picture(mode: str, width: int = 8) -> Any:
    from PIL import Image

    values = np.arange(6 * width).reshape(6, width)
    kinds: dict[str, np.ndarray] = {
        "I;16": (values * 900).astype(np.uint16),
        "I": (values * 9000).astype(np.int32),
        "F": (values / 60).astype(np.float32),
    }
    if mode in kinds:
        return Image.fromarray(kinds[mode])
    return Image.fromarray(values.astype(np.uint8) * 4).convert(mode)


def _classes(
    folder: Path,
    mode: str = "L",
    suffix: str = "png",
    more: Callable[[Path], Any] | None = None,
    **saved: Any,
) -> None:
    """Two classes with one image to train and to test with, and what `more` adds or takes away."""
    for part in ("train", "test"):
        for name in ("cat", "dog"):
            (folder / part / name).mkdir(parents=True)
            _picture(mode).save(folder / part / name / f"0.{suffix}", **saved)
    if more is not None:
        more(folder)


def _turned() -> Any:
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: to be turned by 90 degrees
    return exif


FOLDERS: Mapping[str, Make] = {
    "grey, 8 bits": partial(_classes, mode="L"),
    "colour": partial(_classes, mode="RGB", suffix="jpg"),
    "palette": partial(_classes, mode="P"),
    "grey, 16 bits": partial(_classes, mode="I;16"),
    "grey beside colour": partial(
        _classes, more=lambda f: _picture("RGB").save(f / "train" / "cat" / "1.png")
    ),
    "transparent: laid on white": partial(_classes, mode="RGBA"),
    "with an orientation tag: turned": lambda f: _classes(f, "RGB", "jpg", exif=_turned()),
    "hidden folders: skipped": partial(_classes, more=lambda f: (f / "train" / ".ipynb_checkpoints").mkdir()),
    "floating point": partial(_classes, mode="F", suffix="tiff"),
    "32 bits": partial(_classes, mode="I", suffix="tiff"),
    "several frames": lambda f: _classes(f, "L", "gif", save_all=True, append_images=[_picture("1")]),
    "one of another size": partial(
        _classes, more=lambda f: _picture("L", 9).save(f / "test" / "dog" / "1.png")
    ),
    "a damaged file": partial(
        _classes, more=lambda f: (f / "test" / "dog" / "0.png").write_bytes(b"\x89PNG")
    ),
    "a class that test/ lacks": partial(_classes, more=lambda f: (f / "test" / "dog").rename(f / "test/cow")),
    "a class without images": partial(_classes, more=lambda f: (f / "train" / "dog" / "0.png").unlink()),
    "a folder within a class": partial(_classes, more=lambda f: (f / "train" / "cat" / "more").mkdir()),
    "a broken link": partial(_classes, more=lambda f: (f / "train" / "cat" / "1.png").symlink_to("away.png")),
    "no train/ and test/": lambda f: None,
}


def _archive(folder: Path, **changes: Any) -> Path:
    pictures, labels = np.zeros((4, 6, 8), np.uint8), np.array([0, 1, 0, 1])
    content: dict[str, Any] = {f"{part}_images": pictures for part in ("train", "test")}
    content |= {f"{part}_labels": labels for part in ("train", "test")} | changes
    np.savez(folder / "own.npz", **{key: value for key, value in content.items() if value is not None})
    return folder / "own.npz"


_COLUMN = np.array([[0], [1], [0], [1]])
ARCHIVES: Mapping[str, Make] = {
    "images and labels": _archive,
    "labels (N, 1), without names (MedMNIST)": partial(_archive, train_labels=_COLUMN, test_labels=_COLUMN),
    "names as bytes": partial(_archive, class_names=np.array([b"cat", b"dog"])),
    "images of floating point": partial(_archive, train_images=np.zeros((4, 6, 8), np.float32)),
    "four channels": partial(_archive, train_images=np.zeros((4, 6, 8, 4), np.uint8)),
    "no test labels": partial(_archive, test_labels=None),
    "a class without test images": partial(_archive, test_labels=np.array([0, 0, 0, 0])),
    "fewer labels than images": partial(_archive, train_labels=np.array([0, 1])),
    "pickled objects": partial(_archive, train_labels=np.array([0, 1, 0, "1"], dtype=object)),
}


# --- checkpoints ------------------------------------------------------------------------------------


def _unet(folder: Path, scheduler: Mapping[str, Any] | None = None, **settings: Any) -> Any:
    """A UNet, with the settings of its configuration changed afterwards, and a scheduler beside it."""
    diffusers: Any = importlib.import_module("diffusers")  # its types are incomplete
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    model = diffusers.UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(4, 8), norm_num_groups=2, **blocks
    )
    model.save_pretrained(folder)
    diffusers.DDPMScheduler().save_pretrained(folder)
    for file, changes in (("config.json", settings), ("scheduler_config.json", scheduler or {})):
        content = json.loads((folder / file).read_text(encoding="utf-8"))
        (folder / file).write_text(json.dumps(content | dict(changes)), encoding="utf-8")
    return model


def _latent(folder: Path, first_stage: str) -> None:
    diffusers: Any = importlib.import_module("diffusers")  # its types are incomplete
    blocks = {"block_out_channels": (4, 8), "norm_num_groups": 2, "latent_channels": 4}
    blocks |= {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    transformer = diffusers.DiTTransformer2DModel(
        num_attention_heads=1, attention_head_dim=8, in_channels=4, num_layers=1, sample_size=4
    )
    transformer.save_pretrained(folder / "transformer")
    diffusers.DDIMScheduler().save_pretrained(folder / "scheduler")
    getattr(diffusers, first_stage)(**blocks).save_pretrained(
        folder / ("vae" if first_stage == "AutoencoderKL" else "vqvae")
    )


def _weights(folder: Path, name: str | None = None, **saved: Any) -> None:
    """A UNet whose weights are written otherwise: by `save_pretrained(**saved)`, or under `name`."""
    model = _unet(folder)
    file = folder / "diffusion_pytorch_model.safetensors"
    if name is None:
        file.unlink()
        model.save_pretrained(folder, **saved)
    else:
        file.rename(folder / name)


def _without_scheduler(folder: Path) -> Path:
    """Deep enough that it is looked for nowhere else."""
    _unet(folder / "runs" / "last" / "unet")
    (folder / "runs" / "last" / "unet" / "scheduler_config.json").unlink()
    return folder / "runs" / "last" / "unet"


def _damaged(folder: Path) -> None:
    _unet(folder)
    (folder / "diffusion_pytorch_model.safetensors").write_bytes(b"0")


def _not_finite(folder: Path) -> None:
    model = _unet(folder)
    with torch.no_grad():
        next(model.parameters())[0] = torch.nan
    model.save_pretrained(folder)


CHECKPOINTS: Mapping[str, Make] = {
    "UNet, noise prediction": _unet,
    "UNet, v prediction": partial(_unet, scheduler={"prediction_type": "v_prediction"}),
    "UNet, predict_epsilon: false (until 2022)": partial(
        _unet, scheduler={"predict_epsilon": False, "prediction_type": "sample"}
    ),
    "DiT with its AutoencoderKL": partial(_latent, first_stage="AutoencoderKL"),
    "no scheduler": _without_scheduler,
    "a scheduler of another kind": partial(
        _unet, scheduler={"_class_name": "FlowMatchEulerDiscreteScheduler"}
    ),
    "beta_end 2": partial(_unet, scheduler={"beta_end": 2}),
    "images in [0, 1]": partial(_unet, center_input_sample=True),
    "a setting that is not known": partial(_unet, guidance=3),
    "a VQ autoencoder": partial(_latent, first_stage="VQModel"),
    "weights in shards": partial(_weights, max_shard_size="2KB"),
    "half precision alone": partial(_weights, variant="fp16"),
    "an older .bin": partial(_weights, safe_serialization=False),
    "a pickle": partial(_weights, name="model.pt"),
    "damaged weights": _damaged,
    "weights that are NaN": _not_finite,
    "no model": lambda f: None,
}
