"""For the eye: which images lie nearest in the features of a block, at several noise levels."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from experiments.images import image_data, probe_sets
from molrg.images import zoo
from molrg.measuring import features
from molrg.support import devices
from molrg.support.checks import integer

__all__ = ["run"]


def run(
    dataset: str,
    channels: Sequence[int],
    images: int,
    seed: int,
    block: int,
    levels: Sequence[float],
    queries: int,
    neighbours: int,
    pool: int,
    *,
    workdir: Path,
) -> dict[str, Any]:
    """Find the nearest neighbours of test images among test images, from noisy input.

    Features are the means over a 3 x 3 grid of one block of a network of the zoo, standardised; nearest is in
    their Euclidean distance. It takes under a minute, and keeps nothing in `workdir`.

    Parameters
    ----------
    dataset, channels, images, seed
        The network, see `readings.run`.
    block
        Number of the block among the network's feature layers, from 0.
    levels
        S noise levels.
    queries, neighbours
        Q images that are asked for, each of another class, and how many neighbours of each are kept.
    pool
        Test images among which neighbours are looked for.

    Returns
    -------
    dict
        `asked` (Q, H, W, C) and `nearest` (S, Q, neighbours, H, W, C), uint8; `same` (S,), the share of
        neighbours of all images of the pool that are of the image's class; `levels`.
    """
    data = image_data.get(dataset)
    integer("queries", queries, 1, data.num_classes)
    shares = probe_sets.proportional(data.test_labels, pool, data.class_names)
    chosen = probe_sets.draw(data.test_labels, shares, torch.Generator().manual_seed(0))
    x0, labels = data.test_images[chosen], data.test_labels[chosen]
    denoiser = zoo.load(dataset, seed, images, network=f"unet-{'-'.join(map(str, channels))}").denoiser
    denoiser = denoiser.to(devices.best())
    layer = features.default_layers(denoiser)[block]
    eps = torch.randn(x0.shape, generator=torch.Generator().manual_seed(1))
    step = data.num_classes // queries
    asked = torch.stack([torch.nonzero(labels == k * step)[0, 0] for k in range(queries)])
    found, same = [], []
    for sigma in levels:
        z = features.extract(
            denoiser, x0 + sigma * eps, sigma, [layer], batch_size=128, reduce=features.grid_mean(3)
        )[layer]
        z = (z - z.mean(0)) / z.std(0).clamp_min(1e-6)
        apart = torch.cdist(z, z).fill_diagonal_(float("inf"))
        nearest = apart.topk(neighbours, largest=False).indices
        found.append(nearest[asked])
        same.append(float((labels[nearest] == labels[:, None]).double().mean()))

    def pixels(rows: torch.Tensor) -> np.ndarray:
        pictures = x0[rows].unflatten(-1, data.shape).movedim(-3, -1)
        return ((pictures + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).numpy()

    return {
        "asked": pixels(asked),
        "nearest": np.stack([pixels(rows) for rows in found]),
        "same": np.round(same, 4),
        "levels": [float(sigma) for sigma in levels],
    }
