"""Which data a computation reads: every reader notes what it read, and who computes may listen.

with sources.listed() as read:
    experiment()
read  # {"fashion_mnist": "<64 hexadecimal digits>"}: the digest of each data set, by its name or path
"""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

_read: ContextVar[dict[str, str] | None] = ContextVar("read", default=None)


@contextlib.contextmanager
def listed() -> Iterator[dict[str, str]]:
    """Collect the digests of the data sets read meanwhile, by the names that they were asked for under."""
    read: dict[str, str] = {}
    token = _read.set(read)
    try:
        yield read
    finally:
        _read.reset(token)


def note(name: str, digest: str) -> None:
    """Tell who listens that the data set `name` was read and that `digest` is the digest of its content."""
    read = _read.get()
    if read is not None:
        read[name] = digest
