"""Probes against scikit-learn, against closed forms, and against themselves one at a time."""

import itertools
import math
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from molrg.measuring import probes, subspaces

Problem = tuple[Tensor, Tensor, Tensor, Tensor]


def digits() -> Problem:
    from sklearn.datasets import load_digits

    data = load_digits()
    order = torch.randperm(len(data.data), generator=torch.Generator().manual_seed(0))
    x, y = torch.tensor(data.data, dtype=torch.float32)[order], torch.tensor(data.target)[order]
    return x[:1200], y[:1200], x[1200:], y[1200:]


def random_features(seed: int) -> Problem:
    """Three overlapping classes seen through a random ReLU layer: correlated, not separable."""
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(3, (3000,), generator=g)
    x = torch.randn(3, 10, generator=g)[y] + 1.5 * torch.randn(3000, 10, generator=g)
    x = torch.relu(x @ torch.randn(10, 60, generator=g)) + 5
    return x[:1000], y[:1000], x[1000:], y[1000:]


@pytest.fixture(params=["digits", "random-0", "random-1"])
def problem(request: pytest.FixtureRequest) -> Problem:
    name, _, seed = request.param.partition("-")
    return digits() if name == "digits" else random_features(int(seed))


def reference(train: Tensor, labels: Tensor, l2: float) -> tuple[Any, Any]:
    """scikit-learn's own scaler and classifier, run to convergence in float64."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(train.double().numpy())
    model = LogisticRegression(C=1 / (l2 * len(train)), max_iter=5000, tol=1e-6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return scaler, model.fit(scaler.transform(train.double().numpy()), labels.numpy())


def penalised_loss(weight: Tensor, bias: Tensor, z: Tensor, labels: Tensor, l2: float) -> float:
    data = torch.nn.functional.cross_entropy(z @ weight.T + bias, labels)
    return float(data + l2 / 2 * weight.square().sum())


@pytest.mark.parametrize("l2", [1e-4, 1e-2])
def test_logistic_agrees_with_scikit_learn(problem: Problem, l2: float) -> None:
    train, labels, test, test_labels = problem
    scaler, model = reference(train, labels, l2)
    fit = probes.fit_logistic(train[None], labels, l2=l2, tolerance=1e-5)
    assert fit.converged.all()
    accuracy = fit.accuracy(test[None], test_labels).item()
    assert abs(accuracy - model.score(scaler.transform(test.double().numpy()), test_labels)) <= 0.002 + 1e-9
    z = torch.from_numpy(scaler.transform(train.double().numpy()))
    best = penalised_loss(torch.from_numpy(model.coef_), torch.from_numpy(model.intercept_), z, labels, l2)
    ours = penalised_loss(fit.weight[0].double(), fit.bias[0].double(), z, labels, l2)
    assert best - 1e-7 <= ours <= best * 1.002 + 1e-6
    assert fit.loss.item() == pytest.approx(ours, rel=1e-4)


def test_float64_reaches_the_optimum() -> None:
    train, labels, _, _ = digits()
    fit = probes.fit_logistic(train[None].double(), labels, l2=1e-2, tolerance=1e-10)
    scaler, model = reference(train, labels, 1e-2)
    assert fit.converged.all()
    assert fit.weight.dtype == torch.float64
    torch.testing.assert_close(fit.weight[0], torch.from_numpy(model.coef_), atol=1e-4, rtol=0)
    z = torch.from_numpy(scaler.transform(train.double().numpy()))
    loss = penalised_loss(fit.weight[0], fit.bias[0], z, labels, 1e-2)
    assert loss == pytest.approx(fit.loss.item(), rel=1e-12)


def many() -> tuple[Tensor, Tensor]:
    """Five probes of different scale and difficulty, one label set each."""
    parts = [random_features(seed)[:2] for seed in range(5)]
    scale = torch.tensor([1e-3, 1.0, 7.0, 1e3, 1.0])
    return torch.stack([x for x, _ in parts]) * scale[:, None, None], torch.stack([y for _, y in parts])


def test_probes_at_once_equal_each_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = many()
    together = probes.select_logistic(features, labels, generator=torch.Generator().manual_seed(1))
    monkeypatch.setattr(probes, "CHUNK_ELEMENTS", 1)
    chunked = probes.select_logistic(features, labels, generator=torch.Generator().manual_seed(1))
    for p in range(5):
        alone = probes.select_logistic(
            features[p : p + 1], labels[p], generator=torch.Generator().manual_seed(1)
        )
        for other in (alone, probes.LogisticProbes(**{k: v[p : p + 1] for k, v in vars(chunked).items()})):
            assert together.l2[p] == other.l2[0]
            torch.testing.assert_close(together.loss[p], other.loss[0], rtol=1e-4, atol=0)
            torch.testing.assert_close(together.weight[p], other.weight[0], rtol=0, atol=0.02)
            x, y = features[p : p + 1], labels[p]
            gap = together.accuracy(features, labels)[p] - other.accuracy(x, y)[0]
            assert abs(gap) <= 0.002


def test_l2_is_chosen_by_the_held_out_samples() -> None:
    """Weak signal in many noisy dimensions needs a strong penalty, a fine contrast a weak one."""
    g = torch.Generator().manual_seed(0)
    y = torch.randint(2, (400,), generator=g)
    sign = 2.0 * y - 1
    noise = torch.randn(400, 100, generator=g) + 0.15 * sign[:, None]
    contrast = torch.zeros(400, 100)
    contrast[:, 0] = torch.randn(400, generator=g)
    contrast[:, 1] = contrast[:, 0] + 0.05 * sign
    fit = probes.select_logistic(torch.stack([noise, contrast]), y, l2_grid=(1e-5, 1.0), generator=g)
    assert fit.validation_accuracy is not None
    assert fit.validation_accuracy.shape == (2, 2)  # columns from the largest l2 on
    assert fit.l2.tolist() == pytest.approx([1.0, 1e-5])
    best = fit.validation_accuracy.argmax(1)
    assert best.tolist() == [0, 1]


def test_a_curve_has_one_l2_chosen_by_the_mean_over_its_probes() -> None:
    """The l2 of `select_logistic` where the probes agree; where they do not, that of the best mean."""
    features, labels = many()
    features[4] = torch.randn(features[4].shape, generator=torch.Generator().manual_seed(3))
    features = torch.cat([features, features[4:]])
    labels = torch.cat([labels, labels[4:]])
    grid = (1.0, 1e-2, 1e-5)
    each, curve = (
        select(features, labels, l2_grid=grid, generator=torch.Generator().manual_seed(1))
        for select in (probes.select_logistic, probes.select_logistic_curve)
    )
    assert each.validation_accuracy is not None
    assert curve.validation_accuracy is not None
    torch.testing.assert_close(curve.validation_accuracy, each.validation_accuracy, rtol=0, atol=0)
    assert len(each.l2.unique()) > 1
    best = grid[int(each.validation_accuracy.mean(0).argmax())]
    assert curve.l2.tolist() == pytest.approx([best] * 6)
    alone = probes.fit_logistic(features, labels, l2=best)
    torch.testing.assert_close(curve.loss, alone.loss, rtol=1e-4, atol=0)


def test_constant_and_repeated_features_are_harmless() -> None:
    train, labels, test, test_labels = digits()  # has constant pixels
    doubled = torch.cat([train, train, torch.full((len(train), 3), 0.1)], 1)[None]
    fit = probes.fit_logistic(doubled, labels, l2=1e-3)
    assert fit.converged.all()
    shifted = torch.cat([test, test, torch.full((len(test), 3), 0.1)], 1)[None]
    assert fit.accuracy(shifted, test_labels).item() > 0.95


def test_unconverged_probes_say_so() -> None:
    train, labels, _, _ = digits()
    fit = probes.fit_logistic(train[None], labels, l2=1e-5, max_iterations=2)
    assert not fit.converged.any()
    assert fit.iterations.tolist() == [2]


def two_planes(samples: int = 4000) -> tuple[Tensor, Tensor]:
    """Two orthogonal planes in R^6 with variances 9, 4 (own) and 1 (the other four dimensions)."""
    g = torch.Generator().manual_seed(0)
    y = torch.arange(samples) % 2
    spread = torch.ones(samples, 6)
    spread[y == 0, :2] = torch.tensor([3.0, 2.0])
    spread[y == 1, 2:4] = torch.tensor([3.0, 2.0])
    return (spread * torch.randn(samples, 6, generator=g))[None], y


def test_subspaces_recover_planes_and_their_snr() -> None:
    features, labels = two_planes()
    fit = subspaces.class_subspaces(features, labels, rank=2)
    projection = fit.bases[0, 0] @ fit.bases[0, 0].T
    expected = torch.diag(torch.tensor([1.0, 1, 0, 0, 0, 0]))
    torch.testing.assert_close(projection, expected, atol=0.1, rtol=0)
    assert fit.snr(features, labels).item() == pytest.approx(13 / 4, rel=0.05)
    assert fit.snr(features, labels, denominator="classes").item() == pytest.approx(13 / 2, rel=0.05)
    own = fit.energies(features)[0, :, 0]
    torch.testing.assert_close(own, (features[0] @ fit.bases[0, 0]).square().sum(1))
    by_hand = (own < fit.energies(features)[0, :, 1]).long()
    assert torch.equal(fit.predict(features)[0], by_hand)
    assert fit.accuracy(features, labels).item() == pytest.approx((by_hand == labels).double().mean().item())
    assert fit.accuracy(features, labels).item() > 0.75


def test_subspaces_are_the_leading_singular_vectors() -> None:
    g = torch.Generator().manual_seed(0)
    features, labels = torch.randn(2, 60, 8, generator=g), torch.randint(2, (2, 60), generator=g)
    fit = subspaces.class_subspaces(features, labels, rank=3)
    for p in range(2):
        vectors = torch.linalg.svd(features[p, labels[p] == 1].T)[0][:, :3]
        torch.testing.assert_close(fit.bases[p, 1].abs(), vectors.abs(), atol=1e-4, rtol=1e-4)


def test_unit_features() -> None:
    g = torch.Generator().manual_seed(0)
    train, test = 5 * torch.randn(2, 30, 4, generator=g), torch.randn(2, 7, 4, generator=g)
    train[0, 0] = 0
    unit, mean = subspaces.unit_features(train)
    assert unit.mean(1).abs().max() < 1e-6
    norms = (unit + mean).norm(dim=2)
    assert norms[0, 0] == 0
    torch.testing.assert_close(norms[1], torch.ones(30))
    other, same = subspaces.unit_features(test, mean)
    assert same is mean
    torch.testing.assert_close(other, test / test.norm(dim=2, keepdim=True) - mean)


X, Y = torch.randn(2, 6, 3), torch.tensor([0, 1, 2, 0, 1, 2])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"features": X[0]}, r"give one probe as features\[None\]"),
        ({"features": X.long()}, "floating-point"),
        ({"features": X.numpy()}, "ndarray"),
        ({"features": X[:, :0]}, "must not be empty"),
        ({"features": torch.where(X > 0, math.nan, X)}, "must be finite"),
        ({"labels": Y[:5]}, r"shape \(6,\) or \(2, 6\), got \(5,\)"),
        ({"labels": Y.float()}, "integer tensor"),
        ({"labels": Y - 1}, r"0 \.\.\. 1, found -1"),
        ({"num_classes": 2}, r"0 \.\.\. 1, found 2"),
        ({"num_classes": 1}, "num_classes must be an integer >= 2"),
        ({"l2": 0.0}, "l2 must be finite and positive"),
        ({"l2": torch.ones(3)}, r"one per probe \(2,\)"),
        ({"tolerance": 0.0}, "tolerance must lie between 0 and 1"),
        ({"max_iterations": 0}, "max_iterations must be an integer >= 1"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        probes.fit_logistic(**{"features": X, "labels": Y, **arguments})


def test_wrong_arguments_of_the_others_are_named() -> None:
    with pytest.raises(ValueError, match="at least one value"):
        probes.select_logistic(X, Y, l2_grid=())
    with pytest.raises(ValueError, match="strictly between 0 and 1"):
        probes.select_logistic(X, Y, validation=1.0)
    with pytest.raises(ValueError, match="leaves an empty part"):
        probes.select_logistic(X, Y, validation=0.01)
    with pytest.raises(ValueError, match="rank must be an integer from 1 to 3"):
        subspaces.class_subspaces(X, Y, rank=4)
    with pytest.raises(ValueError, match="the smallest has 2"):
        subspaces.class_subspaces(X, Y, rank=3)
    fit = subspaces.class_subspaces(X, Y, rank=1)
    with pytest.raises(ValueError, match=r"must be \(2, N, 3\) as in the fit"):
        fit.predict(X[:1])
    with pytest.raises(ValueError, match="'residual' or 'classes'"):
        fit.snr(X, Y, denominator="all")
    with pytest.raises(ValueError, match=r"labels must have shape \(6,\)"):
        fit.accuracy(X, Y[:2])


@pytest.mark.parametrize("dim", [4, 12, 40], ids=["more samples", "as many", "fewer"])
@pytest.mark.parametrize("own_labels", [False, True])
def test_class_subspaces_are_the_leading_singular_vectors(dim: int, own_labels: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(2, 36, dim, generator=generator, dtype=torch.float64) * torch.linspace(2, 0.1, dim)
    labels = torch.stack([torch.arange(36) % 3, torch.arange(36) // 12])
    bases = subspaces.class_subspaces(X, labels if own_labels else labels[0], 3, 3).bases
    torch.testing.assert_close(bases.mT @ bases, torch.eye(3, dtype=torch.float64).expand(2, 3, 3, 3))
    for probe, label in itertools.product(range(2), range(3)):
        members = X[probe, labels[probe if own_labels else 0] == label]
        expected = torch.linalg.svd(members).Vh[:3].T
        assert (expected * bases[probe, label]).sum(0).abs().min() > 1 - 1e-10  # in order, but for the sign
