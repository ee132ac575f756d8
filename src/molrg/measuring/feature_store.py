"""Features of all layers at all noise levels: in memory, or in a folder where a stopped run goes on.

    found = feature_store.sweep(denoiser, images, noise.IMAGE_LEVELS, folder="features")
    found["network.blocks.1", 3]    # (N, C), a tensor of the fourth level
    found["network.blocks.1"]       # (S, N, C), a tensor: S probes

**Folder.** One file for each chunk of at most 512 images at one level, with all layers, and
`manifest.safetensors`, which says of what run they are. Each is a file of tensors with the digest of its
content (`molrg.support.tensor_files`), written in one step: whatever a kill or a power cut leaves behind, a
chunk's file is whole or absent, and no chunk that is there is computed again.
"""

import hashlib
import json
import math
import os
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from molrg.measuring import features
from molrg.measuring.features import Reduce
from molrg.support import tensor_files
from molrg.support.atomic_files import is_temporary, remove_abandoned
from molrg.support.checks import Levels, choice, integer, noise_levels, nonnegative, numbers
from molrg.support.distributed import processes
from molrg.support.fingerprints import behaviour, differences, digest, structure

__all__ = ["CHUNK_ROWS", "Features", "epsilon", "load", "sweep"]

CHUNK_ROWS = 512
"""Images that are computed, written and recorded as finished together, at one level."""

_NOISE_ROWS = 64
_MANIFEST = "manifest.safetensors"
_Chunk = tuple[int, int]  # number of the level, first image


class Features:
    """Features (S, N, C) of each layer, at S pairs of conditioning level and level of the added noise.

    `found[layer, s]` is a float32 tensor (N, C); a slice or list of levels in place of s gives (P, N, C), as
    `probes` takes them, and `found[layer]` all of them. They are read from `folder` where it is not None:
    each chunk's file is checked when it is first read, with ValueError where it is not what was written.
    `sigmas`, `added` (S) and `layers` are what was asked for.
    """

    def __init__(self, manifest: dict[str, Any], folder: Path | None = None) -> None:
        self.manifest, self.folder = manifest, folder
        self.sigmas, self.added = tuple(manifest["sigmas"]), tuple(manifest["added"])
        self.layers = tuple(manifest["layers"])
        self._run = hashlib.sha256(json.dumps(manifest).encode()).hexdigest()[:16]
        self._memory: dict[_Chunk, dict[str, Tensor]] = {}
        self._checked: set[_Chunk] = set()

    def __getitem__(self, key: str | tuple[str, int | slice | Sequence[int]]) -> Tensor:
        layer, levels = key if isinstance(key, tuple) else (key, slice(None))
        if layer not in self.layers:
            raise KeyError(f"no layer {layer!r}; there are: {', '.join(self.layers)}")
        chosen = np.arange(len(self.sigmas))[levels]
        if chosen.ndim:
            return torch.stack([self[layer, level] for level in chosen.tolist()])
        return torch.cat([self._read(chunk, layer) for chunk in self.chunks(int(chosen))]).float()

    def chunks(self, *levels: int) -> list[tuple[int, int]]:
        """Return the chunks, (number of the level, first image), of some levels or of all."""
        starts = range(0, self.manifest["images"], self.manifest["chunk rows"])
        return [(level, start) for level in levels or range(len(self.sigmas)) for start in starts]

    def unfinished(self) -> list[tuple[int, int]]:
        """Return the chunks that are not in the folder yet."""
        return [chunk for chunk in self.chunks() if not self._file(chunk).exists()]

    def keep(self, chunk: tuple[int, int], values: dict[str, Tensor]) -> None:
        """Keep the features (B, C) of a chunk, by layer."""
        if self.folder is None:
            self._memory[chunk] = values
        else:
            tensor_files.save(self._file(chunk), values, {"chunk": f"{chunk} of {self._run}"})

    def _file(self, chunk: _Chunk) -> Path:
        return (self.folder or Path()) / f"{chunk[0]:04d}-{chunk[1]:08d}.safetensors"

    def _read(self, chunk: _Chunk, layer: str) -> Tensor:
        from safetensors import safe_open

        if self.folder is None:
            return self._memory[chunk][layer]
        if chunk in self._checked:
            with safe_open(self._file(chunk), "pt") as file:
                return file.get_tensor(layer)
        tensors, metadata = tensor_files.load(self._file(chunk))
        if metadata.get("chunk") != f"{chunk} of {self._run}":
            raise ValueError(f"{self._file(chunk)} is of another run or chunk; delete it and extract again")
        self._checked.add(chunk)
        return tensors[layer]


def sweep(
    denoiser: nn.Module,
    images: Tensor,
    sigmas: Levels,
    *,
    added: float | Sequence[float] | Tensor | None = None,
    layers: Sequence[str] | None = None,
    draws: int = 1,
    reduce: Reduce = features.spatial_mean,
    batch_size: int = 256,
    seed: int = 0,
    folder: str | os.PathLike[str] | None = None,
    dtype: str = "float32",
    precision: str = "full",
    progress: bool = True,
) -> Features:
    """Return the features of `layers` on images + added * eps, given sigma, for each level.

    In a script started by `accelerate launch`, each process, on one machine or more, computes its share of
    the chunks on its own device. The result is that of one process, on a CPU bit for bit, and a stopped run
    may go on with another number of processes.

    Parameters
    ----------
    denoiser, layers, reduce, batch_size
        As for `features.extract`.
    images
        x_0, (N, n). `torch.from_numpy` of a NumPy memory map will do.
    sigmas
        The S levels with which the denoiser is called.
    added
        Standard deviation of the noise in the input: a number, or one for each sigma. None: the sigmas, which
        is the noisy input; 0: the clean input.
    draws, seed
        Noise draws to average the features over, and their seed, see `epsilon`. Inputs without noise are
        computed once.
    folder
        Where to keep the features and to go on after a stop: memory then holds one chunk. Several processes
        need one that all of them see. None: in memory.
    dtype
        In which features are kept: `float32`, or `float16` for half the space and 11 significant bits.
    precision
        Of the forward pass: `full`, that of the weights, or `bfloat16` or `float16`, in which products and
        convolutions are computed, fast on a GPU; features are reduced in float32.

    Raises
    ------
    ValueError
        For arguments outside their ranges; for a folder of another run (names the differences), of something
        else, or damaged; if several processes were given different arguments.
    FloatingPointError
        For features that are not finite, or not in float16.
    OSError
        For a disk that cannot be written; what was finished stays, and the next call goes on.
    """
    from tqdm import tqdm

    together = processes()
    if together.device is not None:
        denoiser.to(together.device)
    kept = getattr(torch, choice("dtype", dtype, ("float32", "float16")))
    precisions = {"full": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
    fast = precisions[choice("precision", precision, tuple(precisions))]
    levels, noises = _pairs(sigmas, added)
    integer("draws", draws, 1)
    integer("seed", seed, 0)
    chosen = list(features.check(denoiser, images, levels[0], layers, batch_size))
    device = next(denoiser.parameters(), images).device

    def reduced(values: Tensor) -> Tensor:
        return reduce(values if fast is None else values.float())

    def passed(level: int, x: Tensor) -> dict[str, Tensor]:
        with torch.autocast(device.type, fast, enabled=fast is not None):
            return features.extract(denoiser, x, levels[level], chosen, batch_size=batch_size, reduce=reduced)

    def noised(level: int, first: int, draw: int) -> Tensor:
        part = images[first : first + CHUNK_ROWS]
        if size := noises[level]:
            eps = epsilon(first, first + len(part), part.shape[1], size, seed=seed, draw=draw)
            part = part + size * eps.to(part)
        return part.to(device)

    for name, one in passed(0, images[:1].to(device)).items():
        if one.ndim != 2:
            raise ValueError(f"reduce must return (B, C), got {tuple(one.shape)} of layer {name}")
    manifest = {
        "weights": digest(list(denoiser.state_dict().values())),
        "network": hashlib.sha256(structure(denoiser).encode()).hexdigest()[:16],
        "images digest": digest([images]),
        "images": len(images),
        "sigmas": levels,
        "added": noises,
        "draws": draws if any(noises) else 1,
        "seed": seed if any(noises) else 0,
        "reduce": behaviour(reduce, [(2, 3, 64, 64), (2, 4096, 3), (2, 3)]),
        "precision": precision,
        "dtype": dtype,
        "chunk rows": CHUNK_ROWS,
        "layers": chosen,
    }
    found = Features(manifest, None if folder is None else Path(folder).resolve())
    if folder is None and together.count > 1:
        raise ValueError("several processes share their features through a folder; give folder=...")
    together.agree({key: str(value) for key, value in manifest.items()})
    mine = together.from_main(lambda: _begin(found))[together.index :: together.count]
    counts = [draws if added else 1 for added in noises]
    steps = [(level, first, draw) for level, first in mine for draw in range(counts[level])]
    inputs = chain((noised(*step) for step in steps), [images[:0]])
    x, total = next(inputs), dict[str, Tensor]()
    for level, first, draw in tqdm(steps, desc="features", disable=not (progress and together.is_main)):
        values = passed(level, x)
        x = next(inputs)  # whose noise is drawn while a GPU works on that pass
        total = {name: each + total[name] for name, each in values.items()} if draw else values
        if draw + 1 == counts[level]:
            means = {name: each / counts[level] for name, each in total.items()}
            found.keep((level, first), {n: _kept(n, levels[level], each, kept) for n, each in means.items()})
    together.wait()
    return found


def load(folder: str | os.PathLike[str]) -> Features:
    """Return the features that `sweep` has finished in `folder`.

    Raises ValueError where there are none, where some are missing, or where the manifest is damaged.
    """
    path = Path(folder).resolve()
    found = Features(_read_manifest(path), path)
    if missing := len(found.unfinished()):
        raise ValueError(
            f"{missing} of {len(found.chunks())} chunks in {path} are not finished; call sweep again with "
            "the arguments of before: it goes on where it stopped"
        )
    return found


def epsilon(first: int, last: int, dim: int, added: float, *, seed: int = 0, draw: int = 0) -> Tensor:
    """Return the noise eps ~ N(0, I) that `sweep` adds to images `first` to `last` - 1: (last - first, dim).

    float32 on the CPU. It depends on seed, image, level `added` and draw alone: block b, images 64 b to
    64 b + 63, is drawn at once from NumPy's default generator (PCG64) with the seed sequence (seed, draw, b,
    the bits of `added` as a float64).
    """
    level = int(np.float64(added).view(np.uint64))
    start, stop = first // _NOISE_ROWS, -(-last // _NOISE_ROWS)
    drawn = [
        np.random.default_rng([seed, draw, block, level]).standard_normal((_NOISE_ROWS, dim), np.float32)
        for block in range(start, stop)
    ]
    return torch.from_numpy(np.concatenate(drawn)[first - start * _NOISE_ROWS :][: last - first])


def _pairs(sigmas: Levels, added: float | Sequence[float] | Tensor | None) -> tuple[list[float], list[float]]:
    levels = noise_levels(sigmas)[0].tolist()
    given = numbers("added", levels if added is None else added).reshape(-1).tolist()
    if len(given) not in (1, len(levels)):
        raise ValueError(f"added must be a number or one for each of {len(levels)} sigmas, got {len(given)}")
    noises = [nonnegative("added", value) for value in given]
    return levels, noises if len(noises) == len(levels) else noises * len(levels)


def _kept(name: str, sigma: float, values: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the values as they are kept, on the CPU."""
    if not (kept := values.to("cpu", dtype)).isfinite().all():
        high = values.abs().max().item()
        cause = f"reach {high:.3g}: use dtype='float32'" if high < math.inf else "are not finite"
        raise FloatingPointError(f"features of the layer {name} at sigma = {sigma:.4g} {cause}")
    return kept


def _begin(found: Features) -> list[_Chunk]:
    """Return the chunks that are still to be computed; begins the folder where there is none."""
    if (path := found.folder) is None:
        return found.chunks()
    path.mkdir(parents=True, exist_ok=True)
    remove_abandoned(path)
    if (path / _MANIFEST).exists():
        if different := differences(_read_manifest(path), found.manifest):
            raise ValueError(
                f"{path} holds the features of another run; different are: {different}. "
                "Give the arguments of that run or another folder, or delete it"
            )
    elif not all(map(is_temporary, path.iterdir())):  # these are left by a kill in the first instant
        raise ValueError(f"{path} is not empty and holds no features; give a new folder")
    else:
        tensor_files.save(path / _MANIFEST, {}, {"manifest": json.dumps(found.manifest)})
    return found.unfinished()


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest: dict[str, Any] = json.loads(tensor_files.load(path / _MANIFEST)[1]["manifest"])
    except FileNotFoundError:
        raise ValueError(f"{path} holds no features: there is no {_MANIFEST} in it") from None
    except ValueError as error:
        raise ValueError(f"{error}; without it {path} has to be extracted again") from None
    return manifest
