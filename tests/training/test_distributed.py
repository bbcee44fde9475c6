"""The number of CPUs that a training process may use."""

import os
import subprocess
import sys

from training.distributed import cpus_per_process

PROGRAM = """
import os
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
import torch
torch.set_num_threads(8)
from training.distributed import cpus_per_process, limit_threads
limit_threads()
print(cpus_per_process(), torch.get_num_threads())
"""


def printed(**environment):
    kept = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    found = subprocess.run([sys.executable, "-c", PROGRAM], env=kept | environment, capture_output=True, check=True)
    return found.stdout.split()


def test_workers_and_threads_follow_the_cpus_this_process_may_run_on():
    assert printed() == [b"1", b"1"]


def test_a_number_of_threads_that_the_environment_sets_is_left_as_it_is():
    assert printed(OMP_NUM_THREADS="8") == [b"1", b"8"]


def test_processes_of_torchrun_share_the_cpus(monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1000")
    assert cpus_per_process() == 1
