"""Many linear probes in one solve against a loop over scikit-learn's LogisticRegression."""

import statistics
import time
import warnings

import torch

from molrg import MoLRG
from molrg.learning import networks, training
from molrg.measuring import features, probes
from molrg.model import noise

SAMPLES, TEST, DIM, CLASSES = 10_000, 10_000, 512, 10


def trained(layers: int, steps: int = 200) -> tuple[torch.nn.Module, MoLRG]:
    """Return an MLP denoiser with `layers` blocks of width 512, trained for a moment, and its data model."""
    generator = torch.Generator().manual_seed(0)
    mixture = MoLRG.orthogonal(CLASSES, rank=10, dim=256, delta=0.2, generator=generator)
    network = networks.MLP(256, width=DIM, depth=layers, generator=generator)
    data, _ = mixture.sample(20_000, generator=generator)
    denoiser = networks.Preconditioned(network, float(data.std()))
    levels = noise.LogNormal(-0.8, 1.4)
    fit = training.train(denoiser, data, levels, steps=steps, generator=generator, progress=False)
    return fit.denoiser, mixture


def run(noise_levels: int = 20, layers: int = 5) -> list[dict[str, str | float]]:
    """Return one row: the time of scikit-learn's loop over the time of one batched solve.

    The features are those of a trained denoiser on MoLRG data, clean input. Both get float32, standardise
    the features, use scikit-learn's default penalty, C = 1, and run to its default tolerance.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    denoiser, mixture = trained(layers)
    points, labels = mixture.sample(SAMPLES + TEST, generator=torch.Generator().manual_seed(1))
    known, held = labels[:SAMPLES], labels[SAMPLES:]
    ours = peer = 0.0
    gaps: dict[str, list[float]] = {"each other": [], "ours": [], "theirs": []}
    for sigma in torch.logspace(-2, 1, noise_levels).tolist():
        inputs = torch.stack(list(features.extract(denoiser, points, sigma).values()))
        train, test = inputs[:, :SAMPLES], inputs[:, SAMPLES:]

        start = time.perf_counter()
        fit = probes.fit_logistic(train, known, l2=1 / SAMPLES)
        accuracy = fit.accuracy(test, held)
        ours += time.perf_counter() - start
        best = probes.fit_logistic(train, known, l2=1 / SAMPLES, tolerance=1e-6).accuracy(test, held)

        start = time.perf_counter()
        for probe in range(layers):
            scaler = StandardScaler().fit(train[probe].numpy())
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                model = LogisticRegression(max_iter=5000)
                model.fit(scaler.transform(train[probe].numpy()), known.numpy())
            score = model.score(scaler.transform(test[probe].numpy()), held.numpy())
            gaps["each other"].append(abs(score - accuracy[probe].item()))
            gaps["ours"].append(abs(best[probe] - accuracy[probe]).item())
            gaps["theirs"].append(abs(score - best[probe].item()))
        peer += time.perf_counter() - start
    mean, worst = ({name: 100 * f(each) for name, each in gaps.items()} for f in (statistics.fmean, max))
    return [
        {
            "name": f"{noise_levels * layers} linear probes, {SAMPLES:,} x {DIM} features",
            "ours": ours,
            "peer": peer,
            "ratio": peer / ours,
            "target": ">= 5",
            "note": f"a loop over scikit-learn; accuracies differ by {mean['each other']:.2f} points in the "
            f"mean (worst {worst['each other']:.2f}), from the exact optimum's ours by {mean['ours']:.2f} "
            f"(worst {worst['ours']:.2f}), theirs by {mean['theirs']:.2f} (worst {worst['theirs']:.2f})",
        }
    ]
