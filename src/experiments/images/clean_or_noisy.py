r"""Real images: a denoiser at one conditioning level on input of another noise level, for all pairs.

An image gets the noise s, x_s = x_0 + s eps, and the denoiser the conditioning level sigma: f(x_s, sigma).
Training has s = sigma (matched), features are often read with s = 0 (clean). Linear probes read the
activations of each pair. Probes are fitted afresh for each pair, to images with the same s and sigma as those
they are tested on.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from compendium import resume
from experiments.images import denoisers
from molrg import images
from molrg.measuring import features, probes
from molrg.support.checks import integer, noise_levels, nonnegative

__all__ = ["BLOCKS", "run", "settings"]

BLOCKS = 6
"""Sets into which the test images of a draw are cut: over those of all draws the spread is taken."""

_L2 = 1e-2  # of the probes


def run(
    dataset: str,
    model: str,
    seed: int,
    draws: int,
    inputs: Sequence[float],
    levels: Sequence[float],
    train_samples: int,
    test_samples: int,
    smoke: bool,
    workdir: Path,
) -> dict[str, Any]:
    """Probe the second half of the layers on all pairs of input noise and conditioning.

    dataset is a name or path for `images.load`; model one of `denoisers.MODELS`, trained from `seed` (in a
    tiny size where `smoke`), or a published checkpoint for `denoisers.get`. `train_samples` training
    and `test_samples` test images, or as many as there are, are cut into `draws` parts of equal size, each
    with noise of its own that is scaled by s. In draw d a probe is fitted to all training parts but the d-th,
    on which it is validated, and tested on the d-th part of the test images, in BLOCKS sets. Noise levels
    that a checkpoint was not made for are left out of the conditioning.

    Returns, with axes D = draws, T = `inputs`, S = `levels`, L = `layers`: `accuracy` (D * BLOCKS, T, S, L)
    of the probes on each set of test images, `validation` (D, T, S, L); where
    classes have coarse groups `coarse`, like `accuracy`, how often the predicted class is in the right group;
    `pixels` (D * BLOCKS, T), the accuracy of probes on the noisy images themselves. Besides `left_out`
    (levels), `fitted_images` (to which a probe is fitted), `test_images`, `train_images`, `class_names`,
    `coarse_names`.

    Raises ValueError for arguments outside their ranges, FileNotFoundError for missing data.
    """
    integer("seed", seed, 0)
    integer("draws", draws, 2)
    noise_levels(list(levels))
    for value in inputs:
        nonnegative("inputs", value)
    integer("train_samples", train_samples, 2 * draws)
    integer("test_samples", test_samples, draws * BLOCKS)
    data, network, _ = denoisers.get(images.load(dataset), model, seed, smoke)
    kept = [float(level) for level in denoisers.usable_levels(network, levels)]
    train_size = min(train_samples, len(data.train_images)) // draws
    test_size = min(test_samples, len(data.test_images)) // (draws * BLOCKS) * BLOCKS
    layers = features.default_layers(network)
    layers = layers[len(layers) // 2 :]
    parts = _Parts(data, draws, train_size, test_size)
    folder = Path(workdir) / data.digest[:16]
    rows = [
        resume.arrays(folder / f"input-{i}.npz", parts.probed, network, added, kept, layers)
        for i, added in enumerate(inputs)
    ]
    return {
        **{key: np.stack([row[key] for row in rows], 1) for key in rows[0]},
        **resume.arrays(folder / "pixels.npz", parts.pixels, inputs),
        "layers": list(layers),
        "inputs": [float(value) for value in inputs],
        "levels": kept,
        "left_out": [float(level) for level in levels if level not in kept],
        "fitted_images": (draws - 1) * train_size,
        "test_images": draws * test_size,
        "train_images": len(data.train_images),
        "class_names": list(data.class_names),
        "coarse_names": list(data.coarse_names or ()),
    }


def settings(dataset: str, model: str, seed: int, smoke: bool) -> dict[str, Any]:
    """Return the parameters of `run` that the page uses; `smoke` ones take seconds."""
    chosen: dict[str, Any] = {
        "draws": 3,
        "inputs": [0.0, 0.03, 0.1, 0.3, 0.6, 1.0, 2.0],
        "levels": [0.01, 0.03, 0.1, 0.3, 0.6, 1.0, 2.0],
        "train_samples": 1200,
        "test_samples": 900,
    }
    if denoisers.reads_many(model):
        chosen |= {"train_samples": 20_000, "test_samples": 10_000}
    if smoke:
        chosen |= {"inputs": [0.0, 0.3], "levels": [0.1, 0.3]}
        chosen |= {"train_samples": 300, "test_samples": 180}
    return {"dataset": dataset, "model": model, "seed": seed, **chosen, "smoke": smoke}


class _Parts:
    """The images of all draws with their noise, and what is measured on them."""

    def __init__(self, data: images.Images, draws: int, train_size: int, test_size: int) -> None:
        self.data, self.draws, self.train_size, self.test_size = data, draws, train_size, test_size
        generator = torch.Generator().manual_seed(0)
        train = torch.randperm(len(data.train_images), generator=generator)[: draws * train_size]
        test = torch.randperm(len(data.test_images), generator=generator)[: draws * test_size]
        self.x0 = torch.cat([data.train_images[train], data.test_images[test]])
        self.labels = torch.cat([data.train_labels[train], data.test_labels[test]])
        self.eps = torch.randn(self.x0.shape, generator=generator)
        self._part = torch.cat(
            [torch.arange(draws).repeat_interleave(train_size), torch.full((len(test),), draws)]
        )

    def probed(
        self, network: nn.Module, added: float, levels: Sequence[float], layers: Sequence[str]
    ) -> dict[str, np.ndarray]:
        """Figures of features with input noise `added`; after D come the axes S and L."""
        x, rows = self.x0 + added * self.eps, []
        for level in levels:
            found = features.extract(network, x, level, layers, batch_size=64, reduce=features.grid_mean(4))
            columns = [self._read(found.pop(name)) for name in layers]
            rows.append({key: np.stack([column[key] for column in columns], -1) for key in columns[0]})
        return {key: np.stack([row[key] for row in rows], 1) for key in rows[0]}

    def pixels(self, inputs: Sequence[float]) -> dict[str, np.ndarray]:
        """Accuracies on the noisy images themselves, (D * BLOCKS, T)."""
        rows = [self._read(self.x0 + added * self.eps)["accuracy"] for added in inputs]
        return {"pixels": np.stack(rows, 1)}

    def _read(self, values: Tensor) -> dict[str, np.ndarray]:
        """Fit and test the probes of all draws on values (N, D)."""
        accuracy, coarse, validation = [], [], []
        groups = self.data.coarse_of_class
        for draw in range(self.draws):
            fitted = (self._part < self.draws) & (self._part != draw)
            probe = probes.fit_logistic(
                values[fitted][None], self.labels[fitted], _L2, self.data.num_classes, tolerance=1e-3
            )
            held = self._part == draw
            validation.append(probe.accuracy(values[held][None], self.labels[held])[0].item())
            first = self.draws * self.train_size + draw * self.test_size
            tested = slice(first, first + self.test_size)
            guess, truth = probe.predict(values[tested][None])[0], self.labels[tested]
            accuracy.append((guess == truth).double().unflatten(0, (BLOCKS, -1)).mean(1))
            if groups is not None:
                same = groups[guess] == groups[truth]
                coarse.append(same.double().unflatten(0, (BLOCKS, -1)).mean(1))
        figures = {"accuracy": torch.cat(accuracy).numpy(), "validation": np.array(validation)}
        return figures | ({"coarse": torch.cat(coarse).numpy()} if coarse else {})
