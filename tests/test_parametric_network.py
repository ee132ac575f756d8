"""The experiment on the parametric network: a small run for real, and the parts it is made of."""

import json
import multiprocessing
import random
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from compendium import results
from experiments.learned import bench
from experiments.learned import parametric_network as experiment
from molrg import MoLRG, snr
from molrg.learning.networks import SubspaceDenoiser

SMOKE: dict[str, Any] = {
    "num_classes": 3,
    "rank": 5,
    "dim": 50,
    "delta": 0.2,
    "train_size": 2000,
    "test_size": 600,
    "epochs": 15,
    "learning_rate": 5e-3,
    "batch_size": 64,
    "restarts": 2,
    "seeds": 2,
}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return experiment.run(**SMOKE, workdir=tmp_path_factory.mktemp("smoke"))


def test_shapes(figures: dict[str, Any]) -> None:
    shapes = {key: value.shape for key, value in figures.items() if isinstance(value, np.ndarray)}
    assert shapes == {
        "snr": (2, 2, 2, 14),
        "snr_error": (2, 2, 2, 14),
        "snr_starts": (2, 3, 2, 14),
        "exact": (2, 2, 14),
        "theorem": (2, 14),
        "recovery": (2, 3),
        "excess_loss": (2, 3),
        "chosen": (2,),
        "linear": (2, 2, 14),
        "nearest": (2, 2, 14),
        "linear_exact": (2, 2, 14),
        "nearest_exact": (2, 2, 14),
        "levels": (14,),
    }
    assert all(np.isfinite(figures[key]).all() for key in shapes)
    assert figures["steps"] == 468


def test_the_start_from_neighbourhoods_becomes_the_optimal_denoiser(figures: dict[str, Any]) -> None:
    assert (figures["recovery"][:, -1] > 0.99).all()
    assert (figures["excess_loss"][:, -1] < 0.02).all()
    assert (figures["chosen"] == figures["excess_loss"].argmin(1)).all()
    noisy = figures["snr"][:, 0, 0]
    assert (abs(noisy / figures["exact"][0, 0] - 1) < 0.25).all()


def test_loss_and_recovery_tell_the_same_starts_apart(figures: dict[str, Any]) -> None:
    found = figures["recovery"] > 0.95
    assert figures["excess_loss"][found].max() < 0.05
    assert (figures["excess_loss"][~found] > 0.05).all()


def test_readouts_of_the_learned_and_the_optimal_denoiser_agree(figures: dict[str, Any]) -> None:
    for readout in ("linear", "nearest"):
        assert abs(figures[readout] - figures[f"{readout}_exact"]).max() < 0.06
    nearest = figures["nearest_exact"]
    assert (nearest[:, 1] > 0.98).all()  # clean input
    assert (nearest[:, 0, 0] > 0.98).all()
    assert (nearest[:, 0, -1] < 0.6).all()  # noisy input at the highest level


def test_theory_beside_it(figures: dict[str, Any]) -> None:
    levels = torch.from_numpy(figures["levels"])
    np.testing.assert_allclose(figures["exact"][1, 0], snr.exact(3, 5, 0.2, levels, False), rtol=1e-4)
    np.testing.assert_allclose(figures["theorem"][0], snr.theorem(3, 5, 0.2, levels), rtol=1e-4)


def test_run_again_it_gives_the_same(tmp_path: Path) -> None:
    tiny = SMOKE | {"train_size": 200, "test_size": 60, "epochs": 2, "seeds": 1}
    first = experiment.run(**tiny, workdir=tmp_path)
    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files] == ["starts-0.safetensors"]
    for again in (experiment.run(**tiny, workdir=tmp_path), experiment.run(**tiny, workdir=tmp_path / "new")):
        assert first.keys() == again.keys()
        assert all(np.array_equal(first[key], again[key]) for key in first)


def test_starts_side_by_side_are_the_denoisers_one_by_one() -> None:
    denoisers = [SubspaceDenoiser(8, 2, 2, 0.3, generator=generator(seed)) for seed in range(3)]
    x, sigma = torch.randn(12, 8, generator=generator(4)), torch.rand(12, generator=generator(5)) + 0.1
    together = experiment._Starts(denoisers)(x, sigma)
    for part, denoiser in enumerate(denoisers):
        rows = slice(4 * part, 4 * part + 4)
        torch.testing.assert_close(together[rows], denoiser(x[rows], sigma[rows]))


def test_recovery_counts_matched_blocks() -> None:
    mixture = MoLRG.orthogonal(3, 2, 12, 0.2, generator=generator())
    a, b, c = mixture.bases
    denoiser = SubspaceDenoiser(12, 3, 2, 0.2)
    turn = torch.tensor([[0.6, -0.8], [0.8, 0.6]])
    for blocks, expected in [
        ([b, c @ turn, 3 * a], 1.0),
        ([torch.stack([a[:, 0], b[:, 0]], 1), torch.stack([a[:, 1], b[:, 1]], 1), c], 2 / 3),
    ]:
        with torch.no_grad():
            denoiser.basis.copy_(torch.cat(blocks, 1))
        assert experiment._recovery(mixture, denoiser) == pytest.approx(expected, abs=1e-5)


def test_neighbourhoods_lie_in_the_classes() -> None:
    mixture = MoLRG.orthogonal(4, 3, 30, 0.2, generator=generator())
    x0, _ = mixture.sample(2000, generator=generator(1))
    denoiser = SubspaceDenoiser(30, 4, 3, 0.2)
    with torch.no_grad():
        denoiser.basis.copy_(bench.neighbourhoods(x0, [3] * 4, len(x0) // 4, generator(2)))
    assert experiment._recovery(mixture, denoiser) > 0.9


def test_many_classes_need_few_samples_each(tmp_path: Path) -> None:
    """Fewer than 10 d samples of a class, the size of its neighbourhood where there are more."""
    many = SMOKE | {"num_classes": 10, "rank": 6, "dim": 60, "train_size": 300, "test_size": 100}
    many |= {"epochs": 1, "seeds": 1, "restarts": 1}
    found = experiment.run(**many, workdir=tmp_path)
    assert np.isfinite(found["snr"]).all()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seeds": 0}, "seeds must be an integer >= 1, got 0"),
        ({"restarts": 0}, "restarts must be an integer >= 1, got 0"),
        ({"epochs": 0}, "epochs must be an integer >= 1, got 0"),
        ({"batch_size": 0}, "batch_size must be an integer >= 1, got 0"),
        ({"test_size": 5}, "test_size must be an integer >= 6, got 5"),
        ({"train_size": 4}, "train_size must be an integer >= 60, got 4"),
        ({"delta": 1.0}, "delta must lie strictly between 0 and 1"),
        ({"dim": 14}, r"num_classes \* rank <= dim"),
    ],
)
def test_wrong_values_are_named(tmp_path: Path, change: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        experiment.run(**(SMOKE | change), workdir=tmp_path)
    assert not list(tmp_path.iterdir())


TINY = SMOKE | {"train_size": 640, "test_size": 60, "epochs": 20, "restarts": 1, "seeds": 2}


def stored_run(folder: str) -> None:
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MOLRG_RESULTS", folder)
        results.load_or_compute(experiment.run, TINY, witness=TINY | {"epochs": 1, "seeds": 1})


def test_killed_at_random_moments_the_stored_result_is_that_of_the_uninterrupted_run(tmp_path: Path) -> None:
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["experiments.learned.parametric_network", "torch._dynamo", "tqdm"])

    def start(name: str) -> Any:
        process = processes.Process(target=stored_run, args=(str(tmp_path / name),))
        process.start()
        return process

    def content(name: str) -> dict[str, Any]:
        (path,) = (tmp_path / name / "learned.parametric_network").glob("*.json")
        return json.loads(path.read_bytes())

    start("warm").join()
    before = time.monotonic()
    start("whole").join()
    duration, dice, kills = time.monotonic() - before, random.Random(0), 0
    for _ in range(5):
        process = start("killed")
        time.sleep(dice.uniform(0, duration / 2))  # each goes on where the last one was
        process.kill()
        process.join()
        kills += process.exitcode == -signal.SIGKILL
    assert kills >= 2
    process = start("killed")
    process.join()
    assert process.exitcode == 0
    for part in ("value", "witness"):
        assert content("killed")[part] == content("whole")[part]
