"""What pages on networks for images share: parameters, names for readers, and stored results."""

from collections.abc import Sequence
from types import ModuleType

from compendium import parameters, results
from compendium.parameters import Field
from experiments.images import denoisers, probing

__all__ = ["NAMES", "NetworkPage", "ProbingPage", "probed", "stored", "title"]

NAMES = {"fashion_mnist": "Fashion-MNIST", "tiny_imagenet_30.npz": "natural images"}
NAMES |= {"unet": "UNet", "dit": "DiT", "mlp": "MLP"}

_MODELS = f"{', '.join(denoisers.MODELS)}, or a published checkpoint: its folder or owner/name"


class NetworkPage(parameters.Page):
    """One kind of network, trained on one data set."""

    dataset: str = Field(min_length=1, description="a name or path for molrg.images.load")
    model: str = Field(min_length=1, description=_MODELS)
    seeds: int = Field(ge=1, le=100, description="networks trained; 1 is used of a checkpoint")


class ProbingPage(parameters.Page):
    """Two kinds of networks on two data sets, or one of each."""

    dataset: str = Field(min_length=1, description="both, or a name or path for molrg.images.load")
    model: str = Field(min_length=1, description=f"both, {_MODELS}")
    networks: int = Field(ge=1, le=100, description="trained from seeds 0, 1, ...")
    draws: int = Field(ge=1, le=100, description="of probe images, test images and noise, per network")


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


def probed(page: ProbingPage) -> dict[tuple[str, str], probing.Runs]:
    """Load or compute the probed networks by data set and model."""
    smoke = page.size == "smoke"
    sets = ["digits"] if smoke else ["fashion_mnist", "tiny_imagenet_30.npz"]
    return {
        (dataset, model): probing.stored(dataset, model, page.networks, page.draws, smoke)
        for dataset in (sets if page.dataset == "both" else [page.dataset])
        for model in (["unet", "dit"] if page.model == "both" else [page.model])
    }
