"""Writing files so that a crash, a kill or a full disk leaves the old content or the new, never a part."""

import contextlib
import glob
import os
import tempfile
import time
from pathlib import Path

__all__ = ["ABANDONED_AFTER", "is_temporary", "remove_abandoned", "write_atomically"]

ABANDONED_AFTER = 3600.0
"""Seconds after which a temporary file is taken for one of a write that was killed."""
_SUFFIX = ".part"


def write_atomically(path: Path, *parts: bytes | memoryview) -> None:
    """Write `parts`, one after the other, to a temporary file beside `path`, flush it to the disk, rename it.

    Folders are made where they are missing. What writes of `path` that were killed have left is removed.

    Raises OSError, naming the file, where the content cannot be written (a full disk, no permission). What
    was there before is then untouched, and nothing is left behind.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(path.parent, path.name)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=_SUFFIX, dir=path.parent)
        temporary = Path(name)
        try:
            with open(handle, "wb") as file:
                for part in parts:
                    file.write(part)
                file.flush()
                os.fsync(file.fileno())
            temporary.chmod(0o644)
            temporary.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
    except OSError as error:
        before = "What was written there before is intact" if path.exists() else "None was there before"
        raise OSError(
            error.errno,
            f"cannot write {path} ({sum(map(len, parts)) / 1e6:.2g} MB): {error.strerror or error}. "
            f"{before}. Make room or choose another place, then run again",
        ) from error


def is_temporary(path: Path) -> bool:
    """Whether `path` is what `write_atomically` writes to before it renames it."""
    return path.name.startswith(".") and path.suffix == _SUFFIX


def remove_abandoned(folder: Path, name: str | None = None) -> None:
    """Remove what killed writes of the file `name`, or of any, left in `folder`.

    Only what is older than `ABANDONED_AFTER`: a young one may belong to a process that is alive.
    """
    for leftover in folder.glob(f".{'*' if name is None else glob.escape(name)}.*{_SUFFIX}"):
        with contextlib.suppress(FileNotFoundError):  # another process removed it
            if time.time() - leftover.stat().st_mtime > ABANDONED_AFTER:
                leftover.unlink()
