"""Which images a probe reads: every draw is stratified, with the same number of each class in all draws.

counts = probe_sets.proportional(labels, 1200, data.class_names, least=rank + 1)
chosen = probe_sets.draw(labels, counts, generator)
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from molrg.support.checks import integer

__all__ = ["draw", "equal", "proportional"]


def draw(labels: Tensor, counts: Sequence[int], generator: torch.Generator) -> Tensor:
    """Return the places of counts[k] images of each class k, in random order, from `labels` (N,).

    The counts are those of `proportional` or `equal`, which refuse what the labels do not have.
    """
    shuffled = torch.randperm(len(labels), generator=generator)
    chosen = torch.cat([shuffled[labels[shuffled] == k][:count] for k, count in enumerate(counts)])
    return chosen[torch.randperm(len(chosen), generator=generator)]


def proportional(labels: Tensor, count: int, class_names: Sequence[str], least: int = 1) -> list[int]:
    """Return how many of `count` images are of each class, in proportion to `labels`.

    Class k, with N_k of N labels, gets count N_k / N, rounded so that the sum is right (largest remainders).
    `least` is what each needs: one more than the rank of class subspaces, say, since as many samples as
    directions lie in their own subspace without rest.

    Raises ValueError for a count above N, for a class without images, and for one that gets fewer than
    `least`: the class is named, and the count that would do.
    """
    total = len(labels)
    integer("count", count, 1, total)
    integer("least", least, 1)
    sizes = _sizes(labels, class_names)
    counts, remainders = sizes * count // total, sizes * count % total
    most_left = remainders.argsort(descending=True, stable=True)
    counts[most_left[: count - int(counts.sum())]] += 1
    rarest = int(sizes.argmin())
    if (own := int(counts[rarest])) < least:
        needed = -(-least * total // int(sizes[rarest]))
        raise ValueError(
            f"{count} images have {own} of {class_names[rarest]}, and {least} are needed: "
            + (f"draw {needed} or more" if needed <= total else f"all {total} have too few")
        )
    return counts.tolist()


def equal(labels: Tensor, count: int, class_names: Sequence[str]) -> list[int]:
    """Return how many of `count` images are of each class: as many of each.

    Raises ValueError unless the classes divide `count`, and where a class has too few: it is named.
    """
    sizes, classes = _sizes(labels, class_names), len(class_names)
    each, left = divmod(integer("count", count, classes), classes)
    rarest = int(sizes.argmin())
    if left or int(sizes[rarest]) < each:
        raise ValueError(
            f"count must be a multiple of the {classes} classes and at most {classes} times the "
            f"{int(sizes[rarest])} images of class {class_names[rarest]}, got {count}"
        )
    return [each] * classes


def _sizes(labels: Tensor, class_names: Sequence[str]) -> Tensor:
    """The number of labels of each class, all of which are there."""
    sizes = labels.bincount(minlength=len(class_names))
    if absent := [name for name, size in zip(class_names, sizes.tolist(), strict=True) if not size]:
        raise ValueError(f"no images of {', '.join(absent)} among the {len(labels)} to draw from")
    return sizes
