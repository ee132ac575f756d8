"""Features: all layers from one pass, equal to the activations themselves, and nothing left behind."""

import re

import pytest
import torch
from torch import Tensor, nn

from molrg.images.image_networks import dit, unet
from molrg.learning.networks import MLP, Preconditioned, SubspaceDenoiser
from molrg.measuring import features


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network() -> Preconditioned:
    return Preconditioned(MLP(6, width=16, depth=3, dropout=0.5, generator=generator()), 1.0)


def points(n: int = 11, dim: int = 6) -> Tensor:
    return torch.randn(n, dim, generator=generator(1))


def hooks(module: nn.Module) -> int:
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in module.modules())


@pytest.mark.parametrize("batch_size", [1, 4, 11, 512])
@pytest.mark.parametrize("sigma", [0.3, torch.linspace(0.1, 1.0, 11)])
def test_features_are_the_activations(batch_size: int, sigma: float | Tensor) -> None:
    denoiser, x = network(), points()
    found = features.extract(denoiser, x, sigma, batch_size=batch_size)
    assert list(found) == ["network.blocks.0", "network.blocks.1", "network.blocks.2"]
    denoiser.eval()
    with torch.no_grad():
        level = torch.as_tensor(sigma).reshape(-1, 1)
        inner = denoiser.network
        assert isinstance(inner, MLP)
        embedded = inner.embed(level.log() / 4)
        h = inner.first(x / (1 + level**2).sqrt())
        for block, values in zip(inner.blocks, found.values(), strict=True):
            h = block(h, embedded)
            torch.testing.assert_close(values, h)


def test_one_pass_a_batch() -> None:
    denoiser, calls = network(), []
    handle = denoiser.register_forward_pre_hook(lambda *_: calls.append(1))
    names = [name for name, _ in denoiser.named_modules() if name and name != "network.blocks"]
    found = features.extract(denoiser, points(), 0.3, [*names, "denoised"], batch_size=4)
    assert len(calls) == 3
    assert list(found) == [*names, "denoised"]
    assert all(len(values) == 11 for values in found.values())
    handle.remove()
    with torch.no_grad():
        torch.testing.assert_close(found["denoised"], denoiser.eval()(points(), 0.3))


def test_maps_and_tokens_are_averaged_over_positions() -> None:
    denoiser = unet((2, 8, 8), width=8, multipliers=(1, 2), layers_per_block=1, generator=generator())
    x = points(5, 128)
    found = features.extract(denoiser, x, 0.3, batch_size=2)
    shapes = {name: tuple(values.shape) for name, values in found.items()}
    assert shapes == {
        "model.down_blocks.0": (5, 8),
        "model.down_blocks.1": (5, 16),
        "model.mid_block": (5, 16),
        "model.up_blocks.0": (5, 16),
        "model.up_blocks.1": (5, 8),
    }
    full = features.extract(denoiser, x, 0.3, ["model.mid_block"], reduce=lambda a: a.flatten(1))
    assert full["model.mid_block"].shape == (5, 16 * 16)
    averaged = full["model.mid_block"].reshape(5, 16, 16).mean(2)
    torch.testing.assert_close(found["model.mid_block"], averaged)
    torch.testing.assert_close(
        features.spatial_mean(torch.arange(6.0).reshape(1, 3, 2)), torch.tensor([[2.0, 3.0]])
    )


@pytest.mark.parametrize(
    ("height", "width", "size"), [(28, 28, 4), (7, 5, 4), (3, 2, 4), (8, 8, 1), (14, 9, 6)]
)
def test_grid_mean_is_adaptive_pooling(height: int, width: int, size: int) -> None:
    maps = torch.randn(3, 5, height, width, generator=generator())
    grid = min(size, height), min(size, width)
    expected = nn.functional.adaptive_avg_pool2d(maps, grid).flatten(1)
    torch.testing.assert_close(features.grid_mean(size)(maps), expected)


def test_grid_mean_of_tokens_and_vectors() -> None:
    maps = torch.randn(3, 5, 8, 8, generator=generator())
    tokens = maps.flatten(2).mT
    torch.testing.assert_close(features.grid_mean()(tokens), features.grid_mean()(maps))
    torch.testing.assert_close(features.grid_mean(1)(tokens), features.spatial_mean(tokens))
    assert torch.equal(features.grid_mean()(maps[:, :, 0, 0]), maps[:, :, 0, 0])
    with pytest.raises(ValueError, match="square number of tokens, got 63; use spatial_mean"):
        features.grid_mean()(tokens[:, 1:])
    with pytest.raises(ValueError, match="size must be an integer >= 1, got 0"):
        features.grid_mean(0)


def test_grid_mean_of_networks() -> None:
    """On a UNet and a DiT of the same image, in one pass, whatever their resolutions."""
    x = points(3, 128)
    for denoiser in (
        unet((2, 8, 8), width=8, multipliers=(1, 2), layers_per_block=1, generator=generator()),
        dit((2, 8, 8), width=32, depth=2, patch=2, generator=generator()),
    ):
        whole = features.extract(denoiser, x, 0.3)
        for name, values in features.extract(denoiser, x, 0.3, reduce=features.grid_mean()).items():
            torch.testing.assert_close(values.unflatten(1, (-1, 16)).mean(2), whole[name])


def test_the_first_entry_of_a_tuple_is_kept() -> None:
    """The down blocks of diffusers return their output and the skips, of which the output is the last."""
    denoiser = unet((2, 8, 8), width=8, multipliers=(1, 2), layers_per_block=1, generator=generator())
    seen: dict[str, tuple[Tensor, tuple[Tensor, ...]]] = {}
    block = denoiser.get_submodule("model.down_blocks.0")
    handle = block.register_forward_hook(lambda _module, _inputs, output: seen.update(out=output))
    found = features.extract(denoiser, points(5, 128), 0.3, ["model.down_blocks.0"])
    handle.remove()
    assert isinstance(seen["out"], tuple)
    torch.testing.assert_close(found["model.down_blocks.0"], seen["out"][0].mean((2, 3)))
    assert seen["out"][0] is seen["out"][1][-1]


def test_kept_activations_are_safe_from_work_in_place() -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(6, 6)

        def forward(self, x: Tensor, sigma: float) -> Tensor:
            return self.first(x).mul_(0)

    denoiser = InPlace()
    found = features.extract(denoiser, points(), 0.3, ["first"])
    torch.testing.assert_close(found["first"], denoiser.first(points()).detach())


def test_mode_and_hooks_are_restored() -> None:
    denoiser = network()
    denoiser.network.eval()
    modes = [part.training for part in denoiser.modules()]
    features.extract(denoiser, points(), 0.3)
    assert [part.training for part in denoiser.modules()] == modes
    assert hooks(denoiser) == 0

    class Broken(RuntimeError):
        pass

    def fail(*_: object) -> None:
        assert hooks(denoiser) > 1
        raise Broken

    handle = denoiser.network.register_forward_pre_hook(fail)
    with pytest.raises(Broken):
        features.extract(denoiser, points(), 0.3)
    handle.remove()
    assert hooks(denoiser) == 0
    assert [part.training for part in denoiser.modules()] == modes


def test_a_stream_half_read_leaves_nothing_behind() -> None:
    denoiser = network()
    batches = features.stream(denoiser, points(), 0.3, batch_size=4)
    rows, batch = next(batches)
    assert (rows, hooks(denoiser), denoiser.training) == (slice(0, 4), 0, True)
    torch.testing.assert_close(
        batch["network.blocks.1"], features.extract(denoiser, points(), 0.3)["network.blocks.1"][:4]
    )
    assert [rows.stop for rows, _ in batches] == [8, 11]


def test_features_carry_no_gradient_and_leave_x_alone() -> None:
    x = points()
    found = features.extract(network(), x, 0.3)
    assert not any(values.requires_grad for values in found.values())
    assert torch.equal(x, points())


def test_default_layers_of_any_module() -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Linear(6, 6)
            self.stages = nn.ModuleList([nn.ModuleList([nn.Identity()]), nn.Identity()])

    assert features.default_layers(Plain()) == ("stages.0", "stages.1")
    with pytest.raises(ValueError, match="choose layers from: denoised"):
        features.default_layers(SubspaceDenoiser(6, 2, 2, 0.2))


def test_wrong_values_are_named() -> None:
    denoiser = network()
    with pytest.raises(
        ValueError, match=re.escape("unknown layers ['blocks.0']; valid ones: network, ")
    ) as caught:
        features.extract(denoiser, points(), 0.3, ["network.blocks.1", "blocks.0"])
    assert "network.blocks.0" in str(caught.value)
    assert "denoised" in str(caught.value)
    with pytest.raises(ValueError, match=r"does not run the layers \['network.blocks'\]"):
        features.extract(denoiser, points(), 0.3, ["network.blocks"])
    with pytest.raises(ValueError, match=r"shape \(11,\), got \(3,\)"):
        features.stream(denoiser, points(), torch.ones(3))
    with pytest.raises(ValueError, match="batch_size must be an integer >= 1, got 0"):
        features.extract(denoiser, points(), 0.3, batch_size=0)
    with pytest.raises(ValueError, match="x must have shape"):
        features.extract(denoiser, points(dim=6)[0], 0.3)
    assert hooks(denoiser) == 0


@pytest.mark.parametrize("call", [features.extract, features.stream])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sigma": 0.0}, "sigma must be finite and positive, got 0"),
        ({"sigma": -0.3}, "sigma must be finite and positive, got -0.3"),
        ({"sigma": float("nan")}, "sigma must be finite and positive, got nan"),
        ({"sigma": torch.tensor([0.3] * 10 + [0.0])}, "sigma must be finite and positive, got 0"),
        ({"sigma": [0.3] * 10}, "sigma must be a number or have shape (11,), got (10,)"),
        ({"sigma": True}, "got the boolean True"),
        ({"sigma": "0.3"}, "got '0.3'"),
        ({"x": (10 * points()).to(torch.uint8)}, "x must be a floating-point tensor (N, n), got torch.uint8"),
        ({"x": points() > 0}, "x must be a floating-point tensor (N, n), got torch.bool"),
        ({"x": points().numpy()}, "x must be a floating-point tensor (N, n), got ndarray"),
        ({"x": points().tolist()}, "x must be a floating-point tensor (N, n), got list"),
        ({"x": points().masked_fill(points() > 1, torch.nan)}, "x must be finite, found NaN or infinity"),
        ({"x": points() / 0}, "x must be finite, found NaN or infinity"),
        ({"x": points().reshape(11, 1, 2, 3)}, "x must have shape (N, n) with N >= 1, got (11, 1, 2, 3)"),
        ({"x": points()[:0]}, "x must have shape (N, n) with N >= 1, got (0, 6)"),
        ({"batch_size": True}, "batch_size must be an integer >= 1, got True"),
    ],
)
def test_what_would_give_nonsense_is_named(call, change, message) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=re.escape(message)):
        call(network(), **{"x": points(), "sigma": 0.3} | change)


def test_images_are_not_features_without_their_axes() -> None:
    """A denoiser of maps could take them; the rows of x are vectors all the same."""

    class Maps(nn.Module):
        def forward(self, x: Tensor, sigma: float) -> Tensor:
            return x

    with pytest.raises(ValueError, match="flatten images"):
        features.extract(Maps(), torch.ones(3, 1, 2, 2), 0.3, ["denoised"])


@pytest.mark.parametrize("reduce", [features.spatial_mean, features.grid_mean(2)])
@pytest.mark.parametrize("shape", [(3,), (3, 2, 2, 2, 2)])
def test_activations_of_other_axes_are_named(reduce: features.Reduce, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=re.escape(f"got {shape}; give a `reduce` of your own")):
        reduce(torch.ones(shape))


def test_levels_in_any_form_are_the_same() -> None:
    levels = torch.linspace(0.1, 1.0, 11)
    expected = features.extract(network(), points(), levels)
    for given in (levels.tolist(), tuple(levels.tolist()), levels.numpy(), levels.double()):
        found = features.extract(network(), points(), given)
        torch.testing.assert_close(found, expected)
    one = features.extract(network(), points(), 0.3)
    for single in ([0.3], torch.tensor(0.3), torch.tensor([0.3])):
        torch.testing.assert_close(features.extract(network(), points(), single), one)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_points_are_brought_to_the_precision_of_the_weights(dtype: torch.dtype) -> None:
    found = features.extract(network(), points().to(dtype), 0.3)
    expected = features.extract(network(), points().to(dtype).float(), 0.3)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
