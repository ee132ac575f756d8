"""How diffusion models learn representations, in low-dimensional models that can be solved exactly.

Names are found where they are first used: `molrg.MoLRG`, `molrg.snr.exact`, `from molrg import probes`.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from molrg import images as images
    from molrg import snr as snr
    from molrg.images import checkpoint_files as checkpoint_files
    from molrg.images import image_networks as image_networks
    from molrg.images import latents as latents
    from molrg.images import network_layers as network_layers
    from molrg.images import published as published
    from molrg.images import sampling as sampling
    from molrg.images import zoo as zoo
    from molrg.learning import backpropagation as backpropagation
    from molrg.learning import checkpoints as checkpoints
    from molrg.learning import ensembles as ensembles
    from molrg.learning import networks as networks
    from molrg.learning import predictions as predictions
    from molrg.learning import training as training
    from molrg.measuring import curves as curves
    from molrg.measuring import feature_store as feature_store
    from molrg.measuring import features as features
    from molrg.measuring import labelled as labelled
    from molrg.measuring import probes as probes
    from molrg.measuring import similarity as similarity
    from molrg.measuring import subspaces as subspaces
    from molrg.model import memorizing as memorizing
    from molrg.model import mixture as mixture
    from molrg.model import noise as noise
    from molrg.model.memorizing import EmpiricalDenoiser as EmpiricalDenoiser
    from molrg.model.mixture import LowRankMixture as LowRankMixture
    from molrg.model.mixture import MoLRG as MoLRG
    from molrg.snr import denoising_error as denoising_error
    from molrg.snr import enclosures as enclosures
    from molrg.snr import peaks as peaks
    from molrg.support import devices as devices
    from molrg.support import distributed as distributed

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

_CLASSES = {
    "EmpiricalDenoiser": "molrg.model.memorizing",
    "LowRankMixture": "molrg.model.mixture",
    "MoLRG": "molrg.model.mixture",
}
_MODULES = {
    "backpropagation": "molrg.learning.backpropagation",
    "checkpoint_files": "molrg.images.checkpoint_files",
    "checkpoints": "molrg.learning.checkpoints",
    "curves": "molrg.measuring.curves",
    "denoising_error": "molrg.snr.denoising_error",
    "devices": "molrg.support.devices",
    "distributed": "molrg.support.distributed",
    "enclosures": "molrg.snr.enclosures",
    "ensembles": "molrg.learning.ensembles",
    "feature_store": "molrg.measuring.feature_store",
    "features": "molrg.measuring.features",
    "image_networks": "molrg.images.image_networks",
    "images": "molrg.images",
    "labelled": "molrg.measuring.labelled",
    "latents": "molrg.images.latents",
    "memorizing": "molrg.model.memorizing",
    "mixture": "molrg.model.mixture",
    "network_layers": "molrg.images.network_layers",
    "networks": "molrg.learning.networks",
    "noise": "molrg.model.noise",
    "peaks": "molrg.snr.peaks",
    "predictions": "molrg.learning.predictions",
    "probes": "molrg.measuring.probes",
    "published": "molrg.images.published",
    "sampling": "molrg.images.sampling",
    "similarity": "molrg.measuring.similarity",
    "snr": "molrg.snr",
    "subspaces": "molrg.measuring.subspaces",
    "training": "molrg.learning.training",
    "zoo": "molrg.images.zoo",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(_MODULES[name])
    if name in _CLASSES:
        return getattr(importlib.import_module(_CLASSES[name]), name)
    raise AttributeError(f"module 'molrg' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_CLASSES, *_MODULES])
