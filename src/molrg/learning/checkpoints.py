"""Checkpoints: the state of a run in a file of tensors, from which the run, and no other, goes on."""

import json
import os
import shutil
import time
import warnings
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer

from molrg.support.checks import nonnegative
from molrg.support.fingerprints import differences
from molrg.support.tensor_files import load, save

__all__ = ["Run", "RunFile", "load", "optimizer_state", "previous", "restore_optimizer", "save"]


def previous(path: Path) -> Path:
    """Return where the checkpoint before the one at `path` is kept: `run.previous.safetensors`."""
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def _second_name(path: Path) -> Path:
    """Give the file at `path` another name, or where there are no such names, copy it; return that name."""
    spare = path.with_name(f".{previous(path).name}.part")
    spare.unlink(missing_ok=True)
    try:
        os.link(path, spare)
    except OSError:
        shutil.copyfile(path, spare)
    return spare


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

        Raises ValueError if it is of another run, of more than `steps` steps, or damaged without one before.
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
        if found := differences(theirs, ours):
            raise ValueError(
                f"the checkpoint {self.path} is of another run; different are: {found}. "
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
            old = _second_name(self.path) if self._is_intact and self.path.exists() else None
            try:
                save(self.path, self.run.state(), {"run": json.dumps(fingerprint)})
            except BaseException:
                if old is not None:
                    old.unlink()
                raise
            if old is not None:
                old.replace(previous(self.path))
        self.good_step, self._is_intact, self._written = self.run.steps_done, True, time.monotonic()

    def __str__(self) -> str:
        return f"{self.path} at step {self.good_step}" if self.good_step else "none was written"
