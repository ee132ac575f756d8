"""Which images are read rightly out of the blocks of a network, at every noise level.

A linear discriminant is fitted to the features of labelled training images, afresh for each block, level and
input, with one ridge for all. Kept is whether each image is classified rightly, since images are the
units by which curves of one network are judged (see `molrg.measuring.curves`). Controls are read alike: the
pixels, and one layer of random filters.
"""

import io
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from experiments.images import image_data, probe_sets
from molrg.images import Images, zoo
from molrg.measuring import features
from molrg.measuring.discriminants import fit_discriminants
from molrg.model import noise
from molrg.support import devices
from molrg.support.atomic_files import write_atomically
from molrg.support.checks import integer

__all__ = ["INPUTS", "LEVELS", "PIXELS", "RANDOM", "RIDGE", "UNTRAINED", "accuracy", "run"]

INPUTS = ("noisy", "clean")
LEVELS = (*noise.IMAGE_LEVELS, 5.0)
RIDGE = 0.03
UNTRAINED, RANDOM, PIXELS = "untrained", "random filters", "pixels"
"""Controls that stand in the place of a number of images seen."""


def run(
    dataset: str,
    channels: Sequence[int],
    images: int | str,
    seed: int,
    labels: int,
    validation: int,
    tests: int,
    levels: Sequence[float] = LEVELS,
    *,
    workdir: Path,
) -> dict[str, Any]:
    """Read classes out of the blocks of one network of the zoo, on noisy and on clean input.

    Parameters
    ----------
    dataset
        A name of `image_data`.
    channels, seed
        Of the network: (32, 64) stands for the kind `unet-32-64` of `zoo.CHANNELS`.
    images
        How many it has seen; or a control, UNTRAINED, RANDOM (as many filters as each block has channels) or
        PIXELS.
    labels, validation
        Training images with labels, and others that choose block and level; as many of each class.
    tests
        The first so many test images judge.
    workdir
        Where each input's part is kept when it is done, so that a stopped run goes on.

    Returns
    -------
    dict
        `blocks` (B names); `tests` and `validation`: (I, B, S, N) whether each image is read rightly at each
        of the S levels, packed by `np.packbits` along the last axis; `counts`: N of both.
    """
    data = image_data.get(dataset)
    counts = probe_sets.equal(data.train_labels, labels + validation, data.class_names)
    known = probe_sets.draw(data.train_labels, counts, torch.Generator().manual_seed(0))
    fit, choose = known[:labels], known[labels:]
    parts = [data.train_images[fit], data.train_images[choose], data.test_images[:tests]]
    answers = [data.train_labels[fit], data.train_labels[choose], data.test_labels[:tests]]
    x0 = torch.cat(parts)
    eps = torch.randn(x0.shape, generator=torch.Generator().manual_seed(1))
    ends = [len(parts[0]), len(parts[0]) + len(parts[1])]
    kind_of_network = f"unet-{'-'.join(map(str, channels))}"
    read = _reader(data, dataset, kind_of_network, images, seed)
    parts_done = []
    for kind in INPUTS:
        path = workdir / f"{kind}.npz"
        if not path.exists():
            found = [read(x0 + sigma * eps if kind == "noisy" else x0, sigma) for sigma in levels]
            right: list[list[np.ndarray]] = [[], []]
            for block in found[0]:
                train, *others = torch.stack([each[block] for each in found]).tensor_split(ends, dim=1)
                fitted = fit_discriminants(train, answers[0], RIDGE, data.num_classes)
                for kept, other, answer in zip(right, others, answers[1:], strict=True):
                    kept.append((fitted.predict(other) == answer).numpy())
            packed = [np.packbits(np.array(each), axis=-1) for each in right]
            content = io.BytesIO()
            np.savez(content, blocks=list(found[0]), validation=packed[0], tests=packed[1])
            write_atomically(path, content.getvalue())
        parts_done.append(np.load(path))
    return {
        "blocks": parts_done[0]["blocks"].tolist(),
        "validation": np.stack([each["validation"] for each in parts_done]),
        "tests": np.stack([each["tests"] for each in parts_done]),
        "counts": [len(parts[1]), len(parts[2])],
    }


def accuracy(found: dict[str, Any], part: str = "tests") -> np.ndarray:
    """Return whether each image was read rightly, (I, B, S, N) booleans, of what `run` found."""
    count = found["counts"][("validation", "tests").index(part)]
    return np.unpackbits(found[part], axis=-1, count=count).astype(bool)


def _reader(
    data: Images, name: str, network: str, images: int | str, seed: int
) -> Callable[[Tensor, float], dict[str, Tensor]]:
    """From x and sigma to the features of each block, (N, C)."""
    if images == PIXELS:
        return lambda x, _: {PIXELS: x}
    generator = torch.Generator().manual_seed(seed)
    sigma_data = float(data.train_images.std())
    if images == RANDOM:
        widths = sorted(set(zoo.CHANNELS[network]))
        layers = {f"{width} {RANDOM}": nn.Conv2d(data.shape[0], width, 3, padding=1) for width in widths}
        for layer in layers.values():
            weight, bias = layer.parameters()
            nn.init.normal_(weight, std=1 / math.sqrt(9 * data.shape[0]), generator=generator)
            nn.init.normal_(bias, std=0.5, generator=generator)

        @torch.no_grad()
        def filtered(x: Tensor, sigma: float) -> dict[str, Tensor]:
            scaled = (x / math.hypot(sigma_data, sigma)).unflatten(1, data.shape)
            return {name: layer(scaled).relu().mean((2, 3)) for name, layer in layers.items()}

        return filtered
    if images == UNTRAINED:
        denoiser = zoo.build(network, data.shape, sigma_data, generator)
    else:
        denoiser = zoo.load(name, seed, integer("images", images, 1), network=network).denoiser
    denoiser = denoiser.to(devices.best())
    return lambda x, sigma: features.extract(denoiser, x, sigma)
