"""Curves over the noise level from stored readings: the block chosen, what its curve does, what is added.

Block and level are chosen on validation images and judged on test images (see `molrg.measuring.curves`).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from compendium import results
from experiments.images import image_data, readings
from molrg.images import zoo
from molrg.measuring import curves

__all__ = [
    "CONTROLS",
    "OWN_IMAGES_SEEN",
    "SNAPSHOTS",
    "Networks",
    "added",
    "best_block",
    "networks",
    "plain",
    "scores",
    "shape",
]

CONTROLS = (readings.UNTRAINED, readings.RANDOM, readings.PIXELS)
OWN_IMAGES_SEEN = 120_000
"""In the training of a network of a reader's own images."""

SNAPSHOTS = (10_000, 100_000)
"""Images seen by the networks that are read before the longest trained one."""

_Value = dict[str, Any]  # what `readings.run` returns


class Networks(NamedTuple):
    """Readings of one data set, as `readings.run` returns them.

    `seen`: of the first seed, SNAPSHOTS and the end, by images seen; `last`: of the longest trained network
    of each seed; `controls`: by name.
    """

    seen: dict[int | str, _Value]
    last: list[_Value]
    controls: dict[str, _Value]
    records: list[results.Record]


def networks(dataset: str, model: str = "zoo", smoke: bool = False) -> Networks:
    """Load or compute the readings of a data set: of the networks of the zoo, or of one of own images.

    `model` is `zoo`, or a published checkpoint, its folder or owner/name, which has no untrained control.
    """
    if model != "zoo":
        record = readings.stored(dataset, readings.PUBLISHED, prior=model)
        return Networks({readings.PUBLISHED: record.value}, [record.value], {}, [record])
    seen: dict[int | str, results.Record] = {}
    others: list[results.Record] = []
    if dataset not in image_data.NAMES:
        seen[OWN_IMAGES_SEEN] = readings.stored(dataset, OWN_IMAGES_SEEN)
    elif smoke:
        seen[20_000] = readings.stored(dataset, 20_000, smoke=True)
    else:
        kind = f"unet-{'-'.join(map(str, readings.usual_channels(dataset)))}"
        shipped = [each for each in zoo.listed() if (each["data"], each["network"]) == (dataset, kind)]
        by_seed: dict[int, list[int]] = {}
        for each in shipped:
            by_seed.setdefault(each["seed"], []).append(each["images"])
        first = by_seed.pop(0)
        shown = [images for images in sorted(first) if images in SNAPSHOTS or images == max(first)]
        seen = {images: readings.stored(dataset, images) for images in shown}
        others = [readings.stored(dataset, max(images), seed) for seed, images in sorted(by_seed.items())]
    controls = {name: readings.stored(dataset, name, smoke=smoke) for name in CONTROLS}
    return Networks(
        {images: record.value for images, record in seen.items()},
        [list(seen.values())[-1].value, *(record.value for record in others)],
        {name: record.value for name, record in controls.items()},
        [*seen.values(), *others, *controls.values()],
    )


def scores(value: _Value, readout: str, kind: str, block: str) -> np.ndarray:
    """Return whether each test image is read rightly at each level, (N, S) floats."""
    at = value["readouts"].index(readout), readings.INPUTS.index(kind), value["blocks"].index(block)
    return readings.right(value)[at].T.astype(np.float64)


def best_block(value: _Value, readout: str, kind: str) -> str:
    """Return the block, not the denoised image, of the highest validation accuracy at any level."""
    r, i = value["readouts"].index(readout), readings.INPUTS.index(kind)
    blocks = [block for block in value["blocks"] if block != "denoised"]
    best = value["validation"][r, i, : len(blocks)].max(1)
    return str(blocks[int(best.argmax())])


def shape(values: Sequence[_Value], readout: str, kind: str, block: str) -> curves.Shape:
    """Judge the curve of a block: of one network by its test images, of three or more seeds by the seeds."""
    tests = np.stack([scores(value, readout, kind, block) for value in values])
    place = [
        (value["readouts"].index(readout), readings.INPUTS.index(kind), value["blocks"].index(block))
        for value in values
    ]
    chosen = np.stack([value["validation"][at] for value, at in zip(values, place, strict=True)])
    return curves.cross_fit(tests, values[0]["levels"], chosen)


def added(value: _Value, control: _Value, readout: str, kind: str, block: str) -> list[curves.Difference]:
    """Return what the block reads more than a control at each level, as shares of the same test images.

    The control is read at the same block, or at its only one.
    """
    own = block if block in control["blocks"] else control["blocks"][0]
    more = scores(value, readout, kind, block) - scores(control, readout, kind, own)
    found = [curves.no_harm(each[None], 0.01).difference for each in more.T]
    return [each for each in found if each is not None]


def plain(block: str) -> str:
    """Return a block's name for readers: `encoder 1`, `middle`, `decoder 3`; counts begin at 1."""
    side, _, number = block.partition(".")
    names = {"down_blocks": "encoder", "up_blocks": "decoder", "mid_block": "middle"}
    return f"{names.get(side, side)} {int(number) + 1}" if number.isdigit() else names.get(side, side)
