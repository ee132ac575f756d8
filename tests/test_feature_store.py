"""Features at scale: the same however they are cut up, stopped and shared; and nothing computed twice."""

import os
import re
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from experiments.images import denoisers
from molrg import images
from molrg.learning.networks import MLP, Preconditioned
from molrg.measuring import feature_store, features
from molrg.model import noise
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
    """Chunks of 64 rows, each recorded as soon as it is done."""
    monkeypatch.setattr(feature_store, "CHUNK_ROWS", 64)
    monkeypatch.setattr(feature_store, "_COMMIT_SECONDS", 0.0)


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
    return left.layers == right.layers and all(np.array_equal(left[n], right[n]) for n in left.layers)


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
    denoiser, x0 = denoisers.build(data, model, **size, seed=0), data.train_images[:50]
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


def test_the_cut_into_batches_and_chunks_changes_rounding_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    denoiser, x0 = network().double(), points().double()
    expected = sweep(denoiser, x0, SIGMAS, draws=2)
    for batch_size, chunk in ((5, 1024), (7, 64), (1000, 100), (64, 3)):
        monkeypatch.setattr(feature_store, "CHUNK_ROWS", chunk)
        found = sweep(denoiser, x0, SIGMAS, draws=2, batch_size=batch_size)
        for name in expected.layers:
            np.testing.assert_allclose(found[name], expected[name], rtol=1e-6, atol=1e-7)


def test_a_level_does_not_depend_on_the_others_nor_an_image_on_its_followers() -> None:
    whole = sweep(network().double(), points().double(), SIGMAS)
    part = sweep(network().double(), points().double()[:70], SIGMAS[1])
    for name in whole.layers:
        np.testing.assert_allclose(part[name][0], whole[name][1, :70], rtol=1e-6, atol=1e-7)


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


def test_one_pass_serves_all_layers_and_small_sets_share_batches() -> None:
    denoiser, calls = network(), []
    handle = denoiser.register_forward_pre_hook(lambda _module, inputs: calls.append(len(inputs[0])))
    sweep(denoiser, points(50), SIGMAS, batch_size=150)
    handle.remove()
    assert calls == [1, 150]


def test_lower_precision_stays_near_and_is_kept_in_float16() -> None:
    denoiser, x0 = network(), points()
    exact = sweep(denoiser, x0, SIGMAS)
    half = sweep(denoiser, x0, SIGMAS, dtype="float16")
    quick = sweep(denoiser, x0, SIGMAS, precision="bfloat16")
    for name in exact.layers:
        assert half[name].dtype == np.float16
        assert half[name, 0].dtype == torch.float32
        np.testing.assert_allclose(half[name], exact[name], rtol=2**-11, atol=1e-6)
        error = np.abs(quick[name] - exact[name]).max() / np.abs(exact[name]).max()
        assert 0 < error < 0.03


def test_levels_as_probes(tmp_path: Path) -> None:
    for folder in (None, tmp_path / "a"):
        found = sweep(network(), points(), SIGMAS, folder=folder)
        name = found.layers[0]
        assert torch.equal(found[name, :], torch.stack([found[name, s] for s in range(3)]))
        assert torch.equal(found[name, [2, 0]], found[name, :][[2, 0]])
        assert torch.equal(found[name, -1], found[name, 2])
        assert torch.equal(torch.from_numpy(np.array(found[name])), found[name, :])
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
def test_a_memory_map_holds_what_memory_would(tmp_path: Path) -> None:
    denoiser, x0 = network(), points()
    expected = sweep(denoiser, x0, SIGMAS, draws=2, batch_size=50)
    found = sweep(denoiser, x0, SIGMAS, draws=2, batch_size=50, folder=tmp_path / "a")
    assert same(found, expected)
    assert all(isinstance(found[name], np.memmap) for name in found.layers)
    assert same(feature_store.load(tmp_path / "a"), expected)
    file = np.load(tmp_path / "a" / "network.blocks.1.npy", mmap_mode="r")
    assert np.array_equal(file, expected["network.blocks.1"])
    with Counter(denoiser) as counter:
        assert same(sweep(denoiser, x0, SIGMAS, draws=2, folder=tmp_path / "a"), expected)
    assert counter.rows == 1


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("stops", [[1], [64], [100, 70, 150], [65, 65, 65, 65]])
def test_a_stopped_run_goes_on_and_computes_no_chunk_twice(stops: list[int], tmp_path: Path) -> None:
    denoiser, x0 = network(), points()
    expected = sweep(denoiser, x0, SIGMAS, batch_size=32)
    done = 0
    for stop in stops:
        with Counter(denoiser, stop) as counter, pytest.raises(KeyboardInterrupt):
            sweep(denoiser, x0, SIGMAS, batch_size=32, folder=tmp_path / "a")
        finished = int(np.load(tmp_path / "a" / "finished.npy").all(1).sum()) * 64
        assert finished - done >= counter.rows - 1 - 64  # at most the chunk at work is lost
        assert finished <= done + counter.rows - 1
        done = finished
    with pytest.raises(ValueError, match=r"of 8 chunks in .* are not finished; call sweep again"):
        feature_store.load(tmp_path / "a")
    with Counter(denoiser) as counter:
        found = sweep(denoiser, x0, SIGMAS, batch_size=32, folder=tmp_path / "a")
    assert counter.rows == 1 + 450 - done
    assert same(found, expected)


SCRIPT = """
import resource, sys, torch
from molrg.measuring import feature_store
from molrg.learning.networks import MLP, Preconditioned
torch.set_num_threads(1)
feature_store.CHUNK_ROWS, feature_store._COMMIT_SECONDS = 64, 0.0
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
        f"    feature_store.sweep(denoiser, x0, {levels}, folder=folder, batch_size=32, progress=False)"
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
        finished = int(np.load(folder / "finished.npy").all(1).sum())
        # Passes of 1 (for the widths), 32, 32, ...; the last two chunks may not be recorded yet.
        assert finished >= done + (moment - 1) // 2 - 2
        done = finished
    run = python(script, str(folder), str(tmp_path / "b"))
    output, _ = run.communicate()
    assert run.returncode == 0
    assert sum(map(int, output.split())) == 1 + (9000 - 64 * done) + 1 + 9000
    assert same(feature_store.load(folder), feature_store.load(tmp_path / "b"))


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


def test_reduces_are_told_apart() -> None:
    kinds = [features.spatial_mean, features.grid_mean(2), features.grid_mean(4), lambda a: a.flatten(1)]
    kinds.append(lambda a: a.flatten(1)[:, :2])
    told = [feature_store._description(kind) for kind in kinds]
    assert len(set(told)) == len(kinds)
    assert told[1] == feature_store._description(features.grid_mean(2))
    assert told[3] == feature_store._description(lambda a: a.flatten(1))


@pytest.mark.usefixtures("small_chunks")
def test_damage_is_noticed(tmp_path: Path) -> None:
    denoiser, x0, folder = network(), points(), tmp_path / "a"

    def again() -> feature_store.Features:
        return sweep(denoiser, x0, SIGMAS, folder=folder)

    name = again().layers[1]
    file = folder / f"{name}.npy"
    content = bytearray(file.read_bytes())
    content[-4 * 16 * 200] ^= 1  # in the last level, row 250 of the whole
    file.write_bytes(content)
    found = again()
    assert found[name, 0].shape == (150, 16)
    with pytest.raises(ValueError, match=rf"{name}.npy is damaged: rows 192 to 255 of its 450"):
        found[name, 1]
    file.write_bytes(content[:-1])
    with pytest.raises(ValueError, match=rf"{name}.npy is damaged .*; delete .* and extract again"):
        again()
    file.unlink()
    with pytest.raises(ValueError, match=rf"{name}.npy is damaged .*; delete .* and extract again"):
        again()
    for damaged in ("finished.npy", "manifest.json"):
        (folder / damaged).write_bytes(b"{")
        with pytest.raises(ValueError, match=rf"{damaged} is damaged"):
            again()


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(ValueError, match="is not empty and holds no features; give a new folder"):
        sweep(network(), points(), SIGMAS, folder=tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(ValueError, match=r"holds no features: there is no manifest\.json"):
        feature_store.load(tmp_path)


def test_creation_that_was_stopped_starts_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    denoiser, x0, folder = network(), points(), tmp_path / "a"
    with monkeypatch.context() as patch:
        patch.setattr(np, "save", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            sweep(denoiser, x0, SIGMAS, folder=folder)
    assert not (folder / "finished.npy").exists()
    assert same(sweep(denoiser, x0, SIGMAS, folder=folder), sweep(denoiser, x0, SIGMAS))


@pytest.fixture
def file_limit() -> Iterator[Callable[[int], None]]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.usefixtures("small_chunks")
def test_a_full_disk_loses_nothing(tmp_path: Path, file_limit: Callable[[int], None]) -> None:
    denoiser, x0, folder = network(), points(), tmp_path / "a"
    file_limit(10_000)
    with pytest.raises(OSError, match=r"cannot make .*npy \(2\.88e-05 GB\): File too large; make room"):
        sweep(denoiser, x0, SIGMAS, folder=folder)
    file_limit(resource.RLIM_INFINITY)
    with Counter(denoiser, 1), pytest.raises(KeyboardInterrupt):
        sweep(denoiser, x0, SIGMAS, folder=folder)
    file_limit(128 + 64 * 16 * 4 * 3 + 1000)  # in the fourth chunk
    with pytest.raises(OSError, match=r"cannot write to .*npy: File too large\. What is finished is kept"):
        sweep(denoiser, x0, SIGMAS, folder=folder)
    file_limit(resource.RLIM_INFINITY)
    assert np.load(folder / "finished.npy").all(1).sum() == 3
    with Counter(denoiser) as counter:
        found = sweep(denoiser, x0, SIGMAS, folder=folder)
    assert counter.rows == 1 + 450 - 3 * 64
    assert same(found, sweep(denoiser, x0, SIGMAS))


def test_too_large_for_disk_or_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        ValueError, match=r"take 8\.64e-05 GB, more than in_memory_bytes = 8\.6e\+04; give a fol"
    ):
        sweep(network(), points(), SIGMAS, in_memory_bytes=8.6e4)
    usage = type("usage", (), {"free": 1000})
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    with pytest.raises(OSError, match=r"take 8\.64e-05 GB, .* has room for 1e-06 GB; give another folder"):
        sweep(network(), points(), SIGMAS, folder=tmp_path / "a")
    assert list((tmp_path / "a").iterdir()) == []


def test_memory_stays_bounded(tmp_path: Path) -> None:
    """800 MB of features grow a process by what reading one level takes."""
    script = SCRIPT.replace("feature_store.CHUNK_ROWS, feature_store._COMMIT_SECONDS = 64, 0.0", "") + (
        "def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "wide = lambda a: a.repeat(1, 128)\n"
        "sweep = lambda n, name: feature_store.sweep(denoiser, x0[:n], [0.1, 0.5, 2.0], reduce=wide,\n"
        "    folder=sys.argv[1] + name, batch_size=128, progress=False)\n"
        "sweep(256, 'small'); before = peak()\n"
        "found = sweep(3000, 'large'); found[found.layers[0], 1]\n"
        "print('size', sum(found[n].nbytes for n in found.layers) // 1024, 'grown', peak() - before)\n"
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
        ({"added": "clean"}, "added must be a number or one for each sigma, got 'clean'"),
        ({"draws": 0}, "draws must be an integer >= 1, got 0"),
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
    with pytest.raises(ValueError, match="sigma must be finite and positive, got 0"):
        sweep(network(), points(), [0.0, 1.0])
    with pytest.raises(ValueError, match="images must be floating point"):
        sweep(network(), points().long(), SIGMAS)


def test_features_that_are_not_finite(tmp_path: Path) -> None:
    denoiser, x0 = network(), points()
    x0[120] = torch.nan
    with pytest.raises(FloatingPointError, match=r"layer network\.blocks\.0 at sigma = 0\.1, 0\.5 are NaN"):
        sweep(denoiser, x0, SIGMAS, folder=tmp_path / "a")
    with pytest.raises(FloatingPointError, match=r"sigma = 0\.1 reach .*e\+06, beyond float16; use dtype='f"):
        sweep(denoiser, points(), [0.1], dtype="float16", reduce=lambda a: 1e6 * a)


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
    assert abs(rows[1] - rows[2]) <= 2 * 64
    assert same(feature_store.load(tmp_path / "one"), feature_store.load(tmp_path / "two"))
    manifests = [(tmp_path / name / "manifest.json").read_text() for name in ("one", "two")]
    assert manifests[0] == manifests[1]
