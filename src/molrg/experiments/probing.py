r"""Real images: what a diffusion model's features tell about the class, over noise levels, layers and inputs.

A denoiser f(x, sigma) is trained without labels. Then, for every noise level sigma and for both inputs,
`noisy` (x_0 + sigma eps) and `clean` (x_0, with sigma as conditioning alone), its features are read out:
linear probes and nearest-subspace classifiers on each layer, a fresh classifier on its denoised images
(posterior accuracy), and the class SNR of the features.
"""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from molrg import features, image_networks, images, networks, noise, probes, training
from molrg.arguments import choice, integer
from molrg.files import write_atomically

INPUTS = ("clean", "noisy")
NETWORKS = ("mlp", "unet")
MISMATCHED = (0.1, 0.4, 1.0)
"""Noise levels of the input at which the conditioning is varied on its own."""

_SUBSPACE_RANK = 5  # as published
_SHOWN = 6  # images in the strip of denoised images


def run(
    dataset: str,
    network: str,
    width: int,
    depth: int,
    steps: int,
    batch_size: int,
    levels: Sequence[float],
    probe_samples: int,
    test_samples: int,
    sample_sizes: Sequence[int],
    seeds: int,
    workdir: Path,
) -> dict[str, Any]:
    """Train one denoiser per seed and read its features; return the figures of all seeds.

    dataset is a name or path for `images.load`; network is `mlp` (`depth` residual blocks of `width`) or
    `unet` (`width` channels at the top of three levels, `depth` layers in each block). Training takes `steps`
    batches of `batch_size` from the whole training set. Probes are fitted to `probe_samples` training images
    and tested on `test_samples` test images, or as many as there are. On the best layer of the clean input
    they are fitted once more to each number of images in `sample_sizes`. What `workdir` holds of a stopped
    run is taken up only where the images, labels and class names are the same.

    Returns, with axes R = seeds, I = inputs (INPUTS), S = levels, L = layers, M = MISMATCHED:
    `linear`, `linear_train`, `subspace`, `snr`, `csnr`, `between`, `rank` (R, I, S, L) are the accuracies of
    linear probes (test and training), of nearest subspaces (test), the class SNR with both denominators, the
    share of the features' variance that lies between classes, and their effective rank;
    `posterior` and `posterior_between` (R, I, S) the accuracy and that share for denoised images;
    `change` (R, I, S) the relative squared distance ||f - x_0||^2 / ||x_0 - mean||^2;
    `mismatched` (R, M, S) accuracies on the best layer, input noise MISMATCHED against conditioning levels;
    `sizes` (R, Z, S) accuracies on the best layer, clean input, for Z `sample_sizes`;
    `best_layer` (R,) indices; `raw` (R,) and `raw_sizes` (R, Z) the accuracy on pixels; `losses` (R,) the
    mean training loss of the last tenth of the steps; `strip` (I + 1, S, n, H, W, C) uint8, of the first
    seed: the noised input, then the denoised images for clean and for noisy input; `layers`, `levels`,
    `mismatched_levels`, `sample_sizes`, `class_names`, and the numbers of images used: `train_images`,
    `probe_images`, `test_images`.

    Raises ValueError for arguments outside their ranges, FileNotFoundError for missing data.
    """
    choice("network", network, NETWORKS)
    integer("seeds", seeds, 1)
    integer("probe_samples", probe_samples, 10)
    integer("test_samples", test_samples, 1)
    data = images.load(dataset)
    folder = Path(workdir) / data.digest[:16]  # figures and checkpoints of changed data are left alone
    runs = []
    for seed in range(seeds):
        file = folder / f"figures-{seed}.npz"
        if not file.exists():
            denoiser, loss = _trained(data, network, width, depth, steps, batch_size, seed, folder)
            figures = _figures(denoiser, data, levels, probe_samples, test_samples, sample_sizes, seed)
            _save(file, {**figures, "losses": np.array(loss)})
        with np.load(file, allow_pickle=False) as stored:
            runs.append(dict(stored))
    layers = [str(layer) for layer in runs[0].pop("layers")]
    strip = runs[0]["strip"]
    values = {
        key: np.stack([each[key] for each in runs]) for key in runs[0] if key not in ("layers", "strip")
    }
    return {
        **{key: value if value.dtype.kind == "i" else np.round(value, 5) for key, value in values.items()},
        "strip": strip,
        "layers": layers,
        "levels": [float(level) for level in levels],
        "mismatched_levels": list(MISMATCHED),
        "sample_sizes": [min(size, len(data.train_images)) for size in sample_sizes],
        "class_names": list(data.class_names),
        "train_images": len(data.train_images),
        "probe_images": min(probe_samples, len(data.train_images)),
        "test_images": min(test_samples, len(data.test_images)),
    }


def settings(dataset: str, network: str, seeds: int, smoke: bool) -> dict[str, Any]:
    """Return the parameters of `run` that the page uses for a network; `smoke` ones take seconds."""
    choice("network", network, NETWORKS)
    chosen: dict[str, Any]
    if network == "mlp":
        chosen = {
            "width": 512,
            "depth": 4,
            "steps": 4000,
            "batch_size": 256,
            "levels": [0.005, 0.03, 0.1, 0.2, 0.4, 0.7, 1.0, 1.5, 3.0],
            "probe_samples": 10_000,
            "test_samples": 10_000,
            "sample_sizes": [1000, 40_000],
        }
        small = {"width": 32, "depth": 2, "steps": 50, "batch_size": 64}
    else:
        chosen = {
            "width": 16,
            "depth": 1,
            "steps": 1000,
            "batch_size": 64,
            "levels": [0.03, 0.1, 0.2, 0.4, 0.7, 1.0, 2.0],
            "probe_samples": 2000,
            "test_samples": 2000,
            "sample_sizes": [1000],
        }
        small = {"width": 8, "depth": 1, "steps": 5, "batch_size": 16}
    if smoke:
        fewer = {"levels": [0.1, 1.0], "probe_samples": 400, "test_samples": 200, "sample_sizes": [100]}
        chosen |= small | fewer
    return {"dataset": dataset, "network": network, **chosen, "seeds": seeds}


class Shape(NamedTuple):
    """How curves of R seeds over S levels run: see `shape`."""

    peak: int  # index of the highest point of the mean curve
    rise: float  # from the first level to the peak
    rise_error: float  # its standard error over seeds
    fall: float  # from the peak to the last level
    fall_error: float

    @property
    def unimodal(self) -> bool:
        """Whether rise and fall both exceed twice their standard errors."""
        return self.rise > 2 * self.rise_error and self.fall > 2 * self.fall_error


def shape(curves: np.ndarray) -> Shape:
    """Return the peak of the mean of curves (R, S), its height over both ends and their standard errors.

    The errors are those of paired differences over the seeds; of one seed they are 0.
    """
    seeds, peak = len(curves), int(curves.mean(0).argmax())
    rises, falls = curves[:, peak] - curves[:, 0], curves[:, peak] - curves[:, -1]
    errors = [float(each.std(ddof=1)) / seeds**0.5 if seeds > 1 else 0.0 for each in (rises, falls)]
    return Shape(peak, float(rises.mean()), errors[0], float(falls.mean()), errors[1])


def _trained(
    data: images.Images,
    network: str,
    width: int,
    depth: int,
    steps: int,
    batch_size: int,
    seed: int,
    workdir: Path,
) -> tuple[nn.Module, float]:
    """Train the denoiser of one seed; noise levels are spread a little wider and higher than EDM's."""
    generator = torch.Generator().manual_seed(seed)
    inner: nn.Module
    if network == "mlp":
        inner = networks.MLP(data.dim, width=width, depth=depth, generator=generator)
    else:
        inner = image_networks.unet(data.shape, width=width, layers_per_block=depth, generator=generator)
    denoiser = networks.Preconditioned(inner, float(data.train_images.std()))
    trained = training.train(
        denoiser,
        data.train_images,
        noise.LogNormal(-0.8, 1.4),
        steps=steps,
        batch_size=batch_size,
        generator=generator,
        checkpoint=workdir / f"denoiser-{seed}.safetensors",
    )
    return trained.denoiser, float(trained.losses[-max(1, steps // 10) :].mean())


def _layers(denoiser: nn.Module) -> list[str]:
    """The layers to read: the network's feature layers and, in an MLP, the units inside each block."""
    named: list[str] = list(denoiser.feature_layers)  # type: ignore[arg-type]
    modules = dict(denoiser.named_modules())
    inside = [f"{name}.dropout" for name in named if f"{name}.dropout" in modules]
    return named + inside


def _figures(
    denoiser: nn.Module,
    data: images.Images,
    levels: Sequence[float],
    probe_samples: int,
    test_samples: int,
    sample_sizes: Sequence[int],
    seed: int,
) -> dict[str, Any]:
    """All figures of one trained denoiser."""
    reader = _Reader(denoiser, data, seed)
    order = torch.randperm(len(data.train_images), generator=torch.Generator().manual_seed(seed))
    train, test = order[:probe_samples], torch.arange(len(data.test_images))[:test_samples]
    sizes = [order[:size] for size in sample_sizes]
    rows = [
        [reader.read(train, test, level, level * (kind == "noisy")) for level in levels] for kind in INPUTS
    ]
    figures = {key: np.array([[row[key] for row in line] for line in rows]) for key in rows[0][0]}
    best = int(figures["linear"][0].max(0).argmax())
    layer = reader.layers[best]
    figures["mismatched"] = np.array(
        [[reader.linear(layer, train, test, level, added) for level in levels] for added in MISMATCHED]
    )
    figures["sizes"] = np.array(
        [[reader.linear(layer, some, test, level, 0.0) for level in levels] for some in sizes]
    ).reshape(len(sizes), len(levels))
    pixels = [
        reader.probe(data.train_images[some][None], data.test_images[test][None], some, test)[0].item()
        for some in (train, *sizes)
    ]
    return {
        **figures,
        "layers": np.array(reader.layers),
        "best_layer": np.array(best),
        "raw": np.array(pixels[0]),
        "raw_sizes": np.array(pixels[1:]),
        "strip": reader.strip(levels),
    }


class _Reader:
    """One denoiser, one data set, and the noise of one seed."""

    def __init__(self, denoiser: nn.Module, data: images.Images, seed: int) -> None:
        self.denoiser, self.data, self.seed = denoiser, data, seed
        self.layers = _layers(denoiser)

    def _pass(
        self, pictures: Tensor, level: float, added: float, layers: Sequence[str], part: int
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Return the layers' features (N, D) and the denoised images of one forward pass."""
        generator = torch.Generator().manual_seed(2 * self.seed + part)
        noised = pictures + added * torch.randn(pictures.shape, generator=generator) if added else pictures
        names = [*layers, features.DENOISED]
        found = features.extract(self.denoiser, noised, level, names, batch_size=256, reduce=_coarse_maps)
        return found, found.pop(features.DENOISED)

    def probe(self, train: Tensor, test: Tensor, rows: Tensor, test_rows: Tensor) -> Tensor:
        """Return the test accuracies of probes on (P, N, D) features."""
        return self._fit(train, rows).accuracy(test, self.data.test_labels[test_rows])

    def _fit(self, train: Tensor, rows: Tensor) -> probes.LogisticProbes:
        return probes.select_logistic(
            train,
            self.data.train_labels[rows],
            l2_grid=(1e-1, 1e-2, 1e-3),
            num_classes=self.data.num_classes,
            tolerance=5e-4,
            generator=torch.Generator().manual_seed(self.seed),
        )

    def linear(self, layer: str, rows: Tensor, test_rows: Tensor, level: float, added: float) -> float:
        """Return the accuracy of the linear probe on one layer."""
        train, _ = self._pass(self.data.train_images[rows], level, added, [layer], 0)
        test, _ = self._pass(self.data.test_images[test_rows], level, added, [layer], 1)
        return self.probe(train[layer][None], test[layer][None], rows, test_rows)[0].item()

    def read(self, rows: Tensor, test_rows: Tensor, level: float, added: float) -> dict[str, Any]:
        """Return every figure at one conditioning level and one level of added noise."""
        pictures, labels = self.data.train_images[rows], self.data.train_labels[rows]
        test_labels = self.data.test_labels[test_rows]
        train, denoised = self._pass(pictures, level, added, self.layers, 0)
        test, test_denoised = self._pass(self.data.test_images[test_rows], level, added, self.layers, 1)
        by_layer: dict[str, dict[str, float]] = {}
        for width in sorted({each.shape[1] for each in train.values()}):
            group = [name for name in self.layers if train[name].shape[1] == width]
            z, zt = torch.stack([train[name] for name in group]), torch.stack([test[name] for name in group])
            fit = self._fit(z, rows)
            figures = {"linear": fit.accuracy(zt, test_labels), "linear_train": fit.accuracy(z, labels)}
            unit, mean = probes.unit_features(z)
            rank = min(_SUBSPACE_RANK, width, int(labels.bincount(minlength=self.data.num_classes).min()))
            bases = probes.class_subspaces(unit, labels, rank, self.data.num_classes)
            figures["subspace"] = bases.accuracy(probes.unit_features(zt, mean)[0], test_labels)
            figures["snr"] = bases.snr(unit, labels)
            figures["csnr"] = bases.snr(unit, labels, denominator="classes")
            figures["between"], figures["rank"] = _between(z, labels, self.data.num_classes), _rank(z)
            for i, name in enumerate(group):
                by_layer[name] = {key: value[i].item() for key, value in figures.items()}
        out = {key: [by_layer[name][key] for name in self.layers] for key in by_layer[self.layers[0]]}
        spread = (pictures - pictures.mean(0)).square().sum()
        return {
            **out,
            "posterior": self.probe(denoised[None], test_denoised[None], rows, test_rows)[0].item(),
            "posterior_between": _between(denoised[None], labels, self.data.num_classes)[0].item(),
            "change": ((denoised - pictures).square().sum() / spread).item(),
        }

    def strip(self, levels: Sequence[float]) -> np.ndarray:
        """Return input and denoised images (3, S, n, H, W, C) as uint8: noised, from clean, from noisy."""
        firsts = [
            int((self.data.test_labels == label).nonzero()[0])
            for label in self.data.test_labels.unique().tolist()[:_SHOWN]
        ]
        pictures = self.data.test_images[firsts]
        noisy = torch.randn(pictures.shape, generator=torch.Generator().manual_seed(self.seed))
        rows = []
        for level in levels:
            noised = pictures + level * noisy
            with torch.no_grad():
                rows.append(
                    torch.stack([noised, self.denoiser(pictures, level), self.denoiser(noised, level)])
                )
        grid = torch.stack(rows, 1).unflatten(3, self.data.shape).movedim(3, -1)
        return ((grid.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).numpy()


def _coarse_maps(activations: Tensor) -> Tensor:
    """Average maps (B, C, H, W) over a grid of at most 4 x 4 patches and flatten them; keep vectors."""
    if activations.ndim != 4:
        return activations
    height, width = (min(4, side) for side in activations.shape[2:])
    return torch.nn.functional.adaptive_avg_pool2d(activations, (height, width)).flatten(1)


def _between(values: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Return the share (P,) of the variance of (P, N, D) that lies between the class means."""
    member = torch.nn.functional.one_hot(labels, num_classes).to(values.dtype)
    counts = member.sum(0).clamp_min(1)
    centred = values - values.mean(1, keepdim=True)
    means = member.T @ centred / counts[:, None]
    return (counts[:, None] * means.square()).sum((1, 2)) / centred.square().sum((1, 2))


def _rank(values: Tensor) -> Tensor:
    """Return the effective rank (P,) of the covariance C of (P, N, D): (tr C)^2 / tr C^2."""
    centred = values - values.mean(1, keepdim=True)
    gram = centred.mT @ centred
    return gram.diagonal(dim1=1, dim2=2).sum(1).square() / gram.square().sum((1, 2))


def _save(file: Path, arrays: dict[str, Any]) -> None:
    content = io.BytesIO()
    np.savez(content, **arrays)
    write_atomically(file, content.getvalue())
