"""Linear discriminants against scikit-learn, and against the rule that defines them."""

import numpy as np
import pytest
import torch
from torch import Tensor

from molrg.measuring.discriminants import fit_discriminants


def classes(samples: int = 300, probes: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(4, (samples,), generator=generator)
    means = torch.randn(probes, 4, 5, generator=generator, dtype=torch.float64)
    mixing = torch.eye(5) + 0.3 * torch.randn(probes, 5, 5, generator=generator, dtype=torch.float64)
    noise = torch.randn(probes, samples, 5, generator=generator, dtype=torch.float64)
    return means[:, labels] + noise @ mixing, labels


def test_without_a_ridge_it_is_scikit_learns() -> None:
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    features, labels = classes()
    fitted = fit_discriminants(features, labels, ridge=0.0)
    for own, x in zip(fitted.scores(features), features, strict=True):
        peer = LinearDiscriminantAnalysis(solver="lsqr").fit(x.numpy(), labels.numpy())
        theirs = peer.decision_function(x.numpy())
        difference = own.numpy() - theirs
        np.testing.assert_allclose(difference, difference[:, :1].repeat(4, 1), atol=1e-6)


def by_the_rule(z: np.ndarray, y: np.ndarray, ridge: float) -> np.ndarray:
    """The scores (N, 4) of standardised features z (N, D), term by term."""
    means = np.stack([z[y == k].mean(0) for k in range(4)])
    within = z - means[y]
    inverse = np.linalg.inv(within.T @ within / len(z) + ridge * np.eye(z.shape[1]))
    prior = np.log(np.bincount(y) / len(y))
    own: np.ndarray = z @ inverse @ means.T
    return own - 0.5 * np.einsum("kd,de,ke->k", means, inverse, means) + prior


def test_the_ridge_is_that_of_the_rule() -> None:
    features, labels = classes(probes=1)
    fitted = fit_discriminants(features, labels, ridge=0.3)
    x = features[0].numpy()
    expected = by_the_rule((x - x.mean(0)) / x.std(0), labels.numpy(), 0.3)
    np.testing.assert_allclose(fitted.scores(features)[0].numpy(), expected, atol=1e-10)


def test_probes_do_not_know_of_each_other() -> None:
    features, labels = classes(probes=3)
    together = fit_discriminants(features, labels).scores(features)
    alone = fit_discriminants(features[1:2], labels).scores(features[1:2])
    torch.testing.assert_close(together[1:2], alone, rtol=1e-12, atol=1e-12)


def test_few_components_are_the_principal_ones_of_scikit_learn() -> None:
    from sklearn.decomposition import PCA

    features, labels = classes(probes=1)
    fitted = fit_discriminants(features, labels, ridge=0.3, components=2)
    x = features[0].numpy()
    expected = by_the_rule(PCA(2).fit_transform((x - x.mean(0)) / x.std(0)), labels.numpy(), 0.3)
    np.testing.assert_allclose(fitted.scores(features)[0].numpy(), expected, atol=1e-10)
    for enough in (5, 9):
        exact = fit_discriminants(features, labels, components=enough).scores(features)
        torch.testing.assert_close(exact, fit_discriminants(features, labels).scores(features))


def test_scaled_features_are_read_alike_and_constant_ones_are_harmless() -> None:
    features, labels = classes()
    wider = torch.cat([features, torch.full_like(features[..., :1], 7.0)], 2)
    expected = fit_discriminants(features, labels).predict(features)
    assert torch.equal(fit_discriminants(wider, labels).predict(wider), expected)
    for factor in (1e-6, 1e6):
        assert torch.equal(fit_discriminants(factor * features, labels).predict(factor * features), expected)


def test_what_cannot_be_fitted_is_refused() -> None:
    features, labels = classes()
    with pytest.raises(ValueError, match="class 4 of 6 has no sample"):
        fit_discriminants(features, labels, num_classes=6)
    with pytest.raises(ValueError, match="finite"):
        fit_discriminants(features.masked_fill(features > 3, float("nan")), labels)
    with pytest.raises(ValueError, match="ridge"):
        fit_discriminants(features, labels, ridge=-1.0)
    with pytest.raises(ValueError, match="components"):
        fit_discriminants(features, labels, components=0)
    with pytest.raises(ValueError, match="as in the fit"):
        fit_discriminants(features, labels).predict(features[:, :, :3])
