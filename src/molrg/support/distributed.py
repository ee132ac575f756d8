"""Several processes that share one piece of work, on one machine or on more.

`accelerate launch script.py` (or torchrun) starts them, all with the same script; `processes()` tells each
its part. A process that was started alone does all of the work.
"""

import atexit
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from molrg.support.fingerprints import differences

__all__ = ["Processes", "processes"]


@dataclass(frozen=True)
class Processes:
    """This process, `index` of `count` from 0, and its own device; None where it may choose."""

    index: int = 0
    count: int = 1
    device: torch.device | None = None

    @property
    def is_main(self) -> bool:
        """Whether this is the one that writes and reports."""
        return self.index == 0

    def share(self, total: int) -> slice:
        """Return the rows, of `total`, that fall to this process; the shares differ by one row at most."""
        return slice(total * self.index // self.count, total * (self.index + 1) // self.count)

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over the processes; all go in one message."""
        if self.count == 1:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        torch.distributed.all_reduce(flat)
        for tensor, part in zip(tensors, flat.split([each.numel() for each in tensors]), strict=True):
            tensor.copy_(part.view(tensor.shape))

    def gather(self, value: Any) -> list[Any]:
        """Return the value that each process gave, by their order; anything that can be pickled."""
        values: list[Any] = [value] * self.count
        if self.count > 1:
            torch.distributed.all_gather_object(values, value)
        return values

    def agree(self, facts: Mapping[str, str]) -> None:
        """Raise ValueError, in every process, unless all give the same `facts`; names first differences."""
        for index, theirs in enumerate(everyone := self.gather(dict(facts))):
            if found := differences(everyone[0], theirs, "in process 0", f"in process {index}"):
                raise ValueError(
                    f"processes that work together must be given the same; different are: {found}. "
                    "Seed all alike, and let all see the same files"
                )

    def from_main(self, function: Callable[[], Any]) -> Any:
        """Return, in every process, what `function` returns in the main one, or raise what it raised."""
        found: Any = None
        if self.is_main:
            try:
                found = function()
            except (OSError, ValueError) as error:
                found = error
        found = self.gather(found)[0]
        if isinstance(found, Exception):
            raise found
        return found

    def wait(self) -> None:
        """Wait until every process has come here."""
        if self.count > 1:
            self.gather(None)


def processes() -> Processes:
    """Return the place of this process among those that a launcher started; started alone, it is 0 of 1.

    Connects with the others at the first call. Each has a GPU of its own where there are GPUs, unless
    `accelerate launch --cpu` was asked for.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Processes()
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    first_call = not torch.distributed.is_initialized()
    on_cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.cuda.is_available()
    state = PartialState(cpu=bool(on_cpu))
    if first_call:
        # Threads of a connection that is still open when the interpreter ends may abort the process.
        atexit.register(state.destroy_process_group)
    device = torch.device("cpu") if state.device.type == "cpu" else state.device  # not one of its number
    return Processes(state.process_index, state.num_processes, device)
