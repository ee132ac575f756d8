"""Training many small networks as one batched network against training one after another."""

import time
from collections.abc import Callable

import torch

from benchmarks.timing import Row, compare
from molrg.learning import ensembles, training
from molrg.learning.networks import FeedForward, Preconditioned
from molrg.model import noise

DIM, SAMPLES = 50, 12_000


def jobs(networks: int, width: int, batch_size: int, steps: int, device: str) -> list[training.Job]:
    """DAEs, plain networks with two hidden layers, at levels from 0.03 to 2, on data of one seed."""
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(SAMPLES, DIM, generator=generator)
    levels = noise.edm_levels(networks, 0.03, 2.0).tolist()
    return [
        training.Job(
            Preconditioned(FeedForward(DIM, width, generator=generator), 1.0).to(device),
            data.to(device),
            level,
            steps,
            batch_size,
            lr=1e-4,
        )
        for level in levels
    ]


def one_by_one(listed: list[training.Job]) -> None:
    for job in listed:
        training.train(
            job.denoiser,
            job.data,
            job.sigmas,
            steps=job.steps,
            batch_size=job.batch_size,
            lr=job.lr,
            progress=False,
        )


def products_per_step(networks: int, width: int, batch_size: int) -> float:
    """Floating point operations of a step's matrix products; none lead back to the input."""
    inputs = DIM + len(FeedForward(1).frequencies) * 2
    first, rest = inputs * width, width * width + width * DIM
    return 2.0 * networks * batch_size * (2 * first + 3 * rest)


def product_rate(device: str, size: int = 2048, dtype: torch.dtype = torch.float32) -> float:
    """Floating point operations a second of a large square matrix product: the machine's rate."""
    a = torch.randn(size, size, device=device, dtype=dtype)
    seconds = min(_seconds(lambda: a @ a, device) for _ in range(10))
    return 2 * size**3 / seconds


def run(
    networks: int = 14, width: int = 256, steps: int = 100, repeats: int = 5, many: int = 200
) -> list[Row]:
    """Return rows for batches of 128 and 32 against the loop, and the rate at batches of 512.

    With a GPU also rows for the loop at 128 and for `many` networks there.
    """
    rows = [
        _against_the_loop(networks, width, size, steps, repeats, target, "cpu")
        for size, target in ((128, ">= 3"), (32, ">= 5"))
    ]
    listed = jobs(networks, width, 512, steps, "cpu")
    seconds = min(_seconds(lambda: ensembles.train(listed, progress=False), "cpu") for _ in range(repeats))
    rate, machine = products_per_step(networks, width, 512) * steps / seconds, product_rate("cpu")
    rows.append(
        Row(
            name=f"{networks} networks at once, batches of 512 / rate of a large matrix product",
            ours=rate / 1e9,
            peer=machine / 1e9,
            ratio=rate / machine,
            target=">= 0.6",
            note="Gflop/s in matrix products; the time includes everything else",
        )
    )
    if torch.cuda.is_available():
        for count, target in ((networks, ">= 8"), (many, ">= 50")):
            rows.append(_against_the_loop(count, width, 128, steps, repeats, target, "cuda"))
    return rows


def _against_the_loop(
    networks: int, width: int, batch_size: int, steps: int, repeats: int, target: str, device: str
) -> Row:
    listed = jobs(networks, width, batch_size, steps, device)

    def finished(train: Callable[[], object]) -> Callable[[], float]:
        return lambda: _seconds(train, device)

    loop, together, ratio = compare(
        finished(lambda: one_by_one(listed)),
        finished(lambda: ensembles.train(listed, progress=False)),
        repeats,
    )
    return Row(
        name=f"loop over {networks} networks 50-{width}-{width}-50 / at once, batches of {batch_size}",
        ours=loop,
        peer=together,
        ratio=ratio,
        target=target,
        note=f"{steps} steps on {device}; the loop is training.train",
    )


def _seconds(function: Callable[[], object], device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    function()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start
