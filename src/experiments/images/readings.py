"""What is read out of the blocks of a network at every noise level: classes, their SNR, and backgrounds.

A linear discriminant is fitted to the features of labelled training images, afresh for each block, level,
input and readout, with one ridge for all. Kept is whether each test image is classified rightly, since images
are the units by which curves of one network are judged (see `molrg.measuring.curves`). Controls are read
alike: the untrained network, one layer of random filters, and the pixels.

    record = results.load_or_compute(readings.run, parameters, witness=...)
    right = readings.right(record.value)                        # (R, I, B, S, N) booleans
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from compendium import results, resume
from experiments.images import denoisers, image_data, model_zoo, probe_sets
from molrg import images as image_sets
from molrg.images import zoo
from molrg.measuring import features, subspaces
from molrg.measuring.discriminants import fit_discriminants
from molrg.model import noise
from molrg.support import devices
from molrg.support.checks import integer

__all__ = [
    "COARSE",
    "INPUTS",
    "LEVELS",
    "NEAREST",
    "PIXELS",
    "PUBLISHED",
    "RANDOM",
    "RANK",
    "READOUTS",
    "RIDGE",
    "UNTRAINED",
    "right",
    "run",
    "stored",
    "usual_channels",
]

INPUTS = ("noisy", "clean")
LEVELS = (*noise.IMAGE_LEVELS, 5.0)
READOUTS = ("mean", "mean, 32 numbers", "3 x 3 grid, 256 numbers")
"""Mean over positions, all channels; the same in 32 principal components; means of a 3 x 3 grid in 256."""
NEAREST = "nearest subspace of means"
"""The classes by largest energy in their subspaces, the paper's class-projection classifier."""
COARSE = "mean, coarse labels"
"""The first readout for the coarse groups of the classes, where the data have them."""
RIDGE = 0.03
RANK = 5
"""Directions of a class subspace, as published."""
UNTRAINED, RANDOM, PIXELS = "untrained", "random filters", "pixels"
"""Controls that stand in the place of a number of images seen."""
PUBLISHED = "published"
"""Stands there for a checkpoint that was trained elsewhere."""

_CHANNELS = {"+": (32, 48), "digits": (32, 48), "garments": (32, 64), "": (32, 64, 96)}
_Reader = Callable[[Tensor, float], dict[str, Tensor]]


def run(
    dataset: str,
    prior: str,
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
    """Read the blocks of one network of the zoo, on noisy and on clean input.

    Parameters
    ----------
    dataset
        The images shown, a name of `image_data`.
    prior
        The images that the network was trained on; mostly the same name. Or a published checkpoint, its
        folder or owner/name, which is shown the images at their own size.
    channels, seed
        Of the network: (32, 64) stands for the kind `unet-32-64` of `zoo.CHANNELS`.
    images
        How many it has seen: a network of the zoo, or of own images, then it is trained; or PUBLISHED; or a
        control: UNTRAINED, RANDOM (one layer of as many filters as the widest block has channels) or PIXELS.
    labels, validation
        Training images with labels, and others that choose block and level; as many of each class.
    tests
        So many test images judge, in proportion to their classes.
    workdir
        Where each level's part is kept when it is done, so that a stopped run goes on.

    Returns
    -------
    dict
        `blocks` (B names, from the input to the output; the denoised image is the last of a network's);
        `readouts` (R names), READOUTS, NEAREST and, where the data have coarse groups, COARSE; `tests`
        (R, I, B, S, N / 8): whether each of N test images is read rightly by each readout at each level,
        packed, see `right`; `validation` (R, I, B, S) accuracies; `snr` and `csnr` (I, B, S): the class SNR
        of the means over positions of test images, in class subspaces of the labelled ones, with
        denominators `residual` and `classes`; `background` (I, B, S), for garments with backgrounds: the
        share of the background's variance that a ridge regression reads from the grid; `levels`, `count` (N).

    Raises ValueError for arguments outside their ranges, FileNotFoundError where data are missing.
    """
    if images == PUBLISHED:
        data, denoiser, _ = denoisers.get(image_sets.load(dataset), prior, seed, smoke=False)
        levels, read = denoisers.usable_levels(denoiser, levels), _blocks(denoiser)
    else:
        data = image_data.get(dataset)
        read = _reader(prior, f"unet-{'-'.join(map(str, channels))}", images, seed)
    counts = probe_sets.equal(data.train_labels, labels + validation, data.class_names)
    known = probe_sets.draw(data.train_labels, counts, torch.Generator().manual_seed(0))
    shares = probe_sets.proportional(data.test_labels, tests, data.class_names)
    judges = probe_sets.draw(data.test_labels, shares, torch.Generator().manual_seed(2))
    x0 = torch.cat([data.train_images[known], data.test_images[judges]])
    answers = torch.cat([data.train_labels[known], data.test_labels[judges]])
    groups = None if data.coarse_of_class is None else data.coarse_of_class[answers]
    behind = image_data.background(dataset)
    scenes = None if behind is None else torch.cat([behind[0][known], behind[1][judges]])
    eps = torch.randn(x0.shape, generator=torch.Generator().manual_seed(1))
    ends = (labels, labels + validation)

    def at(kind: str, sigma: float) -> dict[str, Any]:
        found = read(x0 + sigma * eps if kind == "noisy" else x0, sigma)
        return _figures(found, answers, groups, ends, scenes)

    parts = [
        [resume.arrays(Path(workdir) / f"{kind}-{sigma:g}.npz", at, kind, sigma) for sigma in levels]
        for kind in INPUTS
    ]
    joined = {
        key: np.stack([np.stack([part[key] for part in row]) for row in parts])
        for key in parts[0][0]
        if key != "blocks"
    }
    result: dict[str, Any] = {
        "blocks": parts[0][0]["blocks"].tolist(),
        "readouts": [*READOUTS, NEAREST, *([] if groups is None else [COARSE])],
        "levels": [float(sigma) for sigma in levels],
        "count": len(x0) - ends[1],
    }
    for key, values in joined.items():  # (I, S, R, B, ...) or (I, S, B)
        axes = (2, 0, 3, 1) if key in ("tests", "validation") else (0, 2, 1)
        moved = values.transpose(*axes, *range(len(axes), values.ndim))
        result[key] = moved if key == "tests" else np.round(moved.astype(np.float64), 6)
    return result


def right(value: dict[str, Any]) -> np.ndarray:
    """Return whether each test image was read rightly, (R, I, B, S, N) booleans, of what `run` returned."""
    return np.unpackbits(value["tests"], axis=-1, count=value["count"]).astype(bool)


def stored(
    dataset: str,
    images: int | str,
    seed: int = 0,
    prior: str | None = None,
    channels: Sequence[int] | None = None,
    smoke: bool = False,
) -> results.Record:
    """Load or compute the reading of a network, or of a control, at the sizes that pages use.

    6,000 labelled, 1,500 validation and 4,500 (natural) or 5,000 (garments) test images; with backgrounds
    3,000, 1,000 and 4,000; of own images as many as there are up to this. `smoke` reads the digits' network,
    in seconds.
    """
    trained = dataset if prior is None else prior
    small: dict[str, Any] = {"dataset": "digits", "prior": "digits", "channels": [32, 48], "seed": 0}
    small |= {"labels": 200, "validation": 100, "tests": 150, "images": images}
    if isinstance(images, int):
        small["images"] = 20_000
    if smoke:
        return results.load_or_compute(run, small, witness=small, tolerance=0.05)
    sizes = {"labels": 6000, "validation": 1500, "tests": 5000 if dataset == "garments" else 4500}
    if "+" in dataset:
        sizes = {"labels": 3000, "validation": 1000, "tests": 4000}
    if dataset not in image_data.NAMES:
        data = image_sets.load(dataset)
        classes, each = data.num_classes, int(data.train_labels.bincount().min())
        sizes = {
            "labels": classes * min(6000 // classes, 3 * each // 4),
            "validation": classes * min(1500 // classes, each // 4),
            "tests": min(5000, len(data.test_images)),
        }
    if channels is None:
        channels = next((kind for name, kind in _CHANNELS.items() if name in trained), (32, 64, 96))
    chosen = {
        "dataset": dataset,
        "prior": trained,
        "channels": list(channels),
        "images": images,
        "seed": seed,
    }
    own = images == PUBLISHED or dataset not in image_data.NAMES  # there is no smaller run of the same kind
    return results.load_or_compute(
        run, chosen | sizes, witness=chosen | sizes if own else small, tolerance=0.05
    )


def usual_channels(dataset: str) -> tuple[int, ...]:
    """Return the channels of the network that pages read first of a data set of `image_data`."""
    return next(kind for name, kind in _CHANNELS.items() if name in dataset)


def _figures(
    found: dict[str, Tensor],
    answers: Tensor,
    groups: Tensor | None,
    ends: tuple[int, int],
    scenes: Tensor | None,
) -> dict[str, Any]:
    """The arrays of `run` at one input and level, (R, B, ...) and (B,)."""
    parts: dict[str, list[Any]] = {"tests": [], "validation": [], "snr": [], "csnr": []}
    fit, _, judge = answers.tensor_split(ends)
    for values in found.values():
        grid, mean = (values, values) if values.ndim == 2 else (values[..., 1:].flatten(1), values[..., 0])
        readings = [(mean, answers, None), (mean, answers, 32), (grid, answers, 256)]
        readings += [] if groups is None else [(mean, groups, None)]
        rights = [_rights(z, labels, components, ends) for z, labels, components in readings]
        train, _, test = mean.tensor_split(ends)
        spaces = subspaces.class_subspaces(train[None], fit, RANK, unit=True)
        nearest = spaces.predict(mean[None])[0] == answers
        rights.insert(len(READOUTS), (nearest[ends[0] : ends[1]], nearest[ends[1] :]))
        parts["validation"].append([chosen.double().mean() for chosen, _ in rights])
        parts["tests"].append([np.packbits(judged.numpy()) for _, judged in rights])
        parts["snr"].append(spaces.snr(test[None], judge, "residual").item())
        parts["csnr"].append(spaces.snr(test[None], judge, "classes").item())
        if scenes is not None:
            parts.setdefault("background", []).append(_explained(grid, scenes, ends))
    arrays: dict[str, Any] = {key: np.array(each) for key, each in parts.items()}
    for key in ("tests", "validation"):
        arrays[key] = arrays[key].swapaxes(0, 1)
    return arrays | {"blocks": list(found)}


def _rights(
    z: Tensor, labels: Tensor, components: int | None, ends: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Which validation and which test images a discriminant of the labelled ones reads rightly."""
    train, choose, judge = z.tensor_split(ends)
    fit, chosen, judged = labels.tensor_split(ends)
    fitted = fit_discriminants(train[None], fit, RIDGE, components=components)
    return fitted.predict(choose[None])[0] == chosen, fitted.predict(judge[None])[0] == judged


def _explained(values: Tensor, scenes: Tensor, ends: tuple[int, int]) -> float:
    """Share of the variance of test backgrounds that a ridge regression on features explains."""
    train, _, test = values.tensor_split(ends)
    mean, scale = train.mean(0), train.std(0).clamp_min(1e-6)
    z = (train - mean) / scale
    target = scenes[: ends[0]]
    gram = z.T @ z / len(z)
    gram.diagonal().add_(RIDGE)
    weight = torch.linalg.solve(gram, z.T @ (target - target.mean(0)) / len(z))
    left = scenes[ends[1] :] - target.mean(0)
    return 1 - float((left - (test - mean) / scale @ weight).square().sum() / left.square().sum())


def _mean_and_grid(activations: Tensor) -> Tensor:
    """Mean over positions and means of a 3 x 3 grid, (B, C, 1 + 9); vectors as they are."""
    if activations.ndim == 2:
        return activations
    grid = features.grid_mean(3)(activations).unflatten(1, (activations.shape[1], -1))
    return torch.cat([features.spatial_mean(activations)[..., None], grid], 2)


def _reader(prior: str, network: str, images: int | str, seed: int) -> _Reader:
    """From x and sigma to what `_mean_and_grid` keeps of each block."""
    if images == PIXELS:
        return lambda x, _: {PIXELS: x}
    data = image_data.get(prior)
    generator = torch.Generator().manual_seed(seed)
    sigma_data = float(data.train_images.std())
    if images == RANDOM:
        layer = nn.Conv2d(data.shape[0], max(zoo.CHANNELS[network]), 3, padding=1).requires_grad_(False)
        nn.init.normal_(layer.weight, std=1 / math.sqrt(9 * data.shape[0]), generator=generator)
        assert layer.bias is not None
        nn.init.normal_(layer.bias, std=0.5, generator=generator)

        def filtered(x: Tensor, sigma: float) -> dict[str, Tensor]:
            scaled = (x / math.hypot(sigma_data, sigma)).unflatten(1, data.shape)
            return {RANDOM: torch.cat([_mean_and_grid(layer(part).relu()) for part in scaled.split(512)])}

        return filtered
    if images == UNTRAINED:
        return _blocks(zoo.build(network, data.shape, sigma_data, generator))
    seen = integer("images", images, 1)
    if prior in image_data.NAMES:
        return _blocks(zoo.load(prior, seed, seen, network=network).denoiser)
    return _blocks(model_zoo.trained(model_zoo.Training(prior, network, seed, seen)))


def _blocks(denoiser: nn.Module) -> _Reader:
    denoiser = denoiser.to(devices.best())
    layers = (*features.default_layers(denoiser), features.DENOISED)

    def passed(x: Tensor, sigma: float) -> dict[str, Tensor]:
        found = features.extract(denoiser, x, sigma, layers, batch_size=128, reduce=_mean_and_grid)
        return {layer.split("model.")[-1]: values for layer, values in found.items()}

    return passed
