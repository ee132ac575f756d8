"""What pages on networks for images share: parameters, names for readers, and stored results."""

import html
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from compendium import parameters, results
from compendium.parameters import Field
from experiments.images import denoisers, image_data
from molrg import images
from molrg.images import published

__all__ = ["NAMES", "NetworkPage", "as_read", "checkpoint", "read_as", "stored", "title"]

NAMES = {"fashion_mnist": "Fashion-MNIST", "tiny_imagenet_30.npz": "natural images"}
NAMES |= {"unet": "UNet", "dit": "DiT", "mlp": "MLP"}

_MODELS = f"{', '.join(denoisers.MODELS)}, or a published checkpoint: its folder or owner/name"


class NetworkPage(parameters.Page):
    """One kind of network, trained on one data set."""

    dataset: str = Field(min_length=1, description="a name or path for molrg.images.load")
    model: str = Field(min_length=1, description=_MODELS)
    seeds: int = Field(ge=1, le=100, description="networks trained; 1 is used of a checkpoint")


def title(dataset: str, model: str) -> str:
    """Return the name of a network for readers: `Fashion-MNIST, UNet`; of a path, its last part."""
    return ", ".join(NAMES.get(each, each.split("/")[-1]) for each in (dataset, model))


def stored(
    page: NetworkPage, experiment: ModuleType, shown: Sequence[tuple[str, str]]
) -> dict[tuple[str, str], list[results.Record]]:
    """Load or compute the runs of `experiment` by data set and model, one a seed.

    At the page's defaults these are the networks `shown`, else the one that is asked for; the small size of
    the default data set reads the digits.
    """
    smoke = page.size == "smoke"
    dataset = "digits" if smoke and page.dataset == "fashion_mnist" else page.dataset
    seeds = page.seeds if page.model in denoisers.MODELS and not page.is_default else 1

    def record(dataset: str, model: str, seed: int) -> results.Record:
        small = experiment.settings(denoisers.small_data(dataset, model), model, 0, True)
        chosen = experiment.settings(dataset, model, seed, smoke)
        return results.load_or_compute(experiment.run, chosen, witness=small, tolerance=0.05)

    wanted = shown if page.is_default else [(dataset, page.model)]
    return {key: [record(*key, seed) for seed in range(seeds)] for key in wanted}


def as_read(dataset: str, checkpoint: str, *, workdir: Path) -> dict[str, Any]:
    """Return `lines`: as what the images, and a published checkpoint unless it is "", are read.

    dataset is a name of `image_data`, or a name or path for `images.load`, whose files are told of as they
    are. It takes no time worth a checkpoint in `workdir`.
    """
    named = dataset in image_data.NAMES
    lines = images.describe(image_data.get(dataset) if named else images.load(dataset)).splitlines()
    return {"lines": [*lines, *(published.load(checkpoint).read_as() if checkpoint else [])]}


def checkpoint(model: str) -> str:
    """The published checkpoint that a page was asked for, or "" for a network that is trained here."""
    return "" if model in denoisers.MODELS else model


def read_as(datasets: Iterable[str], checkpoint: str = "") -> Any:
    """The block "Read as" of a page: what `as_read` says of each data set, folded, to display."""
    from IPython.display import HTML

    blocks = []
    for dataset in datasets:
        given = {"dataset": dataset, "checkpoint": checkpoint}
        small = given | ({} if checkpoint else {"dataset": "digits"})
        blocks.append("\n".join(results.load_or_compute(as_read, given, witness=small).value["lines"]))
    text = html.escape("\n\n".join(blocks))
    return HTML(f"<details class='read-as'><summary>Read as</summary><pre>{text}</pre></details>")
