r"""Real images: what a diffusion model's features tell about the class, over noise levels, layers and inputs.

A denoiser f(x, sigma) is trained without labels. Then, for every noise level sigma and for both inputs,
`noisy` (x_0 + sigma eps) and `clean` (x_0, with sigma as conditioning alone), one forward pass gives the
features of all layers and the denoised images. They are read out by linear probes and nearest-subspace
classifiers, for fine and for coarse labels, by the class SNR of the features, and, on the denoised images,
by classifiers that are fitted afresh at each level or once for all.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from compendium import results, resume
from experiments.images import denoisers
from molrg import images
from molrg.images import network_layers
from molrg.measuring import features, probes, subspaces
from molrg.model import noise
from molrg.support.checks import integer

__all__ = [
    "FIGURES",
    "INPUTS",
    "Reader",
    "Runs",
    "Shape",
    "best_probe",
    "lasting_level",
    "layers_of",
    "peak_level",
    "plain",
    "run",
    "settings",
    "shape",
    "stored",
]

INPUTS = ("clean", "noisy")
FIGURES = ("linear", "linear_train", "subspace", "snr", "csnr")
"""What is measured at each layer; see `run`."""

_SUBSPACE_RANK = 5  # as published
_WIDEST = 512  # features of a layer that a probe reads: maps are averaged until no more are left,
_MOST_PLACES = 4  # and at least over a grid of 4 x 4
_L2_GRID = (3e-1, 3e-2, 3e-3)
_LARGEST = 1024  # values of an image that a linear probe reads
_FILTERS, _PATCH = 32, 5  # of the classifier of denoised images


def run(
    dataset: str,
    model: str,
    seed: int,
    draws: int,
    levels: Sequence[float],
    probe_samples: int,
    test_samples: int,
    smoke: bool,
    workdir: Path,
) -> dict[str, Any]:
    """Read the features of one denoiser; return the figures of all draws.

    dataset is a name or path for `images.load`; model, seed and smoke choose the network, see
    `denoisers.get`. Each draw has probe images, test images and noise of its own; it fits probes to
    `probe_samples` training images and tests them on `test_samples` test images, or as many as there are.
    Levels that the network was not made for are left out. What `workdir` holds of a stopped run is taken up.

    Returns, with axes D = draws, G = labels (fine; coarse where the data have them), I = inputs (INPUTS),
    S = levels, L = layers: (D, G, I, S, L) `linear` and `linear_train`, accuracies of linear probes on test
    and training images; `subspace`, accuracy of the nearest subspace on test images; `snr` and `csnr`, the
    class SNR on training images with denominators `residual` and `classes`. Of the denoised images:
    `transfer` (D, I, S + 1, S + 1), test accuracy of a classifier fitted to images of one level (second to
    last axis) on images of another, entry 0 of both being images as they are; `posterior` (D, G, I, S), of a
    classifier fitted afresh at each level; `between` (D, I, S), the share of their variance that lies between
    classes; `image_csnr` (D, 2, I, S), their CSNR in the leading singular vectors of the class's images, as
    they are and with the mean image taken off. `pixels` (D, G), accuracy of a linear probe on the images.
    `layers`, `kinds` (skip, encoder, middle, decoder, block), `levels`, `left_out` (levels), `weights` (of
    the network), `class_names`, `coarse_names` and the numbers `train_images`, `probe_images`, `test_images`.

    Raises ValueError for arguments outside their ranges, FileNotFoundError for missing data.
    """
    integer("seed", seed, 0)
    integer("draws", draws, 1)
    integer("probe_samples", probe_samples, 10)
    integer("test_samples", test_samples, 1)
    data = images.load(dataset)
    data, denoiser, _ = denoisers.get(data, model, seed, smoke)
    within = list(denoisers.usable_levels(denoiser, levels))
    folder, sizes = Path(workdir) / data.digest[:16], (probe_samples, test_samples)
    runs = [
        resume.arrays(
            folder / f"draw-{i}.npz", Reader(denoiser, data, *sizes, 1000 * seed + i).figures, within
        )
        for i in range(draws)
    ]
    named = layers_of(denoiser)
    return {
        **{key: np.round(np.stack([each[key] for each in runs]), 5) for key in runs[0]},
        "layers": list(named),
        "kinds": list(named.values()),
        "levels": within,
        "left_out": [float(level) for level in levels if float(level) not in within],
        "weights": sum(each.numel() for each in denoiser.parameters()),
        "class_names": list(data.class_names),
        "coarse_names": list(data.coarse_names or ()),
        "train_images": len(data.train_images),
        "probe_images": min(probe_samples, len(data.train_images)),
        "test_images": min(test_samples, len(data.test_images)),
    }


def settings(dataset: str, model: str, seed: int, draws: int, smoke: bool) -> dict[str, Any]:
    """Return the parameters of `run` that the pages use; `smoke` ones take seconds."""
    sizes: dict[str, Any] = {"levels": list(noise.IMAGE_LEVELS), "probe_samples": 1200, "test_samples": 750}
    if dataset == "tiny_imagenet_30.npz":  # its passes take longer
        sizes |= {"probe_samples": 600, "test_samples": 400}
    if denoisers.reads_many(model):
        sizes |= {"probe_samples": 20_000, "test_samples": 10_000}
    if smoke:
        sizes = {"levels": [0.06, 0.296, 1.088], "probe_samples": 300, "test_samples": 200}
    return {"dataset": dataset, "model": model, "seed": seed, "draws": draws, **sizes, "smoke": smoke}


def best_probe(
    dataset: str, model: str, seed: int, level: float, smoke: bool, workdir: Path
) -> dict[str, Any]:
    """Fit probes to all training images at one noise level, clean input, and test them on all test images.

    Every layer of the decoder (UNet) or block (DiT) is read on a grid of 4 x 4 places, and all of them
    together. Returns `accuracy` and `accuracy_train` (L + 1,), the last entry for all layers together, their
    `dims`, `layers`, `pixels` (accuracy on the images themselves), `level`, and the numbers of images.

    Raises ValueError for arguments outside their ranges, FileNotFoundError for missing data.
    """
    integer("seed", seed, 0)
    data = images.load(dataset)
    data, denoiser, _ = denoisers.get(data, model, seed, smoke)
    denoisers.usable_levels(denoiser, [level])
    named = layers_of(denoiser).items()
    layers = [name for name, kind in named if kind == "block" or (kind == "decoder" and "resnets" in name)]
    folder = Path(workdir) / data.digest[:16]
    train, test = (
        _on_grid(denoiser, pictures, level, layers, folder / part)
        for part, pictures in (("train", data.train_images), ("test", data.test_images))
    )

    def read(chosen: Sequence[str]) -> dict[str, float]:
        z = torch.cat([train[each] for each in chosen], 1)[None]
        fit = _fit(z, data.train_labels, data.num_classes, 0, (1e-1, 1e-2, 1e-3))
        found = {"accuracy_train": fit.accuracy(z, data.train_labels).item(), "dims": z.shape[2]}
        del z
        zt = torch.cat([test[each] for each in chosen], 1)[None]
        return found | {"accuracy": fit.accuracy(zt, data.test_labels).item()}

    readings = [([name], name) for name in layers] + [(layers, "all")]
    found = [resume.values(folder / f"{name}.json", read, chosen) for chosen, name in readings]
    pixels = _fit(_small(data, data.train_images)[None], data.train_labels, data.num_classes, 0)
    return {
        **{key: np.round([each[key] for each in found], 5) for key in ("accuracy", "accuracy_train")},
        "dims": [each["dims"] for each in found],
        "pixels": round(pixels.accuracy(_small(data, data.test_images)[None], data.test_labels).item(), 5),
        "layers": layers,
        "level": float(level),
        "train_images": len(data.train_images),
        "test_images": len(data.test_images),
    }


class Runs(NamedTuple):
    """The stored results of `run` of one model on one data set, see `stored`."""

    found: dict[str, Any]  # as `run` returns it, draws of all networks along the first axis
    records: list[results.Record]

    def layer(self) -> int:
        """Return the index of the layer with the highest peak of mean accuracy: fine labels, either input."""
        return int(self.found["linear"][:, 0].mean(0).max((0, 1)).argmax())


def stored(dataset: str, model: str, networks: int, draws: int, smoke: bool) -> Runs:
    """Load or compute the results of networks trained from seeds 0 ... networks - 1."""
    witness = settings(denoisers.small_data(dataset, model), model, 0, 1, True)
    records = [
        results.load_or_compute(
            run, settings(dataset, model, seed, draws, smoke), witness=witness, tolerance=0.02
        )
        for seed in range(networks)
    ]
    first = records[0].value
    joined = {
        key: np.concatenate([each.value[key] for each in records]) if isinstance(value, np.ndarray) else value
        for key, value in first.items()
    }
    return Runs(joined, records)


def plain(layer: str) -> str:
    """Return a layer's name for readers: `decoder 2.1`, `encoder 1 down`, `block 3`; counts begin at 1."""
    parts = layer.split(".")
    if parts[-1] == "conv_in":
        return "first convolution"
    numbers = [str(int(part) + 1) for part in parts if part.isdigit()]
    sides = {"down_blocks": "encoder", "mid_block": "middle", "up_blocks": "decoder"}
    side = next((each for part, each in sides.items() if part in parts), "block")
    if "downsamplers" in parts or "upsamplers" in parts:
        return f"{side} {numbers[0]} {'down' if 'downsamplers' in parts else 'up'}"
    return f"{side} {'.'.join(numbers)}" + " attention" * ("attentions" in parts)


def peak_level(curve: np.ndarray, levels: Sequence[float]) -> float:
    """Return where a curve (S,) is highest: the top of the parabola in log sigma through its highest point
    and its neighbours, or the end of the grid where that point lies there. Rounded to nine digits after the
    point, so that ties between curves do not hang on roundoff."""
    top, x = int(np.argmax(curve)), np.log(levels)
    if top in (0, len(x) - 1):
        return float(levels[top])
    around = slice(top - 1, top + 2)
    bend, slope, _ = np.polyfit(x[around] - x[top], curve[around], 2)
    shift = -slope / (2 * bend) if bend < 0 else 0.0
    return round(float(np.exp(np.clip(x[top] + shift, x[top - 1], x[top + 1]))), 9)


def lasting_level(curve: np.ndarray, levels: Sequence[float], share: float = 0.75) -> float:
    """Return the level up to which a curve (S,), once past its peak, keeps a share of its maximum.

    Linear in log sigma between the levels; the last level where it keeps that share to the end.
    """
    x, top = np.log(levels), int(curve.argmax())
    wanted = share * curve[top]
    below = [s for s in range(top + 1, len(x)) if curve[s] < wanted]
    if not below:
        return float(levels[-1])
    s = below[0]
    return float(np.exp(x[s - 1] + (x[s] - x[s - 1]) * (curve[s - 1] - wanted) / (curve[s - 1] - curve[s])))


class Shape(NamedTuple):
    """How curves of R runs over S levels run: see `shape`."""

    peak: int  # index of the highest point of the mean curve
    rise: float  # from the first level to the peak
    rise_error: float  # its standard error over runs
    fall: float  # from the peak to the last level
    fall_error: float

    @property
    def unimodal(self) -> bool:
        """Whether rise and fall both exceed twice their standard errors."""
        return self.rise > 2 * self.rise_error and self.fall > 2 * self.fall_error


def shape(curves: np.ndarray) -> Shape:
    """Return the peak of the mean of curves (R, S), its height over both ends and their standard errors.

    The errors are those of paired differences over the runs; of one run they are 0.
    """
    runs, peak = len(curves), int(curves.mean(0).argmax())
    rises, falls = curves[:, peak] - curves[:, 0], curves[:, peak] - curves[:, -1]
    errors = [float(each.std(ddof=1)) / runs**0.5 if runs > 1 else 0.0 for each in (rises, falls)]
    return Shape(peak, float(rises.mean()), errors[0], float(falls.mean()), errors[1])


def layers_of(denoiser: nn.Module) -> dict[str, str]:
    """Return the layers to read, in the order of the forward pass, with the kind of each.

    Of a UNet: `skip`, the tensors that its encoder hands to its decoder; `encoder`, the other layers there;
    `middle`; `decoder`. Of another network: `block`.
    """
    skips = network_layers.skip_layers(denoiser)
    parts = {"down_blocks": "encoder", "mid_block": "middle", "up_blocks": "decoder"}

    def kind(name: str) -> str:
        inside = [each for part, each in parts.items() if part in name.split(".")]
        return "skip" if name in skips else inside[0] if inside else "block"

    return {name: kind(name) for name in network_layers.all_layers(denoiser)}


class Reader:
    """One denoiser, one data set, and the images and the noise of one draw."""

    def __init__(
        self, denoiser: nn.Module, data: images.Images, probe_samples: int, test_samples: int, draw: int
    ) -> None:
        generator = torch.Generator().manual_seed(draw)
        self.train = torch.randperm(len(data.train_images), generator=generator)[:probe_samples]
        self.test = torch.randperm(len(data.test_images), generator=generator)[:test_samples]
        self.noise = [
            torch.randn(len(rows), data.dim, generator=generator) for rows in (self.train, self.test)
        ]
        self.denoiser, self.data, self.draw = denoiser, data, draw
        self.layers = list(layers_of(denoiser))
        self.pictures = data.train_images[self.train], data.test_images[self.test]
        self.labels = [(data.train_labels[self.train], data.test_labels[self.test], data.num_classes)]
        if data.coarse_of_class is not None and data.coarse_names is not None:
            coarse = [data.coarse_of_class[each] for each in self.labels[0][:2]]
            self.labels.append((coarse[0], coarse[1], len(data.coarse_names)))
        self.describe = _Description(data, self.pictures[0], draw)

    def figures(self, levels: Sequence[float]) -> dict[str, np.ndarray]:
        """Return every figure of `run`, without the axis of draws."""
        found: dict[str, list[Any]] = {name: [] for name in (*FIGURES, "between", "image_csnr")}
        transfer, posterior = [], []
        for kind in INPUTS:
            described = [tuple(self.describe(each) for each in self.pictures)]
            for level in levels:
                passed = [self._pass(part, level, level * (kind == "noisy")) for part in (0, 1)]
                denoised = [each.pop(features.DENOISED) for each in passed]
                described.append(tuple(self.describe(each) for each in denoised))
                for name, value in {**self._layers(*passed), **self._images(denoised[0])}.items():
                    found[name].append(value)
            across, fresh = self._classifiers(described)
            transfer.append(across)
            posterior.append(fresh)
        axes = (len(INPUTS), len(levels))
        out = {name: np.array(value).reshape(*axes, *np.shape(value[0])) for name, value in found.items()}
        # (I, S, G, L) and (I, S, 2) -> labels or variants first
        for name in (*FIGURES, "image_csnr"):
            out[name] = np.moveaxis(out[name], 2, 0)
        small = [_small(self.data, each)[None] for each in self.pictures]
        pixels = [
            _fit(small[0], train, classes, self.draw).accuracy(small[1], test).item()
            for train, test, classes in self.labels
        ]
        return {
            **out,
            "transfer": np.array(transfer),
            "posterior": np.moveaxis(np.array(posterior), 1, 0),
            "pixels": np.array(pixels),
        }

    def _pass(self, part: int, level: float, added: float) -> dict[str, Tensor]:
        """Return the layers' features and the denoised images of one forward pass."""
        noised = self.pictures[part] + added * self.noise[part] if added else self.pictures[part]
        names = [*self.layers, features.DENOISED]
        return features.extract(self.denoiser, noised, level, names, batch_size=64, reduce=_pooled)

    def _layers(self, train: dict[str, Tensor], test: dict[str, Tensor]) -> dict[str, np.ndarray]:
        """Return FIGURES, each (G, L), of the layers' features; those of one width are fitted together."""
        found = {name: np.zeros((len(self.labels), len(self.layers))) for name in FIGURES}
        for width in sorted({each.shape[1] for each in train.values()}):
            group = [i for i, name in enumerate(self.layers) if train[name].shape[1] == width]
            z, zt = (torch.stack([part[self.layers[i]] for i in group]) for part in (train, test))
            for g, (labels, test_labels, classes) in enumerate(self.labels):
                fit = _fit(z, labels, classes, self.draw)
                rank = _rank(labels, classes, width)
                bases = subspaces.class_subspaces(z, labels, rank, classes, unit=True)
                for name, value in (
                    ("linear", fit.accuracy(zt, test_labels)),
                    ("linear_train", fit.accuracy(z, labels)),
                    ("subspace", bases.accuracy(zt, test_labels)),
                    ("snr", bases.snr(z, labels)),
                    ("csnr", bases.snr(z, labels, denominator="classes")),
                ):
                    found[name][g, group] = value.numpy()
        return found

    def _images(self, denoised: Tensor) -> dict[str, Any]:
        """Return how the denoised images relate to the classes' own images."""
        labels, _, classes = self.labels[0]
        pictures, csnr = self.pictures[0], []
        rank = _rank(labels, classes, pictures.shape[1])
        for shift in (torch.zeros(()), pictures.mean(0)):
            bases = subspaces.class_subspaces((pictures - shift)[None], labels, rank, classes)
            csnr.append(bases.snr((denoised - shift)[None], labels, denominator="classes").item())
        return {"between": _between(denoised, labels, classes), "image_csnr": np.array(csnr)}

    def _classifiers(self, described: list[tuple[Tensor, ...]]) -> tuple[np.ndarray, np.ndarray]:
        """Return the accuracies (S + 1, S + 1) across levels and (G, S) of fresh classifiers."""
        train = torch.stack([each[0] for each in described])
        test = torch.stack([each[1] for each in described])
        fits = [_fit(train, labels, classes, self.draw) for labels, _, classes in self.labels]
        fresh = [
            fit.accuracy(test, labels)[1:].numpy()
            for fit, (_, labels, _) in zip(fits, self.labels, strict=True)
        ]
        across = [fits[0].accuracy(each.expand(len(train), -1, -1), self.labels[0][1]) for each in test]
        return torch.stack(across, 1).numpy(), np.array(fresh)


class _Description:
    """What the classifier of denoised images sees: rectified responses to patches of training images.

    The filters are patches of the probe's own training images, without mean and of norm 1; responses of
    either sign are averaged over 3 x 3 places. The description is fixed: only what reads it is fitted.
    """

    def __init__(self, data: images.Images, pictures: Tensor, draw: int) -> None:
        self.shape = data.shape
        generator = torch.Generator().manual_seed(draw)
        channels, height, width = data.shape
        side = min(_PATCH, height, width)
        patches = torch.nn.functional.unfold(pictures[:200].unflatten(1, data.shape), side)
        flat = patches.mT.reshape(-1, channels * side * side)
        flat = flat - flat.mean(1, keepdim=True)
        flat = flat[flat.norm(dim=1) > 0.1 * flat.norm(dim=1).max()]  # empty ones say nothing
        chosen = flat[torch.randperm(len(flat), generator=generator)[:_FILTERS]]
        chosen = chosen / chosen.norm(dim=1, keepdim=True)
        self.filters = chosen.unflatten(1, (channels, side, side))

    def __call__(self, pictures: Tensor) -> Tensor:
        """Return the description (N, C) of flattened images."""
        found = []
        for batch in pictures.unflatten(1, self.shape).split(250):
            maps = torch.nn.functional.conv2d(batch, self.filters)
            maps = torch.cat([maps.clamp_min(0), (-maps).clamp_min(0)], 1)
            places = min(3, *maps.shape[2:])
            found.append(torch.nn.functional.adaptive_avg_pool2d(maps, places).flatten(1))
        return torch.cat(found)


def _pooled(activations: Tensor) -> Tensor:
    """Average maps and tokens over a grid of up to 4 x 4 places that leaves at most 512 features."""
    channels = activations.shape[2 if activations.ndim == 3 else 1]
    places = int((_WIDEST / channels) ** 0.5)
    return features.grid_mean(max(1, min(_MOST_PLACES, places)))(activations)


def _rank(labels: Tensor, classes: int, dim: int) -> int:
    """The rank of class subspaces: as published, or what the smallest class and the dimension allow."""
    return min(_SUBSPACE_RANK, int(labels.bincount(minlength=classes).min()) - 1, dim - 1)


def _on_grid(
    denoiser: nn.Module, pictures: Tensor, level: float, layers: Sequence[str], folder: Path
) -> dict[str, Tensor]:
    """Return the layers' features of clean images on a grid of 4 x 4; what `folder` holds is not repeated."""

    def read(some: Tensor) -> dict[str, Tensor]:
        return features.extract(
            denoiser, some, level, layers, batch_size=64, reduce=features.grid_mean(_MOST_PLACES)
        )

    parts = [
        resume.arrays(folder / f"features-{i}.npz", read, some)
        for i, some in enumerate(pictures.split(10_000))
    ]
    return {name: torch.cat([torch.from_numpy(part[name]) for part in parts]) for name in layers}


def _fit(
    values: Tensor, labels: Tensor, classes: int, draw: int, l2_grid: Sequence[float] = _L2_GRID
) -> probes.LogisticProbes:
    return probes.select_logistic(
        values,
        labels,
        l2_grid=l2_grid,
        num_classes=classes,
        tolerance=2e-3,
        generator=torch.Generator().manual_seed(draw),
    )


def _small(data: images.Images, pictures: Tensor) -> Tensor:
    """Images for a linear probe: their sides are halved until at most 1,024 values are left."""
    channels, height, width = data.shape
    while channels * height * width > _LARGEST:
        height, width = height // 2, width // 2
    maps = pictures.unflatten(1, data.shape)
    return torch.nn.functional.adaptive_avg_pool2d(maps, (height, width)).flatten(1)


def _between(values: Tensor, labels: Tensor, classes: int) -> float:
    """Return the share of the variance of (N, D) that lies between the class means."""
    member = torch.nn.functional.one_hot(labels, classes).to(values.dtype)
    counts = member.sum(0).clamp_min(1)
    centred = values - values.mean(0)
    means = member.T @ centred / counts[:, None]
    return ((counts[:, None] * means.square()).sum() / centred.square().sum()).item()
