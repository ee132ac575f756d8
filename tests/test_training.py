"""Training: what it minimises, and what no interruption, damage or divergence may do to it."""

import json
import multiprocessing
import os
import random
import resource
import signal
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from molrg import MoLRG
from molrg.learning import checkpoints, ensembles
from molrg.learning.networks import MLP, Preconditioned, SubspaceDenoiser
from molrg.learning.training import Job, Trained, cosine, edm_weighting, train, uniform_weighting
from molrg.model.noise import LogNormal, LogUniform


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def some_data() -> Tensor:
    return torch.randn(64, 6, generator=generator(7))


def short_run(path: Path | None = None, steps: int = 60, **changes: Any) -> Trained:
    """A run with everything that has a state: dropout, averaging, random levels."""
    network = Preconditioned(MLP(6, width=16, depth=1, dropout=0.2, generator=generator(1)), 1.0)
    settings: dict[str, Any] = {
        "batch_size": 8,
        "lr": 1e-2,
        "ema": 0.9,
        "generator": generator(2),
        "checkpoint_every": 0,
        "progress": False,
    } | changes
    network = settings.pop("denoiser", network)
    data = settings.pop("data", some_data())
    sigmas = settings.pop("sigmas", LogNormal())
    return train(network, data, sigmas, steps=steps, checkpoint=path, **settings)


def assert_same(first: Trained, second: Trained) -> None:
    """Equal bit for bit."""
    assert torch.equal(first.losses, second.losses)
    left, right = first.denoiser.state_dict(), second.denoiser.state_dict()
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


# --- what it minimises ------------------------------------------------------------------------------


@pytest.mark.parametrize("weighting", [None, uniform_weighting])
def test_training_equals_a_plain_loop(weighting: Callable[[Tensor], Tensor] | None) -> None:
    data, steps, decay = some_data(), 12, 0.8
    network = Preconditioned(MLP(6, width=16, depth=1, generator=generator(1)), 0.5)
    trained, losses, _ = train(
        network,
        data,
        [0.1, 1.0],
        steps=steps,
        batch_size=8,
        lr=1e-2,
        ema=decay,
        weighting=weighting,
        generator=generator(2),
        progress=False,
    )

    reference = Preconditioned(MLP(6, width=16, depth=1, generator=generator(1)), 0.5)
    optimizer = torch.optim.Adam(reference.parameters(), lr=1e-2)
    draws = generator(2)
    torch.randint(2**62, (), generator=draws)
    mean = {name: value.clone() for name, value in reference.state_dict().items()}
    expected = []
    for step in range(steps):
        x0 = data[torch.randint(64, (8,), generator=draws)]
        sigma = torch.tensor([0.1, 1.0])[torch.randint(2, (8,), generator=draws)]
        x = x0 + sigma[:, None] * torch.randn(8, 6, generator=draws)
        weight = (sigma**2 + 0.25) / (0.25 * sigma**2) if weighting is None else torch.ones(8)
        loss = (weight[:, None] * (reference(x, sigma) - x0) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        expected.append(loss.item())
        keep = min(decay, (1 + step) / (10 + step))
        mean = {
            name: keep * mean[name] + (1 - keep) * value for name, value in reference.state_dict().items()
        }
    torch.testing.assert_close(losses, torch.tensor(expected, dtype=torch.float64), rtol=1e-4, atol=1e-6)
    for name, value in trained.state_dict().items():
        torch.testing.assert_close(value, mean[name], rtol=1e-3, atol=1e-5)
    for name, value in network.state_dict().items():
        torch.testing.assert_close(value, reference.state_dict()[name], rtol=1e-3, atol=1e-5)


def test_a_trained_subspace_denoiser_comes_near_the_posterior_mean() -> None:
    mixture = MoLRG.orthogonal(2, 2, 8, 0.2, generator=generator(3))
    x0, _ = mixture.sample(2000, generator=generator(4))
    network = SubspaceDenoiser(8, 2, 2, 0.2, generator=generator(5))
    trained, _, _ = train(network, x0, (0.2, 0.5), steps=400, lr=2e-2, generator=generator(6), progress=False)
    x = x0 + 0.5 * torch.randn(x0.shape, generator=generator(8))
    best = mixture.posterior_mean(x, 0.5)
    start = SubspaceDenoiser(8, 2, 2, 0.2, generator=generator(5))
    with torch.no_grad():
        gap, before = ((net(x, 0.5) - best).square().mean() for net in (trained, start))
    assert gap < 0.02 * before


class Recorder(nn.Module):
    """Keeps the levels it is called with; returns NaN at the chosen call."""

    def __init__(self, fail_at: int | None = None, value: float = float("nan")) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.levels: list[Tensor] = []
        self.fail_at, self.value = fail_at, value

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        self.levels.append(sigma)
        return self.scale * x * (self.value if len(self.levels) == self.fail_at else 1.0)


@pytest.mark.parametrize("sigmas", [0.3, [0.1, 0.2], LogUniform(0.5, 2.0)])
def test_the_levels_asked_for_are_those_trained_on(sigmas: Any) -> None:
    recorder = Recorder()
    short_run(denoiser=recorder, sigmas=sigmas, steps=20)
    seen = torch.cat(recorder.levels)
    assert seen.shape == (160,)
    if isinstance(sigmas, LogUniform):
        assert seen.min() >= 0.499
        assert seen.max() <= 2.001
        assert len(seen.unique()) > 150
    else:
        assert seen.unique().tolist() == pytest.approx([sigmas] if isinstance(sigmas, float) else sigmas)


MIXTURE = MoLRG.orthogonal(2, 2, 6, generator=generator(3))


@pytest.mark.parametrize("batch_size", [6, 8])  # 6 is the dimension
def test_a_target_for_all_points_at_all_levels_is_refused(batch_size: int) -> None:
    def not_yet(*_: object) -> None:
        raise AssertionError("a step was made before the target was looked at")

    network = MLP(6, 16, 1)
    network.register_forward_pre_hook(not_yet)
    denoiser = Preconditioned(network, 1.0)
    with pytest.raises(ValueError, match=r"target must return shape \(3, 6\), got \(3, 3, 6\); .*`denoise`"):
        short_run(denoiser=denoiser, target=MIXTURE.posterior_mean, batch_size=batch_size)
    job = Job(denoiser, some_data(), LogNormal(), 5, batch_size, target=MIXTURE.posterior_mean)
    with pytest.raises(ValueError, match="target must return shape"):
        ensembles.train([job], progress=False)


def test_shapes_that_would_broadcast_are_refused() -> None:
    with pytest.raises(ValueError, match=r"weighting must return shape \(8,\), got \(8, 1\)"):
        short_run(weighting=lambda sigma: sigma[:, None])
    with pytest.raises(ValueError, match=r"augment must return shape \(8, 6\), got \(1, 6\)"):
        short_run(augment=lambda x, _: x[:1])
    with pytest.raises(ValueError, match=r"target must return shape \(8, 6\), got \(1, 6\)"):
        short_run(target=lambda x, _: x if len(x) == 3 else x[:1])  # found in the step, not before

    class Narrow(nn.Linear):
        def forward(self, x: Tensor, _: Tensor) -> Tensor:  # type: ignore[override]
            return super().forward(x)

    with pytest.raises(ValueError, match=r"denoiser must return shape \(8, 6\), got \(8, 1\)"):
        short_run(denoiser=Narrow(6, 1))


def test_a_mixture_is_distilled_at_one_level_a_sample() -> None:
    denoiser = SubspaceDenoiser(6, 2, 2, 0.2)
    with torch.no_grad():
        denoiser.basis.copy_(torch.cat(MIXTURE.bases, 1))
    losses = short_run(denoiser=denoiser, target=MIXTURE.denoise, lr=1e-8).losses
    assert losses.max() < 1e-9


@pytest.mark.parametrize(
    ("share", "factor"), [(0.0, 0.0), (0.025, 0.5), (0.05, 1.0), (0.525, 0.5), (0.7625, 0.1464466), (1, 0)]
)
def test_cosine_rises_in_a_twentieth_and_falls_in_the_rest(share: float, factor: float) -> None:
    assert cosine(round(4000 * share), 4000) == pytest.approx(factor, abs=1e-7)


def test_ema_zero_returns_the_last_weights() -> None:
    network = Preconditioned(MLP(6, width=8, depth=1, generator=generator(1)), 1.0)
    trained = short_run(denoiser=network, ema=0.0, steps=7).denoiser
    assert not trained.training
    for name, value in trained.state_dict().items():
        assert torch.equal(value, network.state_dict()[name])


def test_edm_weighting_evens_out_the_levels() -> None:
    sigma = torch.tensor([0.01, 0.5, 10.0])
    output = sigma * 0.5 / (sigma**2 + 0.25).sqrt()
    torch.testing.assert_close(edm_weighting(0.5)(sigma) * output**2, torch.ones(3))


def test_global_random_state_is_left_alone() -> None:
    before = torch.get_rng_state()
    short_run(steps=5)
    assert torch.equal(before, torch.get_rng_state())


def test_progress_shows_loss_and_device(capsys: pytest.CaptureFixture[str]) -> None:
    short_run(steps=5, progress=True)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "training on cpu" in shown.err
    assert "5/5" in shown.err
    assert "loss=" in shown.err
    assert "samples/s=" in shown.err
    short_run(steps=5)
    assert capsys.readouterr() == ("", "")


# --- precision and compilation ----------------------------------------------------------------------


class Watched(nn.Module):
    """A linear denoiser that keeps the type in which its product was computed."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)
        with torch.no_grad():
            self.linear.weight.copy_(torch.eye(6))
            self.linear.bias.zero_()
        self.seen: set[torch.dtype] = set()

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        product = self.linear(x)
        self.seen.add(product.dtype)
        return product


@pytest.mark.parametrize(("precision", "dtype"), [("full", torch.float32), ("bfloat16", torch.bfloat16)])
def test_products_are_computed_in_the_precision_asked_for(precision: str, dtype: torch.dtype) -> None:
    trained = short_run(denoiser=(network := Watched()), precision=precision)
    assert network.seen == {dtype}
    assert {value.dtype for value in trained.denoiser.state_dict().values()} == {torch.float32}
    for name, value in trained.denoiser.state_dict().items():
        assert not torch.equal(value, network.state_dict()[name])  # it has learned


def test_bfloat16_changes_the_losses_by_its_rounding(tmp_path: Path) -> None:
    full, low = short_run(), short_run(precision="bfloat16")
    # 8 bits: single losses to 1%, and 60 steps from the same start do not part further.
    torch.testing.assert_close(low.losses, full.losses, rtol=2e-2, atol=0)
    assert not torch.equal(low.losses, full.losses)


def test_a_run_in_bfloat16_continues_bit_for_bit_and_only_in_bfloat16(tmp_path: Path) -> None:
    low, full = tmp_path / "low.safetensors", tmp_path / "full.safetensors"
    short_run(low, steps=17, precision="bfloat16")
    assert_same(short_run(low, precision="bfloat16"), short_run(precision="bfloat16"))
    with pytest.raises(ValueError, match=r"different are: precision \(bfloat16 there, None here\)"):
        short_run(low)
    short_run(full, steps=5)
    with pytest.raises(ValueError, match=r"different are: precision \(None there, bfloat16 here\)"):
        short_run(full, precision="bfloat16")


def test_compiling_changes_neither_the_result_nor_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is compiled is seen by a backend that compiles nothing, since compilers take long."""
    compiled = []

    def backend(graph: torch.fx.GraphModule, _inputs: list[Tensor]) -> Callable[..., Any]:
        compiled.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    plain, path = short_run(), tmp_path / "run.safetensors"
    assert_same(short_run(path, steps=17, compile=True), short_run(steps=17))
    assert compiled
    assert_same(short_run(path), plain)
    assert_same(short_run(compile=True), plain)


def test_moments_take_the_memory_layout_of_their_weights() -> None:
    def convolution() -> nn.Module:
        layer: Any = nn.Conv2d(3, 4, 3)
        return layer.to(memory_format=torch.channels_last)

    layers = [convolution(), convolution()]
    first, second = (torch.optim.Adam(layer.parameters()) for layer in layers)
    layers[0](torch.ones(1, 3, 5, 5)).sum().backward()
    first.step()
    stored = {name: tensor.contiguous() for name, tensor in checkpoints.optimizer_state(first).items()}
    checkpoints.restore_optimizer(second, stored | {"other": torch.zeros(1)})
    weight: Any = layers[1].weight
    for key, value in second.state[weight].items():
        assert torch.equal(value, stored[f"optimizer.0.{key}"])
        assert value.ndim == 0 or value.stride() == weight.stride() != weight.contiguous().stride()


# --- interruptions ----------------------------------------------------------------------------------


def test_a_run_continued_from_its_checkpoint_equals_the_uninterrupted_one(tmp_path: Path) -> None:
    path = tmp_path / "läuft weiter" / "run.safetensors"
    short_run(path, steps=17)
    assert_same(short_run(path), short_run())
    # A finished run is loaded, not repeated.
    assert_same(short_run(path, denoiser=not_to_be_called()), short_run())


def not_to_be_called() -> nn.Module:
    network = Preconditioned(MLP(6, width=16, depth=1, dropout=0.2, generator=generator(1)), 1.0)

    def refuse(*_: object) -> None:
        raise AssertionError("a finished run was stepped again")

    network.register_forward_pre_hook(refuse)
    return network


PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(
    ["molrg.learning.training", "molrg.learning.networks", "torch._dynamo", "safetensors.torch", "tqdm"]
)


def in_child(target: Callable[..., None], *arguments: Any) -> Any:
    """A started process; forked from one that has imported the library but run nothing."""
    process = PROCESSES.Process(target=target, args=arguments)
    process.start()
    return process


def child_run(path: Path, steps: int) -> None:
    torch.set_num_threads(1)
    short_run(path, steps=steps, checkpoint_every=0.02)


def test_killed_at_random_moments_it_ends_in_the_same_weights(tmp_path: Path) -> None:
    path, steps, dice = tmp_path / "run.safetensors", 2000, random.Random(0)
    kills, done = 0, 0
    for _ in range(4):
        process = in_child(child_run, path, steps)
        while process.is_alive() and steps_in(path) == done:
            time.sleep(0.01)
        time.sleep(dice.uniform(0, 0.2))
        process.kill()
        process.join()
        kills += process.exitcode == -signal.SIGKILL
        done = steps_in(path)
    assert kills >= 2
    assert done > 0
    assert_same(short_run(path, steps=steps), short_run(steps=steps))


def steps_in(path: Path) -> int:
    """Steps in the checkpoint, which is whole at any moment."""
    return len(checkpoints.load(path)[0]["losses"]) if path.exists() else 0


def die_while_writing(path: Path) -> None:
    os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment]
    short_run(path, steps=20)


def test_a_killed_write_leaves_the_last_good_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    short_run(path, steps=10)
    before = path.read_bytes()
    process = in_child(die_while_writing, path)
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert path.read_bytes() == before
    (leftover,) = tmp_path.glob(".run.safetensors.*.part")
    old = time.time() - 86_400
    os.utime(leftover, (old, old))
    assert_same(short_run(path), short_run())
    assert sorted(tmp_path.iterdir()) == [checkpoints.previous(path), path]


def fill_the_disk(path: Path, report: Path) -> None:
    limit = path.stat().st_size // 2 if path.exists() else 1000
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    try:
        short_run(path, steps=30)
    except OSError as error:
        report.write_text(str(error))


@pytest.mark.parametrize("written_before", [True, False])
def test_a_full_disk_is_told_and_harms_nothing(tmp_path: Path, written_before: bool) -> None:
    path, report = tmp_path / "run.safetensors", tmp_path / "report"
    if written_before:
        short_run(path, steps=10)
        checkpoints.previous(path).unlink()
    process = in_child(fill_the_disk, path, report)
    process.join(60)
    told = report.read_text()
    assert f"cannot write {path}" in told
    assert ("written there before is intact" if written_before else "None was there before") in told
    assert sorted(tmp_path.iterdir()) == ([report, path] if written_before else [report])
    if written_before:
        assert len(checkpoints.load(path)[0]["losses"]) == 10
    assert_same(short_run(path), short_run())


# --- damage and mix-ups -----------------------------------------------------------------------------


def test_every_flipped_byte_and_every_truncation_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    short_run(path, steps=5)
    checkpoints.previous(path).unlink()
    good = path.read_bytes()
    dice = random.Random(0)
    positions = [*range(0, 400, 7), *dice.sample(range(len(good)), 200), len(good) - 1]
    for position in positions:
        bad = bytearray(good)
        bad[position] ^= 1 << dice.randrange(8)
        path.write_bytes(bad)
        with pytest.raises(ValueError, match="is damaged: expected SHA-256"):
            checkpoints.load(path)
    for length in [0, 5, 100, len(good) // 2, len(good) - 1]:
        path.write_bytes(good[:length])
        with pytest.raises(ValueError, match="is damaged") as caught:
            short_run(path)
        assert str(path) in str(caught.value)
        assert "Delete it to compute it again" in str(caught.value)
    path.write_bytes(good)
    assert_same(short_run(path), short_run())


def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    short_run(path, steps=30)
    before = checkpoints.previous(path)
    assert [steps_in(each) for each in (before, path)] == [29, 30]
    path.write_bytes(path.read_bytes()[:-1])
    good = before.read_bytes()
    with pytest.warns(RuntimeWarning, match=r"damaged.* goes on from the one before, .*run.previous"):
        short_run(path, steps=30)
    assert before.read_bytes() == good  # what is damaged does not take its place
    assert_same(short_run(path), short_run())
    for each in (before, path):
        each.write_bytes(each.read_bytes()[:-1])
    with pytest.raises(ValueError, match="is damaged"):
        short_run(path)


def test_checkpoints_are_written_by_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Clock:
        """Each look at it takes a second."""

        now = 0.0

        def monotonic(self) -> float:
            self.now += 1
            return self.now

    saved: list[float] = []
    clock = Clock()
    monkeypatch.setattr(checkpoints.time, "monotonic", clock.monotonic)
    monkeypatch.setattr(checkpoints, "save", lambda *_, **__: saved.append(clock.now))
    short_run(tmp_path / "run.safetensors", checkpoint_every=50)
    assert len(saved) >= 3
    gaps = [later - earlier for earlier, later in pairwise([0, *saved[:-1]])]
    assert all(50 <= gap < 60 for gap in gaps)


def test_a_checkpoint_is_a_safetensors_file_and_holds_what_was_saved(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    path = tmp_path / "some.safetensors"
    shared = torch.arange(6.0).reshape(2, 3)
    tensors = {"a": shared, "b": shared, "flipped": shared.T, "count": torch.tensor(3)}
    checkpoints.save(path, tensors, {"note": "ü"})
    loaded, metadata = checkpoints.load(path)
    assert metadata["note"] == "ü"
    for read in (loaded, load_file(path)):
        assert read.keys() == tensors.keys()
        assert all(torch.equal(read[name], tensors[name]) for name in tensors)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"lr": 2e-2}, r"lr \(0.01 there, 0.02 here\)"),
        ({"batch_size": 9}, "batch_size"),
        ({"sigmas": 0.5}, r"sigmas \(LogNormal"),
        ({"weighting": uniform_weighting}, "weighting"),
        ({"data": torch.zeros(64, 6)}, "data"),
        ({"generator": generator(3)}, "generator"),
        (
            {"denoiser": Preconditioned(MLP(6, width=16, depth=1, dropout=0.2, generator=generator(9)), 1.0)},
            "starting weights",
        ),
        ({"denoiser": Preconditioned(MLP(6, width=16, depth=1, generator=generator(1)), 1.0)}, "network"),
        ({"denoiser": Preconditioned(MLP(6, 16, 1, 0.2, generator(1)), 1.0, "eps")}, "network"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path, changes: dict[str, Any], named: str) -> None:
    path = tmp_path / "run.safetensors"
    short_run(path, steps=5)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=f"of another run; different are: {named}") as caught:
        short_run(path, **changes)
    assert str(path) in str(caught.value)
    assert path.read_bytes() == before


def test_fewer_steps_than_the_checkpoint_holds_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    short_run(path, steps=10)
    with pytest.raises(ValueError, match="steps must be at least 10"):
        short_run(path, steps=9)


# --- divergence -------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("fail_at", [1, 37, 60])
def test_the_first_loss_that_is_not_finite_stops_the_run(tmp_path: Path, fail_at: int, value: float) -> None:
    path = tmp_path / "run.safetensors"
    recorder = Recorder(fail_at, value)
    with pytest.raises(FloatingPointError, match=f"at step {fail_at} of 60,") as caught:
        short_run(path, denoiser=recorder)
    low, high = (bound.item() for bound in recorder.levels[fail_at - 1].aminmax())
    assert f"sigma = {low:.4g} to {high:.4g}" in str(caught.value)
    good = fail_at - 1
    if good:
        assert f"Last good checkpoint: {path} at step {good}." in str(caught.value)
        state, _ = checkpoints.load(path)
        assert len(state["losses"]) == good
        assert state["network.scale"].isfinite()
    else:
        assert "Last good checkpoint: none was written." in str(caught.value)
        assert not path.exists()


def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path) -> None:
    class Overflow(Recorder):
        """Its loss is finite where its gradient is not."""

        def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
            self.levels.append(sigma)
            return x + ((self.scale - 1).abs().sqrt() if len(self.levels) == 10 else self.scale * 0)

    path = tmp_path / "run.safetensors"
    with pytest.raises(FloatingPointError, match="weights are not finite after step 10") as caught:
        short_run(path, denoiser=Overflow(), steps=10)
    assert f"{path} at step 9" in str(caught.value)
    assert len(checkpoints.load(path)[0]["losses"]) == 9


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"steps": 0}, "steps must be an integer >= 1, got 0"),
        ({"batch_size": 0}, "batch_size must be an integer >= 1, got 0"),
        ({"lr": 0.0}, "lr must be positive and finite, got 0.0"),
        ({"precision": "float16"}, "precision must be .full. or .bfloat16."),
        ({"ema": 1.0}, r"ema must lie in \[0, 1\), got 1.0"),
        ({"ema": False}, r"ema must lie in \[0, 1\), got False"),
        ({"lr": True}, "lr must be positive and finite, got True"),
        ({"sigmas": True}, "sigmas must be numbers, got the boolean True"),
        ({"sigmas": [0.1, -0.1]}, "positive"),
        ({"data": torch.zeros(4, 1, 2, 3)}, "flatten images"),
        ({"data": torch.zeros(4, 6, dtype=torch.int64)}, "floating point"),
        ({"data": torch.full((4, 6), float("nan"))}, "data must be finite"),
        ({"denoiser": nn.Identity()}, "no parameters to train"),
    ],
)
def test_wrong_values_are_named(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        short_run(**changes)


def test_checkpoint_metadata_names_the_run(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    short_run(path, steps=5)
    run = json.loads(checkpoints.load(path)[1]["run"])
    assert (run["lr"], run["sigmas"]) == ("0.01", "LogNormal(mean=-1.2, std=1.2)")
