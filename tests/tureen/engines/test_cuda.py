"""The CUDA layer on a machine without a GPU. test_vendor_types.py checks the calls to CUDA."""

import pytest
from cuda.bindings import runtime

from tureen.engines.cuda import Cuda, check_status
from tureen.errors import EngineError

HAS_GPU = runtime.cudaGetDeviceCount()[0] == runtime.cudaError_t.cudaSuccess


@pytest.mark.skipif(HAS_GPU, reason="there is a GPU")
def test_a_machine_without_a_gpu_reports_it_once():
    with pytest.raises(EngineError) as error:
        Cuda()
    assert str(error.value) == "this machine has no NVIDIA GPU, or no driver for it"


@pytest.mark.skipif(HAS_GPU, reason="there is a GPU")
def test_every_failing_call_names_the_gpu_operation():
    with pytest.raises(EngineError, match=r"could not allocate 8 bytes \(cudaErrorInsufficientDriver\): look at"):
        check_status("allocate 8 bytes", runtime.cudaMalloc(8))
    with pytest.raises(EngineError, match=r"could not launch a graph \(cudaErrorInsufficientDriver\)"):
        check_status("launch a graph", runtime.cudaGraphLaunch(0, 0))


def test_a_full_gpu_names_the_setting_to_reduce():
    with pytest.raises(EngineError, match="use a smaller max_batch or fewer streams"):
        check_status("allocate 8 bytes", (runtime.cudaError_t.cudaErrorMemoryAllocation, None))


def test_the_value_beside_a_good_status_is_handed_on():
    good = runtime.cudaError_t.cudaSuccess
    assert check_status("count", (good, 3)) == 3
    assert check_status("wait", (good,)) is None
