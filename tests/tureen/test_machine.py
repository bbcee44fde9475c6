from tureen.machine import Gpu, cpu_flags, nvidia_gpus


def test_flags_of_the_processor_are_read_where_the_system_tells_them(tmp_path):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nmodel name\t: Xeon\nflags\t\t: fpu avx512_bf16\n\nprocessor\t: 1\n")
    assert cpu_flags(cpuinfo) == {"fpu", "avx512_bf16"}
    assert cpu_flags(tmp_path / "nowhere") == frozenset()


def test_gpus_are_those_that_the_driver_lists(tmp_path):
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'NVIDIA H100 80GB HBM3, 9.0'\necho 'NVIDIA L4, 8.9'\n")
    program.chmod(0o755)
    assert nvidia_gpus(str(program)) == [Gpu("NVIDIA H100 80GB HBM3", "9.0"), Gpu("NVIDIA L4", "8.9")]
    program.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed'\nexit 9\n")
    assert nvidia_gpus(str(program)) == []
    assert nvidia_gpus(str(tmp_path / "nowhere")) == []
