r"""Features of all layers at all noise levels: in memory, or in a folder where a stopped run goes on.

`sweep` runs a denoiser on images x_0 + a eps, told the level sigma, for a list of pairs (sigma, a), and keeps
the reduced activations of its layers, averaged over draws of the noise eps:

    found = feature_store.sweep(denoiser, images, noise.IMAGE_LEVELS, folder="features")
    found["network.blocks.1"]       # (S, N, C), a memory map
    found["network.blocks.1", 3]    # (N, C), a tensor of the fourth level
    found["network.blocks.1", :]    # (S, N, C), a tensor: S probes

**Noise.** Image i at added level a has in draw r a noise that depends on (seed, i, a, r) and on nothing else:
not on batches, processes, devices or the other levels. The images are cut into blocks of 64, and each block
has its own random stream; see `epsilon`.

**Folder.** One `.npy` file a layer, (S, N, C); `manifest.json`, which says of what run they are; and
`finished.npy`, (chunks, layers). A chunk is 1024 consecutive rows of the (S N, C) features. When its rows are
safely on the disk, and only then, the record gets the chunk's checksums: whatever a kill or a power cut
leaves behind, what is recorded is whole, and no recorded chunk is computed again. Checksums are compared
whenever a level is read as a tensor. Files are written at their place and not mapped for it, so that memory
holds one batch, and a full disk is an error like any other. A folder takes one run, of any number of
processes, at a time.
"""

import errno
import hashlib
import io
import json
import math
import os
import shutil
import struct
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, overload
from urllib.parse import quote

import numpy as np
import torch
from torch import Tensor, nn

from molrg.measuring import features
from molrg.measuring.features import Reduce
from molrg.support.atomic_files import write_atomically
from molrg.support.checks import Levels, choice, integer, noise_levels, nonnegative
from molrg.support.distributed import processes
from molrg.support.fingerprints import digest, structure

__all__ = ["CHUNK_ROWS", "Features", "epsilon", "load", "sweep"]

CHUNK_ROWS = 1024
"""Rows (pairs of level and image) that are recorded as finished together."""

_NOISE_ROWS = 64
_COMMIT_SECONDS = 2.0
"""Least time between two writes of the record; what is lost by a kill."""

_DTYPES = {"float32": torch.float32, "float16": torch.float16}
_PRECISIONS = {"full": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
_MANIFEST, _RECORD = "manifest.json", "finished.npy"


@dataclass(frozen=True, eq=False)
class Features:
    """Features (S, N, C) of each layer, at S pairs of conditioning level and level of the added noise.

    `found[layer]` is the array, a read-only memory map where `folder` is not None. `found[layer, s]` is a
    float32 tensor (N, C), and a slice or list of levels in place of s gives (P, N, C), as `probes` takes
    them; reading them raises ValueError where the files are not what was written.
    """

    sigmas: tuple[float, ...]
    added: tuple[float, ...]
    arrays: dict[str, np.ndarray]
    folder: Path | None = None
    _checksums: np.ndarray | None = None  # (chunks, layers)
    _chunk_rows: int = CHUNK_ROWS

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers, in the order asked for."""
        return tuple(self.arrays)

    @overload
    def __getitem__(self, key: str) -> np.ndarray: ...

    @overload
    def __getitem__(self, key: tuple[str, int | slice | Sequence[int]]) -> Tensor: ...

    def __getitem__(self, key: Any) -> Any:
        layer, levels = key if isinstance(key, tuple) else (key, None)
        if layer not in self.arrays:
            raise KeyError(f"no layer {layer!r}; there are: {', '.join(self.arrays)}")
        if levels is None:
            return self.arrays[layer]
        chosen = np.arange(len(self.sigmas))[levels]
        if chosen.ndim == 0:
            return self._level(layer, int(chosen))
        return torch.stack([self._level(layer, int(level)) for level in chosen])

    def _level(self, layer: str, level: int) -> Tensor:
        array = self.arrays[layer]
        if self._checksums is None:
            return torch.from_numpy(array[level].astype(np.float32))
        # Read rather than mapped: pages of a map would count as this process's memory.
        assert isinstance(array, np.memmap)
        levels, images, width = array.shape
        size, first = self._chunk_rows, level * images
        begin, end = first // size * size, min(-(-(first + images) // size) * size, levels * images)
        path = _layer_file(Path(str(array.filename)).parent, layer)
        offset = array.offset + begin * width * array.itemsize
        rows = np.fromfile(path, array.dtype, (end - begin) * width, offset=offset).reshape(-1, width)
        for start in range(begin, end, size):
            found = _checksum(rows[start - begin : start - begin + size])
            if found != self._checksums[start // size, self.layers.index(layer)]:
                raise ValueError(
                    f"{path} is damaged: rows {start} to {min(start + size, end) - 1} of its "
                    f"{levels * images} are not those written; delete {path.parent} and extract again"
                )
        return torch.from_numpy(rows[first - begin : first - begin + images].astype(np.float32))


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
    in_memory_bytes: float = 2e9,
    dtype: str = "float32",
    precision: str = "full",
    progress: bool = True,
) -> Features:
    r"""Return the features of `layers` on images + added * eps, told sigma, for each level.

    Each batch passes through the denoiser once, whatever the number of layers, and may hold rows of several
    levels. On a GPU the noise of the next batch is drawn while this one is computed. Images on the denoiser's
    device stay there; others are moved batch by batch.

    In a script started by `accelerate launch`, each process, on one machine or more, computes its share of
    the chunks on its own device, to which it moves the denoiser; all return when all is done. The result is
    that of one process, on a CPU bit for bit, and a stopped run may go on with another number of processes.

    Parameters
    ----------
    denoiser
        A module with forward(x, sigma), sigma (B,); as for `features.extract`.
    images
        x_0, (N, n). `torch.from_numpy` of a NumPy memory map will do.
    sigmas
        The S levels that the denoiser is told.
    added
        Standard deviation of the noise in the input: a number, or one for each sigma. None: the sigmas, which
        is the noisy input; 0: the clean input; a number against a list of sigmas, mismatched pairs.
    layers, reduce, batch_size
        As for `features.extract`. A batch ends with its chunk of 1024 rows; a stopped run may go on with
        another batch size.
    draws
        Noise draws to average the features over; inputs without noise are computed once.
    seed
        Of the noise, see `epsilon`.
    folder
        Where to keep the features and to go on after a stop, in files of S N C numbers a layer. Several
        processes need one, several machines one that all of them see. None: in memory.
    in_memory_bytes
        The most that may be kept in memory.
    dtype
        In which features are kept: `float32`, or `float16` for half the space and 11 significant bits.
    precision
        Of the forward pass: `full`, that of the weights, or `bfloat16` or `float16`, in which products and
        convolutions are computed, fast on a GPU; features are reduced in float32.
    progress
        Whether to show a bar with the present sigma and the time left on stderr.

    Raises
    ------
    ValueError
        For arguments outside their ranges, as `features.extract`; for more than `in_memory_bytes` without a
        folder; for a folder of another run (names the differences), of something else, or damaged; if
        processes that work together were given different arguments.
    FloatingPointError
        For features that are not finite, or not in float16.
    OSError
        For a disk that is full or cannot be written; what was finished stays, and the next call goes on.
    """
    together = processes()
    if together.device is not None:
        denoiser.to(together.device)
    numbers = _DTYPES[choice("dtype", dtype, tuple(_DTYPES))]
    autocast = _PRECISIONS[choice("precision", precision, tuple(_PRECISIONS))]
    pairs = _pairs(sigmas, added)
    job = _Job(denoiser, images, *pairs, layers, draws, reduce, batch_size, seed, numbers, autocast)
    widths = job.widths()
    levels, count = len(job.sigmas), len(images)
    size = levels * count * sum(widths.values()) * job.dtype.itemsize
    if folder is None:
        if together.count > 1:
            raise ValueError("several processes share their features through a folder; give folder=...")
        if size > in_memory_bytes:
            raise ValueError(
                f"the features take {size / 1e9:.3g} GB, more than in_memory_bytes = {in_memory_bytes:.3g}; "
                "give a folder on a disk with that much room"
            )
        arrays = {name: np.empty((levels, count, width), dtype) for name, width in widths.items()}
        with _bar(job, job.rows, progress) as bar:
            for _, rows, found in job.run(range(job.chunks)):
                for name, values in found.items():
                    arrays[name].reshape(job.rows, -1)[rows] = values
                _advance(bar, job, rows)
        return Features(job.sigmas, job.added, arrays)

    path, manifest = Path(folder).resolve(), job.manifest(widths)
    if together.count > 1:
        together.agree({key: str(value) for key, value in manifest.items()})
    state: list[int] | Exception = []
    if together.is_main:
        try:
            state = _unfinished(path, manifest, size)
        except (OSError, ValueError) as error:
            state = error
    state = together.gather(state)[0]  # one list for all, taken before any of them adds to the record
    if isinstance(state, Exception):
        raise state
    _extract(path, job, state[together.index :: together.count], progress and together.is_main)
    together.wait()
    return load(path)


def load(folder: str | os.PathLike[str]) -> Features:
    """Return the features that `sweep` has finished in `folder`.

    Raises ValueError where there are none, where some are missing, or where the files are damaged.
    """
    path = Path(folder).resolve()
    manifest = _read_manifest(path)
    checksums = _record(path, manifest)
    if missing := int((~checksums.all(1)).sum()):
        raise ValueError(
            f"{missing} of {len(checksums)} chunks in {path} are not finished; call sweep again with the "
            "arguments of before: it goes on where it stopped"
        )
    arrays: dict[str, np.ndarray] = {}
    for name, width in manifest["layers"].items():
        shape = (len(manifest["sigmas"]), manifest["images"], width)
        arrays[name] = _open_layer(path, name, shape, manifest["dtype"])
    pairs = tuple(manifest["sigmas"]), tuple(manifest["added"])
    return Features(*pairs, arrays, path, checksums, manifest["chunk rows"])


def epsilon(first: int, last: int, dim: int, added: float, *, seed: int = 0, draw: int = 0) -> Tensor:
    """Return the noise eps ~ N(0, I) that `sweep` adds to images `first` to `last` - 1: (last - first, dim).

    float32 on the CPU. Block b, images 64 b to 64 b + 63, is drawn at once from NumPy's default generator
    (PCG64) with the seed sequence (seed, draw, b, the bits of `added` as a float64).
    """
    level = int.from_bytes(struct.pack("<d", added), "little")
    blocks = range(first // _NOISE_ROWS, -(-last // _NOISE_ROWS))
    drawn = [
        np.random.default_rng([seed, draw, block, level]).standard_normal((_NOISE_ROWS, dim), np.float32)
        for block in blocks
    ]
    start = blocks.start * _NOISE_ROWS
    return torch.from_numpy(np.concatenate(drawn)[first - start : last - start])


@dataclass(frozen=True, eq=False)
class _Job:
    """What is to be computed: S N rows, level by level, in chunks."""

    denoiser: nn.Module
    images: Tensor
    sigmas: tuple[float, ...]
    added: tuple[float, ...]
    layers: Sequence[str] | None
    draws: int
    reduce: Reduce
    batch_size: int
    seed: int
    dtype: torch.dtype
    autocast: torch.dtype | None

    def __post_init__(self) -> None:
        chosen = features.check(self.denoiser, self.images, 1.0, self.layers, self.batch_size)
        object.__setattr__(self, "layers", tuple(chosen))
        if not self.images.is_floating_point():
            raise ValueError(f"images must be floating point, got {self.images.dtype}")
        integer("draws", self.draws, 1)
        integer("seed", self.seed, 0)

    @property
    def rows(self) -> int:
        return len(self.sigmas) * len(self.images)

    @property
    def chunks(self) -> int:
        return -(-self.rows // CHUNK_ROWS)

    @property
    def device(self) -> torch.device:
        parameter = next(self.denoiser.parameters(), None)
        return self.images.device if parameter is None else parameter.device

    def widths(self) -> dict[str, int]:
        """Return C of each layer, by a pass of one image."""
        found = self._pass(*self._inputs(slice(0, 1), 0))
        for name, values in found.items():
            if values.ndim != 2:
                raise ValueError(f"reduce must return (B, C), got {tuple(values.shape)} of layer {name}")
        return {name: values.shape[1] for name, values in found.items()}

    def run(self, chunks: Sequence[int]) -> Iterator[tuple[int, slice, dict[str, np.ndarray]]]:
        """Yield (chunk, rows, features of the rows, averaged over draws), batch by batch."""
        steps = [
            (chunk, rows, draw, draw + 1 == draws)
            for chunk in chunks
            for rows in _split(
                slice(chunk * CHUNK_ROWS, min((chunk + 1) * CHUNK_ROWS, self.rows)), self.batch_size
            )
            for draws in [self.draws if any(self.added[level] for level in self._levels(rows)) else 1]
            for draw in range(draws)
        ]
        inputs = self._inputs(*steps[0][1:3]) if steps else None
        total: dict[str, Tensor] = {}
        for step, (chunk, rows, draw, last) in enumerate(steps):
            assert inputs is not None
            found = self._pass(*inputs)
            # A GPU works on that pass while the next noise is drawn here.
            inputs = self._inputs(*steps[step + 1][1:3]) if step + 1 < len(steps) else None
            total = {name: values + total[name] for name, values in found.items()} if draw else found
            if last:
                yield chunk, rows, {n: self._kept(n, rows, v / (draw + 1)) for n, v in total.items()}

    def _levels(self, rows: slice) -> range:
        return range(rows.start // len(self.images), (rows.stop - 1) // len(self.images) + 1)

    def _inputs(self, rows: slice, draw: int) -> tuple[Tensor, Tensor]:
        """Return x (B, n) and sigma (B,) of some rows, on the device of the images."""
        count, dim = self.images.shape
        parts, sigmas = [], []
        for level in self._levels(rows):
            first, last = max(rows.start - level * count, 0), min(rows.stop - level * count, count)
            part, added = self.images[first:last], self.added[level]
            if added:
                eps = epsilon(first, last, dim, added, seed=self.seed, draw=draw)
                part = part + added * eps.to(part)
            parts.append(part)
            sigmas.append(part.new_full((len(part),), self.sigmas[level]))
        return torch.cat(parts), torch.cat(sigmas)

    def _pass(self, x: Tensor, sigma: Tensor) -> dict[str, Tensor]:
        def reduced(values: Tensor) -> Tensor:
            return self.reduce(values if self.autocast is None else values.float())

        faster = self.autocast is not None
        with torch.autocast(self.device.type, self.autocast, enabled=faster):
            batches = features.stream(self.denoiser, x, sigma, self.layers, batch_size=len(x), reduce=reduced)
            [(_, found)] = batches
        return found

    def _kept(self, name: str, rows: slice, values: Tensor) -> np.ndarray:
        """Return the values as they are kept, on the CPU."""
        values = values.cpu()
        kept = values.to(self.dtype)
        if not kept.isfinite().all():
            levels = ", ".join(f"{self.sigmas[level]:.4g}" for level in self._levels(rows))
            cause = "are NaN or infinite"
            if values.isfinite().all():
                cause = f"reach {values.abs().max():.3g}, beyond float16; use dtype='float32'"
            raise FloatingPointError(f"features of the layer {name} at sigma = {levels} {cause}")
        return kept.numpy()

    def manifest(self, widths: dict[str, int]) -> dict[str, Any]:
        """What must be equal for a folder to hold the features of this job."""
        return {
            "weights": digest(list(self.denoiser.state_dict().values())),
            "network": hashlib.sha256(structure(self.denoiser).encode()).hexdigest()[:16],
            "images digest": digest([self.images]),
            "images": len(self.images),
            "sigmas": list(self.sigmas),
            "added": list(self.added),
            "draws": self.draws if any(self.added) else 1,
            "seed": self.seed if any(self.added) else 0,
            "reduce": _description(self.reduce),
            "precision": "full" if self.autocast is None else str(self.autocast).removeprefix("torch."),
            "dtype": str(self.dtype).removeprefix("torch."),
            "chunk rows": CHUNK_ROWS,
            "layers": widths,
        }


def _pairs(
    sigmas: Levels, added: float | Sequence[float] | Tensor | None
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    levels = noise_levels(sigmas)[0].tolist()
    try:
        given = levels if added is None else torch.as_tensor(added, dtype=torch.float64).tolist()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"added must be a number or one for each sigma, got {added!r}") from error
    noises = given if isinstance(given, list) else [given] * len(levels)
    if len(noises) != len(levels):
        raise ValueError(f"added must be a number or one for each of {len(levels)} sigmas, got {len(noises)}")
    return tuple(levels), tuple(nonnegative("added", value) for value in noises)


def _description(reduce: Reduce) -> str:
    """Tell a function by its name and by what it makes of fixed maps, tokens and vectors."""
    inner = reduce.func if isinstance(reduce, partial) else reduce
    made = []
    for shape in ((2, 3, 64, 64), (2, 4096, 3), (2, 3)):
        values = torch.sin(torch.arange(math.prod(shape), dtype=torch.float64)).reshape(shape)
        try:
            made.append((reduce(values) * 1e6).round())
        except Exception:
            made.append(torch.zeros(0))  # it is made for other shapes
    return f"{getattr(inner, '__qualname__', type(inner).__name__)} {digest(made)}"


def _split(rows: slice, size: int) -> list[slice]:
    return [slice(first, min(first + size, rows.stop)) for first in range(rows.start, rows.stop, size)]


def _bar(job: _Job, rows: int, progress: bool) -> Any:
    from tqdm import tqdm

    description = f"features on {job.device}"
    return tqdm(total=rows, desc=description, unit="image", disable=not progress)


def _advance(bar: Any, job: _Job, rows: slice) -> None:
    bar.set_postfix(sigma=f"{job.sigmas[job._levels(rows)[-1]]:.4g}", refresh=False)
    bar.update(rows.stop - rows.start)


# ---- The folder


def _layer_file(path: Path, layer: str) -> Path:
    return path / f"{quote(layer, safe=' ')}.npy"


def _checksum(rows: np.ndarray) -> int:
    """CRC-32 of rows, never 0, which stands for rows that are not there."""
    return zlib.crc32(rows.view(np.uint8).data) or 1


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((path / _MANIFEST).read_text())
        if not isinstance(manifest, dict):
            raise ValueError(f"it holds a {type(manifest).__name__}")
    except FileNotFoundError:
        raise ValueError(f"{path} holds no features: there is no {_MANIFEST} in it") from None
    except ValueError as error:
        raise ValueError(
            f"{path / _MANIFEST} is damaged ({error}); delete {path} and extract again"
        ) from None
    return manifest


def _check_manifest(path: Path, manifest: dict[str, Any]) -> None:
    """Raise ValueError unless the folder holds features of this run."""
    theirs = _read_manifest(path)
    differences = [
        f"{key} ({theirs.get(key)} there, {manifest.get(key)} here)"
        for key in manifest | theirs
        if theirs.get(key) != manifest.get(key)
    ]
    if differences:
        raise ValueError(
            f"{path} holds the features of another run; different are: {'; '.join(differences)}. "
            "Give the arguments of that run or another folder, or delete it"
        )


def _unfinished(path: Path, manifest: dict[str, Any], size: int) -> list[int]:
    """Return the chunks that are still to be computed; makes the files, where they are not there yet."""
    _create(path, manifest, size)
    return [int(chunk) for chunk in np.flatnonzero(~_record(path, manifest).all(1))]


def _create(path: Path, manifest: dict[str, Any], size: int) -> None:
    """Make the files where they are not there yet; the record comes last, and says that they are."""
    path.mkdir(parents=True, exist_ok=True)
    if (path / _MANIFEST).exists():
        _check_manifest(path, manifest)
        if (path / _RECORD).exists():
            return
    elif any(path.iterdir()):
        raise ValueError(f"{path} is not empty and holds no features; give a new folder")
    free = shutil.disk_usage(path).free
    if size > free:
        raise OSError(
            errno.ENOSPC,
            f"the features take {size / 1e9:.3g} GB, {path} has room for {free / 1e9:.3g} GB; "
            "give another folder, or dtype='float16', fewer layers or levels, or a coarser reduce",
        )
    write_atomically(path / _MANIFEST, json.dumps(manifest, indent=1).encode())
    rows = len(manifest["sigmas"]) * manifest["images"]
    for layer, width in manifest["layers"].items():
        file, shape = _layer_file(path, layer), (len(manifest["sigmas"]), manifest["images"], width)
        try:
            np.lib.format.open_memmap(file, "w+", manifest["dtype"], shape)
        except OSError as error:
            raise OSError(
                error.errno,
                f"cannot make {file} ({rows * width * np.dtype(manifest['dtype']).itemsize / 1e9:.3g} GB): "
                f"{error.strerror}; make room or give another folder, and run again",
            ) from error
    content = io.BytesIO()
    np.save(content, np.zeros(_record_shape(manifest), np.uint32))
    write_atomically(path / _RECORD, content.getvalue())


def _record_shape(manifest: dict[str, Any]) -> tuple[int, int]:
    rows = len(manifest["sigmas"]) * manifest["images"]
    return -(-rows // manifest["chunk rows"]), len(manifest["layers"])


def _open_layer(path: Path, layer: str, shape: tuple[int, ...], dtype: str) -> np.memmap:
    file = _layer_file(path, layer)
    try:
        array = np.load(file, mmap_mode="r", allow_pickle=False)
        if array.shape != shape or array.dtype != np.dtype(dtype):
            raise ValueError(f"it holds {array.dtype} {array.shape}, not {dtype} {shape}")
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{file} is damaged ({error}); delete {path} and extract again") from error
    assert isinstance(array, np.memmap)
    return array


def _record(path: Path, manifest: dict[str, Any]) -> np.ndarray:
    """Return the checksums (chunks, layers) of what is finished, 0 where it is not."""
    shape = _record_shape(manifest)
    try:
        record: np.ndarray = np.load(path / _RECORD, allow_pickle=False)
        if record.dtype != np.uint32 or record.shape != shape:
            raise ValueError(f"it holds {record.dtype} {record.shape}, not uint32 {shape}")
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{path / _RECORD} is damaged ({error}); delete {path} and extract again") from error
    return record


def _extract(path: Path, job: _Job, chunks: list[int], progress: bool) -> None:
    """Compute the chunks and write them to their places in the files."""
    ends = {chunk: min((chunk + 1) * CHUNK_ROWS, job.rows) for chunk in chunks}
    remaining = sum(end - chunk * CHUNK_ROWS for chunk, end in ends.items())
    with _Writer(path) as writer, _bar(job, remaining, progress) as bar:
        for chunk, rows, found in job.run(chunks):
            writer.put(rows, found)
            if rows.stop == ends[chunk]:
                writer.finish(chunk)
            _advance(bar, job, rows)


class _Writer:
    """The files of a folder, open for the chunks of one process, which come one after the other."""

    def __init__(self, path: Path) -> None:
        self.path, manifest = path, _read_manifest(path)
        levels, images, dtype = len(manifest["sigmas"]), manifest["images"], manifest["dtype"]
        self.widths: dict[str, int] = manifest["layers"]
        maps = {
            name: _open_layer(path, name, (levels, images, width), dtype)
            for name, width in self.widths.items()
        }
        self.starts = {name: each.offset for name, each in maps.items()}
        record = np.load(path / _RECORD, mmap_mode="r", allow_pickle=False)
        assert isinstance(record, np.memmap)
        self.record_start = record.offset
        self.files: dict[str, int] = {}
        self.checksums: dict[str, int] = {}
        self.waiting: list[tuple[int, np.ndarray]] = []
        self.committed = time.monotonic()

    def __enter__(self) -> "_Writer":
        for name in self.widths:
            self.files[name] = os.open(_layer_file(self.path, name), os.O_RDWR)
        self.record = os.open(self.path / _RECORD, os.O_RDWR)
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.commit()
        finally:
            for file in (*self.files.values(), self.record):
                os.close(file)

    def put(self, rows: slice, found: dict[str, np.ndarray]) -> None:
        """Write rows of every layer, the next of the chunk."""
        for name, values in found.items():
            content = np.ascontiguousarray(values)
            start = self.starts[name] + rows.start * self.widths[name] * content.itemsize
            try:
                _write(self.files[name], content, start)
            except OSError as error:
                self.checksums.clear()
                raise OSError(
                    error.errno,
                    f"cannot write to {_layer_file(self.path, name)}: {error.strerror}. What is finished is "
                    "kept; make room and run again: it goes on from there",
                ) from error
            self.checksums[name] = zlib.crc32(content.view(np.uint8).data, self.checksums.get(name, 0))

    def finish(self, chunk: int) -> None:
        """Take note that all rows of a chunk are written; record it now or soon."""
        sums = [self.checksums[name] or 1 for name in self.widths]
        self.waiting.append((chunk, np.array(sums, np.uint32)))
        self.checksums.clear()
        if time.monotonic() - self.committed > _COMMIT_SECONDS:
            self.commit()

    def commit(self) -> None:
        """Have the disk take the features, then the record of them."""
        if not self.waiting:
            return
        for file in self.files.values():
            os.fsync(file)
        for chunk, sums in self.waiting:
            _write(self.record, sums, self.record_start + chunk * sums.nbytes)
        os.fsync(self.record)
        self.waiting.clear()
        self.committed = time.monotonic()


def _write(file: int, values: np.ndarray, start: int) -> None:
    content = values.view(np.uint8).reshape(-1).data
    done = 0
    while done < len(content):
        done += os.pwrite(file, content[done:], start + done)
