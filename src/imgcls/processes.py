"""Processes that train together: which one this is, how many there are, and what they agree on. It imports
torch where it is used: the command line needs `rank` before anything heavy is imported."""

import os
import sys
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Value = TypeVar("Value")


def rank() -> int:
    """Returns this process's number among those that train together, before any of them was joined."""
    return int(os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or os.environ.get("LOCAL_RANK") or 0)


def world_size() -> int:
    """Returns the number of processes that train together."""
    from torch import distributed

    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def cores() -> int:
    """Returns the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def peak_memory() -> int:
    """Returns the most bytes that this process has had at a time: on its GPU, or without one in all."""
    import resource  # Windows has none

    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def gathered(value: Value) -> list[Value]:
    """Returns the values of all processes, by rank."""
    from torch import distributed

    values = [value] * world_size()
    if len(values) > 1:
        distributed.all_gather_object(values, value)
    return values


class Agreement:
    """Lets processes ask one another over the CPU: none waits for its device. All make one together."""

    def __init__(self) -> None:
        from torch import distributed

        self.group: ProcessGroup | None = None  # that of the training
        if world_size() > 1 and distributed.get_backend() != "gloo":
            group = distributed.new_group(backend="gloo")
            assert isinstance(group, distributed.ProcessGroup)
            self.group = group

    def any(self, *wishes: bool) -> list[bool]:
        """Returns for each wish whether any of the processes has it."""
        import torch

        if world_size() == 1:
            return list(wishes)
        votes = torch.tensor(wishes, dtype=torch.int32)
        torch.distributed.all_reduce(votes, torch.distributed.ReduceOp.MAX, group=self.group)
        return [bool(vote) for vote in votes.numpy()]
