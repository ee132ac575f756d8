"""Run all benchmarks and print one table of ratios: `python -m benchmarks.run`."""

import importlib
import math
import platform
from collections.abc import Mapping
from typing import Any

import torch

MODULES = (
    "bench_mixture",
    "bench_empirical",
    "bench_features",
    "bench_probes",
    "bench_ensembles",
    "bench_images",
)


def verdict(ratio: float, target: str) -> str:
    """Return "met", or by how much a ratio misses a target such as "<= 1.25" or ">= 7"."""
    if math.isnan(ratio):
        return "-"
    sense, bound = target.split()
    limit = float(bound)
    if ratio <= limit if sense == "<=" else ratio >= limit:
        return "met"
    return f"missed by {abs(ratio / limit - 1):.0%}"


def line(row: Mapping[str, Any]) -> str:
    numbers = f"{row['ours']:10.4g} {row['peer']:10.4g} {row['ratio']:8.3g}  {row['target']:8}"
    return f"{row['name']:75} {numbers} {verdict(row['ratio'], row['target']):14} {row['note']}".rstrip()


def main() -> None:
    threads = torch.get_num_threads()  # set by OMP_NUM_THREADS
    print(f"torch {torch.__version__}, {threads} threads, {platform.machine()}")
    print("The two sides of a ratio take turns; times are medians in seconds, ratios medians of ratios.\n")
    print(f"{'':75} {'ours':>10} {'other':>10} {'ratio':>8}  {'target':8} verdict")
    for name in MODULES:
        for row in importlib.import_module(f"benchmarks.{name}").run():
            print(line(row), flush=True)


if __name__ == "__main__":
    main()
