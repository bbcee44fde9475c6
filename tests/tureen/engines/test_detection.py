import onnxruntime
import pytest

from tureen.bundle.manifest import PlanRecord
from tureen.engines import RUNTIMES
from tureen.engines.detection import REQUIREMENTS, installed_version, missing_requirement
from tureen.machine import Gpu

H100 = Gpu("NVIDIA H100", "9.0")


def plan(**changes):
    record = {
        "engine": "openvino", "precision": "fp32", "graph_sha256": "0" * 64, "runtime_version": "11.4.0",
        "device": "H100", "compute_capabilities": ["9.0"], "batch": (1, 8, 32),
    }  # fmt: skip
    return PlanRecord(**{**record, **changes})


def test_the_requirements_of_every_engine_are_reported():
    assert set(RUNTIMES) <= set(REQUIREMENTS)


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_engines_that_are_installed_and_need_nothing_else_miss_nothing(engine):
    assert missing_requirement(engine, "fp32", None, gpus=[], flags=[]) is None


def test_the_version_of_a_runtime_is_that_of_its_package():
    assert installed_version("onnxruntime") == onnxruntime.__version__
    assert installed_version("tensorrt") is None


def test_an_unknown_engine_requires_an_upgrade():
    assert "upgrade Tureen" in missing_requirement("warp-drive", "fp32", None, gpus=[], flags=[])


def test_a_processor_without_bfloat16_runs_no_bf16():
    assert "no bfloat16" in missing_requirement("openvino", "bf16", None, gpus=[], flags=["fpu", "avx512f"])
    assert missing_requirement("openvino", "bf16", None, gpus=[], flags=["amx_bf16"]) is None
    assert missing_requirement("openvino", "bf16", None, gpus=[], flags=[]) is None  # the system does not say


def test_an_engine_without_its_package_or_gpu_is_reported(monkeypatch):
    monkeypatch.setitem(RUNTIMES, "tensorrt-rtx", RUNTIMES["openvino"])
    monkeypatch.setitem(
        REQUIREMENTS, "openvino", REQUIREMENTS["openvino"].__class__("no_such_module", ("nothing",), "openvino")
    )
    missing = missing_requirement("openvino", "fp32", None, gpus=[], flags=[])
    assert missing == "nothing is not installed: install Tureen with its extra [openvino]"
    assert "no NVIDIA GPU" in missing_requirement("tensorrt-rtx", "fp32", None, gpus=[], flags=[])


def test_a_plan_for_another_gpu_or_version_is_reported():
    missing = missing_requirement("openvino", "fp32", plan(compute_capabilities=["8.9", "12.0"]), gpus=[H100], flags=[])
    assert missing == "the plan is for compute capability 8.9, 12.0; NVIDIA H100 has 9.0"
    missing = missing_requirement("openvino", "fp32", plan(), gpus=[H100], flags=[])
    assert missing.startswith("the plan is for openvino 11.4.0, installed is 20")
    installed = missing.rpartition(" ")[2]
    assert missing_requirement("openvino", "fp32", plan(runtime_version=installed), gpus=[H100], flags=[]) is None
