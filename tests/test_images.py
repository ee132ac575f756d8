"""Data sets read from small files in their real on-disk formats; what is missing or wrong is named."""

import hashlib
import os
import pickle
import socket
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from molrg import images
from molrg.images import reading
from molrg.support import data_read

Arrays = dict[str, Any]


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("loading data touched the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.delenv("MOLRG_DATA", raising=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "données 図 of mine"
    path.mkdir()
    return path


def arrays(channels: int | None = 3) -> Arrays:
    g = np.random.default_rng(0)
    size = (4, 6) if channels is None else (4, 6, channels)
    return {
        "train_images": g.integers(0, 256, (7, *size), dtype=np.uint8),
        "train_labels": np.array([0, 1, 2, 0, 1, 2, 0]),
        "test_images": g.integers(0, 256, (3, *size), dtype=np.uint8),
        "test_labels": np.array([2, 1, 0]),
        "class_names": np.array(["ant", "bee", "çat"]),
        "coarse_of_class": np.array([0, 0, 1]),
        "coarse_names": np.array(["insect", "other"]),
    }


def test_digits() -> None:
    data = images.load("digits")
    assert (data.shape, data.dim, data.num_classes) == ((1, 8, 8), 64, 10)
    assert data.train_images.shape == (1437, 64)
    assert data.test_images.shape == (360, 64)
    assert data.train_images.dtype == torch.float32
    assert data.train_images.min() == -1
    assert data.train_images.max() == 1
    assert data.train_labels[:10].tolist() == list(range(10))


@pytest.mark.parametrize("channels", [None, 1, 3])
def test_npz_round_trip(folder: Path, channels: int | None) -> None:
    content = arrays(channels)
    np.savez(folder / "mine.npz", **content)
    data = images.load(folder / "mine.npz")
    assert (data.name, data.shape) == ("mine", (channels or 1, 4, 6))
    assert data.class_names == ("ant", "bee", "çat")
    assert data.coarse_of_class is not None
    assert data.coarse_of_class.tolist() == [0, 0, 1]
    assert data.coarse_names == ("insect", "other")
    assert data.test_labels.tolist() == [2, 1, 0]
    pictures = data.train_images.reshape(7, *data.shape).permute(0, 2, 3, 1)
    back = ((pictures + 1) * 127.5).round().numpy().astype(np.uint8)
    assert np.array_equal(back.reshape(content["train_images"].shape), content["train_images"])
    assert data.train_images.abs().max() <= 1


def test_the_digest_is_that_of_the_content_and_is_noted(folder: Path) -> None:
    content = arrays()
    path = folder / "mine.npz"

    def read(save: Callable[..., None] = np.savez, **values: Any) -> str:
        save(path, **content | values)
        with data_read.listed() as noted:
            digest = images.load(path).digest
        assert noted == {str(path): digest}
        return digest

    whole = read()
    assert read(np.savez_compressed, train_labels=content["train_labels"].astype(np.uint8)) == whole
    others = [
        read(**{key: np.roll(content[key], 1, 0)})
        for key in content  # images, labels, names, groups
    ]
    brighter = content["test_images"].copy()
    brighter[-1, -1, -1, -1] ^= 1
    others.append(read(test_images=brighter))
    assert len({whole, *others}) == len(content) + 2
    with data_read.listed() as noted, data_read.listed() as inner:
        images.load("digits")
    assert (list(noted), list(inner)) == ([], ["digits"])


def test_relative_path_is_found_under_the_root(folder: Path) -> None:
    content = {key: value for key, value in arrays().items() if not key.startswith("coarse")}
    np.savez(folder / "mine.npz", **content)
    data = images.load("mine.npz", root=folder)
    assert data.coarse_of_class is None
    assert data.coarse_names is None


def changed(**values: Any) -> Callable[[Arrays], Arrays]:
    return lambda content: {**content, **values}


def without(key: str) -> Callable[[Arrays], Arrays]:
    return lambda content: {k: v for k, v in content.items() if k != key}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("test_labels"), "lacks test_labels; an image .npz needs train_images"),
        (changed(train_images=np.zeros((7, 4, 6, 3), np.float32)), "train_images must be uint8"),
        (changed(test_images=np.zeros((3, 24), np.uint8)), r"test_images must be \(N, H, W\)"),
        (changed(test_images=np.zeros((3, 5, 6, 3), np.uint8)), "same image size"),
        (
            changed(train_labels=np.array([0, 1, 2, 0, 1, 2, 3])),
            r"must lie in 0 \.\.\. 2 .* found 0 \.\.\. 3",
        ),
        (changed(test_labels=np.array([0.0, 1.0, 2.0])), "test_labels must be 3 integers"),
        (changed(test_labels=np.array([0, 1])), "one per image"),
        (
            changed(train_labels=np.eye(7, 3, dtype=int)),
            r"train_labels must be 7 integers, .* got int64 \(7, 3\)",
        ),
        (changed(train_images=np.zeros((7, 4, 6, 4), np.uint8)), "with C = 1 or 3"),
        (changed(class_names=np.array([1, 2, 3])), "class_names must be a 1-D array"),
        (changed(class_names=np.array(["a", "b", "a"])), "two or more different names, got a, b, a"),
        (changed(class_names=np.array(list("abcdefgh"))), "images in train, none of: d, e, f and 2 more"),
        (changed(test_labels=np.array([2, 2, 0])), "every class needs images in test, none of: bee"),
        (changed(coarse_names=np.array([1, 2])), "coarse_names must be a 1-D array of strings"),
        (changed(class_names=np.array(["a", "b", "c"], dtype=object)), "not a readable .npz of plain arrays"),
        (without("coarse_names"), "belong together"),
        (changed(coarse_of_class=np.array([0, 0, 2])), r"coarse_of_class must lie in 0 \.\.\. 1"),
        (changed(coarse_of_class=np.array([0, 1])), "coarse_of_class must be 3 integers"),
    ],
)
def test_malformed_npz_is_named(folder: Path, change: Callable[[Arrays], Arrays], message: str) -> None:
    np.savez(folder / "mine.npz", **change(arrays()))
    with pytest.raises(ValueError, match=message):
        images.load(folder / "mine.npz")


def test_files_of_medmnist(folder: Path) -> None:
    """Labels (N, 1), a validation part and no names of the classes."""
    content = {key: value for key, value in arrays().items() if key.endswith(("images", "labels"))}
    columns = {key: value[:, None].astype(np.uint8) for key, value in content.items() if "labels" in key}
    val = {key.replace("test", "val"): value for key, value in content.items() if "test" in key}
    np.savez(folder / "pathmnist.npz", **content | columns | val)
    data = images.load(folder / "pathmnist.npz")
    assert data.class_names == ("0", "1", "2")
    assert data.train_labels.tolist() == content["train_labels"].tolist()
    np.savez(folder / "named.npz", **content, class_names=np.array(["0", "1", "2"]))
    assert images.load(folder / "named.npz").digest == data.digest


def test_names_of_bytes(folder: Path) -> None:
    content = arrays()
    np.savez(folder / "text.npz", **content)
    coded = {key: np.char.encode(content[key], "utf-8") for key in ("class_names", "coarse_names")}
    np.savez(folder / "bytes.npz", **content | coded)
    data = images.load(folder / "bytes.npz")
    assert (data.class_names, data.coarse_names) == (("ant", "bee", "çat"), ("insect", "other"))
    assert data.digest == images.load(folder / "text.npz").digest


def test_npz_that_unpacks_to_more_than_the_bound(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Known from the archive's directory: nothing is unpacked. Parts that are not read do not count."""
    content = arrays()
    np.savez_compressed(folder / "mine.npz", **content, val_images=np.zeros(10**6, np.uint8))
    monkeypatch.setattr(reading, "MAX_BYTES", 10**5)
    images.load(folder / "mine.npz")
    content["train_images"] = np.zeros((7, 200, 300, 3), np.uint8)
    np.savez_compressed(folder / "bomb.npz", **content)
    monkeypatch.setattr(zipfile.ZipFile, "open", None)
    with pytest.raises(ValueError, match=r"bomb\.npz unpacks to 0\.0 GB, more than molrg\.images\.MAX_BYTES"):
        images.load(folder / "bomb.npz")


@pytest.mark.parametrize("shape", ["(10**15, 4, 6)", "(7, 4, 6)", "(" * 3000])
def test_npz_whose_members_lie_about_their_size(folder: Path, shape: str) -> None:
    """A head that announces a petabyte, or more than there is, or that cannot be parsed."""
    np.savez(folder / "mine.npz", **arrays())
    head = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape.replace('10**15', str(10**15))}, }}\n"
    npy = b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head.encode() + bytes(9)
    with zipfile.ZipFile(folder / "liar.npz", "w") as archive:
        archive.writestr("train_images.npy", npy)
    with pytest.raises(ValueError, match=r"liar\.npz is not a readable \.npz"):
        images.load(folder / "liar.npz")


def test_truncated_npz(folder: Path) -> None:
    np.savez(folder / "mine.npz", **arrays())
    content = (folder / "mine.npz").read_bytes()
    (folder / "mine.npz").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"mine\.npz is not a readable \.npz"):
        images.load(folder / "mine.npz")


def test_lone_array_under_the_name_of_an_archive(folder: Path) -> None:
    with (folder / "mine.npz").open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(ValueError, match=r"mine\.npz is not a readable \.npz"):
        images.load(folder / "mine.npz")


def write_folder(root: Path, mode: str) -> np.ndarray:
    pictures = arrays(None if mode == "L" else 3)["train_images"]
    for part in ("train", "test"):
        for label, name in enumerate(("bee", "ánt")):
            (root / part / name).mkdir(parents=True)
            for i in range(2):
                Image.fromarray(pictures[2 * label + i]).save(root / part / name / f"{i} é.png")
    (root / "train" / "bee" / ".hidden").write_text("not an image")
    return pictures[:4]


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_folder_of_class_folders(folder: Path, mode: str) -> None:
    pictures = write_folder(folder, mode)
    data = images.load(folder)
    assert data.class_names == ("bee", "ánt")
    assert data.train_labels.tolist() == [0, 0, 1, 1]
    assert data.shape == ((1 if mode == "L" else 3), 4, 6)
    back = ((data.train_images.reshape(4, *data.shape).permute(0, 2, 3, 1) + 1) * 127.5).round().numpy()
    assert np.array_equal(back.reshape(pictures.shape), pictures)


def test_wrong_folders_are_named(folder: Path) -> None:
    with pytest.raises(ValueError, match="must hold the folders train/ and test/"):
        images.load(folder)
    write_folder(folder, "L")
    picture = folder / "train" / "bee" / "0 é.png"
    Image.fromarray(np.zeros((9, 6), np.uint8)).save(picture)
    with pytest.raises(ValueError, match=r"than 7 of 8 images, 6x4: train/bee/0 é\.png \(6x9\)$"):
        images.load(folder)
    picture.write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"not a readable image: train/bee/0 é\.png$"):
        images.load(folder)
    whole = (folder / "train" / "bee" / "1 é.png").read_bytes()
    picture.write_bytes(whole[:-30])
    with pytest.raises(ValueError, match=r"not a readable image: train/bee/0 é\.png \(.*truncated"):
        images.load(folder)


def test_all_that_is_amiss_is_named_before_an_image_is_decoded(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_folder(folder, "L")
    monkeypatch.setattr(reading, "_pixels", None)
    train, test = folder / "train", folder / "test"
    for made in (
        train / "wasp",
        test / "wasp",
        test / "fly",
        test / "fly" / ".hidden",
        train / "bee" / "more",
    ):
        made.mkdir()
    Image.new("L", (6, 4)).save(test / "wasp" / "0.png")
    (train / "ánt" / "2.png").symlink_to(folder / "nowhere.png")
    (train / "gnat").symlink_to(folder / "nowhere")
    (train / "labels.csv").write_text("0, 1")
    for i in range(5):
        (train / "ánt" / f"note {i}.txt").write_text("not an image")
    with pytest.raises(ValueError, match="cannot be read as folders of images") as caught:
        images.load(folder)
    assert str(caught.value).splitlines()[1:] == [
        "  folder within a class: train/bee/more",
        "  broken link: train/gnat, train/ánt/2.png",
        "  outside the class folders: train/labels.csv",
        "  class without images: train/wasp, test/fly",
        "  class that train/ lacks: test/fly",
        "  not a readable image: train/ánt/note 0.txt, train/ánt/note 1.txt, train/ánt/note 2.txt and 2 more",
    ]


def test_hidden_folders_are_no_classes(folder: Path) -> None:
    write_folder(folder, "L")
    for part in ("train", "test"):
        (folder / part / ".ipynb_checkpoints").mkdir()
        Image.new("L", (3, 3)).save(folder / part / ".ipynb_checkpoints" / "0.png")
        (folder / part / "bee" / ".ipynb_checkpoints").mkdir()
    assert images.load(folder).class_names == ("bee", "ánt")


def read_pictures(
    folder: Path, pictures: list[Image.Image], suffix: str = "png", **how: Any
) -> images.Images:
    """Save the pictures, one a class, to train and to test with, and load them."""
    for i, picture in enumerate(pictures):
        for part in ("train", "test"):
            (folder / part / str(i)).mkdir(parents=True, exist_ok=True)
            picture.save(folder / part / str(i) / f"{i}.{suffix}", **how)
    return images.load(folder)


def pixels(data: images.Images, maximum: int = 255) -> np.ndarray:
    """Return the training images as they were stored, (N, H, W, C)."""
    back = (data.train_images.double() + 1) * maximum / 2
    return back.round().int().unflatten(1, data.shape).permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize(("suffix", "order"), [("png", "<"), ("tif", "<"), ("tif", ">")])
def test_16_bit_grey_is_scaled_by_65535(folder: Path, suffix: str, order: str) -> None:
    values = np.random.default_rng(0).integers(0, 65536, (2, 5, 4)).astype(order + "u2")
    values[0, 0, :2] = 0, 65535
    data = read_pictures(folder, [Image.fromarray(each) for each in values], suffix)
    assert (data.shape, data.maximum) == ((1, 5, 4), 65535)
    assert (data.train_images.min(), data.train_images.max()) == (-1, 1)
    assert np.array_equal(pixels(data, 65535)[..., 0], values)


def test_8_and_16_bit_have_one_scale(folder: Path) -> None:
    eight = np.random.default_rng(0).integers(0, 256, (4, 4)).astype(np.uint8)
    both = [Image.fromarray(eight), Image.fromarray(eight.astype(np.uint16) * 257)]
    data = read_pictures(folder, both)
    assert torch.equal(data.train_images[0], data.train_images[1])
    torch.testing.assert_close(data.train_images[0].reshape(4, 4), torch.tensor(eight) / 127.5 - 1)
    assert data.modes.split("mode ")[1] in ("I;16 (2), L (2)", "L (2), I;16 (2)")


@pytest.mark.parametrize("mode", ["F", "I"])
def test_modes_of_unknown_range_are_refused(folder: Path, mode: str) -> None:
    with pytest.raises(
        ValueError, match=rf"mode {mode}, whose range is unknown .*: train/0/0.tif, train/1/1.tif"
    ):
        read_pictures(folder, [Image.new(mode, (3, 3))] * 2, "tif")


def test_12_bit_tiff_is_refused(folder: Path) -> None:
    """Pillow unpacks it to 16 bits without scaling it."""
    read_pictures(folder, [Image.new("I;16", (4, 4))] * 2, "tif")
    file = folder / "train" / "1" / "1.tif"
    bits = (258).to_bytes(2, "little") + b"\3\0\1\0\0\0"  # the tag, then: one short integer
    file.write_bytes(file.read_bytes().replace(bits + b"\20", bits + b"\14"))
    with pytest.raises(ValueError, match=r"12 bits a pixel .*: train/1/1\.tif"):
        images.load(folder)


def test_several_frames_are_refused(folder: Path) -> None:
    frames = [Image.new("L", (4, 4), value) for value in (0, 255)]
    with pytest.raises(ValueError, match=r"several frames in one file: train/0/0\.gif"):
        read_pictures(folder, frames, "gif", save_all=True, append_images=frames)


def test_palettes_are_read_as_their_colours(folder: Path) -> None:
    indexed = Image.fromarray(np.array([[0, 1], [2, 0]], np.uint8)).convert("P")
    indexed.putpalette([10, 20, 30, 200, 0, 0, 7, 7, 7])
    data = read_pictures(folder, [indexed] * 2)
    assert pixels(data)[0].tolist() == [[[10, 20, 30], [200, 0, 0]], [[7, 7, 7], [10, 20, 30]]]


def test_one_image_in_colour_gives_all_three_channels(folder: Path) -> None:
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4)
    data = read_pictures(folder, [Image.fromarray(grey), Image.fromarray(np.stack([grey] * 3, -1))])
    assert data.shape == (3, 3, 4)
    assert np.array_equal(pixels(data)[0], pixels(data)[1])


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_images_are_upright(folder: Path, kind: type, suffix: str) -> None:
    values: np.ndarray = np.arange(12).astype(kind).reshape(3, 4)
    exif = Image.Exif()
    exif[274] = 6  # to be turned clockwise by a quarter
    data = read_pictures(folder, [Image.fromarray(values)] * 2, suffix, exif=exif)
    assert data.shape == (1, 4, 3)
    assert np.array_equal(pixels(data, data.maximum)[0, ..., 0], np.rot90(values, -1))


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_transparent_images_lie_on_white(folder: Path, mode: str) -> None:
    picture = Image.new(mode, (2, 1), (40,) * (len(mode) - 1) + (255,))
    picture.putpixel((1, 0), (40,) * (len(mode) - 1) + (0,))
    data = read_pictures(folder, [picture] * 2)
    assert data.shape == (len(mode) - 1, 1, 2)
    assert pixels(data)[0, 0].tolist() == [[40] * data.shape[0], [255] * data.shape[0]]


@pytest.mark.parametrize("mode", ["L", "I;16", "RGB", "P"])
def test_a_transparent_colour_is_white(folder: Path, mode: str) -> None:
    picture = Image.new(mode, (2, 1), (9, 9, 9) if mode == "RGB" else 9)
    picture.putpixel((0, 0), (5, 5, 5) if mode == "RGB" else 5)
    if mode == "P":
        picture.putpalette([k for k in range(256) for _ in range(3)])
    data = read_pictures(folder, [picture] * 2, transparency=(9, 9, 9) if mode == "RGB" else 9)
    assert set(pixels(data, data.maximum)[0, 0, 1].tolist()) == {data.maximum}
    assert set(pixels(data, data.maximum)[0, 0, 0].tolist()) == {5}


@pytest.mark.parametrize("limit", [10, 15])
def test_decompression_bombs_are_named(folder: Path, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow warns from its limit on and stops from twice as much on."""
    read_pictures(folder, [Image.new("L", (2, 4))] * 2)
    Image.new("L", (5, 5)).save(folder / "train" / "1" / "1.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(ValueError, match=r"not a readable image: train/1/1.png \(Image size \(25 pixels\)"):
        images.load(folder)


def test_folder_that_unpacks_to_more_than_the_bound(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(folder, "RGB")
    monkeypatch.setattr(reading, "MAX_BYTES", 8 * 4 * 6 * 3)
    images.load(folder)
    monkeypatch.setattr(reading, "MAX_BYTES", 8 * 4 * 6 * 3 - 1)
    with pytest.raises(ValueError, match=r"of mine unpacks to .* more than molrg\.images\.MAX_BYTES"):
        images.load(folder)


def test_description_says_what_was_read(folder: Path) -> None:
    write_folder(folder, "RGB")
    Image.new("L", (6, 4), 255).save(folder / "train" / "ánt" / "more.png")
    Image.new("L", (6, 4), 0).save(folder / "test" / "bee" / "more.png")
    assert images.describe(images.load(folder)).splitlines() == [
        "data              données 図 of mine",
        "images            5 to train with, 5 to test with",
        "size              6 x 4 pixels, 3 channels",
        "stored as         image files of mode RGB (8), L (2)",
        "values            0 ... 255; 0 ... 255 is scaled to -1 ... 1",
        "images a class    2 (bee) ... 3 (ánt) to train with",
        "                  2 (ánt) ... 3 (bee) to test with",
        "order of classes  bee, ánt",
    ]
    assert "values            0 ... 16; 0 ... 16 is" in images.describe(images.load("digits"))


def write_idx(path: Path, values: np.ndarray) -> None:
    header = bytes([0, 0, 8, values.ndim]) + b"".join(n.to_bytes(4, "big") for n in values.shape)
    path.write_bytes(header + values.astype(np.uint8).tobytes())


def test_fashion_mnist(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = folder / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    g = np.random.default_rng(0)
    pictures = g.integers(0, 256, (20, 28, 28))
    for part, chosen in (("train", slice(0, 10)), ("t10k", slice(10, 20))):
        write_idx(raw / f"{part}-images-idx3-ubyte", pictures[chosen])
        write_idx(raw / f"{part}-labels-idx1-ubyte", np.arange(20)[chosen] % 10)
    monkeypatch.setenv("MOLRG_DATA", str(folder))
    data = images.load("fashion_mnist")
    assert data.shape == (1, 28, 28)
    assert data.class_names[9] == "ankle boot"
    assert data.test_labels.tolist() == list(range(10))
    assert np.array_equal(((data.train_images + 1) * 127.5).round().numpy(), pictures[:10].reshape(10, -1))
    assert data.digest.startswith("595e9ad638a2")
    file = raw / "train-images-idx3-ubyte"
    whole = file.read_bytes()
    for content in (whole[:-1], b"something else", whole[:3] + b"\1" + whole[4:], b""):
        file.write_bytes(content)
        with pytest.raises(ValueError, match="train-images-idx3-ubyte is not a whole IDX file"):
            images.load("fashion_mnist")


def write_cifar(path: Path, **content: Any) -> None:
    with path.open("wb") as file:
        pickle.dump(content, file, protocol=2)


def publish(monkeypatch: pytest.MonkeyPatch, kind: type, home: Path) -> None:
    """Let the checksums that torchvision knows be those of the files at hand."""

    def known(file: str) -> str:
        return hashlib.md5((home / file).read_bytes()).hexdigest()

    for name in ("train_list", "test_list"):
        monkeypatch.setattr(kind, name, [[file, known(file)] for file, _ in getattr(kind, name)])
    meta = kind.meta  # type: ignore[attr-defined]
    monkeypatch.setattr(kind, "meta", {**meta, "md5": known(meta["filename"])})


def cifar_pictures(number: int) -> tuple[np.ndarray, np.ndarray]:
    pictures = np.random.default_rng(number).integers(0, 256, (number, 32, 32, 3), dtype=np.uint8)
    return pictures, pictures.transpose(0, 3, 1, 2).reshape(number, 3072)


def write_cifar10(home: Path, rows: np.ndarray) -> None:
    """Write ten training images, two a batch, and test with the same."""
    home.mkdir(parents=True, exist_ok=True)
    for i in range(5):
        write_cifar(home / f"data_batch_{i + 1}", data=rows[2 * i : 2 * i + 2], labels=[2 * i, 2 * i + 1])
    write_cifar(home / "test_batch", data=rows, labels=list(range(10))[::-1])
    write_cifar(home / "batches.meta", label_names=[f"class {i}" for i in range(10)])


def test_cifar10(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures, rows = cifar_pictures(10)
    write_cifar10(folder / "cifar-10-batches-py", rows)
    publish(monkeypatch, torchvision.datasets.CIFAR10, folder / "cifar-10-batches-py")
    data = images.load("cifar10", root=folder)
    assert data.shape == (3, 32, 32)
    assert data.train_labels.tolist() == list(range(10))
    assert data.test_labels.tolist() == list(range(10))[::-1]
    assert data.class_names[3] == "class 3"
    assert np.array_equal(pixels(data), pictures)
    assert data.digest.startswith("b22b9388d108")


def test_cifar100_with_its_groups(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = folder / "cifar-100-python"
    home.mkdir()
    _, rows = cifar_pictures(100)
    fine = list(range(100))[::-1]
    for file in ("train", "test"):
        write_cifar(home / file, data=rows, fine_labels=fine, coarse_labels=[f // 5 for f in fine])
    write_cifar(
        home / "meta",
        fine_label_names=[f"fine {i}" for i in range(100)],
        coarse_label_names=[f"coarse {i}" for i in range(20)],
    )
    publish(monkeypatch, torchvision.datasets.CIFAR100, home)
    data = images.load("cifar100", root=folder)
    assert data.num_classes == 100
    assert data.coarse_of_class is not None
    assert data.coarse_of_class.tolist() == [i // 5 for i in range(100)]
    assert data.coarse_names is not None
    assert len(data.coarse_names) == 20
    assert data.digest.startswith("bbe9109b3876")


class Malicious:
    """Pickles to a call of os.mkdir."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_a_pickle_that_would_run_code_is_not_opened(
    folder: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One bad file among published ones, whichever it is."""
    kind = getattr(torchvision.datasets, name.upper())
    home = folder / kind.base_folder
    home.mkdir()
    files = [file for file, _ in kind.train_list + kind.test_list] + [kind.meta["filename"]]
    for file in files:
        write_cifar(home / file)
    publish(monkeypatch, kind, home)
    for file in files:
        good = (home / file).read_bytes()
        write_cifar(home / file, data=Malicious(folder / "trace"))
        with pytest.raises(ValueError, match=rf"not the published files, by their checksums: {file}\. "):
            images.load(name, root=folder)
        assert not (folder / "trace").exists()
        (home / file).write_bytes(good)


@pytest.mark.parametrize(
    ("name", "title", "place"),
    [
        ("fashion_mnist", "Fashion-MNIST", "FashionMNIST"),
        ("cifar10", "CIFAR-10", "cifar-10-batches-py"),
        ("cifar100", "CIFAR-100", "cifar-100-python"),
    ],
)
def test_missing_data_says_what_where_and_how(folder: Path, name: str, title: str, place: str) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        images.load(name, root=folder)
    message = str(caught.value)
    assert message.startswith(f"{title} not found")
    assert str(folder / place) in message
    assert "MOLRG_DATA" in message
    assert f"load('{name}', download=True)" in message
    assert not any(folder.iterdir())


def test_unknown_names_and_paths(folder: Path) -> None:
    with pytest.raises(ValueError, match="unknown data set 'mnist': choose one of digits, fashion_mnist"):
        images.load("mnist", root=folder)
    with pytest.raises(FileNotFoundError, match=r"'no/such\.npz' not found: looked for"):
        images.load("no/such.npz", root=folder)


def test_download_is_asked_for_only_when_missing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind, calls = torchvision.datasets.CIFAR10, []
    home = folder / "new" / kind.base_folder
    _, rows = cifar_pictures(10)
    write_cifar10(home, rows)
    publish(monkeypatch, kind, home)
    (home / "data_batch_2").unlink()

    def fake(dataset: Any) -> None:
        if not dataset._check_integrity():
            calls.append(dataset.root)
            write_cifar10(home, rows)

    monkeypatch.setattr(kind, "download", fake)
    for _ in range(2):
        assert len(images.load("cifar10", root=folder / "new", download=True).train_images) == 10
    assert calls == [str(folder / "new")]
