"""Data sets read from small files in their real on-disk formats; what is missing or wrong is named."""

import gzip
import os
import pickle
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from molrg import images, sources

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
        with sources.listed() as noted:
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
    with sources.listed() as noted, sources.listed() as inner:
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
        (changed(class_names=np.array([1, 2, 3])), "class_names must be a 1-D array"),
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
    (folder / "test" / "wasp").mkdir()
    with pytest.raises(ValueError, match=r"test/ has classes that train/ lacks: wasp"):
        images.load(folder)
    (folder / "test" / "wasp").rmdir()
    picture = folder / "train" / "bee" / "0 é.png"
    Image.fromarray(np.zeros((9, 6), np.uint8)).save(picture)
    with pytest.raises(ValueError, match="one size, found 6x9 and 6x4"):
        images.load(folder)
    picture.write_bytes(b"no image")
    with pytest.raises(ValueError, match="is not a readable image"):
        images.load(folder)


def write_idx(path: Path, values: np.ndarray, compress: bool = False) -> None:
    header = bytes([0, 0, 8, values.ndim]) + b"".join(n.to_bytes(4, "big") for n in values.shape)
    content = header + values.astype(np.uint8).tobytes()
    if compress:
        Path(f"{path}.gz").write_bytes(gzip.compress(content))
    else:
        path.write_bytes(content)


@pytest.mark.parametrize("compress", [False, True])
def test_fashion_mnist(folder: Path, compress: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = folder / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    g = np.random.default_rng(0)
    pictures = g.integers(0, 256, (12, 28, 28))
    for part, chosen in (("train", slice(0, 10)), ("t10k", slice(10, 12))):
        write_idx(raw / f"{part}-images-idx3-ubyte", pictures[chosen], compress)
        write_idx(raw / f"{part}-labels-idx1-ubyte", np.arange(12)[chosen] % 10, compress)
    monkeypatch.setenv("MOLRG_DATA", str(folder))
    data = images.load("fashion_mnist")
    assert data.shape == (1, 28, 28)
    assert data.class_names[9] == "ankle boot"
    assert data.test_labels.tolist() == [0, 1]
    assert np.array_equal(((data.train_images + 1) * 127.5).round().numpy(), pictures[:10].reshape(10, -1))
    assert data.digest.startswith("b29b3dd09ca1")  # of the content, whether compressed or not
    if not compress:
        file = raw / "train-images-idx3-ubyte"
        file.write_bytes(file.read_bytes()[:-1])
        with pytest.raises(ValueError, match="is truncated: 7839 bytes of data where 7840"):
            images.load("fashion_mnist")
        file.write_bytes(b"something else")
        with pytest.raises(ValueError, match="not an IDX file"):
            images.load("fashion_mnist")


def write_cifar(path: Path, **content: Any) -> None:
    with path.open("wb") as file:
        pickle.dump(content, file, protocol=2)


def cifar_pictures(number: int) -> tuple[np.ndarray, np.ndarray]:
    pictures = np.random.default_rng(number).integers(0, 256, (number, 32, 32, 3), dtype=np.uint8)
    return pictures, pictures.transpose(0, 3, 1, 2).reshape(number, 3072)


def test_cifar10(folder: Path) -> None:
    home = folder / "cifar-10-batches-py"
    home.mkdir()
    pictures, rows = cifar_pictures(5)
    for i in range(5):
        write_cifar(home / f"data_batch_{i + 1}", data=rows[i : i + 1], labels=[i], filenames=["a.png"])
    write_cifar(home / "test_batch", data=rows[:2], labels=[7, 9])
    write_cifar(home / "batches.meta", label_names=[f"class {i}" for i in range(10)])
    data = images.load("cifar10", root=folder)
    assert data.shape == (3, 32, 32)
    assert data.train_labels.tolist() == [0, 1, 2, 3, 4]
    assert data.test_labels.tolist() == [7, 9]
    assert data.class_names[3] == "class 3"
    back = ((data.train_images.reshape(5, 3, 32, 32).permute(0, 2, 3, 1) + 1) * 127.5).round().numpy()
    assert np.array_equal(back, pictures)


def test_cifar100_with_its_groups(folder: Path) -> None:
    home = folder / "cifar-100-python"
    home.mkdir()
    _, rows = cifar_pictures(100)
    fine = list(range(100))[::-1]
    write_cifar(home / "train", data=rows, fine_labels=fine, coarse_labels=[f // 5 for f in fine])
    write_cifar(home / "test", data=rows[:3], fine_labels=[5, 50, 99], coarse_labels=[1, 10, 19])
    write_cifar(
        home / "meta",
        fine_label_names=[f"fine {i}" for i in range(100)],
        coarse_label_names=[f"coarse {i}" for i in range(20)],
    )
    data = images.load("cifar100", root=folder)
    assert data.num_classes == 100
    assert data.coarse_of_class is not None
    assert data.coarse_of_class.tolist() == [i // 5 for i in range(100)]
    assert data.coarse_names is not None
    assert len(data.coarse_names) == 20
    write_cifar(home / "train", data=rows, fine_labels=fine, coarse_labels=[1] * 99)
    with pytest.raises(ValueError, match="coarse_labels must give a group"):
        images.load("cifar100", root=folder)


class Malicious:
    """Pickles to a call of os.mkdir."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_a_pickle_that_would_run_code_is_refused(folder: Path) -> None:
    home = folder / "cifar-10-batches-py"
    home.mkdir()
    for file in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        write_cifar(home / file, data=Malicious(folder / "trace"), labels=[0])
    write_cifar(home / "batches.meta", label_names=["a", "b"])
    with pytest.raises(ValueError, match=r"data_batch_1 is not a CIFAR file: .*mkdir is not allowed"):
        images.load("cifar10", root=folder)
    assert not (folder / "trace").exists()
    write_cifar(home / "data_batch_1", data=np.zeros((1, 9), np.uint8), labels=[0])
    with pytest.raises(ValueError, match=r"'data' must be uint8 of shape \(N, 3072\)"):
        images.load("cifar10", root=folder)
    (home / "data_batch_1").write_bytes(b"\x80\x02")
    with pytest.raises(ValueError, match="data_batch_1 is not a CIFAR file"):
        images.load("cifar10", root=folder)


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
    import torchvision.datasets

    calls = []

    def fake(root: str, download: bool) -> None:
        calls.append(root)
        home = Path(root) / "cifar-10-batches-py"
        home.mkdir()
        _, rows = cifar_pictures(2)
        for file in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
            write_cifar(home / file, data=rows, labels=[0, 1])
        write_cifar(home / "batches.meta", label_names=["a", "b"])

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", fake)
    for _ in range(2):
        assert len(images.load("cifar10", root=folder / "new", download=True).train_images) == 10
    assert calls == [str(folder / "new")]
