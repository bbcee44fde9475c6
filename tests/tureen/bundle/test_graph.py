import tracemalloc
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from tureen.bundle.bundle import LOGITS_OUTPUT, PIXELS_INPUT, TOKEN_INPUT
from tureen.bundle.graph import _CHILDREN, MAX_DEPTH, MAX_FIELDS, MAX_NAME_BYTES, read_graph_file
from tureen.bundle.manifest import BACKBONE
from tureen.errors import GraphFileError

EXAMPLE = Path(__file__).parents[3] / "tureen" / "examples" / "cifar10" / BACKBONE


def external_tensor(location="../../etc/passwd", name="w"):
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=location)
    return tensor


def small_model(nodes=(), initializer=(), **options):
    """y = x + 1, with whatever else is given."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4]) for name in "xy")
    one = numpy_helper.from_array(np.ones(4, np.float32), "one")
    nodes = [*nodes, helper.make_node("Add", ["x", "one"], ["y"])]
    graph = helper.make_graph(nodes, "g", [x], [y], [one, *initializer])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], **options)


def field(number, data):
    """A field of a protobuf message that holds these bytes."""
    size = bytes([0x80 | len(data) & 0x7F, len(data) >> 7]) if len(data) > 0x7F else bytes([len(data)])
    return bytes([number << 3 | 2]) + size + data


def branch(tensor):
    """A subgraph that holds the tensor as its initialiser."""
    output = helper.make_tensor_value_info(tensor.name, TensorProto.FLOAT, [4])
    return helper.make_graph([], "branch", [], [output], [tensor])


def read_by_onnx(data):
    """The same facts, by the onnx package."""
    proto = onnx.load_from_string(data)

    def info(value):
        dims = value.type.tensor_type.shape.dim
        return value.name, value.type.tensor_type.elem_type, [dim.dim_param or dim.dim_value for dim in dims]

    return {
        "opsets": {opset.domain: opset.version for opset in proto.opset_import},
        "inputs": [info(value) for value in proto.graph.input],
        "outputs": [info(value) for value in proto.graph.output],
        "nodes": Counter(node.op_type for node in proto.graph.node),
        "weights_bytes": sum(numpy_helper.to_array(tensor).nbytes for tensor in proto.graph.initializer),
    }


@pytest.fixture(scope="module")
def digits_graph(bundle_path):
    return (bundle_path / BACKBONE).read_bytes()


@pytest.mark.parametrize("source", ["digits", "cifar10"])
def test_the_reader_agrees_with_the_onnx_package(source, digits_graph):
    data = digits_graph if source == "digits" else EXAMPLE.read_bytes()
    found, expected = read_graph_file(data), read_by_onnx(data)
    assert found.opsets == expected["opsets"] == {"": 20}
    for tensors, others in ((found.inputs, expected["inputs"]), (found.outputs, expected["outputs"])):
        assert [(t.name, t.shape) for t in tensors] == [(name, shape) for name, _, shape in others]
        types = [helper.tensor_dtype_to_np_dtype(element) for _, element, _ in others]
        assert [np.dtype(t.dtype) for t in tensors] == types
    assert {t.name for t in found.inputs + found.outputs} == {PIXELS_INPUT, TOKEN_INPUT, LOGITS_OUTPUT}
    assert found.nodes == expected["nodes"]
    assert found.weights_bytes == expected["weights_bytes"] > 100_000
    assert found.external_files == []


def test_numbers_in_any_field_of_a_tensor_are_counted():
    arrays = {"a": np.arange(3.0), "b": np.arange(5, dtype=np.float32), "c": np.arange(7, dtype=np.float16)}
    raw = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    typed = [helper.make_tensor(f"{t.name}2", t.data_type, t.dims, numpy_helper.to_array(t)) for t in raw[:2]]
    data = small_model(initializer=[*raw, *typed]).SerializeToString()
    assert read_graph_file(data).weights_bytes == read_by_onnx(data)["weights_bytes"]


def test_shapes_without_sizes_and_non_tensors_are_described():
    proto = small_model()
    proto.graph.input.append(helper.make_tensor_value_info("scalar", TensorProto.BFLOAT16, []))
    proto.graph.input.append(helper.make_tensor_value_info("anything", TensorProto.INT64, None))
    proto.graph.input.append(helper.make_tensor_value_info("unknown", TensorProto.INT64, [None, 2]))
    proto.graph.input.append(helper.make_tensor_sequence_value_info("list", TensorProto.FLOAT, [1]))
    shown = [str(value) for value in read_graph_file(proto.SerializeToString()).inputs]
    assert shown == [
        "x float32 (batch, 4)", "scalar bfloat16 ()", "anything int64 (no shape)", "unknown int64 (?, 2)",
        "list not a tensor (no shape)",
    ]  # fmt: skip


def test_weights_saved_beside_the_graph_are_seen(digits_graph, tmp_path):
    proto = onnx.load_from_string(digits_graph)
    onnx.save_model(proto, tmp_path / "g.onnx", save_as_external_data=True, location="g.data", size_threshold=0)
    found = read_graph_file((tmp_path / "g.onnx").read_bytes())
    assert found.external_files == ["g.data"]
    assert found.weights_bytes == 0


TENSOR_PLACES = {
    "an initialiser": lambda t: small_model(initializer=[t]),
    "a constant": lambda t: small_model([helper.make_node("Constant", [], ["c"], value=t)]),
    "a list of tensors": lambda t: small_model([helper.make_node("Custom", [], ["c"], several=[t, t])]),
    "a subgraph": lambda t: small_model([helper.make_node("If", ["x"], ["c"], then_branch=branch(t))]),
    "a list of subgraphs": lambda t: small_model([helper.make_node("Custom", ["x"], ["c"], graphs=[branch(t)])]),
    "a subgraph of a subgraph": lambda t: small_model(
        [
            helper.make_node(
                "If",
                ["x"],
                ["c"],
                then_branch=helper.make_graph(
                    [helper.make_node("If", ["x"], ["c"], else_branch=branch(t))], "b", [], []
                ),
            )
        ]
    ),
    "a sparse tensor": lambda t: small_model(
        [helper.make_node("Constant", [], ["c"], sparse_value=helper.make_sparse_tensor(t, t, [4]))]
    ),
    "a sparse initialiser": lambda t: with_sparse_initialiser(t),
    "a function": lambda t: small_model(
        functions=[
            helper.make_function(
                "local",
                "F",
                [],
                ["c"],
                [helper.make_node("Constant", [], ["c"], value=t)],
                [helper.make_opsetid("", 20)],
            )
        ]
    ),
    "a function's default": lambda t: small_model(
        functions=[
            helper.make_function("local", "F", [], [], [], [], attribute_protos=[helper.make_attribute("value", t)])
        ]
    ),
    "the training's algorithm": lambda t: with_training(t),
}


def with_sparse_initialiser(tensor):
    proto = small_model()
    proto.graph.sparse_initializer.append(helper.make_sparse_tensor(tensor, tensor, [4]))
    return proto


def with_training(tensor):
    proto = small_model()
    proto.training_info.add().algorithm.CopyFrom(branch(tensor))
    return proto


def test_every_field_of_onnx_that_leads_to_a_tensor_is_walked():
    def leads_to_a_tensor(message, seen=()):
        return message.name == "TensorProto" or (
            message.name not in seen
            and any(leads_to_a_tensor(f.message_type, (*seen, message.name)) for f in message.fields if f.message_type)
        )

    messages = {
        "model": onnx.ModelProto, "graph": onnx.GraphProto, "main graph": onnx.GraphProto, "node": onnx.NodeProto,
        "function": onnx.FunctionProto, "training": onnx.TrainingInfoProto, "attribute": onnx.AttributeProto,
        "sparse tensor": onnx.SparseTensorProto, "sparse initialiser": onnx.SparseTensorProto,
    }  # fmt: skip
    assert set(messages) == set(_CHILDREN)
    for kind, message in messages.items():
        fields = [f for f in message.DESCRIPTOR.fields if f.message_type and leads_to_a_tensor(f.message_type)]
        assert {field.number for field in fields} <= set(_CHILDREN[kind])


@pytest.mark.parametrize("place", TENSOR_PLACES)
def test_an_external_tensor_is_seen_wherever_it_hides(place):
    plain = numpy_helper.from_array(np.arange(4.0, dtype=np.float32), "w")
    assert read_graph_file(TENSOR_PLACES[place](plain).SerializeToString()).external_files == []
    found = read_graph_file(TENSOR_PLACES[place](external_tensor()).SerializeToString())
    assert found.external_files == ["../../etc/passwd"]


def test_either_sign_of_external_data_suffices():
    only_location, only_entries = external_tensor("a.data"), external_tensor("b.data")
    only_location.ClearField("external_data")
    only_entries.ClearField("data_location")
    for tensor, expected in ((only_location, [""]), (only_entries, ["b.data"])):
        assert read_graph_file(small_model(initializer=[tensor]).SerializeToString()).external_files == expected


def test_a_location_that_protobuf_cuts_to_32_bits_is_external():
    # A reader that keeps 32 bits of an enumeration takes 2³² + 1 for 1, EXTERNAL.
    tensor = b"\x70\x81\x80\x80\x80\x10"
    graph = small_model().SerializeToString() + field(7, field(5, tensor))
    assert onnx.load_from_string(graph).graph.initializer[-1].data_location == TensorProto.EXTERNAL
    assert read_graph_file(graph).external_files == [""]


def test_a_graph_given_in_two_parts_is_read_as_protobuf_merges_it():
    data = small_model().SerializeToString()
    extra = onnx.ModelProto()
    extra.graph.initializer.append(external_tensor())
    assert read_graph_file(data + extra.SerializeToString()).external_files == ["../../etc/passwd"]


def test_a_node_that_may_load_a_compiled_engine_is_external():
    node = helper.make_node(
        "EPContext", ["x"], ["c"], domain="com.microsoft", ep_cache_context="../engine", embed_mode=0
    )
    assert read_graph_file(small_model([node]).SerializeToString()).external_files == [""]


def test_the_ort_format_is_refused_even_if_it_is_a_graph_too(tmp_path):
    small = small_model()
    small.ClearField("ir_version")
    small.ClearField("producer_name")
    # producer_version, 42 bytes long, whose third byte is the file's fifth
    data = b"\x1a\x2a\x00\x00ORTM" + b"\x00" * 36 + small.SerializeToString()
    assert onnx.load_from_string(data).graph.node[-1].op_type == "Add"
    with pytest.raises(Exception, match="verification failed"):  # so that is how ONNX Runtime reads it
        onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    with pytest.raises(GraphFileError, match="own format"):
        read_graph_file(data)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no opset"),
        (b"\x3a", "cut short"),
        (b"\x3a\x05\x0a", "cut short"),
        (b"\x80" * 12, "no protobuf message"),
        (b"\x00\x00", "no protobuf message"),
        (b"\x3b", "no protobuf message"),  # a group
        (b"\x3d\x00\x00\x00\x00", "holds a number"),  # the graph as a number
        (b"\x42\x04\x10\x14\x10\x14", "given twice"),
        (b"\x42\x02\x10\x14\x42\x02\x10\x15", "two opsets"),
        (b"\x42\x04\x0a\x02\x41\x42\x42\x02\x12\x00", "holds something else"),
        (b"<?xml version='1.0'?><net/>", "no protobuf message"),
    ],
)
def test_a_file_that_is_no_graph_is_refused(data, message):
    with pytest.raises(GraphFileError, match=message):
        read_graph_file(data)


def test_nesting_names_and_fields_are_bounded():
    nested = b""
    for number in [6, 5, 1] * (MAX_DEPTH // 3):  # a graph in an attribute in a node in a graph …
        nested = field(number, nested)
    with pytest.raises(GraphFileError, match=f"more than {MAX_DEPTH} deep"):
        read_graph_file(field(7, nested))
    with pytest.raises(GraphFileError, match="longer than 1,024 bytes"):
        read_graph_file(small_model([helper.make_node("A" * (MAX_NAME_BYTES + 1), [], [])]).SerializeToString())
    with pytest.raises(GraphFileError, match="more than 500,000 fields"):
        read_graph_file(b"\x08\x00" * (MAX_FIELDS + 1))


def reads_or_refuses(data):
    """Either facts or the one error, within a few times the memory of the data."""
    tracemalloc.start()
    try:
        read_graph_file(data)
    except GraphFileError:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 1_000_000 + 20 * len(data)


@given(data=st.binary(max_size=400))
def test_random_bytes_are_read_or_refused(data):
    reads_or_refuses(data)


SAMPLE = TENSOR_PLACES["a subgraph of a subgraph"](external_tensor()).SerializeToString()


@given(edits=st.lists(st.tuples(st.integers(0, len(SAMPLE) - 1), st.integers(0, 255)), max_size=8), end=st.integers(0))
def test_a_small_graph_with_bytes_changed_and_cut_is_read_or_refused(edits, end):
    data = bytearray(SAMPLE)
    for at, byte in edits:
        data[at] = byte
    reads_or_refuses(bytes(data[: len(data) - end % len(data)]))


@settings(max_examples=50)
@given(st.data())
def test_the_real_graph_with_bytes_changed_or_cut_is_read_or_refused(digits_graph, data):
    damaged = bytearray(digits_graph)
    for _ in range(data.draw(st.integers(0, 20))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    reads_or_refuses(bytes(damaged[: data.draw(st.integers(0, len(damaged)))]))
