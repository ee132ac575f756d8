"""Small trained denoisers of images, with snapshots of their training: which there are, and how to load one.

    zoo.listed()                                        # a record of each
    loaded = zoo.load("natural-16", seed=0)             # the one that has seen most images
    loaded = zoo.load("natural-16", seed=0, images=30_000)
    loaded.denoiser(x, 0.1), loaded.record["recipe"]

They lie in the folder `zoo/` of the repository, or where MOLRG_ZOO or `folder` says: averaged weights in half
precision, one safetensors file each, with the record of the training and a digest in its header.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from molrg.images import image_networks
from molrg.learning import checkpoints
from molrg.learning.networks import Preconditioned
from molrg.support import data_read
from molrg.support.atomic_files import write_atomically
from molrg.support.clone import ROOT

__all__ = [
    "CHANNELS",
    "Loaded",
    "build",
    "default_folder",
    "fetch",
    "listed",
    "load",
    "read",
    "record",
    "write",
]

CHANNELS: dict[str, tuple[int, ...]] = {
    "unet-32-64-96": (32, 64, 96),
    "unet-32-64": (32, 64),
    "unet-32-48": (32, 48),
}
"""The kinds of networks, small UNets, by the channels of their levels."""


class Loaded(NamedTuple):
    """A denoiser in evaluation mode, and the record of its training."""

    denoiser: Preconditioned
    record: dict[str, Any]


def build(
    network: str,
    shape: tuple[int, int, int],
    sigma_data: float,
    generator: torch.Generator | None = None,
) -> Preconditioned:
    """Return an untrained denoiser of the kind `network`, one of CHANNELS, for images of `shape` (C, H, W).

    `sigma_data` is the standard deviation of the images' values. Raises ValueError for an unknown kind.
    """
    if network not in CHANNELS:
        raise ValueError(f"network must be {', '.join(CHANNELS)}, got {network!r}")
    inner = image_networks.small_unet(shape, CHANNELS[network], generator)
    return Preconditioned(inner, sigma_data)


def default_folder() -> Path:
    """Return the folder of the zoo: MOLRG_ZOO, or `zoo/` of the repository."""
    return Path(os.environ.get("MOLRG_ZOO") or ROOT / "zoo")


def listed(folder: str | Path | None = None) -> list[dict[str, Any]]:
    """Return the records of all networks in a folder, by data, seed and images seen; weights stay unread.

    Each holds `training`, `data`, `network`, `seed`, `images` (seen in training), `seconds`, `recipe`, and
    the held-out loss at some noise levels beside the Wiener filter's. Raises FileNotFoundError for no folder.
    """
    place = _existing(folder)
    records = [record(path) | {"file": path.name} for path in place.glob("*.safetensors")]
    return sorted(records, key=lambda each: (each["data"], each["network"], each["seed"], each["images"]))


def record(path: Path) -> dict[str, Any]:
    """Return the record in the header of a file.

    Raises ValueError where there is none.
    """
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        try:
            header = json.loads(file.read(min(size, 2**20)))
            found: dict[str, Any] = json.loads(header["__metadata__"]["record"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is no network of a zoo: it has no record of a training") from error
    return found


def load(
    data: str,
    seed: int = 0,
    images: int | None = None,
    *,
    network: str | None = None,
    folder: str | Path | None = None,
) -> Loaded:
    """Return the denoiser of the data set `data` from training seed `seed` that has seen `images` images.

    Parameters
    ----------
    images
        None: the one that has seen most.
    network
        Its kind, where there are several of the same data; None: any, the largest number of images first.
    folder
        Where to look; None: `default_folder()`.

    Raises
    ------
    FileNotFoundError
        If there is no such folder.
    ValueError
        If there is no such network (lists those that there are), or if a byte of its file is not the one
        written.
    """
    records = listed(folder)
    fitting = [
        each
        for each in records
        if each["data"] == data
        and each["seed"] == seed
        and images in (None, each["images"])
        and network in (None, each["network"])
    ]
    if not fitting:
        there = "".join(
            f"\n  {each['data']}, seed {each['seed']}, images {each['images']}, network {each['network']}"
            for each in records
        )
        raise ValueError(
            f"no network of data {data!r}, seed {seed}, images {images}, network {network}; there are{there}"
        )
    best = max(fitting, key=lambda each: each["images"])
    return read(_existing(folder) / best["file"])


def read(path: str | Path) -> Loaded:
    """Return the denoiser in a file of a zoo, in single precision.

    Raises FileNotFoundError where it is missing, ValueError if it is damaged or holds something else.
    """
    place = Path(path)
    tensors, metadata = checkpoints.load(place)
    data_read.note(f"zoo/{place.name}", metadata["sha256"])
    found = record(place)
    channels, height, width = found["shape"]
    denoiser = build(found["network"], (channels, height, width), found["sigma_data"])
    denoiser.load_state_dict({name: value.float() for name, value in tensors.items()})
    return Loaded(denoiser.eval(), found)


@data_read.reader("zoo/")
def _present(name: str) -> str | None:
    path = default_folder() / name.removeprefix("zoo/")
    return checkpoints.load(path)[1]["sha256"] if path.exists() else None


def write(path: Path, denoiser: nn.Module, found: dict[str, Any]) -> None:
    """Write a denoiser's weights in half precision with the record of its training.

    Raises ValueError if a weight does not fit into half precision, OSError where nothing can be written.
    """
    halves = {name: value.detach().half() for name, value in denoiser.state_dict().items()}
    if not all(bool(value.isfinite().all()) for value in halves.values()):
        raise ValueError(f"weights of {path.name} are not finite in half precision")
    checkpoints.save(path, halves, {"record": json.dumps(found)})


def fetch(address: str, sha256: str, folder: str | Path) -> Path:
    """Download a file of a zoo from `address` into `folder`, unless it is there, and return its path.

    For who has installed the library alone. Raises ValueError where the content has another SHA-256.
    """
    from urllib.request import urlopen

    path = Path(folder) / address.rsplit("/", 1)[-1]
    if not path.exists():
        with urlopen(address) as answer:
            content = answer.read()
        if (found := hashlib.sha256(content).hexdigest()) != sha256:
            raise ValueError(f"{address} has SHA-256 {found}, expected {sha256}; nothing was kept")
        write_atomically(path, content)
    elif (found := hashlib.sha256(path.read_bytes()).hexdigest()) != sha256:
        raise ValueError(f"{path} has SHA-256 {found}, expected {sha256}; delete it to fetch it again")
    return path


def _existing(folder: str | Path | None) -> Path:
    place = default_folder() if folder is None else Path(folder).expanduser()
    if not place.is_dir():
        raise FileNotFoundError(
            f"no zoo in {place}: name its folder, or set MOLRG_ZOO; the repository has one in zoo/"
        )
    return place
