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


@dataclass(frozen=True)
class Processes:
    """This process's place among `count`; the first, of rank 0, writes files and talks to the terminal."""

    rank: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def mean(self, values: Tensor) -> Tensor:
        """The mean of `values` over all processes."""
        if self.count > 1:
            torch.distributed.all_reduce(values)
        return values / self.count

    def agree(self, number: int, device: torch.device) -> bool:
        """Whether all processes have the same number."""
        mean = self.mean(torch.tensor([float(number)], dtype=torch.float64, device=device))
        return self.count == 1 or float(mean) == number


@contextmanager
def joined() -> Iterator[tuple[Processes, torch.device]]:
    """The processes torchrun started this one among, and the device that is this one's; left again at the end.

    NCCL between GPUs, Gloo between CPUs. Without torchrun: one process, and the GPU where there is one.
    """
    has_gpu = torch.cuda.is_available()
    if "WORLD_SIZE" not in os.environ:
        yield Processes(), best_device()
        return
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if has_gpu else torch.device("cpu")
    if has_gpu:
        torch.cuda.set_device(device)
    torch.distributed.init_process_group("nccl" if has_gpu else "gloo")
    try:
        yield Processes(torch.distributed.get_rank(), torch.distributed.get_world_size()), device
    finally:
        torch.distributed.destroy_process_group()


def best_device() -> torch.device:
    """The GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
