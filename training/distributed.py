"""The processes of a distributed run, as torchrun starts them; alone where there is none.

The one place that reads torchrun's variables.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed
from torch import Tensor

from tureen.machine import available_cpus


@dataclass(frozen=True)
class Processes:
    """This process's place among `count`; the first, of rank 0, writes files and talks to the terminal."""

    rank: int = 0
    count: int = 1
    control: torch.distributed.ProcessGroup | None = None  # between CPUs, for what need not wait for a GPU

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def mean(self, values: Tensor) -> Tensor:
        """The mean of `values` over all processes."""
        if self.count > 1:
            torch.distributed.all_reduce(values)
        return values / self.count

    def largest(self, number: int) -> int:
        """The largest of the numbers that all processes give here."""
        if self.count == 1:
            return number
        largest = torch.tensor([number])
        torch.distributed.all_reduce(largest, torch.distributed.ReduceOp.MAX, group=self.control)
        return int(largest)

    def agree(self, number: int, device: torch.device) -> bool:
        """Whether all processes have the same number."""
        mean = self.mean(torch.tensor([float(number)], dtype=torch.float64, device=device))
        return self.count == 1 or float(mean) == number


def is_first_process() -> bool:
    """Whether this is the process that talks to the terminal, also before and after `joined`."""
    return os.environ.get("RANK", "0") == "0"


def cpus_per_process() -> int:
    """CPUs this process may keep busy: its share of those that affinity and quota leave to the machine's processes."""
    return max(1, available_cpus() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def limit_threads() -> None:
    """Let torch use no more threads than there are CPUs for this process; OMP_NUM_THREADS, where set, decides."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(min(torch.get_num_threads(), cpus_per_process()))


@contextmanager
def joined() -> Iterator[tuple[Processes, torch.device]]:
    """The processes torchrun started this one among, and the device that is this one's; left again at the end.

    NCCL between GPUs, Gloo between CPUs. Without torchrun: one process, and the GPU where there is one.
    """
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
    """The GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
