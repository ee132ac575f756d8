"""The networks that the image pages read: which there are, and one command that trains them all.

    python -m experiments.images.model_zoo train --processes 2    # go on with all that is not done
    python -m experiments.images.model_zoo status                 # what is done, and the losses
    python -m experiments.images.model_zoo ship                   # finished ones, in half precision, to zoo/

A training is known by its data, its recipe in words and its seed; the digest of its code is recorded, but
code may move and change its names. Each goes on from its last checkpoint after any interruption. Snapshots
are taken on the way: from the plateau of the step size a branch ends in the snapshot by a fall of its own,
while the training itself goes on from where the branch began.
"""

import argparse
import contextlib
import copy
import fcntl
import hashlib
import json
import math
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from compendium import code_digest
from compendium.paths import networks_folder
from experiments.images import image_data
from molrg.images import Images, sampling, zoo
from molrg.learning import checkpoints, networks, recipe
from molrg.learning.training import Schedule, Trained
from molrg.measuring import features
from molrg.model import noise
from molrg.support import devices
from molrg.support.atomic_files import write_atomically

__all__ = [
    "LEVELS",
    "SNAPSHOTS",
    "TRAININGS",
    "Training",
    "build",
    "chosen",
    "folder",
    "held_out_losses",
    "known_as",
    "main",
    "rounding",
    "samples",
    "ship",
    "snapshot_file",
    "train",
    "trained",
]

SNAPSHOTS = (10_000, 30_000, 100_000, 300_000, 1_000_000)
"""Images seen at which snapshots are taken, besides the end."""

LEVELS = (*noise.IMAGE_LEVELS, 5.0)
"""Noise levels at which the held-out loss is recorded."""


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
_SURROGATES = ("gaussian-16", "class-gaussians-16")

TRAININGS = (
    Training("digits", _SMALL, 0, 20_000),
    Training("natural-16", _NATURAL, 0, 500_000, all_snapshots=True),
    Training("garments", _GARMENTS, 0, 300_000, all_snapshots=True),
    *(Training(data, _SMALL, 0, 120_000) for data in _CONTEST),
    *(Training(data, _NATURAL, 0, 100_000) for data in _SURROGATES),
    Training("natural-16", _NATURAL, 1, 500_000),
    *(Training(data, _SMALL, seed, 120_000) for seed in (1, 2) for data in _CONTEST),
    Training("natural-16", _NATURAL, 2, 500_000),
    *(Training("garments", _GARMENTS, seed, 300_000) for seed in (1, 2)),
    *(Training(data, _NATURAL, 1, 100_000) for data in _SURROGATES),
    *(Training(data, _NATURAL, seed, 300_000) for seed in (0, 1) for data in _SURROGATES),
    Training("natural-16", _NATURAL, 0, 1_500_000, all_snapshots=True),
)
"""All trainings, the most valuable first; the last one continues the first."""


def build(network: str, data: Images, seed: int) -> networks.Preconditioned:
    """Return the untrained network of a training."""
    generator = torch.Generator().manual_seed(seed)
    return zoo.build(network, data.shape, round(float(data.train_images.std()), 4), generator)


def known_as(training: Training, data: Images) -> str:
    """Return by what a training is known: digest of the data, network, recipe in words, seed."""
    return json.dumps([data.digest, training.network, recipe.PLAIN, training.seed])


def folder(training: Training, data: Images) -> Path:
    """Return the folder of a training's checkpoint and snapshots."""
    key = hashlib.sha256(known_as(training, data).encode()).hexdigest()[:12]
    return networks_folder() / f"{data.name}-{training.network}-{training.seed}-{key}"


def train(training: Training, wait: bool = True) -> None:
    """Train a network up to all its ends, from where it stopped.

    A process that trains it already is waited for, or, without `wait`, left to do so.
    """
    data = image_data.get(training.data)
    place = folder(training, data)
    place.mkdir(parents=True, exist_ok=True)
    with _locked(place / "lock", wait) as free:
        for images in training.ends:
            if free and not snapshot_file(training, data, images).exists():
                _train_to(training, data, place, images)


def trained(training: Training) -> nn.Module:
    """Return the network at the end of a training, which goes on from where it stopped or is done."""
    train(training)
    return zoo.read(snapshot_file(training, image_data.get(training.data), training.images)).denoiser


def snapshot_file(training: Training, data: Images, images: int) -> Path:
    """Return the file of the network that has seen `images` images."""
    return folder(training, data) / f"{images}.safetensors"


def _train_to(training: Training, data: Images, place: Path, images: int) -> None:
    steps, fall = images // recipe.BATCH_SIZE, recipe.SCHEDULE.fall
    falling = steps - int(steps * (1 - fall))
    trunk, branch = place / "plateau.safetensors", place / f"{images}.branch.safetensors"
    start = _start(training, data, place)
    steps -= start["images"] // recipe.BATCH_SIZE
    began = time.time()
    if not branch.exists():
        if trunk.exists() and len(checkpoints.load(trunk)[0]["losses"]) > steps - falling:
            print(f"{training.name}: past {images} images, no snapshot there", flush=True)
            return
        _run(training, data, start, steps - falling, trunk, recipe.HOLD)
        shutil.copyfile(trunk, place / "copy.safetensors")
        os.replace(place / "copy.safetensors", branch)
    trained = _run(training, data, start, steps, branch, replace(recipe.SCHEDULE, fall=falling / steps))
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
        "restarted_from": start["images"],
        "seconds": start["seconds"] + trained.seconds,
        "code": [code_digest.of_loaded(part) for part in (recipe.train, zoo.build)],
        "device": f"{devices.best().type} ({platform.machine()})",
        "torch": torch.__version__,
        **held_out_losses(trained.denoiser, data),
    }
    state = trained.denoiser.cpu().state_dict()
    checkpoints.save(snapshot_file(training, data, images), state, {"record": json.dumps(record)})
    for each in (branch, checkpoints.previous(branch)):
        each.unlink(missing_ok=True)
    _say(f"{training.name} at {images} images in {time.time() - began:.0f} s", record)


def _start(training: Training, data: Images, place: Path) -> dict[str, Any]:
    """What a training started from: nothing, or a network of the zoo, where its checkpoint was lost."""
    note, trunk = place / "start.json", place / "plateau.safetensors"
    if note.exists() and trunk.exists():
        found: dict[str, Any] = json.loads(note.read_text())
        return found
    start: dict[str, Any] = {"images": 0, "seconds": 0.0}
    folder = zoo.default_folder()
    if folder.is_dir() and not trunk.exists():
        for each in zoo.listed(folder):
            own = json.dumps([each["data_digest"], each["network"], each["recipe"], each["seed"]])
            if own == known_as(training, data) and each["images"] > start["images"]:
                start = {key: each[key] for key in ("images", "seconds", "file")}
    write_atomically(note, json.dumps(start).encode())
    return start


def _run(
    training: Training,
    data: Images,
    start: dict[str, Any],
    steps: int,
    file: Path,
    schedule: Schedule,
) -> Trained:
    if start["images"]:
        denoiser = zoo.read(zoo.default_folder() / start["file"]).denoiser
    else:
        denoiser = build(training.network, data, training.seed)
    return recipe.train(
        denoiser,
        data.train_images,
        steps,
        augment=recipe.mirrored(data.shape) if "natural" in training.data else None,
        schedule=schedule,
        seed=training.seed + start["images"],
        known_as=known_as(training, data) + (f" from {start['images']}" if start["images"] else ""),
        checkpoint=file,
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
    mean = train.mean(0)
    values, vectors = torch.linalg.eigh(torch.cov(train.T))
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


def chosen(names: Sequence[str]) -> list[Training]:
    """Return the trainings whose names begin with one of `names`; all, without any.

    Raises ValueError where none does, and lists all.
    """
    found = [each for each in TRAININGS if not names or each.name.startswith(tuple(names))]
    if not found:
        known = ", ".join(dict.fromkeys(each.name for each in TRAININGS))
        raise ValueError(f"no training's name begins with {' or '.join(names)}; there are {known}")
    return found


def ship(training: Training, into: Path) -> list[Path]:
    """Write the finished networks of a training to the zoo `into`, in half precision, once each.

    Returns the files written.
    """
    data = image_data.get(training.data)
    written = []
    for images in training.ends:
        path, source = into / f"{training.name}-{images}.safetensors", snapshot_file(training, data, images)
        if source.exists() and not path.exists():
            denoiser, record = zoo.read(source)
            zoo.write(path, denoiser, record | {"rounding": rounding(denoiser, data)})
            written.append(path)
    return written


@torch.no_grad()
def rounding(denoiser: nn.Module, data: Images, count: int = 500) -> dict[str, float]:
    """Return what half precision of the weights changes on noisy held-out images, at most over LEVELS.

    `denoised` and `features`: root mean square of the difference over that of the values, of the output and
    of the worst feature layer; `loss`: relative difference of the mean squared error.
    """
    halved = copy.deepcopy(denoiser)
    for parameter in halved.parameters():
        parameter.copy_(parameter.half().float())
    x0 = data.test_images[:count]
    eps = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
    found = {"denoised": 0.0, "features": 0.0, "loss": 0.0}
    layers = (*features.default_layers(denoiser), features.DENOISED)
    for sigma in LEVELS:
        exact, rounded = (
            features.extract(each, x0 + sigma * eps, sigma, layers) for each in (denoiser, halved)
        )
        off = {name: float((rounded[name] - exact[name]).norm() / exact[name].norm()) for name in layers}
        found["denoised"] = max(found["denoised"], off.pop(features.DENOISED))
        found["features"] = max(found["features"], *off.values())
        losses = [float((each[features.DENOISED] - x0).square().mean()) for each in (exact, rounded)]
        found["loss"] = max(found["loss"], abs(losses[1] / losses[0] - 1))
    return found


def samples(
    dataset: str, seed: int, images: int, count: int, network: str, *, workdir: Path
) -> dict[str, np.ndarray]:
    """Return `count` samples of a network of the zoo, (count, H, W, C) uint8, in 18 steps of Heun's.

    It takes seconds, and keeps nothing in `workdir`.
    """
    denoiser, record = zoo.load(dataset, seed, images, network=network)
    shape = record["shape"]
    drawn = sampling.sample(denoiser, count, math.prod(shape), noise.edm_levels(18, 0.002, 20.0))
    pixels = ((drawn.unflatten(1, shape).movedim(1, 3) + 1) * 127.5).round().clamp(0, 255)
    return {"pixels": pixels.to(torch.uint8).numpy()}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("command", choices=["train", "status", "ship"])
    parser.add_argument("names", nargs="*", help="first letters of the trainings; by default all")
    parser.add_argument("--processes", type=int, default=1, help="how many train, one core each")
    given = parser.parse_args(arguments)
    trainings = chosen(given.names)
    if given.command == "train" and given.processes > 1:
        command = [sys.executable, "-m", "experiments.images.model_zoo", "train", *given.names]
        workers = [subprocess.Popen(command) for _ in range(given.processes)]
        return max(worker.wait() for worker in workers)
    for training in trainings:
        if given.command == "train":
            if devices.best().type == "cpu":
                torch.set_num_threads(1)
            train(training, wait=False)
        elif given.command == "ship":
            for path in ship(training, zoo.default_folder()):
                print(path.name)
        else:
            data = image_data.get(training.data)
            for images in training.ends:
                path = snapshot_file(training, data, images)
                if path.exists():
                    _say(f"{training.name} at {images}", zoo.record(path))
                else:
                    print(f"{training.name} at {images}: not done")
    return 0


if __name__ == "__main__":
    sys.exit(main())
