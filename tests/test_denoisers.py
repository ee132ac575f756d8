"""The denoisers that the image pages share: each name trains, and what was trained is taken up again."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from experiments.images import denoisers
from molrg import images
from molrg.images import published
from molrg.support import devices


@pytest.fixture(autouse=True)
def kept_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MOLRG_NETWORKS", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("model", denoisers.MODELS)
def test_each_is_trained_once_in_a_small_size(model: str, kept_apart: Path) -> None:
    data = images.load("digits")
    first = denoisers.get(data, model, seed=0, smoke=True)
    assert first.losses is not None
    assert len(first.losses) == denoisers.SMOKE[model]["steps"]
    assert math.isfinite(first.losses[-1].item())
    (file,) = kept_apart.iterdir()
    assert file == denoisers.place(data, model, **denoisers.SMOKE[model], seed=0)
    written = file.stat().st_mtime_ns
    again = denoisers.get(data, model, seed=0, smoke=True)
    assert file.stat().st_mtime_ns == written
    place = devices.best()
    x = data.test_images[:5].to(place)
    assert torch.equal(first.denoiser(x, 0.3), again.denoiser(x, 0.3))


def test_other_data_settings_and_seeds_are_kept_apart() -> None:
    data = images.load("digits")
    settings = {**denoisers.SMOKE["unet"], "seed": 0}
    others = [{**settings, name: value + 8} for name, value in settings.items()]
    places = {denoisers.place(data, "unet", **each) for each in (settings, *others)}
    places.add(denoisers.place(replace(data, digest="0" * 64), "unet", **settings))
    places.add(denoisers.place(data, "dit", **settings))
    assert len(places) == len(others) + 3


def test_the_large_unet_has_the_published_size() -> None:
    colour = replace(images.load("digits"), shape=(3, 32, 32))
    width, depth = (denoisers.SETTINGS["unet-36m"][name] for name in ("width", "depth"))
    with torch.device("meta"):
        large = denoisers.build(colour, "unet-36m", width, depth, 0)
    assert sum(weight.numel() for weight in large.parameters()) / 1e6 == pytest.approx(35.7, abs=0.1)


def test_levels_of_a_published_model_are_told_with_its_timesteps(tiny_checkpoint: Path) -> None:
    denoiser = published.load(tiny_checkpoint)
    levels = [0.1, 0.5]
    line = denoisers.levels_line(str(tiny_checkpoint), levels, [0.001])
    for level, step in zip(levels, denoiser.timesteps(torch.tensor(levels)), strict=True):
        assert f"{level:g} (t = {step:.1f})" in line
    assert line.endswith("left out, as it was not trained on them: 0.001")
    assert denoisers.levels_line("unet", levels, []) == "noise levels sigma: 0.1, 0.5"


def test_a_model_for_a_gpu_does_not_start_on_a_processor(
    kept_apart: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "best", lambda: torch.device("cpu"))
    data = images.load("digits")
    denoiser = denoisers.build(data, "mlp", 8, 1, 0)
    denoisers.refuse_days(denoiser, data, 9_999_999)
    with pytest.raises(RuntimeError, match=r"10,000,000 images is meant for a GPU.*hours.*MOLRG_ALLOW_CPU=1"):
        denoisers.refuse_days(denoiser, data, 10_000_000)
    with pytest.raises(RuntimeError, match="meant for a GPU"):
        denoisers.trained(data, "dit-b", 32, 3, 100_000, 256, seed=0)
    assert not list(kept_apart.iterdir())
    monkeypatch.setenv("MOLRG_ALLOW_CPU", "1")
    denoisers.refuse_days(denoiser, data, 10_000_000)
    monkeypatch.delenv("MOLRG_ALLOW_CPU")
    monkeypatch.setattr(devices, "best", lambda: torch.device("cuda"))
    denoisers.refuse_days(denoiser, data, 10_000_000)
    for model, meant in ((name, name in ("unet-36m", "dit-b")) for name in denoisers.MODELS):
        sizes = denoisers.SETTINGS[model]
        assert (sizes["steps"] * sizes["batch_size"] >= 10_000_000) == meant
