"""Ensembles: trained together, networks are what each would be alone; nothing computed is lost."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from molrg.learning import checkpoints, ensembles, training
from molrg.learning.networks import MLP, FeedForward, Preconditioned
from molrg.learning.training import Job, Trained, cosine, edm_weighting, uniform_weighting
from molrg.model.noise import LogUniform


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def some_data(seed: int = 7, size: int = 64) -> Tensor:
    return torch.randn(size, 6, generator=generator(seed), dtype=torch.float64)


def network(seed: int = 0, width: int = 16, prediction: str = "edm", dropout: float = 0.0) -> Preconditioned:
    """With no weight at zero, and float64, so that roundoff stays small through training."""
    made = FeedForward(6, width, dropout=dropout, generator=generator(seed))
    draws = generator(seed + 100)
    with torch.no_grad():
        for parameter in made.last.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draws) / 4)
    return Preconditioned(made, 0.9, prediction).double()


def halve(x: Tensor, sigma: Tensor) -> Tensor:
    return x / (2 + sigma[:, None])


def job(**changes: Any) -> Job:
    settings: dict[str, Any] = {
        "denoiser": network(),
        "data": some_data(),
        "sigmas": 0.3,
        "steps": 30,
        "batch_size": 8,
        "lr": 1e-2,
        "ema": 0.9,
    }
    return Job(**(settings | changes))


def varied_jobs() -> list[Job]:
    """All that may differ between networks trained together, and some that are trained apart."""
    data = some_data()
    return [
        job(data=data),
        job(data=data, sigmas=1.3, denoiser=network(1), lr=3e-3),
        job(data=data, sigmas=[0.1, 0.5, 2.0], seed=3, schedule=cosine),
        job(data=data, seed=3),
        job(
            data=some_data(8, 40),
            sigmas=LogUniform(0.05, 3.0),
            denoiser=network(2),
            weighting=uniform_weighting,
        ),
        job(data=data, target=halve, weighting=edm_weighting(2.0), lr=3e-3),
        job(data=data, denoiser=network(4, width=20)),
        job(data=data, denoiser=network(5, prediction="x0"), steps=20),
        job(data=data, batch_size=5, ema=0.0),
        job(data=data, denoiser=Preconditioned(MLP(6, 16, 1, generator=generator(6)), 0.9).double()),
    ]


def alone(one: Job) -> Trained:
    return training.train(
        one.denoiser,
        one.data,
        one.sigmas,
        steps=one.steps,
        batch_size=one.batch_size,
        lr=one.lr,
        schedule=one.schedule,
        ema=one.ema,
        weighting=one.weighting,
        target=one.target,
        generator=generator(one.seed),
        progress=False,
    )


def assert_close(first: Trained, second: Trained) -> None:
    torch.testing.assert_close(first.losses, second.losses, rtol=1e-9, atol=1e-12)
    left, right = first.denoiser.state_dict(), second.denoiser.state_dict()
    assert left.keys() == right.keys()
    for name in left:
        torch.testing.assert_close(left[name], right[name], rtol=1e-7, atol=1e-9)


def assert_same(first: Trained, second: Trained) -> None:
    """Equal bit for bit."""
    assert torch.equal(first.losses, second.losses)
    right = second.denoiser.state_dict()
    assert all(torch.equal(value, right[name]) for name, value in first.denoiser.state_dict().items())


def test_each_network_is_what_it_would_be_alone() -> None:
    together = ensembles.train(varied_jobs(), progress=False)
    for one, result in zip(varied_jobs(), together, strict=True):
        assert len(result.losses) == one.steps
        assert not result.denoiser.training
        assert_close(result, alone(one))
    finals = [float(result.losses[-1]) for result in together]
    assert len(set(finals)) == len(finals)


def test_the_size_of_the_batches_of_networks_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = ensembles.train(varied_jobs(), progress=False)
    monkeypatch.setitem(ensembles._PARAMETERS_AT_ONCE, "cpu", 1)
    for first, second in zip(ensembles.train(varied_jobs(), progress=False), expected, strict=True):
        assert_close(first, second)


def test_networks_and_random_state_are_left_as_they_are() -> None:
    jobs = [job(denoiser=network(seed, dropout=0.5)) for seed in range(2)]
    before = [{k: v.clone() for k, v in each.denoiser.state_dict().items()} for each in jobs]
    random = torch.get_rng_state()
    trained = ensembles.train(jobs, progress=False)
    assert torch.equal(random, torch.get_rng_state())
    for each, weights, result in zip(jobs, before, trained, strict=True):
        assert all(torch.equal(value, weights[k]) for k, value in each.denoiser.state_dict().items())
        assert not torch.equal(
            result.denoiser.state_dict()["network.last.weight"], weights["network.last.weight"]
        )


def test_dropout_differs_between_networks_and_repeats() -> None:
    jobs = [job(denoiser=network(dropout=0.5)) for _ in range(2)]
    first, second = ensembles.train(jobs, progress=False), ensembles.train(jobs, progress=False)
    assert not torch.equal(first[0].losses, first[1].losses)
    for left, right in zip(first, second, strict=True):
        assert_same(left, right)


class Stopping:
    """A target that stops the run at one of its calls."""

    def __init__(self, at: int) -> None:
        self.left = at

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        if len(x) not in (3, 64):  # not the probe, not the points of a fingerprint
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt
        return halve(x, sigma)


@pytest.mark.parametrize("at", [1, 11, 30, 45])
def test_a_stopped_run_goes_on_where_it_was(tmp_path: Path, at: int) -> None:
    def jobs(at: int) -> list[Job]:
        target = Stopping(at)
        return [
            job(denoiser=network(seed, width, dropout=0.2), target=target)
            for width in (16, 20)
            for seed in (0, 1)
        ]

    expected = ensembles.train(jobs(10**6), progress=False)
    with pytest.raises(KeyboardInterrupt):
        ensembles.train(jobs(at), checkpoints=tmp_path, checkpoint_every=0, progress=False)
    written = [path for path in tmp_path.glob("*.safetensors") if "previous" not in path.name]
    files = {path: path.stat().st_mtime_ns for path in written}
    steps = {path: len(checkpoints.load(path)[0]["losses"]) for path in files}
    assert sum(steps.values()) == at - 1
    resumed = jobs(10**6)
    for left, right in zip(
        ensembles.train(resumed, checkpoints=tmp_path, checkpoint_every=0, progress=False),
        expected,
        strict=True,
    ):
        assert_same(left, right)
    assert all(path.stat().st_mtime_ns == files[path] for path in files if steps[path] == 30)
    assert 10**6 - resumed[0].target.left == 60 - sum(steps.values())  # type: ignore[union-attr]


def test_networks_that_differ_in_an_attribute_alone_have_checkpoints_of_their_own(tmp_path: Path) -> None:
    jobs = [job(denoiser=network(prediction=name)) for name in ("eps", "v")]
    together = ensembles.train(jobs, checkpoints=tmp_path, progress=False)
    for one, trained in zip(jobs, together, strict=True):
        assert trained.denoiser.prediction == one.denoiser.prediction
        (apart,) = ensembles.train([one], progress=False)
        assert torch.equal(apart.losses, trained.losses)


def test_other_jobs_do_not_take_up_a_checkpoint(tmp_path: Path) -> None:
    first = ensembles.train([job()], checkpoints=tmp_path, progress=False)
    other = ensembles.train([job(seed=1)], checkpoints=tmp_path, progress=False)
    assert not torch.equal(first[0].losses, other[0].losses)
    assert len([path for path in tmp_path.iterdir() if "previous" not in path.name]) == 2


def test_a_damaged_checkpoint_is_told(tmp_path: Path) -> None:
    ensembles.train([job()], checkpoints=tmp_path, progress=False)
    (path,) = tmp_path.iterdir()
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="damaged"):
        ensembles.train([job()], checkpoints=tmp_path, progress=False)


def test_a_network_that_diverges_is_named_and_leaves_the_others_alone() -> None:
    def far(x: Tensor, sigma: Tensor) -> Tensor:
        return x / 0

    jobs = [job(), job(target=far), job(sigmas=1.0)]
    with pytest.warns(RuntimeWarning, match=r"1 of 3 networks: number 1 from step 1 on; lower their lr"):
        trained = ensembles.train(jobs, progress=False)
    for i in (0, 2):
        assert_close(trained[i], alone(jobs[i]))


def test_progress_is_one_bar(capsys: pytest.CaptureFixture[str]) -> None:
    ensembles.train([job(), job(denoiser=network(width=20))])
    shown = capsys.readouterr()
    assert shown.out == ""
    assert all(part in shown.err for part in ("training 2 networks on cpu", "60/60", "loss="))


# --- evaluation -------------------------------------------------------------------------------------


def test_a_stack_is_its_networks() -> None:
    networks = [network(seed, dropout=0.5).eval() for seed in range(3)]
    stack = ensembles.Stack(networks)
    x = torch.randn(3, 10, 6, generator=generator(1), dtype=torch.float64)
    sigma = torch.rand(3, 10, generator=generator(2), dtype=torch.float64) + 0.1
    with torch.no_grad():
        each = torch.stack([one(x[i], sigma[i]) for i, one in enumerate(networks)])
        torch.testing.assert_close(stack(x, sigma), each)
        shared = torch.stack([one(x[0], 0.4) for one in networks])
        torch.testing.assert_close(stack(x[0], 0.4), shared)
        torch.testing.assert_close(stack(x[0], torch.full((10,), 0.4)), shared)
        torch.testing.assert_close(stack.unstack()[1](x[0], 0.4), shared[1])


class Scaled(nn.Module):
    """A denoiser with a buffer that its `state_dict` leaves out, of two values."""

    scale: torch.Tensor

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.register_buffer("scale", torch.tensor(scale), persistent=False)

    def forward(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return x * self.weight * self.scale


def test_buffers_outside_the_state_dict_stay_with_their_networks() -> None:
    networks = [Scaled(1.0), Scaled(2.0)]
    copies = ensembles.Stack(networks).unstack()
    assert [float(copy.get_buffer("scale")) for copy in copies] == [1, 2]
    copies[1].get_buffer("scale").zero_()
    assert [float(each.get_buffer("scale")) for each in networks] == [1, 2]


@pytest.mark.parametrize(
    "other",
    [
        lambda: network(width=20),
        lambda: network(prediction="eps"),
        lambda: network().float(),
        lambda: Preconditioned(network().network, 0.8),
    ],
)
def test_networks_of_different_structure_are_not_stacked(other: Any) -> None:
    with pytest.raises(ValueError, match="number 1 differs from number 0"):
        ensembles.Stack([network(), other()])


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"lr": 0.0}, "lr must be positive"),
        ({"ema": 1.0}, "ema must lie"),
        ({"steps": 0}, "steps"),
        ({"batch_size": 0}, "batch_size"),
        ({"seed": -1}, "seed"),
        ({"sigmas": [0.0]}, "positive and finite"),
        ({"denoiser": nn.Identity()}, "no parameters"),
        ({"data": torch.zeros(3)}, "data must be a non-empty"),
        ({"data": torch.full((3, 6), torch.nan)}, "finite"),
    ],
)
def test_wrong_jobs_are_refused_when_they_are_made(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        job(**changes)


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="at least one"):
        ensembles.train([])
    with pytest.raises(ValueError, match="at least one"):
        ensembles.Stack([])
    with pytest.raises(ValueError, match="checkpoint_every"):
        ensembles.train([job()], checkpoint_every=-1)


def test_no_warnings_without_divergence() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ensembles.train([job()], progress=False)
