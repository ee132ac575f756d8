"""True and False are no numbers: every public function of model, snr and learning that takes one says so."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from molrg import EmpiricalDenoiser, LowRankMixture, MoLRG, snr
from molrg.learning import ensembles, networks, predictions, training
from molrg.model import noise
from molrg.snr import denoising_error, enclosures, peaks

MIXTURE = MoLRG.orthogonal(2, 1, 3, 0.2, generator=torch.Generator().manual_seed(0))
X = torch.ones(4, 3)
MEMORY = EmpiricalDenoiser(X, [0, 1, 0, 1])
NETWORK = networks.Preconditioned(networks.MLP(3, 4, 1), 1.0)


def job(**changes: Any) -> training.Job:
    return training.Job(NETWORK, X, **({"sigmas": 0.5, "steps": 1, "batch_size": 2} | changes))


CALLS: list[Callable[[Any], object]] = [
    lambda v: MoLRG(MIXTURE.bases, v),
    lambda v: MoLRG(MIXTURE.bases, 0.2, [v, 0.5]),
    lambda v: LowRankMixture(MIXTURE.bases, v),
    lambda v: LowRankMixture(MIXTURE.bases, 0.2, variances=[v, 0.5]),
    lambda v: LowRankMixture(MIXTURE.bases, 0.2, variances=[[v], 0.5]),
    lambda v: LowRankMixture(MIXTURE.bases, 0.2, means=torch.full((2, 3), v)),
    lambda v: LowRankMixture(MIXTURE.bases, 0.2, means=[[v, 0.0, 0.0], [0.0, 0.0, 0.0]]),
    lambda v: MoLRG.orthogonal(v, 1, 3),
    lambda v: MoLRG.orthogonal(2, v, 3),
    lambda v: MoLRG.orthogonal(2, 1, v),
    lambda v: MIXTURE.covariance(v),
    lambda v: MIXTURE.sample(v),
    lambda v: MIXTURE.posterior_mean(X, v),
    lambda v: MIXTURE.posterior_mean(X, [0.1, v]),
    lambda v: MIXTURE.denoise(X, torch.tensor([v] * 4)),
    lambda v: MEMORY.posterior_mean(X, v),
    lambda v: EmpiricalDenoiser(X, [0, 1, 0, 1], v),
    lambda v: noise.ddpm_levels(v),
    lambda v: noise.ddpm_levels(10, v, 0.02),
    lambda v: noise.ddpm_levels(10, 1e-4, v),
    lambda v: noise.edm_levels(3, v, 2.0),
    lambda v: noise.edm_levels(3, 0.1, v),
    lambda v: noise.edm_levels(3, 0.1, 2.0, v),
    lambda v: noise.Levels((v,)),
    lambda v: noise.LogUniform(v, 2.0),
    lambda v: noise.LogNormal(v, 1.0),
    lambda v: noise.LogNormal(0.0, v),
    lambda v: noise.as_distribution(v),
    lambda v: noise.as_distribution([0.5, v]),
    lambda v: noise.as_distribution(torch.tensor([v])),
    lambda v: snr.theorem(v, 5, 0.2, 0.5),
    lambda v: snr.refined(3, v, 0.2, 0.5),
    lambda v: snr.exact(3, 5, v, 0.5),
    lambda v: snr.exact(3, 5, 0.2, v),
    lambda v: snr.exact(3, 5, 0.2, 0.5, dim=v),
    lambda v: snr.exact_classes([v, 2], None, 0.2, 0.5),
    lambda v: snr.exact_classes([1, 2], [v, 0.5], 0.2, 0.5),
    lambda v: snr.mismatched(3, 5, 0.2, v, 0.5),
    lambda v: snr.estimate(MIXTURE, MIXTURE, 0.5, v),
    lambda v: denoising_error.exact(3, 5, 0.2, v),
    lambda v: denoising_error.exact(3, 5, 0.2, 0.5, v),
    lambda v: enclosures.snr(3, 5, 0.2, v),
    lambda v: enclosures.weight_moments(v, 5, 1.0, 0.1),
    lambda v: peaks.find(lambda s: s, v, 10),
    lambda v: peaks.find(lambda s: s, 0.1, 10, v),
    lambda v: peaks.find(lambda s: s, 0.1, 10, accuracy=v),
    lambda v: networks.SubspaceDenoiser(4, v, 1, 0.2),
    lambda v: networks.SubspaceDenoiser(4, 2, 1, v),
    lambda v: networks.MLP(3, 4, v),
    lambda v: networks.MLP(3, 4, 1, v),
    lambda v: networks.FeedForward(3, 4, 1, dropout=v),
    lambda v: networks.Preconditioned(nn.Identity(), v),
    lambda v: NETWORK(X, v),
    lambda v: NETWORK(X, torch.tensor([v] * 4)),
    lambda v: predictions.scale(v, "eps"),
    lambda v: predictions.convert(X, X, v, "eps", "v"),
    lambda v: job(sigmas=v),
    lambda v: job(steps=v),
    lambda v: job(lr=v),
    lambda v: job(ema=v),
    lambda v: job(seed=v),
    lambda v: training.edm_weighting(v),
    lambda v: training.Plateau(warm=v),
    lambda v: training.Plateau(fall=v),
    lambda v: training.train(NETWORK, X, 0.5, steps=1, checkpoint="unused", checkpoint_every=v),
    lambda v: ensembles.train([job()], checkpoint_every=v),
]


@pytest.mark.parametrize("value", [True, False])
@pytest.mark.parametrize("call", range(len(CALLS)))
def test_a_boolean_is_refused(call: int, value: bool) -> None:
    with pytest.raises(ValueError, match=r"(?i)true|false|boolean"):
        CALLS[call](value)
