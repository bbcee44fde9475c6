"""Connects the processes that torchrun started for a distributed run. Without torchrun there is one process.

No other module reads the environment variables of torchrun. Each function imports torch where it needs it, so that
options with `cpus_per_process` can be read without torch.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tureen.machine import available_cpus

if TYPE_CHECKING:
    import torch.distributed
    from torch import Tensor


@dataclass(frozen=True)
class Processes:
    """The processes of a run: the rank of this process, and the number of all processes.

    rank: 0 to count − 1. The process of rank 0 writes the files and the terminal output.
    """

    rank: int = 0
    count: int = 1
    control: torch.distributed.ProcessGroup | None = None  # for values in CPU memory; None: the default group

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def mean(self, values: Tensor) -> Tensor:
        """Returns the element-wise mean of `values` over all processes. Waits for all of them. May change `values`."""
        if self.count > 1:
            import torch.distributed

            torch.distributed.all_reduce(values)
        return values / self.count

    def largest(self, number: int) -> int:
        """Returns the largest `number` that any process passes. Waits for all processes."""
        if self.count == 1:
            return number
        import torch.distributed

        largest = torch.tensor([number])
        torch.distributed.all_reduce(largest, torch.distributed.ReduceOp.MAX, group=self.control)
        return int(largest)

    def agree(self, number: int, device: torch.device) -> bool:
        """Returns whether all processes pass the same `number`. Waits for all processes."""
        import torch

        mean = self.mean(torch.tensor([float(number)], dtype=torch.float64, device=device))
        return self.count == 1 or float(mean) == number


def is_first_process() -> bool:
    """Returns whether this process has rank 0, and so writes to the terminal. Works outside `process_group` too."""
    return os.environ.get("RANK", "0") == "0"


def cpus_per_process() -> int:
    """Returns the number of CPUs that this process may use, at least 1.

    The processes of the run on this machine share all CPUs that affinity and CPU quota allow, in equal parts.
    """
    return max(1, available_cpus() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def limit_threads() -> None:
    """Limits torch to as many threads as `cpus_per_process` returns. Does nothing if OMP_NUM_THREADS is set."""
    if "OMP_NUM_THREADS" not in os.environ:
        import torch

        torch.set_num_threads(min(torch.get_num_threads(), cpus_per_process()))


@contextmanager
def process_group() -> Iterator[tuple[Processes, torch.device]]:
    """Joins the process group of torchrun during the `with` block. Yields the processes, and this process's device.

    NCCL connects GPUs, Gloo connects CPUs. Without torchrun the run has one process, on the GPU if the machine has one.
    """
    import torch.distributed

    limit_threads()
    has_gpu = torch.cuda.is_available()
    if "WORLD_SIZE" not in os.environ:
        yield Processes(), best_device()
        return
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if has_gpu else torch.device("cpu")
    if has_gpu:
        torch.cuda.set_device(device)
    torch.distributed.init_process_group("nccl" if has_gpu else "gloo")
    try:
        control = torch.distributed.new_group(backend="gloo") if has_gpu else None
        yield Processes(torch.distributed.get_rank(), torch.distributed.get_world_size(), control), device
    finally:
        torch.distributed.destroy_process_group()


def best_device() -> torch.device:
    """Returns the GPU if the machine has one, or else the CPU."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
