"""The zoo of image networks: trainings that go on, snapshots that compare, files that are what they were."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments.images import image_data, model_zoo
from experiments.images.model_zoo import Training
from molrg.images import image_networks, zoo
from molrg.learning import recipe, training
from molrg.model import noise

SMALL = Training("digits", "unet-32-48", 0, 64 * 12)


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MOLRG_NETWORKS", str(tmp_path / "networks"))
    monkeypatch.setenv("MOLRG_ZOO", str(tmp_path / "zoo"))
    monkeypatch.setattr(model_zoo, "SNAPSHOTS", (64 * 4, 64 * 8))
    monkeypatch.setattr(model_zoo, "LEVELS", (0.1, 1.0))
    return tmp_path


def weights(path: Path) -> dict[str, torch.Tensor]:
    return dict(zoo.read(path).denoiser.state_dict())


def test_half_of_the_levels_come_from_either_distribution() -> None:
    low, high = noise.LogUniform(0.01, 0.1), noise.LogUniform(1.0, 2.0)
    levels = noise.Halves(low, high).sample(101, torch.Generator().manual_seed(0))
    assert (levels[::2] <= 0.1).all()
    assert (levels[1::2] >= 1.0).all()
    assert len(levels) == 101


def test_the_plateau_does_not_know_where_it_ends() -> None:
    schedule, hold = training.Plateau(warm=4, fall=0.1), training.Plateau(warm=4, fall=0.0)
    factors = [schedule(step, 100) for step in range(100)]
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0]
    assert factors[:91] == [hold(step, 5) for step in range(91)]
    assert factors[95] == pytest.approx(0.5)
    assert factors[99] == pytest.approx(0.1)


def test_mirrored_images_are_mirrored_left_to_right_half_of_the_time() -> None:
    x = torch.randn(2000, 12, generator=torch.Generator().manual_seed(0))
    changed = recipe.mirrored((1, 3, 4))(x, torch.Generator().manual_seed(1))
    flipped = x.reshape(-1, 3, 4).flip(2).flatten(1)
    as_they_were, mirror = (changed == x).all(1), (changed == flipped).all(1)
    assert (as_they_were ^ mirror).all()
    assert 0.45 < mirror.float().mean() < 0.55


def test_the_small_unet_scales_and_shifts_by_the_noise_level() -> None:
    network = image_networks.small_unet((1, 7, 7), (16, 32), torch.Generator().manual_seed(0))
    assert [name.removeprefix("model.") for name in network.feature_layers] == [
        "down_blocks.0",
        "down_blocks.1",
        "mid_block",
        "up_blocks.0",
        "up_blocks.1",
    ]
    x = torch.randn(3, 49)
    assert network(x, 0.1).shape == (3, 49)
    assert not torch.allclose(network(x, 0.1), network(x, -0.5))
    with pytest.raises(ValueError, match=r"multiples of 16.*\(24, 32\)"):
        image_networks.small_unet((1, 7, 7), (24, 32))


def test_a_stopped_training_ends_in_the_same_networks(places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Training("digits", "unet-32-48", 0, 64 * 12, all_snapshots=True)
    data = image_data.get("digits")
    model_zoo.train(whole)
    files = [model_zoo.snapshot_file(whole, data, images) for images in (256, 512, 768)]
    before = [weights(path) for path in files]
    records = [zoo.record(path) for path in files]
    assert [each["images"] for each in records] == [256, 512, 768]
    assert len(records[0]["loss"]) == len(records[0]["wiener"]) == len(model_zoo.LEVELS)

    monkeypatch.setenv("MOLRG_NETWORKS", str(places / "again"))
    original, calls = training.train, 0

    def stopped(*args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 4:  # in the branch of the second snapshot
            raise KeyboardInterrupt
        return original(*args, **options)

    monkeypatch.setattr(training, "train", stopped)
    with pytest.raises(KeyboardInterrupt):
        model_zoo.train(whole)
    model_zoo.train(whole)
    for path, expected in zip(files, before, strict=True):
        found = weights(places / "again" / path.relative_to(places / "networks"))
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_snapshot_is_what_a_training_that_ends_there_gives(
    places: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, longer = image_data.get("digits"), Training("digits", "unet-32-48", 0, 64 * 12, all_snapshots=True)
    model_zoo.train(longer)
    early = weights(model_zoo.snapshot_file(longer, data, 512))
    monkeypatch.setenv("MOLRG_NETWORKS", str(places / "other"))
    short = Training("digits", "unet-32-48", 0, 512)
    model_zoo.train(short)
    alone = weights(model_zoo.snapshot_file(short, data, 512))
    assert all(torch.equal(early[name], alone[name]) for name in alone)
    model_zoo.train(longer)  # goes on beyond the plan of the short one
    assert model_zoo.snapshot_file(longer, data, 768).exists()
    assert not model_zoo.snapshot_file(longer, data, 256).exists()  # there was no way back


def test_what_is_shipped_is_loaded_by_name_and_continued(
    places: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = image_data.get("digits")
    model_zoo.train(SMALL)
    (places / "zoo").mkdir()
    (path,) = model_zoo.ship(SMALL, zoo.default_folder())
    assert model_zoo.ship(SMALL, zoo.default_folder()) == []  # once
    loaded = zoo.load("digits")
    exact = weights(model_zoo.snapshot_file(SMALL, data, SMALL.images))
    for name, value in loaded.denoiser.state_dict().items():
        torch.testing.assert_close(value, exact[name], rtol=2**-10, atol=1e-7)
    assert loaded.record["recipe"] == recipe.PLAIN
    assert not loaded.denoiser.training

    with pytest.raises(
        ValueError, match=r"no network of data 'digits', seed 3(.|\n)*digits, seed 0, images 768"
    ):
        zoo.load("digits", seed=3)
    with pytest.raises(FileNotFoundError, match="MOLRG_ZOO"):
        zoo.load("digits", folder=places / "elsewhere")

    monkeypatch.setenv("MOLRG_NETWORKS", str(places / "lost"))
    longer = Training("digits", "unet-32-48", 0, 64 * 20)
    model_zoo.train(longer)
    found = zoo.record(model_zoo.snapshot_file(longer, data, longer.images))
    assert found["restarted_from"] == 768
    assert found["seconds"] > loaded.record["seconds"]

    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(ValueError, match="damaged"):
        zoo.load("digits")


def test_a_download_is_kept_only_with_its_digest(tmp_path: Path) -> None:
    import hashlib

    source = tmp_path / "there.safetensors"
    source.write_bytes(b"content")
    digest = hashlib.sha256(b"content").hexdigest()
    with pytest.raises(ValueError, match="nothing was kept"):
        zoo.fetch(source.as_uri(), "0" * 64, tmp_path / "here")
    path = zoo.fetch(source.as_uri(), digest, tmp_path / "here")
    assert path.read_bytes() == b"content"
    source.unlink()
    assert zoo.fetch(source.as_uri(), digest, tmp_path / "here") == path


def test_unknown_names_list_what_there_is() -> None:
    with pytest.raises(ValueError, match="digits-unet-32-48-0"):
        model_zoo.chosen(["nothing"])
    with pytest.raises(ValueError, match="natural-16"):
        image_data.get("nothing")
    with pytest.raises(ValueError, match="unet-32-48"):
        zoo.build("nothing", (1, 8, 8), 1.0)


def test_a_training_is_known_by_data_recipe_and_seed_alone() -> None:
    data = image_data.get("digits")
    assert json.loads(model_zoo.known_as(SMALL, data)) == [data.digest, "unet-32-48", recipe.PLAIN, 0]
    assert recipe.PLAIN["levels"] == (
        f"half log-normal({recipe.LEVELS.first.mean:g}, {recipe.LEVELS.first.std:g}), "  # type: ignore[attr-defined]
        f"half log-uniform({recipe.LEVELS.second.low:g}, {recipe.LEVELS.second.high:g})"  # type: ignore[attr-defined]
    )
    assert recipe.PLAIN["warm-up in steps"] == recipe.SCHEDULE.warm


def test_averaged_images_are_means_of_blocks() -> None:
    data = image_data.get("digits")
    small = image_data.averaged(data, 2, "small")
    block = data.train_images[5].reshape(8, 8)[2:4, 4:6].mean()
    torch.testing.assert_close(small.train_images[5].reshape(4, 4)[1, 2], block)
    assert (small.shape, small.name, image_data.averaged(data, 2).name) == (
        (1, 4, 4),
        "small",
        "digits, 4 x 4",
    )
    assert small.digest != data.digest
    assert image_data.averaged(data, 1) is data
    with pytest.raises(ValueError, match="divide height and width of digits, 8 x 8, got 3"):
        image_data.averaged(data, 3)


def test_a_gaussian_surrogate_has_the_moments_of_the_images() -> None:
    data = image_data.get("digits")
    drawn = image_data.gaussian_surrogate(data, by_class=False, name="drawn").train_images
    x = data.train_images
    error = (x.var(0).mean() * 64 / len(x)) ** 0.5
    assert (drawn.mean(0) - x.mean(0)).norm() < 3 * error
    assert torch.cov(drawn.T).trace() == pytest.approx(float(torch.cov(x.T).trace()), rel=0.05)
    own = image_data.gaussian_surrogate(data, by_class=True, name="own").train_images
    for k in range(3):
        of_class = data.train_labels == k
        assert (own[of_class].mean(0) - x[of_class].mean(0)).norm() < 2.0
