"""Probes against scikit-learn, against closed forms, and against themselves one at a time."""

import itertools
import math
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from molrg.measuring import discriminants, probes, subspaces

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
    own = fit.energies(features)[0, :, 0].float()
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
        ({"labels": Y - 1}, "labels must be at least 0, found -1"),
        ({"labels": Y - 1, "num_classes": 3}, r"0 \.\.\. 2, found -1"),
        ({"labels": Y > 0}, "integer tensor of class numbers, got torch.bool"),
        ({"labels": Y.tolist()}, "integer tensor of class numbers, got list"),
        ({"num_classes": 2}, r"0 \.\.\. 1, found 2"),
        ({"num_classes": 1}, "num_classes must be an integer >= 2"),
        ({"l2": 0.0}, "l2 must be finite and positive"),
        ({"l2": torch.ones(3)}, r"one per probe \(2,\)"),
        ({"l2": True}, "l2 must be a number .* got the boolean True"),
        ({"l2": "a"}, "l2 must be a number .* got 'a'"),
        ({"l2": math.nan}, "l2 must be finite and positive"),
        ({"num_classes": True}, "num_classes must be an integer >= 2, got True"),
        ({"tolerance": 0.0}, "tolerance must lie strictly between 0 and 1"),
        ({"tolerance": True}, "tolerance must lie strictly between 0 and 1, got True"),
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
    with pytest.raises(
        ValueError, match="needs at least 3 samples in every class; the smallest, class 0, has 2"
    ):
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


# --- nothing wrong in silence -----------------------------------------------------------------------


def readings(features: Tensor, labels: Tensor) -> list[Tensor]:
    """All that is read out of features, on themselves, and that a factor does not change."""
    seed = torch.Generator().manual_seed(0)
    fits = [
        probes.fit_logistic(features, labels),
        probes.select_logistic(features, labels, generator=seed),
        probes.select_logistic_curve(features, labels, generator=seed),
    ]
    spaces = [subspaces.class_subspaces(features, labels, 2, unit=unit) for unit in (False, True)]
    found = [fit.accuracy(features, labels) for fit in fits]
    found += [each.accuracy(features, labels) for each in spaces]
    found += [discriminants.fit_discriminants(features, labels).accuracy(features, labels)]
    found += [each.snr(features, labels, kind) for each in spaces for kind in ("residual", "classes")]
    return [*found, fits[0].logits(features), subspaces.unit_features(features)[0]]


@pytest.mark.parametrize("factor", [1e-29, 1e-25, 1e-10, 1e18, 1e28])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_factor_changes_nothing(factor: float, dtype: torch.dtype) -> None:
    """Squares of such features, and their sums, leave the range of float32."""
    train, labels, _, _ = random_features(0)
    train = train[None, :, :20].to(dtype)
    expected, found = readings(train, labels), readings(train * factor, labels)
    for one, other in zip(found[:-2], expected[:-2], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=0.003)
    torch.testing.assert_close(found[-1], expected[-1], rtol=0, atol=1e-5)
    torch.testing.assert_close(found[-2], expected[-2], rtol=0, atol=0.05)
    energies = subspaces.class_subspaces(train * factor, labels, 2).energies(train * factor)
    wanted = subspaces.class_subspaces(train, labels, 2).energies(train)
    torch.testing.assert_close(energies / factor**2, wanted, rtol=1e-3, atol=1e-3)


def test_a_feature_of_another_scale_than_the_others_counts_as_much() -> None:
    g = torch.Generator().manual_seed(0)
    labels = torch.arange(300) % 2
    features = torch.randn(1, 300, 3, generator=g)
    features[0, :, 1] = 1e-25 * (labels + 0.1 * torch.randn(300, generator=g))
    assert probes.fit_logistic(features, labels).accuracy(features, labels).item() > 0.99


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_read_as_single_precision(dtype: torch.dtype) -> None:
    train, labels, _, _ = random_features(0)
    half = train[None, :, :20].to(dtype)
    for one, other in zip(readings(half, labels), readings(half.float(), labels), strict=True):
        assert torch.equal(one, other)


def test_features_of_another_precision_than_the_fit() -> None:
    train, labels, _, _ = random_features(0)
    train = train[None, :, :20]
    spaces = subspaces.class_subspaces(train, labels, 2, unit=True)
    for fit in (probes.fit_logistic(train, labels), discriminants.fit_discriminants(train, labels), spaces):
        for other in (train.double(), train.half()):
            gap = fit.accuracy(other, labels) - fit.accuracy(train, labels)
            assert abs(gap) < 0.005


BROKEN: dict[str, Any] = {
    "NaN": torch.where(X > 0, math.nan, X),
    "infinity": torch.where(X > 0, math.inf, X),
    "NumPy": X.numpy(),
    "integers": X.long(),
    "booleans": X > 0,
    "too large": X * 1e35,
    "too small": X * 1e-35,
    "no samples": X[:, :0],
    "two axes": X[0],
    "four axes": X[None],
}


@pytest.mark.parametrize("name", BROKEN)
def test_every_public_function_refuses_what_it_cannot_read(name: str) -> None:
    broken, fit = BROKEN[name], probes.fit_logistic(X, Y)
    spaces = subspaces.class_subspaces(X, Y, 1)
    linear = discriminants.fit_discriminants(X, Y, 1.0)
    calls: dict[str, Any] = {
        "fit_logistic": lambda: probes.fit_logistic(broken, Y),
        "select_logistic": lambda: probes.select_logistic(broken, Y),
        "select_logistic_curve": lambda: probes.select_logistic_curve(broken, Y),
        "fit_discriminants": lambda: discriminants.fit_discriminants(broken, Y),
        "scores": lambda: linear.scores(broken),
        "discriminant accuracy": lambda: linear.accuracy(broken, Y),
        "logits": lambda: fit.logits(broken),
        "predict": lambda: fit.predict(broken),
        "accuracy": lambda: fit.accuracy(broken, Y),
        "class_subspaces": lambda: subspaces.class_subspaces(broken, Y, 1),
        "energies": lambda: spaces.energies(broken),
        "subspace": lambda: spaces.predict(broken),
        "subspace accuracy": lambda: spaces.accuracy(broken, Y),
        "snr": lambda: spaces.snr(broken, Y),
        "unit_features": lambda: subspaces.unit_features(broken),
    }
    for call in calls.values():
        with pytest.raises(ValueError, match=r"^features must "):
            call()


def test_labels_and_options_that_are_not_numbers_are_refused() -> None:
    fit, spaces = probes.fit_logistic(X, Y), subspaces.class_subspaces(X, Y, 1)
    for labels in (Y > 0, Y.float(), Y.numpy()):
        for call in (fit.accuracy, spaces.accuracy, spaces.snr):
            with pytest.raises(ValueError, match="labels must be an integer tensor"):
                call(X, labels)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="rank must be an integer"):
        subspaces.class_subspaces(X, Y, True)
    with pytest.raises(ValueError, match="unit must be True or False, got 1"):
        subspaces.class_subspaces(X, Y, 1, unit=1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="validation must lie strictly between"):
        probes.select_logistic(X, Y, validation=True)
    with pytest.raises(ValueError, match="got the boolean True"):
        probes.select_logistic(X, Y, l2_grid=(True, 0.1))
    with pytest.raises(ValueError, match=r"mean must be \(2, 1, 3\), got \(2, 6, 3\)"):
        subspaces.unit_features(X, X)


@pytest.mark.parametrize("noise", [1e-2, 1e-3, 1e-4, 1e-5])
@pytest.mark.parametrize("own_labels", [False, True])
def test_a_small_residual_is_not_lost_in_float32(noise: float, own_labels: bool) -> None:
    """The difference of two energies would lose an SNR above 1e5."""
    g = torch.Generator().manual_seed(1)
    bases = torch.linalg.qr(torch.randn(40, 15, generator=g, dtype=torch.float64)).Q.unflatten(1, (3, 5))
    labels = torch.arange(300) % 3
    x = torch.einsum("dkr,kr->kd", bases[:, labels], torch.randn(300, 5, generator=g, dtype=torch.float64))
    x = (x + noise * torch.randn(300, 40, generator=g, dtype=torch.float64))[None].expand(2, -1, -1)
    fit = subspaces.class_subspaces(x, labels, 5)
    expected = []  # in float64, from singular values: what the leading five leave
    for label in range(3):
        energies = torch.linalg.svdvals(x[0, labels == label]).square()
        expected.append(energies[:5].sum() / energies[5:].sum())
    truth = torch.stack(expected).mean().item()
    assert fit.snr(x, labels)[0].item() == pytest.approx(truth, rel=1e-9)
    given = torch.stack([labels, labels]) if own_labels else labels
    single = subspaces.class_subspaces(x.float(), given, 5).snr(x.float(), given)
    assert single.tolist() == pytest.approx([truth, truth], rel=1e-3)


def test_a_small_energy_in_the_other_classes_is_not_lost() -> None:
    """Class k has energy 1 in its own direction and 1e-10 in one other."""
    x = torch.tensor([[1.0, 1e-5, 0], [0, 1.0, 1e-5], [1e-5, 0, 1.0]]).repeat(2, 1)[None]
    spaces = subspaces.ClassSubspaces(torch.eye(3)[None, :, :, None], None, 9)
    assert spaces.snr(x, Y, "classes").item() == pytest.approx(1e10, rel=1e-5)


def test_a_class_that_fills_its_subspace_is_refused() -> None:
    """With no more samples than directions its SNR would be rounding over rounding."""
    g = torch.Generator().manual_seed(0)
    x, labels = torch.randn(1, 205, 40, generator=g), torch.tensor([0] * 100 + [1] * 100 + [2] * 5)
    spaces = subspaces.class_subspaces(x, labels, 5)
    with pytest.raises(
        ValueError, match=r"rank 5 needs at least 6 samples in every class .* got 5 in the sm"
    ):
        spaces.snr(x, labels)
    assert spaces.accuracy(x, labels).item() > 0.5  # classification needs no residual
    assert 0 < spaces.snr(x, labels, "classes").item() < 100
    assert subspaces.class_subspaces(x, labels, 4).snr(x, labels).isfinite().all()
    with pytest.raises(ValueError, match="the smallest, class 2, has 5"):
        subspaces.class_subspaces(x, labels, 6)
    with pytest.raises(ValueError, match="the smallest, class 3, has 0"):
        subspaces.class_subspaces(x, labels, 2, num_classes=4)
    narrow = x[:, :200, :5]
    with pytest.raises(ValueError, match="and 6 dimensions, got 100 in the smallest class and 5 dimensions"):
        subspaces.class_subspaces(narrow, labels[:200], 5).snr(narrow, labels[:200])


def test_a_class_without_samples_or_energy_has_no_snr() -> None:
    features, labels = two_planes(200)
    spaces = subspaces.class_subspaces(features, labels, 2)
    for denominator in ("residual", "classes"):
        with pytest.raises(ValueError, match=r"not of \[1\]"):
            spaces.snr(features[:, ::2], labels[::2], denominator)
        with pytest.raises(ValueError, match=r"not of \[0\]"):
            spaces.snr(features * labels[:, None], labels, denominator)


def test_class_subspaces_remember_how_they_were_fitted() -> None:
    """With `unit` they take raw features, and are those of features prepared by hand."""
    train, labels, test, test_labels = random_features(1)
    train, test = train[None], test[None] * 7
    unit, mean = subspaces.unit_features(train)
    by_hand = subspaces.class_subspaces(unit, labels, 5)
    spaces = subspaces.class_subspaces(train, labels, 5, unit=True)
    prepared = subspaces.unit_features(test, mean)[0]
    assert torch.equal(spaces.bases, by_hand.bases)
    assert torch.equal(spaces.energies(test), by_hand.energies(prepared))
    assert torch.equal(spaces.accuracy(test, test_labels), by_hand.accuracy(prepared, test_labels))
    for denominator in ("residual", "classes"):
        snr = spaces.snr(test, test_labels, denominator)
        assert torch.equal(snr, by_hand.snr(prepared, test_labels, denominator))
        assert not torch.allclose(snr, by_hand.snr(test, test_labels, denominator), rtol=0.1)
