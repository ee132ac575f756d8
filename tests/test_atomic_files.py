"""One writer for all files: on the disk before it is named, readable by others, whole or as it was."""

import os
import re
import stat
import time
from pathlib import Path
from typing import Any

import pytest

from molrg.support import atomic_files
from molrg.support.atomic_files import write_atomically
from molrg.support.fingerprints import differences


def test_a_file_holds_the_parts_and_can_be_read_by_all(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "file"
    for parts in ((b"a", memoryview(b"bc")), (b"other",), ()):
        write_atomically(path, *parts)
        assert path.read_bytes() == b"".join(parts)
        assert stat.S_IMODE(path.stat().st_mode) == 0o644
        assert list(path.parent.iterdir()) == [path]


def test_the_content_is_on_the_disk_before_the_file_gets_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without that a power cut could leave an empty file under the name."""
    path, seen = tmp_path / "file", []
    flush, rename = os.fsync, Path.replace

    def flushed(handle: int) -> None:
        seen.append(("flushed", os.fstat(handle).st_size))
        flush(handle)

    def renamed(self: Path, target: Path) -> Path:
        seen.append(("renamed", self.stat().st_size))
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(Path, "replace", renamed)
    write_atomically(path, b"content")
    assert seen == [("flushed", 7), ("renamed", 7)]


@pytest.mark.parametrize(
    "step", ["os.fsync", "pathlib.Path.replace", "tempfile.mkstemp", "pathlib.Path.mkdir"]
)
@pytest.mark.parametrize("before", [None, b"old"])
def test_what_cannot_be_written_is_named_and_as_it_was(
    step: str, before: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    if before:
        path.write_bytes(before)

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(step, fail)
        kept = "What was written there before is intact" if before else "None was there before"
        message = re.escape(
            f"cannot write {path} (2 MB): No space left on device. {kept}. Make room or choose"
        )
        with pytest.raises(OSError, match=message) as caught:
            write_atomically(path, bytes(2_000_000))
    assert caught.value.errno == 28
    assert [each.read_bytes() for each in tmp_path.iterdir()] == ([before] if before else [])


def test_what_a_kill_left_is_removed_once_it_is_old(tmp_path: Path) -> None:
    names = (".a*b.x1.part", ".a*b.x2.part", ".aXb.x3.part")
    old, young, other = (tmp_path / name for name in names)
    long_ago = time.time() - atomic_files.ABANDONED_AFTER - 60
    for file in (old, young, other):
        file.write_bytes(b"")
        assert atomic_files.is_temporary(file)
    for file in (old, other):
        os.utime(file, (long_ago, long_ago))
    write_atomically(tmp_path / "a*b", b"")
    assert sorted(tmp_path.iterdir()) == sorted([young, other, tmp_path / "a*b"])
    atomic_files.remove_abandoned(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([young, tmp_path / "a*b"])


def test_differences_are_named_with_both_values() -> None:
    first, second = {"lr": 0.1, "seed": 0, "gone": 1}, {"seed": 0, "lr": 0.2, "new": [1]}
    assert differences(first, first) == ""
    expected = "lr (0.1 there, 0.2 here), new (None there, [1] here), gone (1 there, None here)"
    assert differences(first, second) == expected
    assert differences({"a": 1}, {"a": 2}, "in A", "in B") == "a (1 in A, 2 in B)"
