"""The files of a bundle that engines run."""

import pytest

from export.artefacts import BundleArtefacts
from export.errors import ExportError
from export.reference import compute_reference
from tureen.bundle.bundle import load_bundle
from tureen.bundle.manifest import BACKBONE, graph_name


@pytest.fixture(scope="module")
def graph(bundle_path):
    return load_bundle(bundle_path).graph


@pytest.fixture(scope="module")
def expected(checkpoint):
    return compute_reference(checkpoint.model, checkpoint.test.pixels[:64])


def test_torch_tensorrt_builds_for_tensorrt_alone(graph, checkpoint, expected):
    artefacts = BundleArtefacts(checkpoint.model, graph, expected, builder="torch")
    with pytest.raises(ExportError, match="not for tensorrt-rtx: omit --plan-builder"):
        artefacts.get("tensorrt-rtx", "fp32", "engines/tensorrt-rtx-fp32.plan")


def test_a_graph_is_built_once_for_all_engines(graph, checkpoint, expected):
    artefacts = BundleArtefacts(checkpoint.model, graph, expected)
    name = graph_name("bf16")
    first = artefacts.get("onnxruntime", "bf16", name)
    assert first.plan is None
    assert artefacts.get("openvino", "bf16", name).data is first.data
    assert artefacts.get("onnxruntime", "fp32", BACKBONE).data is graph


def test_int8_without_images_is_an_error(graph, checkpoint, expected):
    with pytest.raises(ExportError, match="int8 needs images for calibration: add --data"):
        BundleArtefacts(checkpoint.model, graph, expected).get("openvino", "int8", graph_name("int8"))
