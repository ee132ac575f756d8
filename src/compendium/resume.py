"""Parts of a long run, each computed once and kept in a file: a run that was stopped goes on after them."""

import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from molrg.support.atomic_files import write_atomically

__all__ = ["arrays", "values"]


def arrays(file: Path, compute: Callable[..., Mapping[str, Any]], *given: Any) -> dict[str, np.ndarray]:
    """Return the arrays in `file` (.npz), or, where there is none yet, those of compute(*given), kept first.

    Raises OSError, naming the file, where they cannot be written.
    """
    if not file.exists():
        content = io.BytesIO()
        np.savez(content, **compute(*given))
        write_atomically(file, content.getvalue())
    with np.load(file, allow_pickle=False) as kept:
        return dict(kept)


def values(file: Path, compute: Callable[..., Any], *given: Any) -> Any:
    """Return what `file` (JSON) holds, or, where there is none yet, what compute(*given) returns, kept first.

    Raises OSError, naming the file, where it cannot be written.
    """
    if not file.exists():
        write_atomically(file, json.dumps(compute(*given)).encode())
    return json.loads(file.read_bytes())
