"""Which data a computation reads: every reader notes what it read, and who computes may listen.

    with data_read.listed() as read:
        experiment()
    read  # {"fashion_mnist": "<64 hexadecimal digits>"}: the digest of each data set, by its name or path
    data_read.present("fashion_mnist")  # its digest as it is now, by the reader that registered for it

A name is that of a data set, or the path of a file.
"""

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar

__all__ = ["Reader", "listed", "note", "present", "reader"]

Reader = Callable[[str], str | None]
"""From the name under which data were noted to their present digest; None where they are absent."""

_read: ContextVar[dict[str, str] | None] = ContextVar("read", default=None)
_readers: dict[str, Reader] = {}


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


def reader(prefix: str) -> Callable[[Reader], Reader]:
    """Register the decorated function for names that begin with `prefix`; the longest that fits counts."""

    def register(function: Reader) -> Reader:
        _readers[prefix] = function
        return function

    return register


def present(name: str) -> str | None:
    """Return the digest of the data noted as `name` as they are now; None where they are absent.

    Raises LookupError where the module of no reader of such names is imported, and what its reader raises,
    ValueError for data that cannot be read.
    """
    prefixes = [prefix for prefix in _readers if name.startswith(prefix)]
    if not prefixes:
        raise LookupError(f"no reader of data {name!r} is registered: import the module that reads them")
    return _readers[max(prefixes, key=len)](name)
