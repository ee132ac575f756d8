"""Files of tensors: safetensors with a SHA-256 of the whole file in the header, replaced in one step."""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from molrg.support.atomic_files import write_atomically

__all__ = ["load", "save"]

_BLANK = b"0" * 64
_DIGEST = re.compile(rb'"sha256":"([0-9a-f]{64})"')


def save(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write `tensors` and `metadata` to `path`, which holds either the old content or the new at any time.

    The file is a valid safetensors file. Its header carries `sha256`, the digest of the file with 64 zeros in
    the digest's place.

    Raises OSError where the file cannot be written (full disk, no permission); what was there is intact.
    """
    from safetensors.torch import save as serialise

    owned = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    content = memoryview(serialise(owned, {**metadata, "sha256": _BLANK.decode()}))
    start = _digest_position(content)
    assert start is not None
    digest = hashlib.sha256(content).hexdigest().encode()
    write_atomically(path, content[:start], digest, content[start + len(digest) :])


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors (on the CPU) and the metadata that `save` wrote to `path`.

    Raises FileNotFoundError, and ValueError where a byte is missing or not the one written.
    """
    from safetensors.torch import load as deserialise

    content = path.read_bytes()
    start = _digest_position(memoryview(content))
    expected, actual = "none found in its header", hashlib.sha256(content).hexdigest()
    if start is not None:
        expected = content[start : start + 64].decode()
        blanked = hashlib.sha256(content[:start])
        blanked.update(_BLANK)
        blanked.update(memoryview(content)[start + 64 :])
        actual = blanked.hexdigest()
    if expected != actual:
        raise ValueError(
            f"{path} is damaged: expected SHA-256 {expected}, actual {actual} ({len(content)} bytes). "
            "Delete it to compute it again, or put an intact copy in its place"
        )
    metadata: dict[str, str] = json.loads(_header(memoryview(content)))["__metadata__"]
    return deserialise(content), metadata


def _header(content: memoryview) -> bytes:
    return bytes(content[8 : 8 + int.from_bytes(content[:8], "little")])


def _digest_position(content: memoryview) -> int | None:
    found = _DIGEST.search(_header(content))
    return None if found is None else 8 + found.start(1)
