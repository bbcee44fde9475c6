import io
import json
import os
import struct
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tureen.bundle.bundle import (
    GOLDEN,
    MANIFEST,
    MAX_FILES,
    MAX_GOLDEN_BYTES,
    MAX_GRAPH_BYTES,
    MAX_MANIFEST_BYTES,
    MAX_OTHER_BYTES,
    MAX_PLAN_BYTES,
    REQUIRED,
    TOKENS,
    load_bundle,
    read_manifest,
)
from tureen.bundle.files import MAX_ARRAY_HEADER_BYTES, read_arrays, read_file, read_vectors
from tureen.bundle.manifest import BACKBONE
from tureen.errors import BundleError

PLAN = "engines/tensorrt-fp16.plan"
ENGINE_GRAPH = "engines/backbone-int8.onnx"


def list_file(bundle, name, size):
    """A file of that many zeros that takes no room on the disk, listed in the manifest."""
    (bundle / name).parent.mkdir(exist_ok=True)
    (bundle / name).touch()
    os.truncate(bundle / name, size)
    manifest = json.loads((bundle / MANIFEST).read_text())
    manifest["files"][name] = {"sha256": "0" * 64, "size": size}
    (bundle / MANIFEST).write_text(json.dumps(manifest))


def assert_refused(bundle, message):
    """Refused with that message, and without reading what is large: within 40 MiB."""
    tracemalloc.start()
    try:
        with pytest.raises(BundleError, match=message):
            load_bundle(bundle)
        assert tracemalloc.get_traced_memory()[1] < 40 * 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("name", "limit", "advice"),
    [
        (BACKBONE, MAX_GRAPH_BYTES, "weights beyond one ONNX file are not supported; export a smaller model"),
        (TOKENS, MAX_OTHER_BYTES, "export the model again"),
        (GOLDEN, MAX_GOLDEN_BYTES, "export the model again"),
        ("README.md", MAX_OTHER_BYTES, "export the model again"),
    ],
)
@pytest.mark.timeout(20, func_only=True)
def test_a_file_beyond_its_limit_is_refused_by_its_size(own_bundle, name, limit, advice):
    list_file(own_bundle, name, 3_000_000_000)
    assert_refused(own_bundle, rf"{name} has 3,000,000,000 bytes, the limit is {limit:,}: {advice}")


def test_a_graph_or_plan_beyond_its_limit_disables_only_that_engine(own_bundle):
    list_file(own_bundle, ENGINE_GRAPH, MAX_GRAPH_BYTES + 1)
    list_file(own_bundle, PLAN, MAX_PLAN_BYTES + 1)
    manifest = json.loads((own_bundle / MANIFEST).read_text())
    (own_bundle / MANIFEST).write_text(json.dumps({**manifest, "plans": {PLAN: plan_record()}}))
    bundle = load_bundle(own_bundle)
    with pytest.raises(BundleError, match="lower precision"):
        bundle.artefact(ENGINE_GRAPH)
    with pytest.raises(BundleError, match=f"the limit is {MAX_PLAN_BYTES:,}: export a smaller model"):
        bundle.artefact(PLAN)


def plan_record():
    return {
        "engine": "tensorrt",
        "precision": "fp16",
        "graph_sha256": "0" * 64,
        "runtime_version": "11.4",
        "device": "a GPU",
        "compute_capabilities": ["9.0"],
        "batch": [1, 8, 32],
    }


def test_a_plan_is_returned_only_with_a_record_of_its_binding(own_bundle, put_file):
    put_file(own_bundle, PLAN, b"a plan, not ONNX")
    with pytest.raises(BundleError, match=f"has no record of the plan {PLAN}"):
        load_bundle(own_bundle).artefact(PLAN)
    put_file(own_bundle, PLAN, b"a plan, not ONNX", plans={PLAN: plan_record()})
    assert load_bundle(own_bundle).artefact(PLAN) == b"a plan, not ONNX"


@pytest.mark.timeout(20, func_only=True)
def test_a_file_larger_on_disk_than_listed_is_not_read(own_bundle):
    os.truncate(own_bundle / BACKBONE, MAX_GRAPH_BYTES)
    assert_refused(own_bundle, f"{BACKBONE} is not what the manifest describes")
    os.truncate(own_bundle / BACKBONE, MAX_GRAPH_BYTES + 1)
    assert_refused(own_bundle, f"the limit is {MAX_GRAPH_BYTES:,}")


@pytest.mark.parametrize("size", [MAX_MANIFEST_BYTES + 1, 3_000_000_000])
def test_a_manifest_beyond_its_limit_is_not_read(own_bundle, size):
    os.truncate(own_bundle / MANIFEST, size)
    assert_refused(own_bundle, f"{MANIFEST} has {size:,} bytes, the limit is {MAX_MANIFEST_BYTES:,}")


def test_more_files_than_a_bundle_has_are_refused(own_bundle):
    manifest = json.loads((own_bundle / MANIFEST).read_text())
    manifest["files"] |= {f"file-{i}": {"sha256": "0" * 64, "size": 0} for i in range(MAX_FILES)}
    (own_bundle / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=f"lists 104 files, the limit is {MAX_FILES}: export"):
        load_bundle(own_bundle)


@pytest.mark.parametrize("name", [*REQUIRED, MANIFEST])
@pytest.mark.parametrize("kind", ["link", "dangling link", "loop", "fifo", "directory"])
@pytest.mark.timeout(20, func_only=True)
def test_a_special_file_is_refused_without_waiting(own_bundle, tmp_path, name, kind):
    file = own_bundle / name
    data = file.read_bytes()
    file.unlink()
    if kind == "link":
        (tmp_path / "elsewhere").write_bytes(data)
        file.symlink_to(tmp_path / "elsewhere")
    elif kind == "dangling link":
        file.symlink_to("nowhere")
    elif kind == "loop":
        file.symlink_to(name)
    elif kind == "fifo":
        os.mkfifo(file)
    else:
        file.mkdir()
    reason = "is not a regular file" if kind in ("fifo", "directory") else "is a symbolic link"
    with pytest.raises(BundleError, match=f"{name} {reason}: copy"):
        load_bundle(own_bundle)


def test_a_device_is_not_opened():
    with pytest.raises(BundleError, match="null is not a regular file"):
        read_file(Path("/dev"), "null", 10, "")


def test_a_linked_directory_of_engines_is_not_followed(own_bundle, tmp_path, put_file):
    put_file(own_bundle, PLAN, b"plan", plans={PLAN: plan_record()})
    (own_bundle / "engines").rename(tmp_path / "engines")
    (own_bundle / "engines").symlink_to(tmp_path / "engines")
    with pytest.raises(BundleError, match="engines is a symbolic link"):
        load_bundle(own_bundle).artefact(PLAN)


def test_the_bundle_itself_may_be_reached_by_a_link(own_bundle, tmp_path):
    (tmp_path / "current").symlink_to(own_bundle)
    assert load_bundle(tmp_path / "current").manifest.name == "digits"


def npy(array_header, numbers=b""):
    stream = io.BytesIO()
    np.lib.format.write_array_header_2_0(stream, array_header)
    return stream.getvalue() + numbers


def npz(members, compression=zipfile.ZIP_STORED):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return stream.getvalue()


def golden_with(own_bundle, **changes):
    with np.load(own_bundle / GOLDEN) as arrays:
        stream = io.BytesIO()
        np.savez(stream, **{**arrays, **changes})
    return stream.getvalue()


def test_golden_rows_that_unpack_to_more_than_the_file_are_refused(own_bundle, put_file):
    header = {"descr": "|u1", "fortran_order": False, "shape": (2**26,)}
    bomb = npz(
        dict.fromkeys(["pixels.npy", "betas.npy", "logits.npy"], npy(header, b"\0" * 2**26)), zipfile.ZIP_DEFLATED
    )
    assert len(bomb) < 2**20
    put_file(own_bundle, GOLDEN, bomb)
    assert_refused(own_bundle, f"{GOLDEN} cannot be read: export")


@pytest.mark.parametrize("shape", [(2**62,), (2**40,), (2**63, 2**63), (0, 2**62), ()])
def test_golden_rows_that_claim_more_numbers_than_they_have_are_refused(own_bundle, put_file, shape):
    member = npy({"descr": "|u1", "fortran_order": False, "shape": shape}, b"12")
    put_file(own_bundle, GOLDEN, npz({f"{name}.npy": member for name in ("pixels", "betas", "logits")}))
    assert_refused(own_bundle, f"{GOLDEN} (cannot be read|does not fit)")


@pytest.mark.parametrize("is_too_long", [False, True])
def test_a_header_of_an_array_is_bounded(tmp_path, is_too_long):
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (1,)}".ljust(MAX_ARRAY_HEADER_BYTES + is_too_long)
    data = npz({"pixels.npy": b"\x93NUMPY\x02\x00" + struct.pack("<I", len(header)) + header + b"7"})
    if is_too_long:
        with pytest.raises(BundleError, match=f"{GOLDEN} cannot be read"):
            read_arrays(tmp_path / GOLDEN, data, ("pixels",))
    else:
        assert read_arrays(tmp_path / GOLDEN, data, ("pixels",))["pixels"] == [ord("7")]


@pytest.mark.parametrize(
    "changes",
    [
        {"pixels": np.float32(1)},
        {"pixels": np.zeros((1, 9, 9, 3), np.uint8)},
        {"betas": np.zeros((0,), np.float32)},
        {"betas": np.zeros((3, 1), np.float32)},
        {"logits": np.zeros((3, 8, 11), np.float32)},
        {"logits": np.zeros((3, 8, 10))},
        {"pixels": np.array(["a", None])},
    ],
)
def test_golden_rows_of_another_shape_or_type_are_refused(own_bundle, put_file, changes):
    put_file(own_bundle, GOLDEN, golden_with(own_bundle, **changes))
    assert_refused(own_bundle, f"{GOLDEN} (cannot be read|does not fit)")


def vectors(header, data=b"", length=None):
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(encoded) if length is None else length) + encoded + data


@pytest.mark.parametrize(
    "data",
    [
        b"",
        vectors({}, length=2**63),
        vectors({}, length=100_000_001),
        vectors(b"[" * 100_000),
        vectors({"clean": {"dtype": "F32", "shape": [2**62], "data_offsets": [0, 4]}}, b"1234"),
        vectors({"clean": {"dtype": "F32", "shape": [2**63, 2**63], "data_offsets": [0, 4]}}, b"1234"),
        vectors({"clean": {"dtype": "F32", "shape": [1], "data_offsets": [0, 2**62]}}, b"1234"),
        vectors({"clean": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, b"1234"),
        vectors({"clean": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}, b"1234"),
        vectors({"clean": {"dtype": "F4", "shape": [8], "data_offsets": [0, 4]}}, b"1234"),
    ],
)
def test_tokens_with_an_absurd_header_are_refused(own_bundle, put_file, data):
    put_file(own_bundle, TOKENS, data)
    assert_refused(own_bundle, f"{TOKENS} is not a safetensors file")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damaged_tokens_and_golden_rows_are_read_or_refused(bundle_path, data):
    name = data.draw(st.sampled_from([TOKENS, GOLDEN]))
    damaged = bytearray((bundle_path / name).read_bytes())
    ends = st.integers(0, len(damaged) - 1)
    for at in data.draw(st.lists(st.one_of(ends, st.integers(0, 300), ends.map(lambda i: -1 - i % 300)), max_size=6)):
        damaged[at] = data.draw(st.integers(0, 255))
    try:
        if name == TOKENS:
            read_vectors(bundle_path / name, bytes(damaged))
        else:
            read_arrays(bundle_path / name, bytes(damaged), ("pixels", "betas", "logits"))
    except BundleError:
        pass


def test_commands_to_a_terminal_in_a_manifest_are_shown_as_text(own_bundle):
    manifest = json.loads((own_bundle / MANIFEST).read_text())
    (own_bundle / MANIFEST).write_text(json.dumps({**manifest, "\x1b[2Jfine\n": 1}))
    with pytest.raises(BundleError) as error:
        read_manifest(own_bundle)
    assert str(error.value).isprintable()
