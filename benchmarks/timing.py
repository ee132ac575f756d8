"""Times and peak memory of two ways to compute the same."""

import contextlib
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, TypedDict

import torch


class Row(TypedDict):
    """A line of the table: two times in seconds (or two amounts of memory in MB) and their ratio."""

    name: str
    ours: float
    peer: float
    ratio: float
    target: str
    note: str


def compare(ours: Callable[[], Any], peer: Callable[[], Any], repeats: int) -> tuple[float, float, float]:
    """Return the median times of `ours` and `peer`, and the median of ours/peer.

    The two take turns, so that whatever else the machine does meets both; each first runs once untimed.
    """

    def seconds(function: Callable[[], Any]) -> float:
        start = time.perf_counter()
        function()
        return time.perf_counter() - start

    ours()
    peer()
    pairs = [(seconds(ours), seconds(peer)) for _ in range(repeats)]
    mine, theirs = zip(*pairs, strict=True)
    ratio = statistics.median(a / b for a, b in pairs)
    return statistics.median(mine), statistics.median(theirs), ratio


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Limit PyTorch, BLAS and OpenMP to one thread: idle threads of one side spin and slow the other."""
    from threadpoolctl import threadpool_limits

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(before)


def peak_memory(build: Callable[..., Callable[[], Any]], *arguments: Any) -> float:
    """Return by how many MB a call of `build(*arguments)()` raises the peak memory of a fresh process.

    `build` prepares the call, and what it needs does not count. Both are module-level functions.
    """
    fresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=fresh) as pool:
        return pool.submit(_rise, build, arguments, torch.get_num_threads()).result()


def _rise(build: Callable[..., Callable[[], Any]], arguments: tuple[Any, ...], threads: int) -> float:
    torch.set_num_threads(threads)
    call = build(*arguments)
    before = _peak()
    call()
    return _peak() - before


def _peak() -> float:
    try:
        # Linux's ru_maxrss starts from the parent's peak, the line VmHWM of a fresh process from zero.
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(float(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("VmHWM"))
    except FileNotFoundError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
