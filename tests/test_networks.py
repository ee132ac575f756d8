"""The networks: shapes, conditioning, preconditioning, and the parametric denoiser against the exact one."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from molrg import MoLRG
from molrg.learning import networks


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def small(name: str) -> nn.Module:
    if name == "mlp":
        return networks.MLP(12, width=16, depth=2, generator=generator())
    return networks.SubspaceDenoiser(12, 3, 2, 0.2, generator=generator())


DIM = {"mlp": 12, "subspace": 12}


def randomised(network: nn.Module) -> nn.Module:
    """The network with every zero-initialised weight replaced, so that all its parts matter."""
    draws = generator(5)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=draws), alpha=0.1)
    return network


@pytest.mark.parametrize("name", ["mlp", "subspace"])
def test_scalar_and_per_sample_levels_agree(name: str) -> None:
    network = networks.Preconditioned(randomised(small(name)), 0.7).double()
    x = torch.randn(4, DIM[name], generator=generator(1)).double()
    with torch.no_grad():
        per_sample = network(x, torch.tensor([0.1, 0.5, 0.5, 2.0]))
        assert per_sample.shape == x.shape
        torch.testing.assert_close(per_sample[1:3], network(x, 0.5)[1:3], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(per_sample[3:], network(x[3:], torch.tensor(2.0)), rtol=1e-9, atol=1e-9)
        assert (network(x, 0.5) - network(x, 2.0)).abs().max() > 1e-2


@pytest.mark.parametrize("name", ["mlp", "subspace"])
def test_weights_come_from_the_generator_and_nothing_global_moves(name: str) -> None:
    before = torch.get_rng_state()
    first, second = small(name).state_dict(), small(name).state_dict()
    assert torch.equal(before, torch.get_rng_state())
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_every_parameter_learns() -> None:
    for name, dim in DIM.items():
        network = randomised(small(name))
        network(torch.randn(3, dim, generator=generator(1)), 0.5).square().sum().backward()
        for key, parameter in network.named_parameters():
            assert parameter.grad is not None, (name, key)
            # A bias that a normalisation over all of its channel's group takes out again may stay at 0.
            assert key.endswith("bias") or parameter.grad.abs().max() > 0, (name, key)


def test_preconditioning_follows_edm() -> None:
    seen: list[Tensor] = []

    class Inner(nn.Module):
        def forward(self, x: Tensor, noise: Tensor) -> Tensor:
            seen.extend([x, noise])
            return x.sin()

    x, sigma, data = torch.randn(5, 4, generator=generator(1)), 0.8, 0.5
    output = networks.Preconditioned(Inner(), data)(x, sigma)
    total = sigma**2 + data**2
    torch.testing.assert_close(seen[0], x / total**0.5)
    torch.testing.assert_close(seen[1], torch.tensor([sigma]).log() / 4)
    expected = data**2 / total * x + sigma * data / total**0.5 * (x / total**0.5).sin()
    torch.testing.assert_close(output, expected)


def test_a_fresh_mlp_starts_at_the_skip_connection() -> None:
    x = torch.randn(5, 12, generator=generator(1))
    network = networks.Preconditioned(small("mlp"), 0.5)
    torch.testing.assert_close(network(x, 0.5), x / 2)
    assert network.feature_layers == ("network.blocks.0", "network.blocks.1")


@pytest.mark.parametrize("sigma", [0.03, 0.4, 2.0])
def test_subspace_denoiser_with_the_true_bases_is_the_posterior_mean(sigma: float) -> None:
    mixture = MoLRG.orthogonal(3, 2, 12, 0.2, generator=generator())
    network = networks.SubspaceDenoiser(12, 3, 2, 0.2)
    with torch.no_grad():
        network.basis.copy_(torch.cat(mixture.bases, 1))
        x = torch.randn(20, 12, generator=generator(1))
        torch.testing.assert_close(network(x, sigma), mixture.posterior_mean(x, sigma))
    for learned, basis in zip(network.orthonormal_bases(), mixture.bases, strict=True):
        torch.testing.assert_close(learned @ learned.T, basis @ basis.T)


@pytest.mark.parametrize("sigma", [0.03, 0.4, 2.0])
def test_the_scale_with_offsets_is_the_posterior_mean_of_any_ranks_and_priors(sigma: float) -> None:
    ranks, priors = [4, 1, 2], [0.7, 0.2, 0.1]
    frame = torch.linalg.qr(torch.randn(9, 7, generator=generator(), dtype=torch.float64)).Q
    mixture = MoLRG(list(frame.split(ranks, 1)), 0.2, priors)
    x = torch.randn(20, 9, generator=generator(1), dtype=torch.float64)
    column = torch.full((20, 1), sigma, dtype=torch.float64)
    half_contrast = torch.log((1 + column[:, 0] ** 2) / (0.04 + column[:, 0] ** 2)) / 2
    offsets = torch.stack([math.log(p) - d * half_contrast for p, d in zip(priors, ranks, strict=True)])
    found = networks.subspace_scale(x @ frame, column, ranks, 0.2, offsets) @ frame.T
    torch.testing.assert_close(found, mixture.posterior_mean(x, sigma))


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        (lambda: networks.MLP(0), "dim must be an integer >= 1, got 0"),
        (lambda: networks.SubspaceDenoiser(4, 3, 2, 0.2), r"3 \* 2 > 4"),
        (lambda: networks.SubspaceDenoiser(12, 3, 2, 1.2), "delta must lie strictly between 0 and 1"),
        (
            lambda: networks.Preconditioned(nn.Identity(), 0.0),
            "sigma_data must be positive and finite, got 0",
        ),
        (lambda: small("mlp")(torch.zeros(4, 12), torch.ones(3)), r"shape \(4,\), got \(3,\)"),
    ],
)
def test_wrong_values_are_named(wrong: Callable[[], object], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        wrong()
