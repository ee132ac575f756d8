"""Similarity of features against the definition in kernels, its invariances, and wrong input."""

import pytest
import torch
from torch import Tensor

from molrg.measuring.similarity import linear_cka, relative_distance


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_linear_cka_is_the_alignment_of_centred_kernels() -> None:
    a, b = gaussian(40, 7).double(), gaussian(40, 5, seed=1).double() + 3
    b[:, 0] += 2 * a[:, 1]
    centring = torch.eye(40).double() - 1 / 40
    k, m = (centring @ each @ each.T @ centring for each in (a, b))
    expected = (k * m).sum() / (k.norm() * m.norm())
    torch.testing.assert_close(linear_cka(a, b), expected, rtol=1e-12, atol=0)


def test_linear_cka_ignores_rotation_factor_and_shift() -> None:
    a = gaussian(100, 6).double()
    turn = torch.linalg.qr(gaussian(6, 6, seed=2).double()).Q
    torch.testing.assert_close(
        linear_cka(a, -3e-5 * a @ turn + 1), torch.tensor(1.0).double(), rtol=1e-9, atol=0
    )
    stretched = a * torch.tensor([10.0, 1, 1, 1, 1, 1])
    assert linear_cka(a, stretched) < 0.9


def test_linear_cka_of_uncorrelated_features_is_zero() -> None:
    a = torch.tensor([[1.0], [-1], [1], [-1]])
    b = torch.tensor([[1.0], [1], [-1], [-1]])
    assert linear_cka(a, b) == 0
    # Of independent features it is about D / N, not 0: samples are to outnumber dimensions by far.
    assert 0.005 < linear_cka(gaussian(2000, 20), gaussian(2000, 20, seed=1)) < 0.02


def test_relative_distance() -> None:
    b = gaussian(30, 4)
    assert relative_distance(b, b) == 0
    torch.testing.assert_close(relative_distance(3 * b, b), torch.tensor(2.0).double())
    torch.testing.assert_close(relative_distance(-b, b), torch.tensor(2.0).double())


@pytest.mark.parametrize("measure", [linear_cka, relative_distance])
def test_many_against_one(measure) -> None:  # type: ignore[no-untyped-def]
    a = gaussian(3, 2, 50, 4)
    together = measure(a, a[1, 0])
    assert together.shape == (3, 2)
    for i in range(3):
        for j in range(2):
            torch.testing.assert_close(together[i, j], measure(a[i, j], a[1, 0]))


def test_wrong_input_is_named() -> None:
    a = gaussian(10, 3)
    for b in (gaussian(9, 3), gaussian(1, 3)):
        with pytest.raises(ValueError, match="the same N >= 2 samples"):
            linear_cka(a, b)
    for measure in (linear_cka, relative_distance):
        with pytest.raises(ValueError, match=r"have samples and dimensions, got \(10,\)"):
            measure(a, gaussian(10))
        with pytest.raises(ValueError, match="must be a floating-point tensor, got ndarray"):
            measure(a, a.numpy())  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=r"must be a floating-point tensor, got torch\.int64"):
            measure(a.long(), a.long())
        for broken in (torch.nan, torch.inf):
            with pytest.raises(ValueError, match="must be finite, found NaN or infinity"):
                measure(a, torch.where(a > 1, broken, a))
    with pytest.raises(ValueError, match="floating point of one type"):
        linear_cka(a, a.double())
    with pytest.raises(ValueError, match="features of one dimension, got 3 and 4"):
        relative_distance(a, gaussian(10, 4))


@pytest.mark.parametrize("same", [0.0, 0.1])
def test_features_that_are_the_same_for_all_samples_are_refused(same: float) -> None:
    """Their alignment is 0 / 0, and by rounding any number."""
    a, constant = gaussian(2000, 3), torch.full((2000, 4), same)
    for pair in ((a, constant), (constant, a), (torch.stack([a, a]), torch.stack([constant[:, :3], a]))):
        with pytest.raises(ValueError, match="features that are the same for all samples is not defined"):
            linear_cka(*pair)
    with pytest.raises(ValueError, match="relative to features that are all 0"):
        relative_distance(a, torch.zeros(2000, 3))
    assert relative_distance(torch.zeros(2000, 3), a) == 1


@pytest.mark.parametrize("measure", [linear_cka, relative_distance])
@pytest.mark.parametrize("factor", [1e-25, 1e18])
def test_a_common_factor_changes_nothing(measure, factor: float) -> None:  # type: ignore[no-untyped-def]
    a, b = gaussian(50, 4), gaussian(50, 4, seed=1)
    torch.testing.assert_close(measure(factor * a, factor * b), measure(a, b), rtol=1e-5, atol=0)


@pytest.mark.parametrize("measure", [linear_cka, relative_distance])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_with_in_single(measure, dtype) -> None:  # type: ignore[no-untyped-def]
    a, b = gaussian(3000, 4).to(dtype), gaussian(3000, 4, seed=1).to(dtype)
    torch.testing.assert_close(measure(a, b), measure(a.float(), b.float()), rtol=0, atol=0)
