"""Several processes: the shares they take, and training that ends where one process ends."""

import os
import socket
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from molrg.learning import checkpoints
from molrg.learning.networks import MLP, Preconditioned
from molrg.learning.training import Trained, train
from molrg.model.noise import LogNormal
from molrg.support import distributed
from molrg.support.distributed import Processes


@pytest.mark.parametrize(("total", "count"), [(10, 3), (7, 7), (2, 4), (1, 1)])
def test_shares_are_all_of_it_and_even(total: int, count: int) -> None:
    rows = torch.arange(total)
    parts = [rows[Processes(i, count).share(total)] for i in range(count)]
    assert torch.equal(torch.cat(parts), rows)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_a_process_alone_does_everything_and_waits_for_nobody() -> None:
    alone = distributed.processes()
    assert (alone.index, alone.count, alone.device, alone.is_main) == (0, 1, None, True)
    values = [torch.ones(2), torch.tensor(3.0)]
    alone.add_up(values)
    alone.wait()
    alone.agree({"seed": "0"})
    assert [each.tolist() for each in values] == [[1.0, 1.0], 3.0]
    assert alone.gather("x") == ["x"]


# --- two real processes -----------------------------------------------------------------------------


def run(checkpoint: Path | None = None, steps: int = 30, **changes: Any) -> Trained:
    """A run in float64 whose batches of 7 two processes cannot halve."""
    generator = torch.Generator().manual_seed(0)
    settings: dict[str, Any] = {"generator": generator, "batch_size": 7, "lr": 1e-2, "ema": 0.9} | changes
    network = Preconditioned(MLP(6, 16, 1, settings.pop("dropout", 0.0), generator), 1.0).double()
    data = torch.randn(64, 6, generator=generator, dtype=torch.float64)
    return train(
        network,
        data,
        LogNormal(),
        steps=steps,
        checkpoint=checkpoint,
        checkpoint_every=0,
        progress=False,
        **settings,
    )


def work(folder: Path) -> None:
    """What each of the two processes does; only what it writes and asserts is seen."""
    together = distributed.processes()
    assert together.count == 2
    assert together.device == torch.device("cpu")

    values = [torch.full((2, 2), together.index + 1.0), torch.tensor(10.0 * together.index)]
    together.add_up(values)
    assert [each.tolist() for each in values] == [[[3.0, 3.0], [3.0, 3.0]], 10.0]
    assert together.gather(together.index) == [0, 1]
    with pytest.raises(ValueError, match=r"different are: seed \(0 in process 0, 1 in process 1\)"):
        together.agree({"seed": str(together.index), "same": "x"})
    with pytest.raises(ValueError, match="batch_size must be at least 2, the number of processes"):
        run(batch_size=1)
    with pytest.raises(ValueError, match=r"generator \(\w+ in process 0, \w+ in process 1\)"):
        run(generator=torch.Generator().manual_seed(together.index))

    plain, dropout = run(folder / "two.safetensors"), run(dropout=0.5)
    stopped = run(folder / "dropout.safetensors", steps=17, dropout=0.5)
    torch.testing.assert_close(stopped.losses, dropout.losses[:17], rtol=0, atol=0)
    continued = run(folder / "dropout.safetensors", dropout=0.5)
    assert_near(continued, dropout, 0.0)
    weights = [list(plain.denoiser.state_dict().values()), plain.losses]
    everyone = together.gather(weights)
    torch.testing.assert_close(everyone[0], everyone[1], rtol=0, atol=0)
    run(folder / "first_two.safetensors", steps=15)
    assert_near(run(folder / "first_one.safetensors"), plain, ROUNDING)
    if together.is_main:
        result = {"losses": plain.losses, "weights": plain.denoiser.state_dict()}
        torch.save(result, folder / "result.pt")


ROUNDING = 1e-12
"""The order of 7 terms of size 1 changes a gradient in its 16th digit; 30 updates make that 2e-15. A wrong
share or weight of one term would change the 2nd digit."""


def assert_near(found: Trained, expected: Trained, tolerance: float) -> None:
    torch.testing.assert_close(found.losses, expected.losses, rtol=0, atol=tolerance)
    theirs = expected.denoiser.state_dict()
    for name, value in found.denoiser.state_dict().items():
        torch.testing.assert_close(value, theirs[name], rtol=0, atol=tolerance)


def launch(folder: Path) -> None:
    """Run `work` in two processes started by `accelerate launch`, on the CPU."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "1"]
    command += ["--num_processes", "2", "--mixed_precision", "no", "--dynamo_backend", "no"]
    command += ["--main_process_port", port, __file__, str(folder)]
    environment = os.environ | {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
    found = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=180, check=False)
    assert found.returncode == 0, found.stdout + found.stderr


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    run(tmp_path / "first_one.safetensors", steps=15)  # which two processes go on with
    launch(tmp_path)
    one = run()
    kept, _ = checkpoints.load(tmp_path / "two.safetensors")
    two = torch.load(tmp_path / "result.pt", weights_only=True)
    torch.testing.assert_close(two["losses"], one.losses, rtol=0, atol=ROUNDING)
    torch.testing.assert_close(kept["losses"], two["losses"], rtol=0, atol=0)
    for name, value in one.denoiser.state_dict().items():
        torch.testing.assert_close(two["weights"][name], value, rtol=0, atol=ROUNDING)
    assert_near(run(tmp_path / "first_two.safetensors"), one, ROUNDING)


if __name__ == "__main__":
    warnings.simplefilter("error")
    work(Path(sys.argv[1]))
