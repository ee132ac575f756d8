"""Checkpoint files: safetensors with a SHA-256 of the whole file in the header, replaced in one step."""

import glob
import hashlib
import json
import os
import re
import shutil
import tempfile
import time
import warnings
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer

from molrg.support.checks import nonnegative

__all__ = ["Run", "RunFile", "load", "optimizer_state", "previous", "restore_optimizer", "save"]

_BLANK = b"0" * 64
_DIGEST = re.compile(rb'"sha256":"([0-9a-f]{64})"')
_ABANDONED_AFTER = 3600.0


def save(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str], keep: bool = False) -> None:
    """Write `tensors` and `metadata` to `path`, which holds either the old or the new checkpoint at any time.

    The file is a valid safetensors file. Its header carries `sha256`, the digest of the file with 64 zeros in
    the digest's place. With `keep`, the old checkpoint stays beside it as `previous(path)`.

    Raises
    ------
    OSError
        If the file cannot be written (full disk, no permission); what was at `path` is intact.
    """
    from safetensors.torch import save as serialise

    owned = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    content = memoryview(serialise(owned, {**metadata, "sha256": _BLANK.decode()}))
    start = _digest_position(bytes(content[: 8 + int.from_bytes(content[:8], "little")]))
    assert start is not None
    digest = hashlib.sha256(content).hexdigest().encode()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(path)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        temporary = Path(name)
        try:
            with open(handle, "wb") as file:
                for part in (content[:start], digest, content[start + len(digest) :]):
                    file.write(part)
                file.flush()
                os.fsync(file.fileno())
            if keep:
                _copy(path, previous(path))
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        before = "The checkpoint written there before is intact" if path.exists() else "None was there before"
        raise OSError(
            error.errno,
            f"cannot write the checkpoint {path} ({len(content) / 1e6:.1f} MB): {error.strerror}. {before}. "
            "Make room or choose another place, then run again: training goes on from the last checkpoint",
        ) from error


def previous(path: Path) -> Path:
    """Return where the checkpoint before the one at `path` is kept: `run.previous.safetensors`."""
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def _copy(path: Path, to: Path) -> None:
    """Make `to` another name of the file at `path`, or where there are no such names, a copy."""
    spare = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    spare.unlink(missing_ok=True)
    try:
        os.link(path, spare)
    except OSError:
        shutil.copyfile(path, spare)
    os.replace(spare, to)


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors (on the CPU) and the metadata that `save` wrote to `path`.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If a byte of the file is missing or not the one written; nothing of it is used.
    """
    from safetensors.torch import load as deserialise

    content = path.read_bytes()
    header = content[8 : 8 + int.from_bytes(content[:8], "little")]
    start = _digest_position(content[: 8 + len(header)])
    expected, actual = "none found in its header", hashlib.sha256(content).hexdigest()
    if start is not None:
        expected = content[start : start + 64].decode()
        blanked = hashlib.sha256(content[:start])
        blanked.update(_BLANK)
        blanked.update(memoryview(content)[start + 64 :])
        actual = blanked.hexdigest()
    if expected != actual:
        raise ValueError(
            f"the checkpoint {path} is damaged: expected SHA-256 {expected}, actual {actual} "
            f"({len(content)} bytes). Delete it to train from the start, or put an intact copy in its place"
        )
    metadata: dict[str, str] = json.loads(header)["__metadata__"]
    return deserialise(content), metadata


def _digest_position(head: bytes) -> int | None:
    found = _DIGEST.search(head)
    return None if found is None else found.start(1)


def _remove_abandoned(path: Path) -> None:
    """Remove what writes that were killed left beside `path`; a young one may belong to a run of now."""
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        try:
            if time.time() - leftover.stat().st_mtime > _ABANDONED_AFTER:
                leftover.unlink()
        except FileNotFoundError:
            pass  # another run removed it


def optimizer_state(optimizer: Optimizer) -> dict[str, Tensor]:
    """Return the state of `optimizer` as tensors named `optimizer.<parameter>.<key>`."""
    return {
        f"optimizer.{i}.{key}": tensor
        for i, values in optimizer.state_dict()["state"].items()
        for key, tensor in values.items()
    }


def restore_optimizer(optimizer: Optimizer, state: dict[str, Tensor]) -> None:
    """Take up what `optimizer_state` returned; other tensors in `state` are passed over."""
    moments: dict[int, dict[str, Tensor]] = {}
    for name, tensor in state.items():
        if name.startswith("optimizer."):
            _, i, key = name.split(".")
            moments.setdefault(int(i), {})[key] = tensor
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": moments, "param_groups": groups})
    for parameter, values in optimizer.state.items():  # files know no memory layout; fused kernels want one
        for key, value in values.items():
            if value.shape == parameter.shape:
                values[key] = torch.empty_like(parameter, dtype=value.dtype, device=value.device).copy_(value)


class Run(Protocol):
    """What can be checkpointed."""

    @property
    def steps_done(self) -> int: ...

    def fingerprint(self) -> dict[str, str]:
        """What must be equal for a checkpoint to belong to this run."""
        ...

    def past(self, done: int) -> dict[str, str]:
        """What must be equal, besides, in the first `done` steps, but may differ later."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Everything a later run needs to go on, as named tensors."""
        ...

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take up what `state` returned."""
        ...


class RunFile:
    """A run's checkpoint: where, how often (in seconds), and up to which step it is good.

    The one before is kept, and taken up, with a warning, where the newest is damaged. Of several processes
    that share a run, all read the checkpoint and the one with `writes` writes it.
    """

    def __init__(self, path: Path, run: Run, every: float, writes: bool = True) -> None:
        self.path, self.run, self.writes = path, run, writes
        self.every = nonnegative("checkpoint_every", every)
        self.good_step = 0
        self._is_intact, self._written = False, time.monotonic()
        self._fingerprint = run.fingerprint()

    def is_due(self) -> bool:
        """Whether the last checkpoint is `every` seconds old."""
        return time.monotonic() - self._written >= self.every

    def resume(self, steps: int) -> None:
        """Take up the checkpoint, if there is one.

        Raises
        ------
        ValueError
            If it is of another run (names the differences), of more than `steps` steps, or damaged and none
            was kept before it.
        """
        try:
            state, metadata = self._load()
        except FileNotFoundError:
            return
        theirs, done = json.loads(metadata["run"]), len(state["losses"])
        if done > steps:
            raise ValueError(
                f"steps must be at least {done}, the steps in the checkpoint {self.path}, got {steps}; "
                "or give another checkpoint path"
            )
        ours = self._fingerprint | self.run.past(done)
        differences = [
            f"{name} ({theirs.get(name)} there, {ours.get(name)} here)"
            for name in ours | theirs
            if theirs.get(name) != ours.get(name)
        ]
        if differences:
            raise ValueError(
                f"the checkpoint {self.path} is of another run; different are: {', '.join(differences)}. "
                "Give the arguments and the generator seeds of that run, or another checkpoint path, "
                "or delete the file"
            )
        self.run.restore(state)
        self.good_step = done

    def _load(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        try:
            found = load(self.path)
        except ValueError as damage:
            try:
                found = load(previous(self.path))
            except (FileNotFoundError, ValueError):
                raise damage from None
            message = f"{damage}. Training goes on from the one before, {previous(self.path)}"
            warnings.warn(message, RuntimeWarning, stacklevel=4)
        else:
            self._is_intact = True
        return found

    def save(self) -> None:
        if self.writes:
            fingerprint = self._fingerprint | self.run.past(self.run.steps_done)
            save(self.path, self.run.state(), {"run": json.dumps(fingerprint)}, keep=self._is_intact)
        self.good_step, self._is_intact, self._written = self.run.steps_done, True, time.monotonic()

    def __str__(self) -> str:
        return f"{self.path} at step {self.good_step}" if self.good_step else "none was written"
