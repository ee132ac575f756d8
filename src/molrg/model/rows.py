"""Work on rows of points in chunks that stay in a core's cache."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

__all__ = ["CHUNK", "by_rows", "check_points", "per_level", "row_chunks"]

CHUNK = 1 << 20
"""Numbers of workspace per array and chunk of rows: 4 MiB in float32, about a core's cache."""


def row_chunks(rows: int, numbers_per_row: int) -> Iterator[slice]:
    """Slices of consecutive rows, each with at most CHUNK numbers of workspace (but 256 rows at least)."""
    step = max(256, CHUNK // max(1, numbers_per_row))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def by_rows(x: Tensor, function: Callable[[slice], Tensor], size: int, dim: int, squeeze: bool) -> Tensor:
    """Evaluate `function` on chunks of the rows of x and join the results along `dim`."""
    chunks = list(row_chunks(len(x), size)) or [slice(0, 0)]
    first = function(chunks[0])
    if len(chunks) == 1:
        return first.squeeze(0) if squeeze else first
    shape = list(first.shape)
    shape[dim] = len(x)
    result = first.new_empty(shape)
    result[:, chunks[0]] = first
    del first
    for rows in chunks[1:]:
        result[:, rows] = function(rows)
    return result.squeeze(0) if squeeze else result


def check_points(x: Tensor, dim: int) -> None:
    """Raise ValueError unless x is (N, dim), float32 or float64."""
    if not isinstance(x, Tensor) or x.dtype not in (torch.float32, torch.float64):
        kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(
            f"x must be a float32 or float64 tensor, got {kind}; convert it with torch.as_tensor"
        )
    if x.ndim != 2 or x.shape[1] != dim:
        raise ValueError(f"x must have shape (N, {dim}), got {tuple(x.shape)}")


def per_level(values: Tensor, x: Tensor) -> Tensor:
    """Coefficients per level, (S,) or (S, K), as (S, 1) or (S, 1, K) in the dtype and on the device of x."""
    return values.unsqueeze(1).to(x.dtype).to(x.device)
