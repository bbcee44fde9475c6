"""What runs a plan, on a made-up GPU: its memory is a dictionary, its kernels are ONNX Runtime's."""

from __future__ import annotations

import threading
from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np
import pytest
import tensorrt_rtx

from tureen.bundle.bundle import load_bundle
from tureen.bundle.manifest import PlanRecord
from tureen.engines import compile_engine, default_options, open_engine, open_verified_engine
from tureen.engines.base import Artefact, EngineOptions
from tureen.engines.cuda import Device
from tureen.engines.tensorrt_run import TensorRtEngine
from tureen.errors import EngineError
from tureen.tokens import mix_rows

VERSION = "11.0.0"
OPTIONS = EngineOptions(threads=2, max_batch=8)


class FakeCuda:
    """Device memory in a dictionary; what is begun on a stream happens when the stream is waited for."""

    def __init__(self, device=Device("Fake GPU", "8.6")):  # noqa: B008 - frozen
        self.device = device
        self.allocated, self.begun, self.captured, self.launches = {}, {}, [], 0
        self.capturing = threading.local()
        self.is_closed = False

    def begin(self, stream, work):
        recording = getattr(self.capturing, "work", None)
        (self.begun[stream] if recording is None else recording).append(work)

    def make_stream(self):
        stream = 1 + len(self.begun)
        self.begun[stream] = []
        return stream

    def allocate(self, size):
        address = 256 * (1 + len(self.allocated))
        self.allocated[address] = np.zeros(size, dtype=np.uint8)
        return address

    def allocate_pinned(self, shape, dtype):
        return np.zeros(shape, dtype)

    def upload(self, address, array, stream):
        assert array.flags.c_contiguous

        def work():
            self.allocated[address][: array.nbytes] = array.reshape(-1).view(np.uint8)

        self.begin(stream, work)

    def download(self, array, address, stream):
        assert array.flags.c_contiguous

        def work():
            array.reshape(-1).view(np.uint8)[:] = self.allocated[address][: array.nbytes]

        self.begin(stream, work)

    def synchronize(self, stream):
        work, self.begun[stream] = self.begun[stream], []
        for step in work:
            step()

    def capture(self, stream, enqueue):
        assert not self.begun[stream], "what was begun before a capture is waited for"
        self.capturing.work = []
        try:
            enqueue()
            self.captured.append(self.capturing.work)
        finally:
            self.capturing.work = None
        return len(self.captured) - 1

    def launch(self, graph, stream):
        self.launches += 1
        self.begun[stream] += self.captured[graph]

    def close(self):
        self.is_closed = True


class FakeContext:
    def __init__(self, engine):
        self.engine, self.shapes, self.addresses, self.scratch = engine, {}, {}, None
        self.is_captured = False

    def set_input_shape(self, name, shape):
        assert not self.is_captured, "a context is left alone once a graph was captured from it"
        self.shapes[name] = shape
        return shape[0] <= self.engine.largest

    def set_tensor_address(self, name, address):
        self.addresses[name] = address
        return address in self.engine.cuda.allocated

    def set_device_memory(self, address, size):
        assert size >= self.engine.device_memory_size_v2
        self.scratch = address

    def is_stream_capturable(self, stream):
        return self.engine.is_capturable

    def execute_async_v3(self, stream):
        cuda, shapes = self.engine.cuda, self.shapes
        self.is_captured |= getattr(cuda.capturing, "work", None) is not None

        def array(name, dtype):
            return cuda.allocated[self.addresses[name]].view(dtype)[: np.prod(shapes[name])].reshape(shapes[name])

        def work():
            self.engine.sizes_run.append(shapes["pixels"][0])
            logits = self.engine.backbone.run(array("pixels", np.uint8), array("cls_token", np.float32))
            cuda.allocated[self.addresses["logits"]].view(np.float32)[: logits.size] = logits.reshape(-1)

        cuda.begin(stream, work)
        return self.engine.is_healthy


class FakeEngine:
    """The backbone behind the part of ICudaEngine's interface that is used."""

    device_memory_size_v2 = 1000

    def __init__(self, cuda, backbone, bundle, largest=128):
        self.cuda, self.backbone, self.largest = cuda, backbone, largest
        size = bundle.manifest.preprocess.image_size
        self.shapes = {
            "pixels": (-1, size, size, 3),
            "cls_token": (-1, bundle.manifest.width),
            "logits": (-1, len(bundle.manifest.labels)),
        }
        self.contexts, self.sizes_run, self.is_capturable, self.is_healthy = [], [], True, True

    @property
    def num_io_tensors(self):
        return len(self.shapes)

    def get_tensor_name(self, index):
        return list(self.shapes)[index]

    def get_tensor_mode(self, name):
        mode = tensorrt_rtx.TensorIOMode
        return mode.OUTPUT if name == "logits" else mode.INPUT

    def get_tensor_shape(self, name):
        return self.shapes[name]

    def create_runtime_config(self):
        return SimpleNamespace(set_execution_context_allocation_strategy=lambda strategy: None)

    def create_execution_context(self, config_or_strategy):
        self.contexts.append(FakeContext(self))
        return self.contexts[-1]


def library(opened, *, is_rtx):
    """The names that running a plan needs, the vendor's own but for the runtime, which opens `opened`."""
    names = ["ILogger", "TensorIOMode", "ExecutionContextAllocationStrategy"]
    names += ["DynamicShapesKernelSpecializationStrategy"] if is_rtx else []
    runtime = SimpleNamespace(deserialize_cuda_engine=lambda plan: opened)
    return Library(
        __version__=VERSION, Runtime=lambda log: runtime, **{name: getattr(tensorrt_rtx, name) for name in names}
    )


class Library(SimpleNamespace):
    __hash__ = object.__hash__


def record(**changes):
    fields = {
        "engine": "tensorrt",
        "precision": "fp32",
        "graph_sha256": "0" * 64,
        "runtime_version": VERSION,
        "device": "Fake GPU",
        "compute_capabilities": ["8.6"],
        "batch": (1, 4, 8),
    }
    return PlanRecord(**{**fields, **changes})


@pytest.fixture(scope="module")
def bundle(bundle_path):
    return load_bundle(bundle_path)


@pytest.fixture(scope="module")
def backbone(bundle):
    engine = compile_engine(bundle.graph, "onnxruntime")
    yield engine
    engine.close()


@pytest.fixture
def cuda():
    return FakeCuda()


@pytest.fixture
def opened(cuda, backbone, bundle):
    return FakeEngine(cuda, backbone, bundle)


def start(opened, cuda, options=OPTIONS, *, engine="tensorrt", **changes):
    plan = record(engine=engine, **changes)
    lib = library(opened, is_rtx=engine == "tensorrt-rtx")
    return TensorRtEngine(Artefact(b"", plan), "fp32", options, engine=engine, library=lib, cuda=cuda)


@pytest.fixture
def rows(checkpoint, bundle):
    pixels = checkpoint.test.pixels[:19]
    return pixels, mix_rows(bundle.clean_token, bundle.robust_token, np.linspace(0, 1, len(pixels)))


@pytest.mark.parametrize("engine", ["tensorrt", "tensorrt-rtx"])
@pytest.mark.parametrize(("count", "sizes"), [(1, [1]), (3, [4]), (8, [8]), (19, [8, 8, 4])])
def test_a_batch_is_padded_to_a_captured_size_and_a_larger_one_runs_in_parts(
    opened, cuda, backbone, rows, engine, count, sizes
):
    pixels, tokens = (array[:count] for array in rows)
    running = start(opened, cuda, engine=engine)
    opened.sizes_run.clear()
    logits = running.run(pixels, tokens)
    assert opened.sizes_run == sizes
    assert cuda.launches == len(sizes)
    # The sums of another batch size are in another order.
    np.testing.assert_allclose(logits, backbone.run(pixels, tokens), atol=1e-4)


def test_every_stream_captures_each_size_once_from_a_separate_context(opened, cuda, rows):
    running = start(opened, cuda, EngineOptions(threads=2, streams=2, max_batch=8))
    for count in (1, 2, 3, 5, 8, 19):
        running.run(*(array[:count] for array in rows))
    assert len(cuda.captured) == len(opened.contexts) == 2 * len([1, 2, 4, 8])
    assert len({context.scratch for context in opened.contexts}) == 2  # shared within a stream, never between two
    assert len({context.addresses["pixels"] for context in opened.contexts}) == 2


def test_the_next_batch_does_not_change_logits_that_were_handed_out(opened, cuda, rows):
    pixels, tokens = rows
    running = start(opened, cuda)
    first = running.run(pixels[:2], tokens[:2])
    kept = first.copy()
    running.run(pixels[2:4], tokens[2:4])
    np.testing.assert_array_equal(first, kept)


def test_an_empty_batch_has_no_logits(opened, cuda, rows):
    assert start(opened, cuda).run(*(array[:0] for array in rows)).shape == (0, opened.shapes["logits"][1])


def test_calls_from_many_threads_share_the_streams_and_get_their_logits(opened, cuda, backbone, rows):
    pixels, tokens = rows
    running = start(opened, cuda, EngineOptions(threads=2, streams=2, max_batch=8))
    expected = backbone.run(pixels, tokens)
    found = {}

    def work(index):
        for _ in range(20):
            found[index] = running.run(pixels[index : index + 3], tokens[index : index + 3])

    threads = [threading.Thread(target=work, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index in range(8):
        np.testing.assert_allclose(found[index], expected[index : index + 3], atol=1e-4)


def test_a_size_that_cannot_be_captured_runs_without_capture(opened, cuda, backbone, rows):
    opened.is_capturable = False
    logits = start(opened, cuda, engine="tensorrt-rtx").run(*rows)
    assert not cuda.captured
    np.testing.assert_allclose(logits, backbone.run(*rows), atol=1e-4)


def test_sizes_end_where_the_plan_or_the_options_do(opened, cuda):
    start(opened, cuda, EngineOptions(threads=1, max_batch=64), batch=(1, 2, 6))
    assert [context.shapes["pixels"][0] for context in opened.contexts] == [1, 2, 4, 6]


def test_close_frees_the_gpu(opened, cuda):
    start(opened, cuda).close()
    assert cuda.is_closed


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"runtime_version": "10.12.0"}, r"is for tensorrt 10\.12\.0, installed is 11\.0\.0: export again on this"),
        ({"device": "NVIDIA T4"}, "built on NVIDIA T4, and this machine has Fake GPU: export again on this machine"),
        ({"device": "", "compute_capabilities": ["8.9", "12.0"]}, r"capability 8\.9, 12\.0, and this machine has 8\.6"),
        ({"precision": "bf16"}, "is for tensorrt bf16, not for tensorrt fp32"),
    ],
)
def test_a_plan_bound_to_another_machine_is_refused_with_a_fix(opened, cuda, changes, message):
    with pytest.raises(EngineError, match=message):
        start(opened, cuda, **changes)


def test_a_plan_of_the_other_flavour_is_refused(opened, cuda):
    lib = library(opened, is_rtx=False)
    with pytest.raises(EngineError, match="is for tensorrt-rtx fp32, not for tensorrt fp32"):
        TensorRtEngine(Artefact(b"", record(engine="tensorrt-rtx")), "fp32", OPTIONS, library=lib, cuda=cuda)


def test_an_onnx_graph_in_a_plans_place_is_refused(bundle):
    with pytest.raises(EngineError, match="runs compiled plans, and this file is not one: export again"):
        compile_engine(bundle.graph, "tensorrt-rtx")


def test_a_damaged_plan_is_refused_and_the_gpu_freed(cuda):
    with pytest.raises(EngineError, match="cannot open the plan: export again"):
        start(None, cuda)
    assert cuda.is_closed


def test_a_plan_of_another_model_is_refused(opened, cuda):
    opened.shapes = {"images" if name == "pixels" else name: shape for name, shape in opened.shapes.items()}
    with pytest.raises(EngineError, match="are not a backbone's"):
        start(opened, cuda)


def test_a_batch_that_the_plan_does_not_have_is_refused(opened, cuda):
    opened.largest = 4
    with pytest.raises(EngineError, match="the plan has no batch of 8"):
        start(opened, cuda)


def test_an_engine_that_cannot_start_reports_it_and_frees_the_stream(opened, cuda, backbone, rows):
    opened.is_capturable = False  # so that every run begins anew
    running = start(opened, cuda, engine="tensorrt-rtx")
    opened.is_healthy = False
    with pytest.raises(EngineError, match="could not start a batch of 8"):
        running.run(*rows)
    opened.is_healthy = True
    np.testing.assert_allclose(running.run(*rows), backbone.run(*rows), atol=1e-4)


def test_a_plan_compiled_from_another_backbone_is_refused_before_it_is_opened(own_bundle):
    bundle = load_bundle(own_bundle)
    name = "engines/tensorrt-rtx-fp32.plan"
    row = bundle.manifest.parity[0].model_copy(update={"engine": "tensorrt-rtx", "artefact": name})
    bundle.manifest.plans[name] = record(engine="tensorrt-rtx")
    with pytest.raises(EngineError, match="compiled from another backbone: export again with --engine tensorrt-rtx"):
        open_verified_engine(bundle, row)


def test_an_engine_without_a_plan_in_the_bundle_is_refused_by_name(bundle):
    with pytest.raises(EngineError, match="lists no such engine"):
        open_engine(bundle, "tensorrt", options=default_options())


@pytest.mark.skipif(find_spec("tensorrt") is not None, reason="tensorrt is installed")
def test_an_engine_that_is_not_installed_names_its_extra():
    with pytest.raises(EngineError, match=r"tensorrt is not installed: install Tureen with its extra \[tensorrt\]"):
        compile_engine(b"", "tensorrt", plan=record())
