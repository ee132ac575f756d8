"""Image data sets: read from where they are, checked, scaled to [-1, 1].

    data = images.load("fashion_mnist")           # or digits, cifar10, cifar100
    data = images.load("path/to/folder")          # train/<class>/*.png and test/<class>/*.png
    data = images.load("path/to/images.npz")      # the keys that `read_npz` names
    print(images.describe(data))                  # what was read, and as what

Nothing touches the network unless `download=True`.
"""

import hashlib
import os
import pickle
import textwrap
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from molrg.support import data_read
from molrg.support.clone import ROOT

__all__ = ["COLOUR", "GREY", "MAX_BYTES", "NAMES", "Images", "describe", "load", "read_folder", "read_npz"]

if TYPE_CHECKING:
    from PIL.Image import Image

NAMES = ("digits", "fashion_mnist", "cifar10", "cifar100")
MAX_BYTES = 2 * 2**30  # of unpacked pixels, four times as much in float32; raise it where memory allows
GREY = ("1", "L", "LA", "I;16", "I;16L", "I;16B", "I;16N")
COLOUR = ("P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")


@dataclass(frozen=True)
class Images:
    """A labelled image data set.

    train_images (N, C*H*W) and test_images (M, C*H*W) are float32 in [-1, 1], flattened from `shape`
    (C, H, W); train_labels (N,) and test_labels (M,) are int64 in [0, K), `class_names` has K entries.
    Where the classes have coarse groups, coarse_of_class (K,) holds the group of each and coarse_names
    their names, else both are None. `digest` is the SHA-256 of all of this but `name`: the same images,
    labels and class names have one digest in whatever files they come. `modes` says how the pixels were
    stored, `maximum` which stored value became 1 (0 became -1).
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
    modes: str = "made from other images"
    maximum: int = 255

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

    The digest of what was read is noted, so that a stored result knows its data (see `data_read`).
    Raises FileNotFoundError where the data are missing (what, where it was looked for, how to get it),
    ValueError for an unknown name and for files that do not hold what they should.
    """
    data = _load(name, root, download)
    data_read.note(str(name), data.digest)
    return data


@data_read.reader("")
def _present(name: str) -> str | None:
    try:
        return load(name).digest
    except FileNotFoundError:
        return None


def _load(name: str | Path, root: str | Path | None, download: bool) -> Images:
    base = Path(root if root is not None else os.environ.get("MOLRG_DATA") or ROOT / "data").expanduser()
    if str(name) == "digits":
        return _digits()
    if str(name) in NAMES:
        return _published(str(name), base, download)
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


def describe(data: Images) -> str:
    """Return what was read, line by line: number, size, modes, range of values, images a class, classes."""

    def extremes(labels: Tensor) -> str:
        counts = labels.bincount(minlength=data.num_classes)
        least, most = int(counts.argmin()), int(counts.argmax())
        return " ... ".join(f"{counts[k]:,} ({data.class_names[k]})" for k in (least, most))

    channels, height, width = data.shape
    both = (data.train_images, data.test_images)
    low, high = (
        (float(x) + 1) * data.maximum / 2 for x in (min(map(torch.min, both)), max(map(torch.max, both)))
    )
    lines = {
        "data": data.name,
        "images": f"{len(both[0]):,} to train with, {len(both[1]):,} to test with",
        "size": f"{width} x {height} pixels, {channels} channel{'s' * (channels > 1)}",
        "stored as": data.modes,
        "values": f"{low:.4g} ... {high:.4g}; 0 ... {data.maximum} is scaled to -1 ... 1",
        "images a class": f"{extremes(data.train_labels)} to train with",
        "": f"{extremes(data.test_labels)} to test with",
        "order of classes": ", ".join(data.class_names),
    }
    return "\n".join(
        textwrap.fill(text, 79, initial_indent=f"{key:18}", subsequent_indent=" " * 18)
        for key, text in lines.items()
    )


def read_npz(path: str | Path) -> Images:
    """Read an `.npz` with train_images (N, H, W[, C]) uint8, train_labels (N,) or (N, 1), test_images and
    test_labels, and optionally class_names (K,), coarse_of_class (K,) with coarse_names.

    C is 1 or 3. Without class_names the classes are called "0" ... "K-1", K - 1 being the largest label.
    Other keys (the validation part of MedMNIST's files) are not read. Pickled content is refused, as is
    what unpacks to more than MAX_BYTES. Raises ValueError that names the key at fault.
    """
    path = Path(path)
    parts = ("train_images", "train_labels", "test_images", "test_labels")
    keys = (*parts, "class_names", "coarse_of_class", "coarse_names")
    try:
        with zipfile.ZipFile(path) as members:  # reading stops at the size that the directory tells
            size = sum(each.file_size for each in members.infolist() if each.filename[:-4] in keys)
        if size <= MAX_BYTES:
            with np.load(path, allow_pickle=False) as archive:
                content = {key: archive[key] for key in keys if key in archive}
    except Exception as error:  # a damaged archive can raise almost anything
        raise ValueError(f"{path} is not a readable .npz of plain arrays: {error}") from error
    _bounded(path, size)
    missing = [key for key in parts if key not in content]
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}; an image .npz needs {', '.join(parts)}")
    for part in ("train", "test"):
        pictures, labels = content[f"{part}_images"], content[f"{part}_labels"]
        if pictures.dtype != np.uint8:
            raise ValueError(f"{path}: {part}_images must be uint8 (0 ... 255), got {pictures.dtype}")
        if pictures.ndim not in (3, 4) or 0 in pictures.shape or pictures.shape[3:] not in ((), (1,), (3,)):
            raise ValueError(
                f"{path}: {part}_images must be (N, H, W) or (N, H, W, C) with C = 1 or 3, "
                f"got {pictures.shape}"
            )
        if labels.shape == (len(pictures), 1):
            content[f"{part}_labels"] = labels[:, 0]
    if content["train_images"].shape[1:] != content["test_images"].shape[1:]:
        raise ValueError(f"{path}: train_images and test_images must have the same image size")
    if ("coarse_of_class" in content) != ("coarse_names" in content):
        raise ValueError(f"{path}: coarse_of_class and coarse_names belong together, one is missing")
    for key in {"class_names", "coarse_names"} & content.keys():
        names = content[key]
        if names.ndim != 1 or names.dtype.kind not in "US":
            raise ValueError(f"{path}: {key} must be a 1-D array of strings, got {names.dtype} {names.shape}")
        content[key] = [n.decode(errors="replace") if isinstance(n, bytes) else n for n in names.tolist()]
    modes = f"uint8 arrays, {'x'.join(map(str, content['train_images'].shape))} to train with"
    return _images(path.stem, str(path), content, modes)


def read_folder(path: str | Path) -> Images:
    """Read `train/<class>/<image>` and `test/<class>/<image>` below `path`, all images of one size.

    Classes are the sub-folders of `train` in sorted order; hidden files and folders are skipped. Grey
    images (modes GREY) give one channel; with one image in colour among them (modes COLOUR) all give
    three. Palette images count as colour. 16-bit grey images are scaled by 65535, and 8-bit ones among
    them by 255; images of other modes (32-bit, floating point) have no known range and are refused, as
    are those of several frames. Images are turned as their orientation tag says; transparent ones are
    laid on white.

    Raises ValueError, which names the first few files or classes of every fault: before any image is
    decoded, classes without images in one part, sub-folders of a class, broken links, files that are no
    image, images of unknown range and what would unpack to more than MAX_BYTES; afterwards, damaged
    images and those that differ in size from the most.
    """
    path = Path(path)
    if not (path / "train").is_dir() or not (path / "test").is_dir():
        raise ValueError(f"{path} must hold the folders train/ and test/, each with one folder per class")
    faults = _Faults(path)
    files = _files_of_classes(faults)
    modes = _modes(files["train"] + files["test"], faults)
    read = {part: [_pixels(file, faults) for file in chosen] for part, chosen in files.items()}
    faults.refuse()
    every = read["train"] + read["test"]
    ((height, width), count), *_ = Counter(pixels.shape[:2] for pixels in every).most_common()
    for file, (h, w, *_) in zip(files["train"] + files["test"], (p.shape for p in every), strict=True):
        if (h, w) != (height, width):
            kind = f"another size than {count} of {len(every)} images, {width}x{height}"
            faults.add(kind, file, f" ({w}x{h})")
    faults.refuse()
    deep, colour = any(p.dtype == np.uint16 for p in every), any(p.ndim == 3 for p in every)

    def alike(pixels: np.ndarray) -> np.ndarray:
        if deep and pixels.dtype == np.uint8:
            pixels = pixels.astype(np.uint16) * 257  # 255 becomes 65535
        return np.stack([pixels] * 3, -1) if colour and pixels.ndim == 2 else pixels

    names = sorted({file.parent.name for file in files["train"]})
    content: dict[str, Any] = {"class_names": names}
    for part, chosen in files.items():
        content[f"{part}_images"] = np.stack([alike(pixels) for pixels in read[part]])
        content[f"{part}_labels"] = np.array([names.index(file.parent.name) for file in chosen])
    return _images(path.name, str(path), content, f"image files of mode {modes}", 65535 if deep else 255)


class _Faults:
    """What is wrong with the files below a folder, by kind."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.kinds: dict[str, list[str]] = {}

    def add(self, kind: str, path: Path, more: str = "") -> None:
        """Note that `path` has a fault of this kind; what differs from file to file is said in `more`."""
        self.kinds.setdefault(kind, []).append(f"{path.relative_to(self.root)}{more}")

    def unreadable(self, path: Path, error: Exception) -> None:
        """Note that `path` is no image, or a damaged one, and why, unless that says the same."""
        more = f" ({error})" if str(path) not in str(error) else ""
        self.add("not a readable image", path, more)

    def refuse(self) -> None:
        """Raise ValueError if there are faults, with the first three of every kind."""
        if self.kinds:
            lines = [f"{kind}: {_some(what)}" for kind, what in self.kinds.items()]
            raise ValueError(
                "\n  ".join([f"{self.root} cannot be read as folders of images, one a class:", *lines])
            )


def _files_of_classes(faults: _Faults) -> dict[str, list[Path]]:
    """Return what lies in the class folders of train/ and test/, in order; note what is amiss."""
    files: dict[str, list[Path]] = {"train": [], "test": []}
    folders: dict[str, set[str]] = {"train": set(), "test": set()}
    for part, found in files.items():
        for folder in _visible(faults.root / part):
            if not folder.is_dir():
                faults.add("broken link" if folder.is_symlink() else "outside the class folders", folder)
                continue
            folders[part].add(folder.name)
            inside = _visible(folder)
            found += [each for each in inside if each.is_file()]
            for each in inside:
                if not each.is_file():
                    faults.add("folder within a class" if each.is_dir() else "broken link", each)
            if not inside:
                faults.add("class without images", folder)
    for part, other in (("train", "test"), ("test", "train")):
        for name in sorted(folders[other] - folders[part]):
            faults.add(f"class that {part}/ lacks", faults.root / other / name)
    if len(folders["train"]) < 2:
        faults.add("fewer than two class folders", faults.root / "train")
    return files


def _visible(folder: Path) -> list[Path]:
    return sorted(each for each in folder.iterdir() if not each.name.startswith("."))


def _modes(files: list[Path], faults: _Faults) -> str:
    """Read the images' heads: return their modes with the number of each; note those of no use."""
    from PIL import Image

    modes: Counter[str] = Counter()
    size = 0
    for file in files:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                with Image.open(file) as picture:
                    if unfit := _unfit(picture):
                        faults.add(unfit, file)
                    modes[picture.mode] += 1
                    size += picture.width * picture.height * 3
        except Exception as error:  # a damaged file can raise almost anything
            faults.unreadable(file, error)
    faults.refuse()
    _bounded(faults.root, size)
    return ", ".join(f"{mode} ({number:,})" for mode, number in modes.most_common())


def _unfit(picture: "Image") -> str | None:
    """Say, from the file's head, why the image cannot be read for what it is; None where it can."""
    if picture.mode not in GREY + COLOUR:
        return (
            f"pixels of mode {picture.mode}, whose range is unknown (save as 8-bit or 16-bit grey, or as RGB)"
        )
    if getattr(picture, "n_frames", 1) > 1 and picture.format != "MPO":  # a camera's JPEG with its preview
        return "several frames in one file"
    bits = getattr(picture, "tag_v2", {}).get(258, (8,))  # a TIFF's bits per sample
    if picture.mode.startswith("I;16") and picture.format == "TIFF" and set(bits) != {16}:
        return f"{bits[0]} bits a pixel (save as 8-bit or 16-bit grey)"
    return None


def _pixels(file: Path, faults: _Faults) -> np.ndarray:
    """Return (H, W) of a grey image, uint8 or uint16, or (H, W, 3) uint8; upright, on white."""
    from PIL import Image, ImageOps

    try:
        # from a stream: Pillow 13 maps a file given by name, and then garbles a TIFF with an orientation
        with file.open("rb") as stream, Image.open(stream) as opened:
            picture = ImageOps.exif_transpose(opened)
        grey = picture.mode in GREY
        if picture.mode.startswith("I;16"):
            deep = np.asarray(picture).astype(np.uint16)
            return np.where(deep == picture.info.get("transparency", -1), np.uint16(65535), deep)
        if picture.has_transparency_data:
            white = Image.new("RGBA", picture.size, "white")
            picture = Image.alpha_composite(white, picture.convert("RGBA"))
        return np.asarray(picture.convert("L" if grey else "RGB"))
    except Exception as error:
        faults.unreadable(file, error)
        return np.empty((0, 0), np.uint8)


def _some(names: Iterable[str]) -> str:
    first, more = list(names)[:3], len(list(names)) - 3
    return ", ".join(first) + (f" and {more} more" if more > 0 else "")


def _bounded(path: Path, size: int) -> None:
    if size > MAX_BYTES:
        raise ValueError(
            f"{path} unpacks to {size / 1e9:.1f} GB, more than molrg.images.MAX_BYTES "
            f"({MAX_BYTES / 1e9:.1f} GB); take fewer or smaller images, or raise that bound"
        )


def _images(name: str, source: str, content: dict[str, Any], modes: str, maximum: int = 255) -> Images:
    """Check labels, classes and groups, scale 0 ... maximum to [-1, 1], put channels first and flatten.

    `content` has the keys of `read_npz`, its names as lists.
    """
    train, test = content["train_images"], content["test_images"]
    names = content.get("class_names")
    for part, pictures in (("train", train), ("test", test)):
        labels = content[f"{part}_labels"]
        if labels.shape != (len(pictures),) or labels.dtype.kind not in "iu":
            raise ValueError(
                f"{source}: {part}_labels must be {len(pictures)} integers, one per image, "
                f"got {labels.dtype} {labels.shape}"
            )
    both = np.concatenate([content["train_labels"], content["test_labels"]])
    if names is None:
        names = [str(k) for k in range(min(int(both.max()) + 1, len(both)))]
    if len(names) < 2 or len(set(names)) < len(names):
        raise ValueError(f"{source}: class_names must be two or more different names, got {_some(names)}")
    for part in ("train", "test"):
        labels = content[f"{part}_labels"]
        if labels.min() < 0 or labels.max() >= len(names):
            raise ValueError(
                f"{source}: {part}_labels must lie in 0 ... {len(names) - 1} "
                f"({len(names)} class_names), found {labels.min()} ... {labels.max()}"
            )
        absent = [names[k] for k in sorted(set(range(len(names))) - set(labels.tolist()))]
        if absent:
            raise ValueError(f"{source}: every class needs images in {part}, none of: {_some(absent)}")
    groups, coarse_names = content.get("coarse_of_class"), content.get("coarse_names", ())
    if groups is not None:
        if groups.shape != (len(names),) or groups.dtype.kind not in "iu":
            raise ValueError(f"{source}: coarse_of_class must be {len(names)} integers, one per class")
        if groups.min() < 0 or groups.max() >= len(coarse_names):
            raise ValueError(f"{source}: coarse_of_class must lie in 0 ... {len(coarse_names) - 1}")

    def scaled(pictures: np.ndarray) -> Tensor:
        if pictures.ndim == 3:
            pictures = pictures[..., None]
        first = torch.tensor(pictures).permute(0, 3, 1, 2)
        return (first.reshape(len(first), -1).float() / (maximum / 2)).sub_(1)

    train_labels, test_labels = (content[f"{part}_labels"].astype("<i8") for part in ("train", "test"))
    shape = (train.shape[3] if train.ndim == 4 else 1, *train.shape[1:3])
    coarse = None if groups is None else (groups.tolist(), coarse_names)
    digest = hashlib.sha256(repr((shape, maximum, len(train), len(test), names, coarse)).encode())
    for array in (train, train_labels, test, test_labels):
        digest.update(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).data)
    return Images(
        name=name,
        shape=shape,
        train_images=scaled(train),
        train_labels=torch.from_numpy(train_labels.astype(np.int64)),
        test_images=scaled(test),
        test_labels=torch.from_numpy(test_labels.astype(np.int64)),
        class_names=tuple(names),
        digest=digest.hexdigest(),
        coarse_of_class=None if groups is None else torch.from_numpy(groups.astype(np.int64)),
        coarse_names=None if groups is None else tuple(coarse_names),
        modes=modes,
        maximum=maximum,
    )


def _digits() -> Images:
    """The 1,797 8x8 digits of scikit-learn, values 0 ... 16; the last 360 are the test set."""
    from sklearn.datasets import load_digits

    data = load_digits()
    pictures, split = data.images.astype(np.uint8), 1437
    content = {"train_images": pictures[:split], "train_labels": data.target[:split]}
    content |= {"test_images": pictures[split:], "test_labels": data.target[split:]}
    content["class_names"] = [str(digit) for digit in range(10)]
    return _images("digits", "digits", content, "scikit-learn's arrays", 16)


_FASHION = "T-shirt,trouser,pullover,dress,coat,sandal,shirt,sneaker,bag,ankle boot"


def _published(name: str, base: Path, download: bool) -> Images:
    """Read Fashion-MNIST, CIFAR-10 or CIFAR-100 (its 100 fine classes) with torchvision's readers.

    The files of CIFAR are pickles. Only those with the published checksums are opened.
    """
    from torchvision import datasets
    from torchvision.datasets.mnist import read_image_file, read_label_file
    from torchvision.datasets.utils import check_integrity

    kind, title, below = {
        "fashion_mnist": (datasets.FashionMNIST, "Fashion-MNIST", "FashionMNIST/raw"),
        "cifar10": (datasets.CIFAR10, "CIFAR-10", datasets.CIFAR10.base_folder),
        "cifar100": (datasets.CIFAR100, "CIFAR-100", datasets.CIFAR100.base_folder),
    }[name]
    folder = base / below
    if name == "fashion_mnist":
        files = {packed.removesuffix(".gz"): None for packed, _ in kind.resources}
    else:
        files = {**dict(kind.train_list + kind.test_list), kind.meta["filename"]: kind.meta["md5"]}

    def wrong() -> list[str]:
        return [file for file, md5 in files.items() if not check_integrity(folder / file, md5)]

    if download and wrong():
        base.mkdir(parents=True, exist_ok=True)
        kind(str(base), download=True)
    if not all((folder / file).is_file() for file in files):
        raise FileNotFoundError(
            f"{title} not found: looked for {', '.join(files)} in {folder.absolute()}. "
            f"Point the environment variable MOLRG_DATA at the folder that holds {below}, "
            f"or fetch it once with molrg.images.load({name!r}, download=True)"
        )
    if wrong():
        raise ValueError(
            f"{folder}: not the published files, by their checksums: {_some(wrong())}. "
            f"They are not opened; fetch them anew with molrg.images.load({name!r}, download=True)"
        )
    content: dict[str, Any] = {}
    for part, idx in (("train", "train"), ("test", "t10k")):
        pictures, labels = f"{part}_images", f"{part}_labels"
        if name == "fashion_mnist":
            content[pictures] = _idx(folder / f"{idx}-images-idx3-ubyte", read_image_file)
            content[labels] = _idx(folder / f"{idx}-labels-idx1-ubyte", read_label_file)
            content["class_names"] = _FASHION.split(",")
        else:
            batches = kind(str(base), train=part == "train")
            content[pictures], content[labels] = batches.data, np.asarray(batches.targets)
            content["class_names"] = batches.classes
    if name == "cifar100":  # torchvision leaves out the coarse groups
        train, meta = (
            pickle.loads((folder / file).read_bytes(), encoding="latin1") for file in ("train", "meta")
        )
        groups = dict(sorted(zip(train["fine_labels"], train["coarse_labels"], strict=True)))
        content["coarse_of_class"] = np.asarray(list(groups.values()))
        content["coarse_names"] = meta["coarse_label_names"]
    return _images(name, str(folder), content, "torchvision's arrays of bytes")


def _idx(file: Path, read: Callable[[str], Tensor]) -> np.ndarray:
    try:
        return read(str(file)).numpy()
    except Exception as error:
        raise ValueError(f"{file} is not a whole IDX file of bytes: {error}") from error
