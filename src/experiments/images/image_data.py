"""The data sets that the image pages are about: made from what is read, each by a name.

    data = image_data.get("natural-16")
    data = image_data.get("garments+photographs-0.3")

Natural images are those of `tiny_imagenet_30.npz`; of the 500 training images of a class the last 100 are
held out, and come first among the test images. Garments are Fashion-MNIST's, averaged to 14 x 14. Backgrounds
have mean 0 and standard deviation delta and are added to the garments, whatever these are: class and
background are independent. Surrogates are draws of Gaussians fitted to the natural training images.
"""

import hashlib
from dataclasses import replace
from functools import lru_cache

import torch
from torch import Tensor

from molrg import images
from molrg.images import Images

__all__ = [
    "BACKGROUNDS",
    "HELD_OUT",
    "LARGEST_SIDE",
    "NAMES",
    "averaged",
    "background",
    "backgrounds",
    "gaussian_surrogate",
    "get",
]

HELD_OUT = 100
"""Images of each natural class that no network is trained on."""

LARGEST_SIDE = 16
"""Pixels to a side of own images, which are averaged to fewer where they have more."""

BACKGROUNDS: tuple[tuple[str, float], ...] = (
    ("photographs", 0.1),
    ("photographs", 0.3),
    ("photographs", 0.6),
    ("white", 0.3),
    ("white", 0.6),
    ("phases", 0.3),
    ("phases", 0.6),
)
"""Kinds of backgrounds of garments, and their standard deviations delta."""

NAMES = (
    "digits",
    "natural-16",
    "natural-32",
    "garments",
    *(f"garments+{kind}-{delta:g}" for kind, delta in BACKGROUNDS),
    "gaussian-16",
    "class-gaussians-16",
    "cifar10-32",
)


@lru_cache(maxsize=16)
def get(name: str) -> Images:
    """Return the data set `name`, one of NAMES; or own images, a name or path for `molrg.images.load`.

    Own images are averaged to sides of at most LARGEST_SIDE, where a whole number of pixels allows it.

    Raises ValueError for an unknown name, FileNotFoundError where what it is made from is missing.
    """
    if name not in NAMES:
        data = _loaded(name)
        sides = data.shape[1:]
        whole = [n for n in range(1, min(sides) + 1) if all(side % n == 0 for side in sides)]
        fitting = [n for n in whole if max(sides) <= n * LARGEST_SIDE]
        if not fitting:
            raise ValueError(
                f"{data.name} is {sides[0]} x {sides[1]} and cannot be averaged to {LARGEST_SIDE} pixels or "
                "fewer by whole blocks: bring it to another size, such as a multiple of 16"
            )
        return averaged(data, fitting[0])
    if name == "digits":
        return images.load("digits")
    if name == "natural-32":
        return _hold_out(images.load("tiny_imagenet_30.npz"), name)
    if name == "natural-16":
        return averaged(get("natural-32"), 2, name)
    if name == "garments":
        return averaged(images.load("fashion_mnist"), 2, name)
    if name == "cifar10-32":
        return images.load("cifar10_5k.npz")
    if name == "gaussian-16":
        return gaussian_surrogate(get("natural-16"), by_class=False, name=name)
    if name == "class-gaussians-16":
        return gaussian_surrogate(get("natural-16"), by_class=True, name=name)
    return _over(get("garments"), name)


def _loaded(name: str) -> Images:
    """Own images; a name that is none gives the names of this module as well."""
    try:
        return images.load(name)
    except (ValueError, FileNotFoundError) as error:
        raise type(error)(f"{error}; or one of {', '.join(NAMES)}") from error


def averaged(data: Images, factor: int, name: str | None = None) -> Images:
    """Return images whose pixels are the means of `factor` x `factor` pixels of `data`; for 1, `data`.

    Raises ValueError unless factor divides height and width.
    """
    channels, height, width = data.shape
    if factor < 1 or height % factor or width % factor:
        raise ValueError(
            f"factor must divide height and width of {data.name}, {height} x {width}, got {factor}: "
            "bring the images to another size"
        )
    if factor == 1:
        return data
    shape = (channels, height // factor, width // factor)

    train, test = (
        torch.nn.functional.avg_pool2d(x.unflatten(1, data.shape), factor).flatten(1)
        for x in (data.train_images, data.test_images)
    )
    return _changed(data, name or f"{data.name}, {shape[1]} x {shape[2]}", train, test, shape)


def gaussian_surrogate(data: Images, by_class: bool, name: str) -> Images:
    """Return draws of the Gaussian with mean and covariance of the training images, as many as there are.

    With `by_class`, of one Gaussian a class, each with its own mean and covariance, shrunk towards the common
    covariance of the classes by a tenth, since a class has fewer images than an image has values.
    """
    generator = torch.Generator().manual_seed(0)
    x, labels = data.train_images.double(), data.train_labels
    groups = [labels == k for k in range(data.num_classes)] if by_class else [labels >= 0]
    centred = torch.cat([x[group] - x[group].mean(0) for group in groups])
    common = centred.T @ centred / len(centred)
    train, test = torch.empty_like(x), torch.empty_like(data.test_images.double())
    for k, group in enumerate(groups):
        own = x[group] - x[group].mean(0)
        covariance = 0.9 * own.T @ own / len(own) + 0.1 * common
        values, vectors = torch.linalg.eigh(covariance)
        root = vectors * values.clamp(min=0).sqrt()
        tests = data.test_labels == k if by_class else data.test_labels >= 0
        for drawn, rows in ((train, group), (test, tests)):
            normal = torch.randn(int(rows.sum()), x.shape[1], generator=generator, dtype=torch.float64)
            drawn[rows] = x[group].mean(0) + normal @ root.T
    return _changed(data, name, train.float(), test.float(), data.shape)


def backgrounds(kind: str, count: int, side: int, train: bool, seed: int) -> tuple[Tensor, Tensor]:
    """Return grey backgrounds (count, side^2) of mean 0 and standard deviation 1, and what is in them.

    `photographs`: natural images of 32 x 32 pixels averaged to 16 x 16, cut at a random place and mirrored at
    random; the labels are their classes. Training and test backgrounds come from other photographs. `phases`:
    the same with the phases of their Fourier transform drawn anew, which keeps the spectrum; `white`: white
    noise; both without labels (all 0). Mean and standard deviation are those over all photographs.

    Raises ValueError for an unknown kind.
    """
    generator = torch.Generator().manual_seed(seed)
    if kind == "white":
        return torch.randn(count, side**2, generator=generator), torch.zeros(count, dtype=torch.int64)
    if kind not in ("photographs", "phases"):
        raise ValueError(f"kind must be photographs, phases or white, got {kind!r}")
    natural = get("natural-16")
    pictures = natural.train_images if train else natural.test_images
    labels = natural.train_labels if train else natural.test_labels
    grey = pictures.unflatten(1, natural.shape).mean(1)
    grey = (grey - grey.mean()) / grey.std()
    chosen = torch.randint(len(grey), (count,), generator=generator)
    cut = torch.stack(torch.randint(grey.shape[1] - side + 1, (2, count), generator=generator).unbind(), 1)
    rows, columns = (cut[:, axis, None] + torch.arange(side) for axis in (0, 1))
    patches = grey[chosen[:, None, None], rows[:, :, None], columns[:, None, :]]
    mirror = torch.rand(count, generator=generator) < 0.5
    patches = torch.where(mirror[:, None, None], patches.flip(2), patches)
    if kind == "phases":
        # Phases of real white noise are those of a real picture.
        noise = torch.fft.rfft2(torch.randn(patches.shape, generator=generator))
        spectrum = torch.fft.rfft2(patches).abs()
        patches = torch.fft.irfft2(spectrum * noise / noise.abs(), s=(side, side))
        return patches.flatten(1), torch.zeros(count, dtype=torch.int64)
    return patches.flatten(1), labels[chosen]


def background(name: str) -> tuple[Tensor, Tensor] | None:
    """Return what lies behind the training and test garments of data set `name`, or None without any."""
    if "+" not in name:
        return None
    kind, delta = name.removeprefix("garments+").rsplit("-", 1)
    data = get("garments")
    side = data.shape[1]
    train, test = (
        float(delta) * backgrounds(kind, len(part), side, training, seed)[0]
        for part, training, seed in ((data.train_images, True, 1), (data.test_images, False, 2))
    )
    return train, test


def _over(data: Images, name: str) -> Images:
    behind = background(name)
    assert behind is not None
    train, test = data.train_images + behind[0], data.test_images + behind[1]
    also = () if "+white" in name else (get("natural-16").digest,)
    return _changed(data, name, train, test, data.shape, made_with=also)


def _hold_out(data: Images, name: str) -> Images:
    """The last HELD_OUT training images of each class go before the test images."""
    labels = data.train_labels
    held = torch.zeros(len(labels), dtype=torch.bool)
    for k in range(data.num_classes):
        held[torch.nonzero(labels == k).flatten()[-HELD_OUT:]] = True
    return _changed(
        data,
        name,
        data.train_images[~held],
        torch.cat([data.train_images[held], data.test_images]),
        data.shape,
        labels[~held],
        torch.cat([labels[held], data.test_labels]),
    )


def _changed(
    data: Images,
    name: str,
    train: Tensor,
    test: Tensor,
    shape: tuple[int, int, int],
    train_labels: Tensor | None = None,
    test_labels: Tensor | None = None,
    made_with: tuple[str, ...] = (),
) -> Images:
    """`data` with other images.

    The digest is of what they were made from and how: their last bits differ between processors.
    """
    return replace(
        data,
        name=name,
        shape=shape,
        train_images=train.contiguous(),
        train_labels=data.train_labels if train_labels is None else train_labels,
        test_images=test.contiguous(),
        test_labels=data.test_labels if test_labels is None else test_labels,
        digest=hashlib.sha256(repr((data.digest, *made_with, name)).encode()).hexdigest(),
    )
