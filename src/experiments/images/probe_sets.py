"""Which images a probe is fitted to: drawn class by class, so that each class has its share in every draw."""

from collections.abc import Sequence

import torch
from torch import Tensor

from molrg.support.checks import integer

__all__ = ["draw"]


def draw(
    labels: Tensor,
    count: int,
    class_names: Sequence[str],
    least: int = 1,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return the places of `count` images, drawn stratified by class, in random order: (count,) int64.

    Class k, with N_k of the N `labels`, gets count N_k / N images, rounded so that the sum is right (largest
    remainders). How many of each class there are is therefore the same in every draw, and so is the rank of
    class subspaces fitted to them.

    Parameters
    ----------
    labels
        The classes (N,) of the images to draw from, in 0 ... K - 1.
    count
        At most N.
    class_names
        The K names, for messages.
    least
        What a class needs: one more than the rank of a class subspace, in which as many samples as directions
        would lie without rest.
    generator
        Source of the draw.

    Raises
    ------
    ValueError
        For a class without images, or one that gets fewer than `least`: it is named, with the count that
        would do; and for a count above N.
    """
    integer("count", count, 1, len(labels))
    integer("least", least, 1)
    sizes = labels.bincount(minlength=len(class_names))
    if absent := [name for name, size in zip(class_names, sizes.tolist(), strict=True) if not size]:
        raise ValueError(f"no images of {', '.join(absent)} among the {len(labels)} to draw from")
    shares = _shares(sizes, count)
    rarest = int(sizes.argmin())
    if (own := int(shares[rarest])) < least:
        needed = -(-least * len(labels) // int(sizes[rarest]))
        raise ValueError(
            f"{count} images have {own} of {class_names[rarest]}, and {least} are needed: "
            + (f"draw {needed} or more" if needed <= len(labels) else f"all {len(labels)} have too few")
        )
    shuffled = torch.randperm(len(labels), generator=generator)
    chosen = torch.cat([shuffled[labels[shuffled] == k][:share] for k, share in enumerate(shares.tolist())])
    return chosen[torch.randperm(count, generator=generator)]


def _shares(sizes: Tensor, count: int) -> Tensor:
    """How many of each class: count N_k / N, whole; what is left goes to the largest remainders."""
    total = int(sizes.sum())
    shares, remainders = sizes * count // total, sizes * count % total
    left = count - int(shares.sum())
    shares[remainders.argsort(descending=True, stable=True)[:left]] += 1
    return shares
