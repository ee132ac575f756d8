"""Draws of images for probes: each class has its share in all of them, or is named."""

import pytest
import torch

from experiments.images import probe_sets

NAMES = ("cat", "dog", "owl")
LABELS = torch.tensor([0] * 60 + [1] * 30 + [2] * 10)


def drawn(count: int, seed: int = 0, least: int = 1) -> torch.Tensor:
    counts = probe_sets.proportional(LABELS, count, NAMES, least)
    return probe_sets.draw(LABELS, counts, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("count", "shares"), [(10, [6, 3, 1]), (50, [30, 15, 5]), (100, [60, 30, 10]), (7, [4, 2, 1])]
)
def test_every_draw_has_the_classes_in_their_shares(count: int, shares: list[int]) -> None:
    for seed in range(5):
        chosen = drawn(count, seed)
        assert len(set(chosen.tolist())) == count
        assert LABELS[chosen].bincount(minlength=3).tolist() == shares


def test_draws_differ_and_mix_the_classes() -> None:
    first, second = drawn(50, 0), drawn(50, 1)
    assert set(first.tolist()) != set(second.tolist())
    assert torch.equal(first, drawn(50, 0))
    assert len(LABELS[first[:20]].unique()) == 3
    hits = torch.zeros(100)
    for seed in range(400):
        hits[drawn(10, seed)] += 1
    assert (hits / 400 - 0.1).abs().max() < 0.06  # every image is as likely as any other


def test_a_class_with_too_few_is_named_with_the_count_that_does() -> None:
    with pytest.raises(ValueError, match=r"40 images have 4 of owl, and 6 are needed: draw 60 or more"):
        drawn(40, least=6)
    assert drawn(60, least=6).shape == (60,)
    with pytest.raises(ValueError, match="10 of owl, and 11 are needed: all 100 have too few"):
        drawn(100, least=11)


def test_an_absent_class_and_too_many_images_are_refused() -> None:
    with pytest.raises(ValueError, match="no images of emu among the 100"):
        probe_sets.proportional(LABELS, 10, (*NAMES, "emu"))
    with pytest.raises(ValueError, match="count must be an integer from 1 to 100, got 101"):
        drawn(101)


def test_as_many_of_each_class() -> None:
    chosen = probe_sets.draw(LABELS, probe_sets.equal(LABELS, 30, NAMES), torch.Generator().manual_seed(0))
    assert LABELS[chosen].bincount().tolist() == [10, 10, 10]
    assert len(set(chosen.tolist())) == 30
    with pytest.raises(ValueError, match="at most 3 times the 10 images of class owl, got 33"):
        probe_sets.equal(LABELS, 33, NAMES)
    with pytest.raises(ValueError, match="multiple of the 3 classes"):
        probe_sets.equal(LABELS, 20, NAMES)
    with pytest.raises(ValueError, match="no images of emu"):
        probe_sets.equal(LABELS, 8, (*NAMES, "emu"))
