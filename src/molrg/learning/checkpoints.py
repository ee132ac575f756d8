"""Checkpoints: the state of a run in a file of tensors, from which the run, and no other, goes on."""

import json
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer

from molrg.support.fingerprints import differences
from molrg.support.tensor_files import load, save

__all__ = ["Run", "RunFile", "load", "optimizer_state", "restore_optimizer", "save"]


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
    """A run's checkpoint: where, how often, and up to which step it is good.

    Of several processes that share a run, all read it and the one with `writes` writes it.
    """

    def __init__(self, path: Path, run: Run, every: int, writes: bool = True) -> None:
        self.path, self.run, self.every, self.writes = path, run, every, writes
        self.good_step = 0
        self._fingerprint = run.fingerprint()

    def resume(self, steps: int) -> None:
        """Take up the checkpoint, if there is one.

        Raises:
            ValueError: it is of another run (names the differences), or of more than `steps` steps.
        """
        try:
            state, metadata = load(self.path)
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

    def save(self) -> None:
        if self.writes:
            fingerprint = self._fingerprint | self.run.past(self.run.steps_done)
            save(self.path, self.run.state(), {"run": json.dumps(fingerprint)})
        self.good_step = self.run.steps_done

    def __str__(self) -> str:
        return f"{self.path} at step {self.good_step}" if self.good_step else "none was written"
