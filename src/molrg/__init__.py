"""How diffusion models learn representations, in low-dimensional models that can be solved exactly.

Names are found where they are first used: `molrg.MoLRG`, `molrg.snr.exact`, `from molrg import probes`.
"""

import importlib.util
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from molrg import images, snr
    from molrg.images import (
        checkpoint_files,
        image_networks,
        latents,
        network_layers,
        published,
        sampling,
        zoo,
    )
    from molrg.learning import backpropagation, checkpoints, ensembles, networks, predictions, training
    from molrg.measuring import curves, feature_store, features, labelled, probes, similarity, subspaces
    from molrg.model import memorizing, mixture, noise
    from molrg.model.memorizing import EmpiricalDenoiser
    from molrg.model.mixture import LowRankMixture, MoLRG
    from molrg.snr import denoising_error, enclosures, peaks
    from molrg.support import devices, distributed

__all__ = [
    "EmpiricalDenoiser",
    "LowRankMixture",
    "MoLRG",
    "backpropagation",
    "checkpoint_files",
    "checkpoints",
    "curves",
    "denoising_error",
    "devices",
    "distributed",
    "enclosures",
    "ensembles",
    "feature_store",
    "features",
    "image_networks",
    "images",
    "labelled",
    "latents",
    "memorizing",
    "mixture",
    "network_layers",
    "networks",
    "noise",
    "peaks",
    "predictions",
    "probes",
    "published",
    "sampling",
    "similarity",
    "snr",
    "subspaces",
    "training",
    "zoo",
]

__version__ = "0.1.0"

_CLASSES = {"EmpiricalDenoiser": "memorizing", "LowRankMixture": "mixture", "MoLRG": "mixture"}
_FOLDERS = (
    "molrg",
    *(f"molrg.{part}" for part in ("model", "snr", "learning", "images", "measuring", "support")),
)


def __getattr__(name: str) -> Any:
    if name in _CLASSES:
        return getattr(importlib.import_module(f"molrg.model.{_CLASSES[name]}"), name)
    if name in __all__:
        found = (f"{folder}.{name}" for folder in _FOLDERS if importlib.util.find_spec(f"{folder}.{name}"))
        return importlib.import_module(next(found))
    raise AttributeError(f"module 'molrg' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
