"""Image data sets: read from where they are, checked, scaled to [-1, 1].

    data = images.load("fashion_mnist")           # or digits, cifar10, cifar100
    data = images.load("path/to/folder")          # train/<class>/*.png and test/<class>/*.png
    data = images.load("path/to/images.npz")      # the keys that `read_npz` names

Nothing touches the network unless `download=True`.
"""

import gzip
import hashlib
import io
import os
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from molrg import sources
from molrg.paths import ROOT

NAMES = ("digits", "fashion_mnist", "cifar10", "cifar100")


@dataclass(frozen=True)
class Images:
    """A labelled image data set.

    train_images (N, C*H*W) and test_images (M, C*H*W) are float32 in [-1, 1], flattened from `shape`
    (C, H, W); train_labels (N,) and test_labels (M,) are int64 in [0, K), `class_names` has K entries.
    Where the classes have coarse groups, coarse_of_class (K,) holds the group of each and coarse_names
    their names, else both are None. `digest` is the SHA-256 of all of this but `name`: the same images,
    labels and class names have one digest in whatever files they come.
    """

    name: str
    shape: tuple[int, int, int]
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    class_names: tuple[str, ...]
    digest: str
    coarse_of_class: Tensor | None = None
    coarse_names: tuple[str, ...] | None = None

    @property
    def num_classes(self) -> int:
        """The number of classes K."""
        return len(self.class_names)

    @property
    def dim(self) -> int:
        """The number of values of one image, C*H*W."""
        channels, height, width = self.shape
        return channels * height * width


def load(name: str | Path, root: str | Path | None = None, download: bool = False) -> Images:
    """Return the data set `name`: one of NAMES, an `.npz` file, or a folder of class folders.

    Named sets other than digits (which scikit-learn carries) lie under `root`; without it under the
    environment variable MOLRG_DATA, else under `data/` of the repository, in torchvision's layout
    (`FashionMNIST/raw/`, `cifar-10-batches-py/`, `cifar-100-python/`). `download=True` fetches a missing
    one there through torchvision. A relative path that does not exist is looked up under the root too.

    The digest of what was read is noted, so that a stored result knows its data (see molrg.sources).
    Raises FileNotFoundError where the data are missing (what, where it was looked for, how to get it),
    ValueError for an unknown name and for files that do not hold what they should.
    """
    data = _load(name, root, download)
    sources.note(str(name), data.digest)
    return data


@sources.reader("")
def _present(name: str) -> str | None:
    try:
        return load(name).digest
    except FileNotFoundError:
        return None


def _load(name: str | Path, root: str | Path | None, download: bool) -> Images:
    base = Path(root if root is not None else os.environ.get("MOLRG_DATA") or ROOT / "data").expanduser()
    if str(name) in NAMES:
        return {
            "digits": _digits,
            "fashion_mnist": _fashion_mnist,
            "cifar10": _cifar10,
            "cifar100": _cifar100,
        }[str(name)](base, download)
    given = Path(name).expanduser()
    looks_like_path = given.suffix == ".npz" or len(given.parts) > 1
    for path in (given, base / given):
        if path.is_dir():
            return read_folder(path)
        if path.is_file():
            return read_npz(path)
    if not looks_like_path:
        raise ValueError(
            f"unknown data set {str(name)!r}: choose one of {', '.join(NAMES)}, an .npz file, or a folder "
            f"of class folders (no such file or folder in {Path.cwd()} or {base})"
        )
    raise FileNotFoundError(
        f"image data {str(name)!r} not found: looked for {given.absolute()} and {base / given}"
    )


def read_npz(path: str | Path) -> Images:
    """Read an `.npz` with train_images (N, H, W[, C]) uint8, train_labels (N,), test_images, test_labels,
    class_names (K,), and optionally coarse_of_class (K,) with coarse_names.

    Pickled content is refused. Raises ValueError that names the key at fault.
    """
    path = Path(path)
    keys = ("train_images", "train_labels", "test_images", "test_labels", "class_names")
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            arrays = {
                key: archive[key] for key in (*keys, "coarse_of_class", "coarse_names") if key in archive
            }
    except (ValueError, TypeError, OSError, EOFError, BadZipFile) as error:  # TypeError: a lone array
        raise ValueError(f"{path} is not a readable .npz of plain arrays: {error}") from error
    missing = [key for key in keys if key not in arrays]
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}; an image .npz needs {', '.join(keys)}")
    names = arrays["class_names"]
    if names.ndim != 1 or len(names) < 2 or names.dtype.kind not in "US":
        raise ValueError(f"{path}: class_names must be a 1-D array of two or more strings")
    for part in ("train", "test"):
        pictures = arrays[f"{part}_images"]
        if pictures.dtype != np.uint8:
            raise ValueError(f"{path}: {part}_images must be uint8 (0 ... 255), got {pictures.dtype}")
        if (
            pictures.ndim not in (3, 4)
            or 0 in pictures.shape
            or (pictures.ndim == 4 and pictures.shape[3] > 4)
        ):
            raise ValueError(f"{path}: {part}_images must be (N, H, W) or (N, H, W, C), got {pictures.shape}")
    if arrays["train_images"].shape[1:] != arrays["test_images"].shape[1:]:
        raise ValueError(f"{path}: train_images and test_images must have the same image size")
    coarse: tuple[np.ndarray, list[str]] | None = None
    if "coarse_of_class" in arrays or "coarse_names" in arrays:
        if not {"coarse_of_class", "coarse_names"} <= arrays.keys():
            raise ValueError(f"{path}: coarse_of_class and coarse_names belong together, one is missing")
        coarse = (arrays["coarse_of_class"], [str(each) for each in arrays["coarse_names"]])
    return _images(
        path.stem,
        arrays["train_images"],
        arrays["train_labels"],
        arrays["test_images"],
        arrays["test_labels"],
        [str(each) for each in names],
        coarse,
        source=str(path),
    )


def read_folder(path: str | Path) -> Images:
    """Read `train/<class>/<image>` and `test/<class>/<image>` below `path`, all images of one size.

    Classes are the sub-folders of `train` in sorted order. Grey images give one channel, all others three.
    Raises ValueError where a part is missing or the images differ in size.
    """
    from PIL import Image, UnidentifiedImageError

    path = Path(path)
    if not (path / "train").is_dir() or not (path / "test").is_dir():
        raise ValueError(f"{path} must hold the folders train/ and test/, each with one folder per class")
    names = sorted(each.name for each in (path / "train").iterdir() if each.is_dir())
    found: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    files = {
        part: [
            (file, label)
            for label, name in enumerate(names)
            for file in sorted((path / part / name).glob("*"))
            if file.is_file() and not file.name.startswith(".")
        ]
        for part in ("train", "test")
    }
    strangers = sorted({each.name for each in (path / "test").iterdir() if each.is_dir()} - set(names))
    if strangers:
        raise ValueError(f"{path}: test/ has classes that train/ lacks: {', '.join(strangers)}")
    if len(names) < 2 or not files["train"] or not files["test"]:
        raise ValueError(f"{path}: train/ and test/ need at least two class folders with images")
    grey = True
    for part, members in files.items():
        pictures = []
        for file, _ in members:
            try:
                with Image.open(file) as picture:
                    grey = grey and picture.mode in ("1", "L")
                    pictures.append(np.asarray(picture.convert("RGB")))
            except (UnidentifiedImageError, OSError) as error:
                raise ValueError(f"{file} is not a readable image: {error}") from error
            if pictures[-1].shape != pictures[0].shape:
                size = " and ".join(
                    f"{each.shape[1]}x{each.shape[0]}" for each in (pictures[0], pictures[-1])
                )
                raise ValueError(f"{path}: images must have one size, found {size} ({file.name})")
        found[part] = np.stack(pictures), np.array([label for _, label in members])
    (train, train_labels), (test, test_labels) = found["train"], found["test"]
    if train.shape[1:] != test.shape[1:]:
        raise ValueError(f"{path}: images in train/ and test/ must have one size")
    if grey:
        train, test = train[..., 0], test[..., 0]
    return _images(path.name, train, train_labels, test, test_labels, names, None, source=str(path))


def _images(
    name: str,
    train: np.ndarray,
    train_labels: np.ndarray,
    test: np.ndarray,
    test_labels: np.ndarray,
    class_names: list[str],
    coarse: tuple[np.ndarray, list[str]] | None,
    source: str,
    maximum: int = 255,
) -> Images:
    """Check labels and groups, scale 0 ... maximum to [-1, 1], put channels first and flatten."""
    for part, pictures, labels in (("train", train, train_labels), ("test", test, test_labels)):
        if labels.shape != (len(pictures),) or labels.dtype.kind not in "iu":
            raise ValueError(
                f"{source}: {part}_labels must be {len(pictures)} integers, one per image, "
                f"got {labels.dtype} {labels.shape}"
            )
        if labels.min() < 0 or labels.max() >= len(class_names):
            raise ValueError(
                f"{source}: {part}_labels must lie in 0 ... {len(class_names) - 1} "
                f"({len(class_names)} class_names), found {labels.min()} ... {labels.max()}"
            )
    groups = None
    if coarse is not None:
        of_class, coarse_names = coarse
        if of_class.shape != (len(class_names),) or of_class.dtype.kind not in "iu":
            raise ValueError(f"{source}: coarse_of_class must be {len(class_names)} integers, one per class")
        if of_class.min() < 0 or of_class.max() >= len(coarse_names):
            raise ValueError(f"{source}: coarse_of_class must lie in 0 ... {len(coarse_names) - 1}")
        groups = torch.from_numpy(of_class.astype(np.int64))

    def scaled(pictures: np.ndarray) -> Tensor:
        if pictures.ndim == 3:
            pictures = pictures[..., None]
        first = torch.tensor(pictures).permute(0, 3, 1, 2)
        return (first.reshape(len(first), -1).float() / (maximum / 2)).sub_(1)

    height, width = train.shape[1:3]
    shape = (train.shape[3] if train.ndim == 4 else 1, height, width)
    known = (shape, maximum, len(train), len(test), class_names, coarse and (coarse[0].tolist(), coarse[1]))
    content = hashlib.sha256(repr(known).encode())
    for array in (train, train_labels.astype("<i8"), test, test_labels.astype("<i8")):
        content.update(np.ascontiguousarray(array).data)
    return Images(
        name=name,
        shape=shape,
        train_images=scaled(train),
        train_labels=torch.from_numpy(train_labels.astype(np.int64)),
        test_images=scaled(test),
        test_labels=torch.from_numpy(test_labels.astype(np.int64)),
        class_names=tuple(class_names),
        digest=content.hexdigest(),
        coarse_of_class=groups,
        coarse_names=None if coarse is None else tuple(coarse[1]),
    )


def _digits(base: Path, download: bool) -> Images:
    """The 1,797 8x8 digits of scikit-learn, values 0 ... 16; the last 360 are the test set."""
    from sklearn.datasets import load_digits

    data = load_digits()
    pictures, labels, split = data.images.astype(np.uint8), data.target, 1437
    names = [str(digit) for digit in range(10)]
    return _images(
        "digits",
        pictures[:split],
        labels[:split],
        pictures[split:],
        labels[split:],
        names,
        None,
        "digits",
        16,
    )


_FASHION = (
    "T-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)


def _fashion_mnist(base: Path, download: bool) -> Images:
    folder = base / "FashionMNIST" / "raw"
    files = [
        f"{part}-{kind}" for part in ("train", "t10k") for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")
    ]

    def present() -> bool:
        return all((folder / file).is_file() or (folder / f"{file}.gz").is_file() for file in files)

    def fetch() -> None:
        from torchvision.datasets import FashionMNIST

        FashionMNIST(str(base), download=True)

    _ensure("Fashion-MNIST", "fashion_mnist", folder, files, present, fetch, base, download)
    train, train_labels, test, test_labels = (_read_idx(folder / file) for file in files)
    for part, pictures in (("train", train), ("t10k", test)):
        if pictures.ndim != 3:
            raise ValueError(f"{folder}: the {part} images must be (N, H, W), got {pictures.shape}")
    return _images("fashion_mnist", train, train_labels, test, test_labels, list(_FASHION), None, str(folder))


def _read_idx(path: Path) -> np.ndarray:
    """Read an IDX file of unsigned bytes, plain or as `.gz` beside it (the MNIST format)."""
    try:
        content = path.read_bytes() if path.is_file() else gzip.decompress(Path(f"{path}.gz").read_bytes())
    except (OSError, EOFError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if len(content) < 4 or content[:3] != b"\x00\x00\x08" or len(content) < 4 + 4 * content[3]:
        raise ValueError(f"{path} is not an IDX file of unsigned bytes")
    shape = np.frombuffer(content, ">u4", count=content[3], offset=4).astype(np.int64)
    values = np.frombuffer(content, np.uint8, offset=4 + 4 * content[3])
    if values.size != shape.prod():
        raise ValueError(
            f"{path} is truncated: {values.size} bytes of data where {shape.prod()} are announced"
        )
    return values.reshape(shape)


def _cifar10(base: Path, download: bool) -> Images:
    folder = base / "cifar-10-batches-py"
    train = [f"data_batch_{i}" for i in range(1, 6)]

    def fetch() -> None:
        from torchvision.datasets import CIFAR10

        CIFAR10(str(base), download=True)

    files = [*train, "test_batch", "batches.meta"]
    _ensure("CIFAR-10", "cifar10", folder, files, lambda: _all_there(folder, files), fetch, base, download)
    names = _names(folder / "batches.meta", "label_names")
    batches = [_read_cifar(folder / file, "labels") for file in train]
    pictures, labels = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    return _images(
        "cifar10", pictures, labels, *_read_cifar(folder / "test_batch", "labels"), names, None, str(folder)
    )


def _cifar100(base: Path, download: bool) -> Images:
    """The 100 fine classes; the coarse group of each is read off the training labels."""
    folder = base / "cifar-100-python"

    def fetch() -> None:
        from torchvision.datasets import CIFAR100

        CIFAR100(str(base), download=True)

    files = ["train", "test", "meta"]
    _ensure("CIFAR-100", "cifar100", folder, files, lambda: _all_there(folder, files), fetch, base, download)
    names = _names(folder / "meta", "fine_label_names")
    train, labels = _read_cifar(folder / "train", "fine_labels")
    groups = np.asarray(_unpickle(folder / "train").get("coarse_labels", ()), np.int64)
    if groups.shape != labels.shape or set(range(len(names))) != set(labels.tolist()):
        raise ValueError(f"{folder / 'train'}: coarse_labels must give a group to each image of every class")
    of_class = np.zeros(len(names), np.int64)
    of_class[labels] = groups
    if (of_class[labels] != groups).any():
        raise ValueError(f"{folder / 'train'}: a class belongs to more than one coarse group")
    coarse = (of_class, _names(folder / "meta", "coarse_label_names"))
    test = _read_cifar(folder / "test", "fine_labels")
    return _images("cifar100", train, labels, *test, names, coarse, str(folder))


def _read_cifar(path: Path, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Return images (N, 32, 32, 3) uint8 and labels (N,) of one CIFAR batch."""
    batch = _unpickle(path)
    pictures, labels = batch.get("data"), batch.get(key)
    if not isinstance(pictures, np.ndarray) or pictures.dtype != np.uint8 or pictures.shape[1:] != (3072,):
        raise ValueError(f"{path}: 'data' must be uint8 of shape (N, 3072)")
    if not isinstance(labels, list) or len(labels) != len(pictures):
        raise ValueError(f"{path}: {key!r} must be a list of {len(pictures)} class numbers")
    return pictures.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), np.asarray(labels)


def _names(path: Path, key: str) -> list[str]:
    names = _unpickle(path).get(key)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{path}: {key!r} must be a list of names")
    return names


_RECONSTRUCT = np.empty(0).__reduce__()[0]  # numpy's own rebuilder of an array, wherever it lives
_UNPICKLED: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): lambda text, _: text.encode("latin1"),  # how protocol 2 writes bytes
}


class _ArrayUnpickler(pickle.Unpickler):
    """An unpickler of plain containers and numpy arrays: no other class or function can be reached."""

    def find_class(self, module: str, name: str) -> Any:
        """Return an allowed callable; raises UnpicklingError for every other one."""
        try:
            return _UNPICKLED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed in an image file") from None


def _unpickle(path: Path) -> dict[str, Any]:
    """Read a CIFAR file, a pickled dictionary, without running any code that it names."""
    try:
        content = _ArrayUnpickler(io.BytesIO(path.read_bytes()), encoding="latin1").load()
    except Exception as error:  # a damaged pickle can raise almost anything
        raise ValueError(f"{path} is not a CIFAR file: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is not a CIFAR file: it holds no dictionary")
    return content


def _all_there(folder: Path, files: list[str]) -> bool:
    return all((folder / file).is_file() for file in files)


def _ensure(
    title: str,
    name: str,
    folder: Path,
    files: list[str],
    present: Callable[[], bool],
    fetch: Callable[[], None],
    base: Path,
    download: bool,
) -> None:
    """Raise FileNotFoundError unless the files are there, after fetching them where that is asked for."""
    if not present() and download:
        base.mkdir(parents=True, exist_ok=True)
        fetch()
    if not present():
        raise FileNotFoundError(
            f"{title} not found: looked for {', '.join(files)} in {folder.absolute()}. "
            f"Point the environment variable MOLRG_DATA at the folder that holds {folder.relative_to(base)}, "
            f"or fetch it once with molrg.images.load({name!r}, download=True)"
        )
