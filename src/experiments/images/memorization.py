r"""Real images: from memorization to generalization as the training set grows, and back as training goes on.

Denoisers are trained on the first N images of a random order. Each is then measured in five ways: its loss
on training and on fresh images, its distance to the empirical denoiser of its own training set (the limit of
memorization, in closed form), the images it generates (are they copies? how far is their distribution from
that of real images?), and linear probes of its layers over the noise level on images it never saw.
"""

from collections.abc import Callable, Sequence
from functools import cached_property, partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from compendium import resume
from experiments.images import denoisers, image_data
from molrg import images
from molrg.images import sampling
from molrg.learning import networks, training
from molrg.measuring import features, probes
from molrg.model import noise
from molrg.model.memorizing import EmpiricalDenoiser
from molrg.support import devices
from molrg.support.checks import choice, integer

__all__ = [
    "BLOCKS",
    "INPUTS",
    "MODELS",
    "SETS",
    "SHOWN",
    "Shape",
    "accuracy",
    "frechet_distance",
    "gl_score",
    "nearest_two",
    "read_layer",
    "readouts",
    "run",
    "settings",
    "shape",
]

MODELS = ("mlp", "unet")
INPUTS = ("clean", "noisy")
SETS = ("training", "fresh")
BLOCKS = 10
"""Parts of the test images whose accuracies are kept apart, to tell a peak from chance; see `shape`."""

SHOWN = 8
"""Generated images in a strip."""

_COMPONENTS = 32  # principal components of the pixels in which distributions are compared
_L2 = 1e-2  # penalty of all probes
_SAMPLING_LEVELS = noise.edm_levels(18, 0.002, 20.0)


def run(
    dataset: str,
    shrink: int,
    model: str,
    widths: Sequence[int],
    depth: int,
    sizes: Sequence[int],
    steps: Sequence[int],
    batch_size: int,
    lr: float,
    levels: Sequence[float],
    probe_samples: int,
    test_samples: int,
    generated: int,
    seeds: int,
    workdir: Path,
) -> dict[str, Any]:
    """Train one denoiser for every seed, width and number of training images; measure it at all `steps`.

    dataset is a name or path for `images.load`; images are averaged over `shrink` x `shrink` pixels. model is
    `mlp` (`depth` residual blocks) or `unet` (`depth` layers a block; two levels of 1 and 2 times `width`
    channels for images below 16 pixels, else three of 1, 2 and 4 times). `sizes` are the numbers N of
    training images; `steps`, rising, the numbers of batches of `batch_size` after which a denoiser is
    measured, on its way to the last. Probes are fitted to `probe_samples` training images that no denoiser is
    trained on, and tested on `test_samples` test images; `generated` images are drawn from each denoiser. A
    seed draws the order of the images, the starting weights and all noise. A stopped run goes on.

    Returns, with axes R = seeds, W = widths, N = sizes, T = steps, I = INPUTS, S = levels, L = `readouts`
    (layers, and last the denoised image), B = BLOCKS, J = SETS, G = generated:
    `correct` (R, W, N, T, I, S, L, B), how many of the `block` test images of each part probes get right;
    `loss` and `to_memory` (R, W, N, T, J, S), mean squared error per pixel, and mean squared distance per
    pixel to the empirical denoiser, on training images and on test images with noise;
    `nearest` (R, W, N, T, 2, G), distances, as root mean square per pixel, of the generated images to the
    nearest and the second nearest training image; `frechet` (R, W, N, T), see `frechet_distance`;
    `strip` (W, 3, T, 2, SHOWN, height, width, C) uint8: generated images and their nearest training images
    for the first seed and the smallest, middle and largest N, `strip_sizes` (fewer if there are fewer).
    The same of the empirical denoiser: `memory_correct` (R, N, I, S, B), `memory_loss` (R, N, J, S) and
    `memory_frechet` (R, N); and of real images held out from training, `held_nearest` (R, N, 2, H)
    and `held_frechet` (R,); `pixels` (R, B), what a probe of the pixels gets right.

    Raises ValueError for arguments outside their ranges, FileNotFoundError for missing data.
    """
    choice("model", model, MODELS)
    integer("seeds", seeds, 1)
    integer("generated", generated, SHOWN)
    integer("test_samples", test_samples, BLOCKS)
    if list(steps) != sorted(set(steps)):
        raise ValueError(f"steps must rise, got {list(steps)}")
    data = image_data.averaged(images.load(dataset), integer("shrink", shrink, 1))
    most = len(data.train_images) - integer("probe_samples", probe_samples, 20)
    for size in sizes:
        integer("sizes", size, 2, most)
    fresh = [_build(data, model, width, depth, 0) for width in widths]
    denoisers.refuse_days(fresh[-1], data, steps[-1] * batch_size)
    found: dict[tuple[int, ...], dict[str, Any]] = {}
    folder = Path(workdir) / data.digest[:16]
    for seed, (n, size) in product(range(seeds), enumerate(sizes)):
        case = _Case(data, size, levels, probe_samples, test_samples, generated, seed)
        found[seed, n] = resume.arrays(folder / f"memory-{size}-{seed}.npz", case.memory)
        for (w, width), (t, done) in product(enumerate(widths), enumerate(steps)):
            name = f"{model}-{width}-{size}-{seed}"
            train = partial(
                training.train,
                _build(data, model, width, depth, seed),
                case.training_images,
                noise.LogNormal(-0.8, 1.4),
                steps=done,
                batch_size=batch_size,
                lr=lr,
                ema=0.995,
                generator=torch.Generator().manual_seed(seed),
                device=devices.best(),
                checkpoint=folder / f"{name}.safetensors",
            )
            found[seed, n, w, t] = resume.arrays(folder / f"{name}-{done}.npz", case.figures, train)
    axes = [range(seeds), range(len(widths)), range(len(sizes)), range(len(steps))]
    value: dict[str, Any] = {}
    for key in ("correct", "loss", "to_memory", "nearest", "frechet"):
        value[key] = _grid([found[r, n, w, t][key] for r, w, n, t in product(*axes)], *map(len, axes))
    for key in ("memory_correct", "memory_loss", "memory_frechet", "held_nearest"):
        value[key] = _grid([found[r, n][key] for r, n in product(axes[0], axes[2])], seeds, len(sizes))
    for key in ("held_frechet", "pixels"):
        value[key] = _grid([found[r, 0][key] for r in axes[0]], seeds)
    few = sorted({0, len(sizes) // 2, len(sizes) - 1})
    strips = [found[0, n, w, t]["strip"] for w, n, t in product(axes[1], few, axes[3])]
    return {
        **{key: np.round(each, 5) if each.dtype == np.float64 else each for key, each in value.items()},
        "strip": _grid(strips, len(widths), len(few), len(steps)),
        "strip_sizes": [sizes[n] for n in few],
        "readouts": list(readouts(fresh[0])),
        "widths": list(widths),
        "weights": [sum(p.numel() for p in each.parameters()) for each in fresh],
        "sizes": list(sizes),
        "steps": list(steps),
        "levels": [float(level) for level in levels],
        "block": min(test_samples, len(data.test_images)) // BLOCKS,
        "shape": list(data.shape),
    }


def settings(dataset: str, study: str, scale: str, seeds: int, smoke: bool) -> dict[str, Any]:
    """Return the parameters of `run` for a study of the page; `smoke` ones take seconds.

    `sizes`: MLPs over the number of training images; `times`: one network over the steps of its training;
    `unet`: UNets over both. At scale `small` for a processor, at `full`, that of the
    published figures, for a GPU.
    """
    choice("study", study, ("sizes", "times", "unet"))
    small = choice("scale", scale, ("small", "full")) == "small"
    samples = 10_000 if not small else 1000 if study == "unet" else 2000
    chosen: dict[str, Any] = {
        "shrink": 2 if small else 1,
        "model": "mlp" if study == "sizes" or (small and study == "times") else "unet",
        "widths": {"sizes": [64, 256], "times": [256], "unet": [16]}[study]
        if small
        else {"sizes": [256, 1024], "times": [64], "unet": [32, 64]}[study],
        "depth": 1 if small and study == "unet" else 2,
        "sizes": [2**k for k in range(6, 15 if small else 16)],
        "steps": [4000] if small else [100_000],
        "batch_size": 64 if small else 128,
        "lr": 2e-3 if small else 1e-3,
        "levels": list(noise.IMAGE_LEVELS),
        "probe_samples": samples,
        "test_samples": samples,
        "generated": 300 if small else 1500,
    }
    if study == "times":
        chosen["sizes"] = [64 if small else 4096]
        chosen["steps"] = [(125 if small else 3125) * 2**k for k in range(7 if small else 8)]
    if small and study == "unet":
        chosen |= {"sizes": [64, 1024, 16_384], "steps": [350, 700]}
        chosen["levels"] = list(noise.IMAGE_LEVELS[2:])
    if smoke:
        chosen |= {"shrink": 1, "widths": [8], "depth": 1, "sizes": [16, 256], "batch_size": 16}
        chosen |= {"levels": [0.1, 0.4, 1.5], "probe_samples": 200, "test_samples": 100, "generated": 20}
        chosen["steps"] = [8] if chosen["model"] == "unet" else [100]
        if study == "unet":
            chosen["sizes"] = [16]
        if study == "times":
            chosen |= {"sizes": [16], "steps": [4, 8] if chosen["model"] == "unet" else [20, 100]}
        if study == "sizes":
            chosen["widths"] = [8, 16]
    return {"dataset": dataset, **chosen, "seeds": seeds}


def _build(data: images.Images, model: str, width: int, depth: int, seed: int) -> networks.Preconditioned:
    """An untrained denoiser; small images have a UNet of two levels, not three."""
    multipliers = (1, 2) if min(data.shape[1:]) < 16 else (1, 2, 4)
    return denoisers.build(data, model, width, depth, seed, multipliers)


def readouts(denoiser: nn.Module) -> tuple[str, ...]:
    """What is probed: the units inside an MLP's blocks, or a UNet's middle and decoder; and the output."""
    layers = tuple(denoiser.feature_layers)  # type: ignore[arg-type]
    if isinstance(denoiser.network, networks.MLP):
        return (*(f"{layer}.dropout" for layer in layers), features.DENOISED)
    return (*(layer for layer in layers if "down" not in layer), features.DENOISED)


def gl_score(found: dict[str, Any], quantile: float = 0.05) -> np.ndarray:
    """Return the share (R, W, N, T) of generated images that are no copies, of what `run` found.

    A copy is nearer to the training set than that quantile of real images held out from it.
    """
    threshold = np.quantile(found["held_nearest"][:, :, 0].astype(float), quantile, axis=-1)  # (R, N)
    new: np.ndarray = found["nearest"][:, :, :, :, 0] > threshold[:, None, :, None, None]
    return new.mean(-1)


def read_layer(found: dict[str, Any], w: int) -> int:
    """Return the layer of a width that is read best with clean input over all N, levels and seeds."""
    clean = found["correct"][:, w, :, :, INPUTS.index("clean"), :, :-1]
    return int(clean.mean((0, 1, 2, 3, 5)).argmax())


def accuracy(
    found: dict[str, Any], w: int, n: int, t: int, kind: int, layer: int | None = None
) -> np.ndarray:
    """Return the accuracies (R, S, B) in percent of one layer, by default `read_layer`.

    Layer -1 is the denoised image; `kind` is a place in INPUTS.
    """
    layer = read_layer(found, w) if layer is None else layer
    correct: np.ndarray = found["correct"][:, w, n, t, kind, :, layer]
    return 100 * correct / found["block"]


class Shape(NamedTuple):
    """How an accuracy runs over the noise level: see `shape`."""

    peak: int  # index of the highest mean
    rise: float  # from the first level to the peak
    rise_error: float  # its standard error
    fall: float  # from the peak to the last level
    fall_error: float

    @property
    def kind(self) -> str:
        """`unimodal` (rise and fall exceed two standard errors), `falling`, `rising` or `flat`."""
        rises, falls = self.rise > 2 * self.rise_error, self.fall > 2 * self.fall_error
        return {(True, True): "unimodal", (False, True): "falling", (True, False): "rising"}.get(
            (rises, falls), "flat"
        )


def shape(accuracy: np.ndarray) -> Shape:
    """Return rise and fall of accuracies (R, S, B) of R networks at S levels on B parts of the test images.

    The height of the highest of several noisy values is biased upwards. So for each network and part the peak
    is placed by the mean of all networks on the *other* parts, and its height above both ends is taken on
    that part: R B differences, whose mean is the rise or fall. Its standard error is the larger of that over
    all of them and that over the networks' means (for R > 1).
    """
    seeds, _, blocks = accuracy.shape
    whole = accuracy.mean(0)  # (S, B)
    rise, fall = np.empty((seeds, blocks)), np.empty((seeds, blocks))
    for block in range(blocks):
        peak = int(np.delete(whole, block, 1).mean(1).argmax())
        rise[:, block] = accuracy[:, peak, block] - accuracy[:, 0, block]
        fall[:, block] = accuracy[:, peak, block] - accuracy[:, -1, block]

    def error(differences: np.ndarray) -> float:
        parts = differences.std(ddof=1) / differences.size**0.5
        between = differences.mean(1).std(ddof=1) / seeds**0.5 if seeds > 1 else 0.0
        return float(max(parts, between))

    return Shape(int(whole.mean(1).argmax()), rise.mean(), error(rise), fall.mean(), error(fall))


def frechet_distance(first: Tensor, second: Tensor) -> float:
    r"""Return the squared Frechet distance of the Gaussians fitted to samples (N, D) and (M, D),

        ||m_1 - m_2||^2 + tr(C_1 + C_2 - 2 (C_1^{1/2} C_2 C_1^{1/2})^{1/2}),

    in units of tr C_2: 1 is the distance of a point mass at m_2 from the second distribution.

    Source: Heusel et al., GANs Trained by a Two Time-Scale Update Rule (2017), in other features.
    """
    means, covariances = [], []
    for sample in (first.double(), second.double()):
        means.append(sample.mean(0))
        covariances.append(torch.cov(sample.T))
    values, vectors = torch.linalg.eigh(covariances[0])
    root = vectors * values.clamp_min(0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ covariances[1] @ root).clamp_min(0).sqrt().sum()
    spread = covariances[1].trace()
    distance = (means[0] - means[1]).square().sum() + covariances[0].trace() + spread - 2 * cross
    return float(distance / spread)


def nearest_two(queries: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """Return the distances (2, Q), root mean square per pixel, of queries (Q, n) to their two nearest points.

    And the index of the nearest, (Q,).
    """
    index = torch.cdist(queries, points).topk(2, largest=False).indices  # rounded where points coincide
    exact = (queries[:, None] - points[index]).square().mean(2).sqrt()
    distances, order = exact.sort(1)
    return distances.T, index.gather(1, order)[:, 0]


class _Case:
    """The images of one seed and one number of training images, and what is measured on them."""

    def __init__(
        self,
        data: images.Images,
        size: int,
        levels: Sequence[float],
        probe_samples: int,
        test_samples: int,
        generated: int,
        seed: int,
    ) -> None:
        order = torch.randperm(len(data.train_images), generator=torch.Generator().manual_seed(seed))
        held = order[-probe_samples:]
        count = min(test_samples, len(data.test_images)) // BLOCKS * BLOCKS
        self.data, self.levels, self.seed, self.generated = data, levels, seed, generated
        self.training_images = data.train_images[order[:size]]
        self.held, self.held_labels = data.train_images[held], data.train_labels[held]
        self.fresh, self.fresh_labels = data.test_images[:count], data.test_labels[:count]
        self.seen = self.training_images[torch.arange(min(count, 500)) % size]
        self.empirical = EmpiricalDenoiser(self.training_images)

    def _noised(self, pictures: Tensor, level: float, part: int) -> Tensor:
        """The same noise, but for its size, at all levels."""
        generator = torch.Generator().manual_seed(3 * self.seed + part)
        return pictures + level * torch.randn(pictures.shape, generator=generator)

    @cached_property
    def _copies(self) -> list[tuple[Tensor, Tensor]]:
        """What the empirical denoiser makes of noisy training and of noisy fresh images, by level."""
        return [
            (
                self.empirical.posterior_mean(self._noised(self.seen, level, 0), level),
                self.empirical.posterior_mean(self._noised(self.fresh, level, 2), level),
            )
            for level in self.levels
        ]

    @cached_property
    def _space(self) -> tuple[Tensor, Tensor]:
        """The fixed feature space: leading principal axes (n, D) of all test images; and those in it."""
        real = self.data.test_images - self.data.test_images.mean(0)
        axes = torch.linalg.eigh(real.T @ real).eigenvectors[:, -_COMPONENTS:]
        return axes, self.data.test_images @ axes

    def _frechet(self, pictures: Tensor) -> float:
        axes, real = self._space
        return frechet_distance(pictures @ axes, real)

    def _correct(self, held: Tensor, fresh: Tensor) -> np.ndarray:
        """Right answers (B,) of a probe fitted to features of the held-out images, on the fresh ones."""
        fit = probes.fit_logistic(
            held[None], self.held_labels, _L2, self.data.num_classes, tolerance=5e-4, max_iterations=200
        )
        right = fit.predict(fresh[None])[0] == self.fresh_labels
        return right.unflatten(0, (BLOCKS, -1)).sum(1).numpy().astype(np.int16)

    def memory(self) -> dict[str, Any]:
        """Figures of the empirical denoiser and of real images."""
        correct = np.empty((len(INPUTS), len(self.levels), BLOCKS), np.int16)
        clean = [self.empirical.posterior_mean(x, self.levels) for x in (self.held, self.fresh)]
        loss = np.empty((len(SETS), len(self.levels)))
        for s, level in enumerate(self.levels):
            seen, fresh = self._copies[s]
            held = self.empirical.posterior_mean(self._noised(self.held, level, 1), level)
            correct[0, s] = self._correct(clean[0][s], clean[1][s])
            correct[1, s] = self._correct(held, fresh)
            loss[:, s] = _error(seen, self.seen), _error(fresh, self.fresh)
        draws = torch.randint(
            len(self.training_images), (self.generated,), generator=torch.Generator().manual_seed(self.seed)
        )
        return {
            "memory_correct": correct,
            "memory_loss": loss,
            "memory_frechet": np.array(self._frechet(self.training_images[draws])),
            "held_nearest": nearest_two(self.held[:1000], self.training_images)[0].half().numpy(),
            "held_frechet": np.array(self._frechet(self.held[: self.generated])),
            "pixels": self._correct(self.held, self.fresh),
        }

    def figures(self, train: Callable[[], training.Trained]) -> dict[str, Any]:
        """Figures of the denoiser that `train` returns."""
        denoiser = train().denoiser
        layers = readouts(denoiser)
        correct = np.empty((len(INPUTS), len(self.levels), len(layers), BLOCKS), np.int16)
        loss, to_memory = (np.empty((len(SETS), len(self.levels))) for _ in range(2))
        for s, level in enumerate(self.levels):
            for i in range(len(INPUTS)):
                added = level if INPUTS[i] == "noisy" else 0.0
                held, fresh = (
                    features.extract(
                        denoiser, self._noised(x, added, part), level, layers, reduce=features.grid_mean(4)
                    )
                    for x, part in ((self.held, 1), (self.fresh, 2))
                )
                for j, name in enumerate(layers):
                    correct[i, s, j] = self._correct(held[name], fresh[name])
            # The last input was the noisy one.
            known = features.extract(denoiser, self._noised(self.seen, level, 0), level, [features.DENOISED])
            outputs = (known[features.DENOISED], fresh[features.DENOISED])
            loss[:, s] = _error(outputs[0], self.seen), _error(outputs[1], self.fresh)
            to_memory[:, s] = [_error(*pair) for pair in zip(outputs, self._copies[s], strict=True)]
        device = next(denoiser.parameters()).device
        pictures = sampling.sample(
            lambda x, sigma: denoiser(x.to(device), sigma).to(x.device),
            self.generated,
            self.data.dim,
            _SAMPLING_LEVELS,
            torch.Generator().manual_seed(self.seed),
        )
        distances, index = nearest_two(pictures, self.training_images)
        strip = torch.stack([pictures[:SHOWN], self.training_images[index[:SHOWN]]])
        strip = strip.unflatten(2, self.data.shape).movedim(2, -1)
        return {
            "correct": correct,
            "loss": loss,
            "to_memory": to_memory,
            "nearest": distances.half().numpy(),
            "frechet": np.array(self._frechet(pictures)),
            "strip": ((strip.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).numpy(),
        }


def _error(first: Tensor, second: Tensor) -> float:
    return (first - second).square().mean().item()


def _grid(parts: Sequence[np.ndarray], *axes: int) -> np.ndarray:
    return np.stack(parts).reshape(*axes, *parts[0].shape)
