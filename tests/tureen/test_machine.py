import os
import subprocess
import sys

import pytest

from tureen.machine import (
    Gpu,
    available_cpus,
    cpu_flags,
    cpu_quota,
    default_cache_directory,
    memory_limit,
    nvidia_gpus,
    process_memory,
    total_memory,
)


def test_flags_of_the_processor_are_read_if_the_system_has_them(tmp_path):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nmodel name\t: Xeon\nflags\t\t: fpu avx512_bf16\n\nprocessor\t: 1\n")
    assert cpu_flags(cpuinfo) == {"fpu", "avx512_bf16"}
    assert cpu_flags(tmp_path / "nowhere") == frozenset()


def test_gpus_come_from_the_list_of_the_driver(tmp_path):
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'NVIDIA H100 80GB HBM3, 9.0'\necho 'NVIDIA L4, 8.9'\n")
    program.chmod(0o755)
    assert nvidia_gpus(str(program)) == [Gpu("NVIDIA H100 80GB HBM3", "9.0"), Gpu("NVIDIA L4", "8.9")]
    program.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed'\nexit 9\n")
    assert nvidia_gpus(str(program)) == []
    assert nvidia_gpus(str(tmp_path / "nowhere")) == []


def describe(proc, groups, mounts):
    """A /proc/self of these groups, with the file systems mounted where they are given."""
    proc.mkdir()
    (proc / "cgroup").write_text("".join(f"{line}\n" for line in groups))
    (proc / "mountinfo").write_text("".join(f"30 23 0:26 {line}\n" for line in mounts))
    return proc


def limit(group, **files):
    group.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (group / name.replace("_", ".", 1)).write_text(f"{text}\n")


@pytest.fixture
def cpus(monkeypatch):
    """Eight processors, whatever this machine has."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))


@pytest.mark.parametrize(
    ("outer", "inner", "count"),
    [("max 100000", "max 100000", 8), ("50000 100000", "max 100000", 1), ("400000 100000", "250000 100000", 3)],
)
@pytest.mark.usefixtures("cpus")
def test_the_least_quota_of_nested_groups_counts(tmp_path, outer, inner, count):
    mounted = tmp_path / "unified"
    limit(mounted / "system.slice", cpu_max=outer)
    limit(mounted / "system.slice" / "tureen.service", cpu_max=inner)
    mounts = ["/ / rw - ext4 /dev/vda rw", f"/ {mounted} rw,nosuid shared:4 - cgroup2 cgroup2 rw"]
    proc = describe(tmp_path / "proc", ["0::/system.slice/tureen.service"], mounts)
    assert available_cpus(proc) == count


@pytest.mark.parametrize(("quota", "count"), [(-1, 8), (50_000, 1), (250_000, 3)])
@pytest.mark.usefixtures("cpus")
def test_a_quota_of_version_1_counts(tmp_path, quota, count):
    mounted = tmp_path / "cpu,cpuacct"
    limit(mounted / "docker" / "tureen", cpu_cfs_quota_us=quota, cpu_cfs_period_us=100_000)
    groups = ["5:memory:/docker/tureen", "4:cpu,cpuacct:/docker/tureen", "0::/"]
    mounts = [f"/ {tmp_path} rw - cgroup cgroup rw,memory", f"/ {mounted} rw - cgroup cgroup rw,cpu,cpuacct"]
    assert available_cpus(describe(tmp_path / "proc", groups, mounts)) == count


@pytest.mark.usefixtures("cpus")
def test_a_container_whose_group_is_the_root_of_the_mount_has_its_quota(tmp_path):
    mounted = tmp_path / "cgroup"
    limit(mounted, cpu_max="150000 100000")
    mounts = [f"/docker/tureen {mounted} ro - cgroup2 cgroup rw"]
    assert available_cpus(describe(tmp_path / "proc", ["0::/docker/tureen"], mounts)) == 2
    assert available_cpus(tmp_path / "nowhere") == 8


def test_the_quota_is_the_lowest_of_nested_groups_and_none_without_a_limit(tmp_path):
    limit(tmp_path / "unified" / "service", cpu_max="150000 100000")
    limit(tmp_path / "unified", cpu_max="max 100000")
    proc = describe(tmp_path / "proc", ["0::/service"], [f"/ {tmp_path / 'unified'} rw - cgroup2 cgroup2 rw"])
    assert cpu_quota(proc) == 1.5
    assert cpu_quota(tmp_path / "nowhere") is None


def test_the_memory_limit_is_the_lowest_of_nested_groups_of_version_2(tmp_path):
    limit(tmp_path / "unified", memory_max=2**30)
    limit(tmp_path / "unified" / "service", memory_max="max")
    proc = describe(tmp_path / "proc", ["0::/service"], [f"/ {tmp_path / 'unified'} rw - cgroup2 cgroup2 rw"])
    assert memory_limit(proc) == 2**30
    assert memory_limit(tmp_path / "nowhere") is None


@pytest.mark.parametrize(("written", "expected"), [(2**30, 2**30), (9223372036854771712, None)])
def test_the_memory_limit_of_version_1_is_that_of_its_controller(tmp_path, written, expected):
    limit(tmp_path / "memory" / "tureen", memory_limit_in_bytes=written)
    mounts = [
        f"/ {tmp_path / 'cpu'} rw - cgroup cgroup rw,cpu",
        f"/ {tmp_path / 'memory'} rw - cgroup cgroup rw,memory",
    ]
    proc = describe(tmp_path / "proc", ["5:memory:/tureen", "4:cpu:/"], mounts)
    assert memory_limit(proc) == expected


def test_the_memory_of_the_machine_is_read_if_the_system_has_it(tmp_path):
    (meminfo := tmp_path / "meminfo").write_text("MemTotal:        2048 kB\nMemFree:  1 kB\n")
    assert total_memory(meminfo) == 2 * 2**20
    assert total_memory(tmp_path / "nowhere") is None


def test_the_memory_of_the_process_and_its_peak_are_read_if_the_system_has_them(tmp_path):
    assert process_memory("VmHWM", tmp_path) is None
    (tmp_path / "status").write_text("Name:\tpython\nVmHWM:\t    2048 kB\nVmRSS:\t    1024 kB\n")
    assert process_memory("VmHWM", tmp_path) == 2 * 2**20
    assert process_memory("VmRSS", tmp_path) == 2**20


def test_a_cache_that_cannot_be_created_in_the_home_is_private_to_the_process(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_cache_directory({}) == tmp_path / ".cache" / "tureen"
    monkeypatch.setenv("HOME", "/proc/1/nowhere")
    assert not default_cache_directory({}).is_relative_to("/proc")


def test_a_home_that_may_not_be_entered_is_as_good_as_none(tmp_path):
    home = tmp_path / "home"
    home.mkdir(mode=0)
    program = (
        "import os; from tureen.machine import default_cache_directory, is_temporary; "
        "os.getuid() or os.setuid(12345); "  # imports come first: the interpreter may lie in a home like this one
        "print(is_temporary(default_cache_directory({})))"
    )
    command = [sys.executable, "-c", program]
    run = subprocess.run(command, env={**os.environ, "HOME": str(home)}, capture_output=True, text=True)
    assert (run.stdout, run.stderr) == ("True\n", "")
