"""Features at scale: the same however they are cut up, stopped and shared; and nothing computed twice."""

import multiprocessing
import os
import re
import resource
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from experiments.images import denoisers
from molrg import images
from molrg.learning.networks import MLP, Preconditioned
from molrg.measuring import feature_store, features
from molrg.model import noise
from molrg.support import fingerprints, tensor_files
from molrg.support.clone import ROOT

SIGMAS = (0.1, 0.5, 2.0)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network(seed: int = 0) -> Preconditioned:
    return Preconditioned(MLP(6, width=16, depth=3, generator=generator(seed)), 1.0)


def points(n: int = 150, dim: int = 6) -> Tensor:
    return torch.randn(n, dim, generator=generator(1))


def sweep(*arguments: Any, **options: Any) -> feature_store.Features:
    return feature_store.sweep(*arguments, progress=False, **options)


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of 64 rows: of the 150 images at each level, 64, 64 and 22."""
    monkeypatch.setattr(feature_store, "CHUNK_ROWS", 64)


class Counter:
    """Counts the rows that pass through a denoiser, and stops it where asked."""

    def __init__(self, denoiser: nn.Module, stop: int | None = None) -> None:
        self.rows, self.stop = 0, stop
        self.handle = denoiser.register_forward_pre_hook(self._see)

    def _see(self, _module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if self.stop is not None and self.rows >= self.stop:
            raise KeyboardInterrupt
        self.rows += len(inputs[0])

    def __enter__(self) -> "Counter":
        return self

    def __exit__(self, *_: object) -> None:
        self.handle.remove()


def same(left: feature_store.Features, right: feature_store.Features) -> bool:
    return left.layers == right.layers and all(torch.equal(left[n], right[n]) for n in left.layers)


def finished(folder: Path) -> int:
    """Rows whose features are in the folder."""
    return sum(len(tensor_files.load(file)[0]["denoised"]) for file in folder.glob("0*.safetensors"))


# ---- What is computed


@pytest.mark.parametrize("added", [None, 0.0, (0.0, 0.3, 0.7)])
@pytest.mark.parametrize("in_folder", [False, True])
def test_each_level_is_what_extract_gives(
    added: float | tuple[float, ...] | None, in_folder: bool, tmp_path: Path
) -> None:
    denoiser, x0 = network(), points()
    layers = ["network.blocks.2", "network.blocks.0", "denoised"]
    folder = tmp_path / "features" if in_folder else None
    found = sweep(denoiser, x0, SIGMAS, added=added, layers=layers, batch_size=70, folder=folder)
    assert found.layers == tuple(layers)
    levels = SIGMAS if added is None else added if isinstance(added, tuple) else (added,) * 3
    assert found.added == levels
    for s, (sigma, level) in enumerate(zip(SIGMAS, levels, strict=True)):
        x = x0 + float(level) * feature_store.epsilon(0, len(x0), 6, level)
        expected = features.extract(denoiser, x, sigma, layers)
        for name in layers:
            torch.testing.assert_close(found[name, s], expected[name])
            assert found[name].shape == (3, 150, expected[name].shape[1])


@pytest.mark.parametrize("model", ["unet", "dit"])
def test_image_networks(model: str, tmp_path: Path) -> None:
    data = images.load("digits")
    size = {key: denoisers.SMOKE[model][key] for key in ("width", "depth")}
    denoiser, x0 = denoisers.build(data, model, size["width"], size["depth"], seed=0), data.train_images[:50]
    with torch.no_grad():  # blocks of a fresh DiT are the identity
        for parameter in denoiser.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator()))
    reduce = features.grid_mean(2)
    found = sweep(denoiser, x0, [0.1, 1.0], added=0.0, reduce=reduce, batch_size=40, folder=tmp_path / "a")
    for s, sigma in enumerate((0.1, 1.0)):
        for name, values in features.extract(denoiser, x0, sigma, reduce=reduce).items():
            torch.testing.assert_close(found[name, s], values, rtol=1e-4, atol=1e-5)
    assert same(found, sweep(denoiser, x0, [0.1, 1.0], added=0.0, reduce=reduce, batch_size=40))


def test_noise_depends_on_image_level_draw_and_seed_alone() -> None:
    whole = feature_store.epsilon(0, 200, 6, 0.5)
    for first, last in ((0, 1), (63, 65), (64, 128), (100, 200)):
        assert torch.equal(feature_store.epsilon(first, last, 6, 0.5), whole[first:last])
    others = [
        feature_store.epsilon(0, 200, 6, 0.5, seed=1),
        feature_store.epsilon(0, 200, 6, 0.5, draw=1),
        feature_store.epsilon(0, 200, 6, 0.5000001),
        whole.roll(64, 0),
    ]
    for other in others:
        correlation = (whole * other).mean().item()
        assert abs(correlation) < 4 / 1200**0.5
    assert abs(whole.std().item() - 1) < 4 / 2400**0.5


def test_the_seeds_of_the_noise_are_those_that_are_documented() -> None:
    """In this order; a folder that was begun with another order could not be gone on with."""
    (level,) = struct.unpack("<Q", struct.pack("<d", 0.3))
    seeds = [5, 2, 1, level]  # seed, draw, block, level
    expected = np.random.default_rng(seeds).standard_normal((64, 6), np.float32)[6:10]
    found = feature_store.epsilon(70, 74, 6, 0.3, seed=5, draw=2)
    np.testing.assert_array_equal(found.numpy(), expected)


def test_every_row_sees_its_own_level_and_noise() -> None:
    """With a denoiser whose output is the level, and one whose output is its input."""

    class Level(nn.Module):
        def forward(self, x: Tensor, sigma: float | Tensor) -> Tensor:
            return torch.as_tensor(sigma).reshape(-1, 1).expand(len(x), 1)

    class Input(nn.Module):
        def forward(self, x: Tensor, sigma: float | Tensor) -> Tensor:
            return x

    levels = torch.linspace(0.1, 1.5, 11)
    for batch_size in (1, 4, 11):
        found = features.extract(Level(), points(11), levels, ["denoised"], batch_size=batch_size)
        assert torch.equal(found["denoised"][:, 0], levels)
        streamed = features.stream(Level(), points(11), levels, ["denoised"], batch_size=batch_size)
        assert torch.equal(torch.cat([batch["denoised"][:, 0] for _, batch in streamed]), levels)
    stored = sweep(Level(), points(70), SIGMAS, layers=["denoised"])
    assert torch.equal(stored["denoised"][:, :, 0], torch.tensor(SIGMAS)[:, None].expand(3, 70))
    noised = sweep(Input(), points(70), SIGMAS, layers=["denoised"])["denoised"]
    for s, sigma in enumerate(SIGMAS):
        assert torch.equal(noised[s], points(70) + sigma * feature_store.epsilon(0, 70, 6, sigma))


def test_the_cut_into_batches_and_chunks_changes_rounding_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    denoiser, x0 = network().double(), points().double()
    expected = sweep(denoiser, x0, SIGMAS, draws=2)
    for batch_size, chunk in ((5, 1024), (7, 64), (1000, 100), (64, 3)):
        monkeypatch.setattr(feature_store, "CHUNK_ROWS", chunk)
        found = sweep(denoiser, x0, SIGMAS, draws=2, batch_size=batch_size)
        for name in expected.layers:
            torch.testing.assert_close(found[name], expected[name], rtol=1e-6, atol=1e-7)


def test_a_level_does_not_depend_on_the_others_nor_an_image_on_its_followers() -> None:
    whole = sweep(network().double(), points().double(), SIGMAS)
    part = sweep(network().double(), points().double()[:70], SIGMAS[1])
    for name in whole.layers:
        torch.testing.assert_close(part[name][0], whole[name][1, :70], rtol=1e-6, atol=1e-7)


def test_features_are_averaged_over_draws_of_the_noise() -> None:
    denoiser, x0 = network(), points(100)
    found = sweep(denoiser, x0, [0.5], draws=3)
    single = [
        features.extract(denoiser, x0 + 0.5 * feature_store.epsilon(0, 100, 6, 0.5, draw=draw), 0.5)
        for draw in range(3)
    ]
    for name in found.layers:
        torch.testing.assert_close(found[name, 0], torch.stack([each[name] for each in single]).mean(0))
    with Counter(denoiser) as clean:
        sweep(denoiser, x0, SIGMAS, added=0.0, draws=3)
    assert clean.rows == 1 + 300  # one image finds the widths


def test_one_pass_serves_all_layers() -> None:
    denoiser, calls = network(), []
    handle = denoiser.register_forward_pre_hook(lambda _module, inputs: calls.append(len(inputs[0])))
    sweep(denoiser, points(150), SIGMAS, batch_size=100)
    handle.remove()
    assert calls == [1] + 3 * [100, 50]


def test_lower_precision_stays_near_and_is_kept_in_float16() -> None:
    denoiser, x0 = network(), points()
    exact = sweep(denoiser, x0, SIGMAS)
    half = sweep(denoiser, x0, SIGMAS, dtype="float16")
    quick = sweep(denoiser, x0, SIGMAS, precision="bfloat16")
    for name in exact.layers:
        assert torch.equal(half[name], exact[name].half().float())
        error = (quick[name] - exact[name]).abs().max() / exact[name].abs().max()
        assert 0 < error < 0.03


def test_levels_as_probes(tmp_path: Path) -> None:
    for folder in (None, tmp_path / "a"):
        found = sweep(network(), points(), SIGMAS, folder=folder)
        name = found.layers[0]
        assert torch.equal(found[name, :], torch.stack([found[name, s] for s in range(3)]))
        assert torch.equal(found[name, [2, 0]], found[name, :][[2, 0]])
        assert torch.equal(found[name, -1], found[name, 2])
        assert torch.equal(found[name], found[name, :])
        with pytest.raises(KeyError, match=r"no layer 'x'; there are: network\.blocks\.0"):
            found["x"]


def test_the_example_of_the_readme_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```py\n(# extract\.py\n.*?)```", text, flags=re.S)
    small = code.replace('"fashion_mnist"', '"digits"').replace("smoke=False", "smoke=True")
    small = small.replace("data.train_images,", "data.train_images[:50],")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MOLRG_NETWORKS", str(tmp_path / "networks"))
    exec(compile(small, "README.md", "exec"), {})
    found = feature_store.load("features")
    assert found.sigmas == tuple(noise.paper_levels().tolist())
    assert capsys.readouterr().out == f"{found[found.layers[0], 5].shape}\n"


# ---- The folder


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_folder_holds_what_memory_would(dtype: str, tmp_path: Path) -> None:
    denoiser, x0 = network(), points()
    expected = sweep(denoiser, x0, SIGMAS, draws=2, batch_size=50, dtype=dtype)
    options: dict[str, Any] = {"draws": 2, "dtype": dtype, "folder": tmp_path / "a"}
    assert same(sweep(denoiser, x0, SIGMAS, batch_size=50, **options), expected)
    found = feature_store.load(tmp_path / "a")
    for _ in range(2):  # the files are checked when they are read first
        assert same(found, expected)
    tensors, _ = tensor_files.load(tmp_path / "a" / "0001-00000064.safetensors")
    assert tensors["network.blocks.1"].dtype == getattr(torch, dtype)
    assert torch.equal(tensors["network.blocks.1"].float(), expected["network.blocks.1", 1][64:128])
    with Counter(denoiser) as counter:
        assert same(sweep(denoiser, x0, SIGMAS, **options), expected)
    assert counter.rows == 1


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("stops", [[1], [64], [100, 70, 150], [65, 65, 65, 65]])
def test_a_stopped_run_goes_on_and_computes_no_chunk_twice(stops: list[int], tmp_path: Path) -> None:
    denoiser, x0, layers = network(), points(), ["network.blocks.1", "denoised"]
    expected = sweep(denoiser, x0, SIGMAS, batch_size=32, layers=layers)
    done = 0
    for stop in stops:
        with Counter(denoiser, stop) as counter, pytest.raises(KeyboardInterrupt):
            sweep(denoiser, x0, SIGMAS, batch_size=32, layers=layers, folder=tmp_path / "a")
        before, done = done, finished(tmp_path / "a")
        assert counter.rows - 1 - 64 <= done - before <= counter.rows - 1  # at most the chunk at work is lost
    with pytest.raises(ValueError, match=r"of 9 chunks in .* are not finished; call sweep again"):
        feature_store.load(tmp_path / "a")
    with Counter(denoiser) as counter:
        found = sweep(denoiser, x0, SIGMAS, batch_size=32, layers=layers, folder=tmp_path / "a")
    assert counter.rows == 1 + 450 - done
    assert same(found, expected)


SCRIPT = """
import resource, sys, torch
from molrg.measuring import feature_store
from molrg.learning.networks import MLP, Preconditioned
torch.set_num_threads(1)
feature_store.CHUNK_ROWS = 64
g = torch.Generator().manual_seed(0)
denoiser = Preconditioned(MLP(6, width=64, depth=3, generator=g), 1.0)
x0 = torch.randn(3000, 6, generator=g)
passed = []
def note(module, inputs):
    print(len(inputs[0]), flush=True)
denoiser.register_forward_pre_hook(note)
"""


def python(script: str, *arguments: str, **environment: str) -> "subprocess.Popen[str]":
    surroundings = os.environ | {"OMP_NUM_THREADS": "1"} | environment
    command = [sys.executable, "-W", "error", "-c", script, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=surroundings)


def test_kill_at_any_moment(tmp_path: Path) -> None:
    """Killed with -9 again and again: the rest is the same bit for bit, and finished chunks stand."""
    levels = "[0.1, 0.5, 2.0]"
    script = SCRIPT + (
        "for folder in sys.argv[1:]:\n"
        f"    feature_store.sweep(denoiser, x0, {levels}, folder=folder, batch_size=32, progress=False,\n"
        "        layers=['network.blocks.0', 'denoised'])"
    )
    moments = np.random.default_rng().integers(5, 90, 2)  # any must do
    folder = tmp_path / "a"
    done = 0
    for moment in moments:
        run = python(script, str(folder))
        assert run.stdout is not None
        for _ in range(moment):  # passes of 32 rows
            assert run.stdout.readline()
        run.send_signal(signal.SIGKILL)
        run.wait()
        run.stdout.close()
        before, done = done, finished(folder)
        # Passes of 1 (for the shapes), 32, 32, ...; the last two chunks may not be written yet.
        assert done >= before + 32 * (moment - 1) - 2 * 64
    run = python(script, str(folder), str(tmp_path / "b"))
    output, _ = run.communicate()
    assert run.returncode == 0
    assert sum(map(int, output.split())) == 1 + (9000 - done) + 1 + 9000
    assert same(feature_store.load(folder), feature_store.load(tmp_path / "b"))


def die_at(step: str, folder: Path) -> None:
    def die(*_: Any, **__: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    with mock.patch(step, die):
        sweep(network(), points(), 0.5, folder=folder)


@pytest.mark.parametrize("step", ["tempfile.mkstemp", "os.fsync", "pathlib.Path.replace"])
def test_a_kill_in_the_first_instant_blocks_nothing(step: str, tmp_path: Path) -> None:
    """Dead before, while and after the manifest is written for the first time."""
    folder = tmp_path / "a"
    killed = multiprocessing.get_context("fork").Process(target=die_at, args=(step, folder))
    killed.start()
    killed.join(60)
    assert killed.exitcode == -signal.SIGKILL
    left = list(folder.iterdir())
    assert len(left) == (step != "tempfile.mkstemp")
    assert same(sweep(network(), points(), 0.5, folder=folder), sweep(network(), points(), 0.5))
    assert set(left) <= set(folder.iterdir())  # they might belong to a process that lives
    for file in left:
        os.utime(file, (0, 0))
    sweep(network(), points(), 0.5, folder=folder)
    assert not list(folder.glob(".*"))


@pytest.mark.usefixtures("small_chunks")
def test_a_folder_of_another_run_is_refused(tmp_path: Path) -> None:
    denoiser, x0, folder = network(), points(), tmp_path / "a"
    sweep(denoiser, x0, SIGMAS, folder=folder)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    changes: list[tuple[str, Callable[[], object]]] = [
        ("weights", lambda: sweep(network(1), x0, SIGMAS, folder=folder)),
        ("images digest", lambda: sweep(denoiser, x0 + 1, SIGMAS, folder=folder)),
        ("sigmas", lambda: sweep(denoiser, x0, (0.1, 0.5, 3.0), added=SIGMAS, folder=folder)),
        ("added", lambda: sweep(denoiser, x0, SIGMAS, added=0.1, folder=folder)),
        ("draws", lambda: sweep(denoiser, x0, SIGMAS, draws=2, folder=folder)),
        ("seed", lambda: sweep(denoiser, x0, SIGMAS, seed=1, folder=folder)),
        ("reduce", lambda: sweep(denoiser, x0, SIGMAS, reduce=lambda a: a, folder=folder)),
        ("precision", lambda: sweep(denoiser, x0, SIGMAS, precision="bfloat16", folder=folder)),
        ("dtype", lambda: sweep(denoiser, x0, SIGMAS, dtype="float16", folder=folder)),
        ("layers", lambda: sweep(denoiser, x0, SIGMAS, layers=["denoised"], folder=folder)),
    ]
    for name, call in changes:
        with pytest.raises(ValueError, match=rf"another run; different are: {name} \([^;]*here\)\. Give"):
            call()
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


def test_reduces_are_distinguished() -> None:
    kinds = [features.spatial_mean, features.grid_mean(2), features.grid_mean(4), lambda a: a.flatten(1)]
    kinds.append(lambda a: a.flatten(1)[:, :2])
    shapes = [(2, 3, 8, 8), (2, 16, 3), (2, 3)]
    named = [fingerprints.behaviour(kind, shapes) for kind in kinds]
    assert len(set(named)) == len(kinds)
    assert named[1] == fingerprints.behaviour(features.grid_mean(2), shapes)
    assert named[3] == fingerprints.behaviour(lambda a: a.flatten(1), shapes)


@pytest.mark.usefixtures("small_chunks")
def test_one_flipped_byte_is_noticed(tmp_path: Path) -> None:
    denoiser, x0, folder = network(), points(), tmp_path / "a"

    def again() -> feature_store.Features:
        return sweep(denoiser, x0, SIGMAS, folder=folder)

    name = again().layers[1]
    chunk, dice = folder / "0001-00000064.safetensors", np.random.default_rng(0)
    good = chunk.read_bytes()
    for position in [*range(0, 120, 5), *dice.integers(0, len(good), 40), len(good) - 1]:
        bad = bytearray(good)
        bad[position] ^= 1 << int(dice.integers(8))
        chunk.write_bytes(bad)
        found = again()
        assert found[name, 0].shape == (150, 16)
        with pytest.raises(ValueError, match=rf"{chunk.name} is damaged: .* Delete it to compute it again"):
            found[name, 1]
    chunk.unlink()
    with Counter(denoiser) as counter:
        assert same(again(), sweep(network(), x0, SIGMAS))
    assert counter.rows == 1 + 64
    manifest = folder / "manifest.safetensors"
    whole = manifest.read_bytes()
    for position in dice.integers(0, len(whole), 60):
        bad = bytearray(whole)
        bad[position] ^= 1 << int(dice.integers(8))
        manifest.write_bytes(bad)
        for call in (again, lambda: feature_store.load(folder)):
            with pytest.raises(ValueError, match=r"manifest\.safetensors is damaged: .* extracted again"):
                call()


@pytest.mark.usefixtures("small_chunks")
def test_a_chunk_of_another_place_or_run_is_noticed(tmp_path: Path) -> None:
    denoiser, x0, folder = network(), points(), tmp_path / "a"
    sweep(denoiser, x0, SIGMAS, folder=folder)
    other = sweep(denoiser, x0, SIGMAS, folder=tmp_path / "b", seed=1)
    chunk = folder / "0001-00000064.safetensors"
    for source in (folder / "0002-00000064.safetensors", tmp_path / "b" / chunk.name):
        chunk.write_bytes(source.read_bytes())
        found = feature_store.load(folder)
        with pytest.raises(ValueError, match=rf"{chunk.name} is of another run or chunk; delete it and extr"):
            found["network.blocks.0"]
    assert other["network.blocks.0"].shape == (3, 150, 16)


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(ValueError, match="is not empty and holds no features; give a new folder"):
        sweep(network(), points(), SIGMAS, folder=tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(ValueError, match=r"holds no features: there is no manifest\.safetensors"):
        feature_store.load(tmp_path)


@pytest.fixture
def file_limit() -> Iterator[Callable[[int], None]]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.usefixtures("small_chunks")
def test_a_full_disk_loses_nothing(tmp_path: Path, file_limit: Callable[[int], None]) -> None:
    denoiser, x0, folder = network(), points(), tmp_path / "a"
    sweep(denoiser, x0[:40], SIGMAS, folder=tmp_path / "b")
    large = max(file.stat().st_size for file in (tmp_path / "b").iterdir())
    with Counter(denoiser, 65), pytest.raises(KeyboardInterrupt):
        sweep(denoiser, x0, SIGMAS, folder=folder)
    file_limit(large)
    with pytest.raises(OSError, match=r"cannot write .*-00000064\.safetensors \(.*\): File too large\. None"):
        sweep(denoiser, x0, SIGMAS, folder=folder)
    file_limit(resource.RLIM_INFINITY)
    assert len(list(folder.iterdir())) == 2  # the manifest and one chunk
    with Counter(denoiser) as counter:
        found = sweep(denoiser, x0, SIGMAS, folder=folder)
    assert counter.rows == 1 + 450 - 64
    assert same(found, sweep(denoiser, x0, SIGMAS))


def test_memory_stays_bounded(tmp_path: Path) -> None:
    """800 MB of features grow a process by what reading one level takes."""
    script = SCRIPT.replace("feature_store.CHUNK_ROWS = 64", "") + (
        "def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "wide = lambda a: a.repeat(1, 128)\n"
        "sweep = lambda n, name: feature_store.sweep(denoiser, x0[:n], [0.1, 0.5, 2.0], reduce=wide,\n"
        "    folder=sys.argv[1] + name, batch_size=128, progress=False)\n"
        "sweep(256, 'small'); before = peak()\n"
        "found = sweep(3000, 'large'); found[found.layers[0], 1]\n"
        "print('size', 3000 * 3 * 3 * 64 * 128 * 4 // 1024, 'grown', peak() - before)\n"
    )
    run = python(script, str(tmp_path))
    output, _ = run.communicate()
    assert run.returncode == 0
    numbers = re.search(r"size (\d+) grown (\d+)", output)
    assert numbers is not None
    size, grown = map(int, numbers.groups())
    assert size > 800_000
    # A level read as a tensor is 98 MB, and as much again on its way. macOS counts in bytes.
    assert grown / (1 if sys.platform == "linux" else 1024) < 200_000 + 10_000


# ---- Bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"added": [0.1, 0.2]}, "added must be a number or one for each of 3 sigmas, got 2"),
        ({"added": -1.0}, "added must be a finite number >= 0, got -1.0"),
        ({"added": "clean"}, "added must be a number or a 1-D array of them, got 'clean'"),
        ({"added": True}, "added must be a number or a 1-D array of them, got the boolean True"),
        ({"added": [0.1, True, 0.2]}, "got the boolean [0.1, True, 0.2]"),
        ({"added": [0.1, float("nan"), 0.2]}, "added must be a finite number >= 0, got nan"),
        ({"draws": 0}, "draws must be an integer >= 1, got 0"),
        ({"draws": True}, "draws must be an integer >= 1, got True"),
        ({"seed": -1}, "seed must be an integer >= 0, got -1"),
        ({"batch_size": 0}, "batch_size must be an integer >= 1, got 0"),
        ({"dtype": "float64"}, "dtype must be 'float32' or 'float16', got 'float64'"),
        ({"precision": "half"}, "precision must be 'full' or 'bfloat16' or 'float16', got 'half'"),
        ({"layers": ["blocks"]}, "unknown layers ['blocks']; valid ones: network, "),
        ({"reduce": lambda a: a[:, 0]}, "reduce must return (B, C), got (1,) of layer network.blocks.0"),
    ],
)
def test_wrong_values_are_named(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        sweep(network(), points(), SIGMAS, folder=tmp_path / "a", **options)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sigmas": [0.0, 1.0]}, "sigma must be finite and positive, got 0"),
        ({"sigmas": [0.1, -1.0]}, "sigma must be finite and positive, got -1"),
        ({"sigmas": float("nan")}, "sigma must be finite and positive, got nan"),
        ({"sigmas": [True, 1.0]}, "got the boolean"),
        ({"images": points().long()}, "x must be a floating-point tensor (N, n), got torch.int64"),
        ({"images": points().numpy()}, "x must be a floating-point tensor (N, n), got ndarray"),
        ({"images": points().reshape(150, 1, 2, 3)}, "got (150, 1, 2, 3); flatten images"),
        ({"images": points().masked_fill(points() > 1, torch.nan)}, "x must be finite, found NaN"),
    ],
)
def test_wrong_levels_and_images_are_named(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    arguments = {"denoiser": network(), "images": points(), "sigmas": SIGMAS} | change
    with pytest.raises(ValueError, match=re.escape(message)):
        sweep(**arguments, folder=tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_images_of_another_precision() -> None:
    """They are brought to that of the weights."""
    expected = sweep(network(), points(), 0.5, added=0.0)
    for x0 in (points().double(), points().half()):
        found = sweep(network(), x0, 0.5, added=0.0)
        for name in expected.layers:
            torch.testing.assert_close(found[name], expected[name], rtol=1e-2, atol=1e-2)


def test_features_that_are_not_finite(tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError, match=r"layer network\.blocks\.0 at sigma = 0\.5 are not finite"):
        sweep(network(), points(), [0.5], folder=tmp_path / "a", reduce=lambda a: a / 0)
    with pytest.raises(FloatingPointError, match=r"sigma = 0\.1 reach .*e\+06: use dtype='float32'"):
        sweep(network(), points(), [0.1], dtype="float16", reduce=lambda a: 1e6 * a)


# ---- Several processes


SHARED = (
    SCRIPT
    + """
from molrg.support.distributed import processes
found = feature_store.sweep(denoiser, x0[:1000], [0.1, 0.5, 2.0], folder=sys.argv[1], draws=2, batch_size=50,
    progress=False)
assert found[found.layers[0]].shape == (3, 1000, 64)
print("process", processes().index, "of", processes().count)
"""
)


def test_two_processes_give_what_one_gives(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "ACCELERATE_USE_CPU": "1"}
    runs = [python(SHARED, str(tmp_path / "one"), WORLD_SIZE="1")]
    runs += [
        python(SHARED, str(tmp_path / "two"), RANK=rank, LOCAL_RANK=rank, **common) for rank in ("0", "1")
    ]
    try:
        told = [run.communicate(timeout=120)[0].split("\n", 1) for run in runs]
    finally:
        for run in runs:
            run.kill()
    assert [run.returncode for run in runs] == [0, 0, 0]
    assert [text.split("\n")[-2] for _, text in told] == [
        "process 0 of 1",
        "process 0 of 2",
        "process 1 of 2",
    ]
    rows = [sum(int(line) for line in text.splitlines() if line.isdigit()) for _, text in told]
    assert rows[0] == 2 * 3000  # after the one that finds the widths
    assert rows[1] + rows[2] == 2 * 3000
    assert abs(rows[1] - rows[2]) <= 2 * 2 * 64  # a chunk, and what the last ones of a level lack
    assert same(feature_store.load(tmp_path / "one"), feature_store.load(tmp_path / "two"))
    names = [{each.name for each in (tmp_path / run).iterdir()} for run in ("one", "two")]
    assert names[0] == names[1]
    for name in names[0]:  # the manifest holds no tensors
        (one, about), (two, also) = (tensor_files.load(tmp_path / run / name) for run in ("one", "two"))
        assert about.pop("sha256")
        assert also.pop("sha256")
        assert about == also
        assert one.keys() == two.keys()
        assert all(torch.equal(one[layer], two[layer]) for layer in one)
