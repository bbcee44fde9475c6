import re

import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from tureen.bundle.bundle import load_bundle
from tureen.bundle.manifest import BACKBONE
from tureen.errors import BundleError

INT8 = "engines/backbone-int8.onnx"


@pytest.fixture
def proto(own_bundle):
    return onnx.load(own_bundle / BACKBONE)


def make_external(proto, location):
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)


def refusal(bundle, put_file, proto, name=BACKBONE):
    """What a bundle with that graph is refused with, as the backbone or as an engine's."""
    put_file(bundle, name, proto if isinstance(proto, bytes) else proto.SerializeToString())
    with pytest.raises(BundleError) as error:
        load_bundle(bundle).artefact(name)
    assert name in str(error.value)
    assert "export the model again" in str(error.value)
    assert str(error.value).isprintable()
    return str(error.value)


@pytest.mark.parametrize("name", [BACKBONE, INT8])
@pytest.mark.parametrize(
    "location", ["backbone.data", "../../etc/passwd", "/etc/passwd", "engines/link", "*/\x1b[2J", ""]
)
def test_a_graph_with_data_in_another_file_is_refused_wherever_that_is(own_bundle, put_file, proto, name, location):
    (own_bundle / "engines").mkdir()
    (own_bundle / "engines" / "link").symlink_to("/etc/passwd")
    (own_bundle / "backbone.data").write_bytes(proto.graph.initializer[0].raw_data)
    make_external(proto, location)
    message = refusal(own_bundle, put_file, proto, name)
    assert "refers to data in other files" in message
    assert location in message or "\\x1b" in message


def test_onnx_runtime_would_have_read_a_file_of_its_working_directory(own_bundle, proto, tmp_path, monkeypatch):
    (tmp_path / "secret").write_bytes(proto.graph.initializer[0].raw_data)
    make_external(proto, "secret")
    monkeypatch.chdir(tmp_path)
    onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("name", [BACKBONE, INT8])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda g: setattr(g.input[0], "name", "images"), "images uint8"),
        (lambda g: setattr(g.input[0].type.tensor_type, "elem_type", TensorProto.FLOAT), "pixels float32"),
        (lambda g: setattr(g.input[1].type.tensor_type, "elem_type", TensorProto.FLOAT16), "cls_token float16"),
        (lambda g: setattr(g.output[0].type.tensor_type, "elem_type", TensorProto.FLOAT16), "logits float16"),
        (lambda g: set_dims(g.input[0], ["batch", 3, 8, 8]), r"\(batch, 3, 8, 8\)"),
        (lambda g: set_dims(g.input[0], ["batch", "height", 8, 3]), "height"),
        (lambda g: set_dims(g.input[1], ["batch", 100]), r"\(batch, 100\)"),
        (lambda g: set_dims(g.input[1], ["other", 128]), r"\(other, 128\)"),
        (lambda g: set_dims(g.input[0], [2, 8, 8, 3]), r"\(2, 8, 8, 3\)"),
        (lambda g: set_dims(g.output[0], ["batch", 1000]), r"\(batch, 1000\)"),
        (lambda g: set_dims(g.output[0], ["other", 10]), r"\(other, 10\)"),
        (lambda g: g.input[0].type.tensor_type.ClearField("shape"), "no shape"),
        (lambda g: g.input.pop(), "from pixels uint8"),
        (lambda g: g.input.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, [1])), "more float32"),
        (lambda g: g.output.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, [1])), "more float32"),
        (lambda g: [set_dims(t, [None, *d]) for t, d in zip([*g.input], [[8, 8, 3], [128]], strict=True)], r"\(\?, 8"),
    ],
)
def test_a_graph_with_another_interface_is_refused(own_bundle, put_file, proto, name, change, message):
    change(proto.graph)
    shown = refusal(own_bundle, put_file, proto, name)
    assert "but the manifest requires logits float32" in shown
    assert re.search(message, shown)


def set_dims(value, dims):
    fresh = helper.make_tensor_value_info("x", TensorProto.FLOAT, dims)
    value.type.tensor_type.shape.CopyFrom(fresh.type.tensor_type.shape)


def test_the_batch_may_have_any_one_name(own_bundle, put_file, proto):
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "n"
    put_file(own_bundle, BACKBONE, proto.SerializeToString())
    load_bundle(own_bundle)


def test_the_backbone_has_the_opset_of_the_manifest(own_bundle, put_file, proto):
    data = proto.SerializeToString()
    proto.opset_import[0].version = 21
    message = refusal(own_bundle, put_file, proto)
    assert "is of opset 21, the manifest says 20" in message
    put_file(own_bundle, BACKBONE, data)
    put_file(own_bundle, INT8, proto.SerializeToString())  # an engine's own graph may be of another
    assert load_bundle(own_bundle).artefact(INT8) == proto.SerializeToString()


@pytest.mark.parametrize("data", [b"", b"not a graph", b"\x3a\xff"])
def test_a_file_that_is_no_graph_is_refused(own_bundle, put_file, data):
    assert "is not an ONNX graph" in refusal(own_bundle, put_file, data)
    assert "is not an ONNX graph" in refusal(own_bundle, put_file, data)
