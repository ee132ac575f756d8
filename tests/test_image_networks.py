"""UNet and DiT on flattened images: against the models of diffusers called directly; their layers."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from molrg.images import image_networks
from molrg.images.network_layers import all_layers, skip_layers
from molrg.learning import networks
from molrg.measuring import features

SHAPES = [(1, 8, 8), (3, 7, 5), (2, 5, 12), (1, 1, 3)]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def small(name: str, shape: tuple[int, int, int] = (3, 7, 5)) -> Any:
    if name == "dit":
        return image_networks.dit(shape, width=32, depth=2, patch=2, generator=generator())
    return image_networks.unet(shape, width=8, multipliers=(1, 2), layers_per_block=1, generator=generator())


def randomised(network: nn.Module) -> Any:
    """The network with every zero-initialised weight replaced, so that all its parts matter."""
    draws = generator(5)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=draws), alpha=0.1)
    return network


def images(shape: tuple[int, int, int], count: int = 3) -> Tensor:
    return torch.randn(count, math.prod(shape), generator=generator(1))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ["unet", "dit"])
def test_equals_the_model_of_diffusers_on_padded_images(name: str, shape: tuple[int, int, int]) -> None:
    network, x = randomised(small(name, shape)).double().eval(), images(shape).double()
    _, height, width = shape
    side = max(height + height % 2, width + width % 2)
    padded = (side, side) if name == "dit" else (height + height % 2, width + width % 2)
    pictures = functional.pad(
        x.unflatten(1, shape), (0, padded[1] - width, 0, padded[0] - height), mode="replicate"
    )
    steps = torch.tensor([-30.0, 0.0, 55.0], dtype=torch.float64)
    labels = {"class_labels": torch.zeros(3, dtype=torch.int64)} if name == "dit" else {}
    with torch.no_grad():
        expected = network.model(pictures, steps, **labels).sample[:, :, :height, :width]
        found = network(x, steps / 100)
    assert found.shape == x.shape
    torch.testing.assert_close(found.unflatten(1, shape), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["unet", "dit"])
def test_scalar_and_per_sample_levels_agree(name: str) -> None:
    network = networks.Preconditioned(randomised(small(name)), 0.7).double().eval()
    x = images((3, 7, 5), 4).double()
    with torch.no_grad():
        per_sample = network(x, torch.tensor([0.1, 0.5, 0.5, 2.0]))
        assert per_sample.shape == x.shape
        torch.testing.assert_close(per_sample[1:3], network(x, 0.5)[1:3], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(per_sample[3:], network(x[3:], torch.tensor(2.0)), rtol=1e-9, atol=1e-9)
        assert (network(x, 0.5) - network(x, 2.0)).abs().max() > 1e-2


@pytest.mark.parametrize("name", ["unet", "dit"])
def test_weights_come_from_the_generator_and_nothing_global_moves(name: str) -> None:
    before = torch.get_rng_state()
    first, second = small(name).state_dict(), small(name).state_dict()
    assert torch.equal(before, torch.get_rng_state())
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    torch.manual_seed(0)
    other: Any = image_networks.unet((1, 4, 4), width=8, multipliers=(1,), layers_per_block=1)
    torch.manual_seed(0)
    again: Any = image_networks.unet((1, 4, 4), width=8, multipliers=(1,), layers_per_block=1)
    assert torch.equal(other.model.conv_in.weight, again.model.conv_in.weight)


@pytest.mark.parametrize("name", ["unet", "dit"])
def test_every_parameter_learns(name: str) -> None:
    network = randomised(small(name))
    network(images((3, 7, 5)), 0.5).square().sum().backward()
    for key, parameter in network.named_parameters():
        assert parameter.grad is not None, key
        # A bias that a normalisation or a softmax takes out again may stay at 0.
        assert key.endswith("bias") or parameter.grad.abs().max() > 0, key


def test_a_dit_starts_with_identity_blocks_and_output_zero() -> None:
    network, x = small("dit"), images((3, 7, 5))
    seen: list[tuple[Tensor, Tensor]] = []
    for block in network.model.transformer_blocks:
        block.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output)))
    with torch.no_grad():
        assert not network(x, 0.3).any()
    assert len(seen) == 2
    assert all(torch.equal(before, after) for before, after in seen)
    assert seen[0][0].std() > 0.1


def test_a_dit_in_training_keeps_its_one_label() -> None:
    network, x = randomised(small("dit")).train(), images((3, 7, 5))
    with torch.no_grad():
        assert all(torch.equal(network(x, 0.3), network(x, 0.3)) for _ in range(20))


def test_dropout_acts_in_training_alone() -> None:
    for network in (
        image_networks.unet((1, 8, 8), 8, (1, 2), 1, dropout=0.5, generator=generator()),
        image_networks.dit((1, 8, 8), 32, 1, dropout=0.5, generator=generator()),
    ):
        x = images((1, 8, 8))
        randomised(network)
        with torch.no_grad():
            assert not torch.equal(network.train()(x, 0.3), network(x, 0.3))
            assert torch.equal(network.eval()(x, 0.3), network(x, 0.3))


def test_sizes_are_those_that_the_field_knows() -> None:
    with torch.device("meta"):
        ddpm = image_networks.unet((3, 32, 32), 128, (1, 2, 2, 2))
        small_dit, base_dit = (image_networks.dit((3, 32, 32), width, 1) for width in (384, 768))
    assert round(sum(each.numel() for each in ddpm.parameters()) / 1e6, 1) == 35.7
    models: list[Any] = [small_dit.model, base_dit.model]
    assert [model.config.num_attention_heads for model in models] == [6, 12]


UNETS: list[dict[str, Any]] = [
    {"multipliers": (1,), "layers_per_block": 1},
    {"multipliers": (1, 2), "layers_per_block": 1},
    {"multipliers": (1, 2, 2), "layers_per_block": 2},
]


@pytest.mark.parametrize("sizes", UNETS)
def test_all_layers_of_a_unet_run_once_in_their_order(sizes: dict[str, Any]) -> None:
    network = networks.Preconditioned(
        image_networks.unet((1, 8, 8), width=8, generator=generator(), **sizes), 0.5
    )
    kinds = ("ResnetBlock2D", "Attention", "Downsample2D", "Upsample2D")
    expected = {name for name, module in network.named_modules() if type(module).__name__ in kinds}
    names = all_layers(network)
    assert set(names) == expected | {"network.model.conv_in"}
    assert len(names) == len(set(names))
    seen: list[str] = []
    with features.watching(
        {name: network.get_submodule(name) for name in names}, lambda n, _: seen.append(n)
    ):
        network(images((1, 8, 8)), 0.3)
    assert tuple(seen) == names
    found = features.extract(network, images((1, 8, 8)), 0.3, names)
    assert all(len(values) == 3 and values.ndim == 2 for values in found.values())


@pytest.mark.parametrize("sizes", UNETS)
def test_skips_are_what_the_decoder_receives(sizes: dict[str, Any]) -> None:
    network: Any = image_networks.unet((1, 8, 8), width=8, generator=generator(), **sizes)
    handed: list[Tensor] = []
    for block in network.model.up_blocks:
        block.register_forward_pre_hook(lambda _, inputs: handed.extend(reversed(inputs[1])))
    outputs: dict[str, Tensor] = {}
    names = skip_layers(network)
    with (
        torch.no_grad(),
        features.watching({name: network.get_submodule(name) for name in names}, outputs.__setitem__),
    ):
        network(images((1, 8, 8)), 0.3)
    assert len(handed) == len(names)
    for name, received in zip(reversed(names), handed, strict=True):
        assert torch.equal(outputs[name], received), name
    assert set(names) <= set(all_layers(network))


def test_layers_of_other_networks() -> None:
    network = networks.Preconditioned(small("dit"), 0.5)
    assert all_layers(network) == tuple(f"network.model.transformer_blocks.{i}" for i in range(2))
    assert network.feature_layers == all_layers(network)
    mlp = networks.MLP(4, 8, 2)
    assert all_layers(mlp) == mlp.feature_layers
    assert skip_layers(network) == skip_layers(mlp) == ()


def test_feature_layers_of_a_unet_are_its_blocks_in_order() -> None:
    network = image_networks.unet((1, 8, 8), width=8, multipliers=(1, 2, 2), layers_per_block=1)
    modules = dict(network.named_modules())
    assert all(name in modules for name in network.feature_layers)
    assert [name.split(".")[1] for name in network.feature_layers] == [
        *["down_blocks"] * 3,
        "mid_block",
        *["up_blocks"] * 3,
    ]


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        (lambda: image_networks.unet((1, 8, 8), width=12), "multiple of 8, got 12"),
        (lambda: image_networks.unet((8, 8)), "shape must be"),  # type: ignore[arg-type]
        (lambda: image_networks.unet((1, 0, 8)), "height must be an integer >= 1, got 0"),
        (lambda: image_networks.unet((1, 8, 8), multipliers=()), "multipliers must hold at least one"),
        (lambda: image_networks.dit((1, 8, 8), width=48), "multiple of 32, the size of a head, got 48"),
        (lambda: image_networks.dit((1, 8, 8), width=416), "multiple of 64, the size of a head, got 416"),
        (lambda: image_networks.dit((1, 8, 8), depth=0), "depth must be an integer >= 1, got 0"),
        (lambda: small("unet")(torch.zeros(2, 3), 0.1), r"x must have shape \(N, 105\)"),
        (lambda: small("dit")(torch.zeros(105), 0.1), r"x must have shape \(N, 105\)"),
    ],
)
def test_wrong_values_are_named(wrong: Callable[[], object], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        wrong()
