"""The written-out gradients of plain networks against autograd's."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from molrg.learning.backpropagation import Backpropagation, applies
from molrg.learning.ensembles import Stack
from molrg.learning.networks import MLP, PREDICTIONS, FeedForward, Preconditioned


def network(dim: int = 5, depth: int = 2, frequencies: int = 3, **options: Any) -> Preconditioned:
    """A network in float64 none of whose weights is zero."""
    prediction = options.pop("prediction", "edm")
    made = Preconditioned(FeedForward(dim, 7, depth, frequencies, **options), 0.8, prediction).double()
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.5)
    return made


@given(
    members=st.integers(1, 4),
    batch=st.integers(1, 6),
    dim=st.integers(1, 6),
    depth=st.integers(1, 4),
    frequencies=st.integers(0, 3),
    prediction=st.sampled_from(PREDICTIONS),
    transposed=st.booleans(),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=60)
def test_losses_and_gradients_are_those_of_autograd(
    members: int,
    batch: int,
    dim: int,
    depth: int,
    frequencies: int,
    prediction: str,
    transposed: bool,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    stack = Stack([network(dim, depth, frequencies, prediction=prediction) for _ in range(members)])
    parameters = {
        name: (value.mT.contiguous().mT if transposed and value.ndim == 3 else value).requires_grad_()
        for name, value in stack.parameters.items()
    }
    stack.parameters = parameters
    gradients = {name: torch.full_like(value, torch.nan) for name, value in parameters.items()}
    assert applies(stack.template)
    by_hand = Backpropagation(stack.template, parameters, gradients, batch)
    for step in range(3):  # in arrays that were used; in the last step at levels that were used
        x, aim = torch.randn(2, members, batch, dim, dtype=torch.float64)
        if step < 2:
            sigma, weights = torch.rand(2, members, batch, dtype=torch.float64) * 3 + 0.01
            by_hand.at(sigma, weights)
        losses = by_hand(x, aim)
        expected = (weights * (stack(x, sigma) - aim).square().mean(-1)).mean(-1)
        torch.testing.assert_close(losses, expected.detach(), rtol=1e-12, atol=1e-14)
        theirs = torch.autograd.grad(expected.sum(), list(parameters.values()))
        for mine, other in zip(gradients.values(), theirs, strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-10, atol=1e-12)


def frozen() -> nn.Module:
    made = network()
    next(made.parameters()).requires_grad_(False)
    return made


class Own(FeedForward):
    """A network of somebody's own, whose forward may differ."""


@pytest.mark.parametrize(
    ("denoiser", "expected"),
    [
        (network(), True),
        (network(dropout=0.1), False),
        (frozen(), False),
        (Preconditioned(Own(5), 1.0), False),
        (Preconditioned(MLP(5, 8, 1), 1.0), False),
        (FeedForward(5), False),
    ],
)
def test_which_networks_it_is_for(denoiser: nn.Module, expected: bool) -> None:
    assert applies(denoiser) is expected
