"""The networks that the image pages read: which there are, and one command that trains them all.

    python -m molrg.experiments.model_zoo train --processes 2    # go on with all that is not done
    python -m molrg.experiments.model_zoo status                 # what is done, and the losses
    python -m molrg.experiments.model_zoo ship                   # finished ones, in half precision, to zoo/

A training is known by its data, its recipe in words and its seed; the digest of its code is recorded, but
code may move and change its names. Each goes on from its last checkpoint after any interruption. Snapshots
are taken on the way: from the plateau of the step size a branch ends in the snapshot by a fall of its own,
while the training itself goes on from where the branch began. What is trained is kept in the user's cache
folder, or in MOLRG_NETWORKS.
"""

import argparse
import contextlib
import fcntl
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from molrg import checkpoints, devices, digest, image_networks, networks, noise, recipe
from molrg.experiments import image_data
from molrg.images import Images
from molrg.paths import ROOT

SNAPSHOTS = (10_000, 30_000, 100_000, 300_000, 1_000_000)
"""Images seen at which snapshots are taken, besides the end."""

LEVELS = (*noise.IMAGE_LEVELS, 5.0)
"""Noise levels at which the held-out loss is recorded."""

NETWORKS = {
    "unet-32-64-96": (32, 64, 96),
    "unet-32-64": (32, 64),
    "unet-32-48": (32, 48),
}
"""Channels of the small UNets, by name."""

SHIPPED = ROOT / "zoo"


@dataclass(frozen=True)
class Training:
    """One network: its data (a name of `image_data`), kind, seed, and images seen at its end.

    With `all_snapshots`, the networks at SNAPSHOTS are kept, too.
    """

    data: str
    network: str
    seed: int
    images: int
    all_snapshots: bool = False

    @property
    def name(self) -> str:
        return f"{self.data}-{self.network}-{self.seed}"

    @property
    def ends(self) -> tuple[int, ...]:
        """Images seen by each network that is kept, increasing."""
        between = [each for each in SNAPSHOTS if each < self.images] if self.all_snapshots else []
        return (*between, self.images)


_NATURAL, _GARMENTS, _SMALL = "unet-32-64-96", "unet-32-64", "unet-32-48"
_CONTEST = ("garments", *(f"garments+{kind}-{delta:g}" for kind, delta in image_data.BACKGROUNDS))

TRAININGS = (
    Training("digits", _SMALL, 0, 20_000),
    Training("natural-16", _NATURAL, 0, 500_000, all_snapshots=True),
    Training("garments", _GARMENTS, 0, 300_000, all_snapshots=True),
    *(Training("natural-16", _NATURAL, seed, 500_000) for seed in (1, 2)),
    *(Training("garments", _GARMENTS, seed, 300_000) for seed in (1, 2)),
    *(Training(data, _SMALL, seed, 120_000) for seed in (0, 1, 2) for data in _CONTEST),
    *(
        Training(data, _NATURAL, seed, 300_000)
        for seed in (0, 1)
        for data in ("gaussian-16", "class-gaussians-16")
    ),
    Training("natural-16", _NATURAL, 0, 1_500_000, all_snapshots=True),
)
"""All trainings, the most valuable first; the last one continues the first."""


def cache() -> Path:
    """Return the folder of what is trained: MOLRG_NETWORKS, or `molrg/networks` in the user's cache."""
    own = os.environ.get("MOLRG_NETWORKS")
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(own).resolve() if own else base / "molrg" / "networks"


def build(network: str, data: Images, seed: int) -> networks.Preconditioned:
    """Return the untrained network of a training."""
    generator = torch.Generator().manual_seed(seed)
    inner = image_networks.small_unet(data.shape, NETWORKS[network], generator)
    return networks.Preconditioned(inner, round(float(data.train_images.std()), 4))


def known_as(training: Training, data: Images) -> str:
    """Return by what a training is known: digest of the data, network, recipe in words, seed."""
    return json.dumps([data.digest, training.network, recipe.PLAIN, training.seed])


def folder(training: Training, data: Images) -> Path:
    """Return the folder of a training's checkpoint and snapshots."""
    key = hashlib.sha256(known_as(training, data).encode()).hexdigest()[:12]
    return cache() / f"{training.name}-{key}"


def train(training: Training) -> None:
    """Train a network up to all its ends, from where it stopped; another process that does so is waited for."""
    data = image_data.get(training.data)
    place = folder(training, data)
    place.mkdir(parents=True, exist_ok=True)
    with _locked(place / "lock", wait=True):
        for images in training.ends:
            if not snapshot_file(training, data, images).exists():
                _train_to(training, data, place, images)


def snapshot_file(training: Training, data: Images, images: int) -> Path:
    """Return the file of the network that has seen `images` images."""
    return folder(training, data) / f"{images}.safetensors"


def _train_to(training: Training, data: Images, place: Path, images: int) -> None:
    steps = images // recipe.BATCH_SIZE
    plateau = int(steps * (1 - recipe.SCHEDULE.fall))
    trunk, branch = place / "plateau.safetensors", place / f"{images}.branch.safetensors"
    began = time.time()
    if not branch.exists():
        _run(training, data, plateau, trunk, recipe.HOLD)
        shutil.copyfile(trunk, place / "copy.safetensors")
        os.replace(place / "copy.safetensors", branch)
    trained = _run(training, data, steps, branch, recipe.SCHEDULE)
    record = {
        "training": training.name,
        "data": training.data,
        "data_digest": data.digest,
        "shape": list(data.shape),
        "network": training.network,
        "sigma_data": trained.denoiser.sigma_data,
        "recipe": recipe.PLAIN,
        "seed": training.seed,
        "images": images,
        "seconds": trained.seconds,
        "code": [digest.of_loaded(part) for part in (recipe.train, image_networks.small_unet)],
        "device": f"{devices.best().type} ({platform.machine()})",
        "torch": torch.__version__,
        **held_out_losses(trained.denoiser, data),
    }
    state = trained.denoiser.cpu().state_dict()
    checkpoints.save(place / f"{images}.safetensors", state, {"record": json.dumps(record)})
    branch.unlink()
    _say(f"{training.name} at {images} images in {time.time() - began:.0f} s", record)


def _run(training: Training, data: Images, steps: int, file: Path, schedule: Any) -> Any:
    denoiser = build(training.network, data, training.seed)
    mirror = recipe.mirrored(data.shape) if "natural" in training.data else None
    return recipe.train(
        denoiser,
        data.train_images,
        steps,
        augment=mirror,
        schedule=schedule,
        seed=training.seed,
        known_as=known_as(training, data),
        checkpoint=file,
        checkpoint_every=300,
        progress=sys.stderr.isatty(),
    )


@torch.no_grad()
def held_out_losses(denoiser: nn.Module, data: Images, count: int = 2000) -> dict[str, list[float]]:
    """Return E||D(x_sigma) - x_0||^2 / n at LEVELS on held-out images, and that of the Wiener filter.

    The filter is the best linear denoiser for mean and covariance of the training images; both see the same
    images and noise. `gain` is one minus their ratio.
    """
    device = next(denoiser.parameters()).device
    train = data.train_images.double()
    mean, values, vectors = train.mean(0), *torch.linalg.eigh(torch.cov(train.T))
    generator = torch.Generator().manual_seed(0)
    x0 = data.test_images[torch.randperm(len(data.test_images), generator=generator)[:count]]
    loss, wiener = [], []
    for sigma in LEVELS:
        x = x0 + sigma * torch.randn(x0.shape, generator=generator)
        parts = [denoiser(part.to(device), sigma).cpu() for part in x.split(256)]
        loss.append(float((torch.cat(parts) - x0).square().mean()))
        kept = (values.clamp(min=0) / (values.clamp(min=0) + sigma**2)) * ((x.double() - mean) @ vectors)
        wiener.append(float((mean + kept @ vectors.T - x0).square().mean()))
    gain = [1 - own / best for own, best in zip(loss, wiener, strict=True)]
    return {"levels": list(LEVELS), "loss": loss, "wiener": wiener, "gain": gain}


def _say(what: str, record: dict[str, Any]) -> None:
    rate = record["images"] / record["seconds"]
    bands = "  ".join(f"{s:g}: {g:+.3f}" for s, g in zip(record["levels"], record["gain"], strict=True))
    print(f"{what}: {rate:.0f} images/s; gain over the Wiener filter by sigma: {bands}", flush=True)


@contextlib.contextmanager
def _locked(path: Path, wait: bool) -> Iterator[bool]:
    """Hold a lock that the system releases when the process ends; yields whether it was to be had."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True


def _work(names: Sequence[str]) -> None:
    """Go through the list again and again: the first that is not done and that nobody trains."""
    torch.set_num_threads(1)
    for training in TRAININGS:
        if names and not any(training.name.startswith(name) for name in names):
            continue
        data = image_data.get(training.data)
        place = folder(training, data)
        place.mkdir(parents=True, exist_ok=True)
        with _locked(place / "lock", wait=False) as free:
            if not free:
                continue
            for images in training.ends:
                if not snapshot_file(training, data, images).exists():
                    _train_to(training, data, place, images)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("command", choices=["train", "work", "status"])
    parser.add_argument("names", nargs="*", help="first letters of the trainings; by default all")
    parser.add_argument("--processes", type=int, default=1)
    given = parser.parse_args(arguments)
    if given.command == "work":
        _work(given.names)
    elif given.command == "train":
        command = [sys.executable, "-m", __spec__.name, "work", *given.names]
        workers = [subprocess.Popen(command) for _ in range(given.processes)]
        return max(worker.wait() for worker in workers)
    else:
        for training in TRAININGS:
            data = image_data.get(training.data)
            for images in training.ends:
                path = snapshot_file(training, data, images)
                if path.exists():
                    _say(f"{training.name} at {images}", json.loads(checkpoints.load(path)[1]["record"]))
                else:
                    print(f"{training.name} at {images}: not done")
    return 0


if __name__ == "__main__":
    sys.exit(main())
