import shutil
import socket

import pytest

from serve.settings import Settings
from tureen.bundle.examples import EXAMPLES
from tureen.commands.diagnosis import (
    HOST,
    PORT,
    bundle_facts,
    clock_facts,
    cpu_facts,
    diagnose,
    directory_facts,
    engine_facts,
    gpu_facts,
    port_facts,
    port_problem,
    system_facts,
)
from tureen.engines import RUNTIMES
from tureen.machine import Gpu


@pytest.fixture
def taken_port():
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        listener.listen(1)
        yield listener.getsockname()[1]


def facts(environment=None, bundle=None, **server):
    given = {"server_reasons": [], "server_notes": [], "store": "", **server}
    return diagnose(bundle, environment={"TUREEN_PORT": "0", **(environment or {})}, **given)


def test_the_versions_of_tureen_python_and_the_system_are_named():
    found = system_facts()
    assert found.python.startswith(("CPython 3.", "PyPy 3."))
    assert found.system


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ((), {}),
        (("fpu", "avx2"), {"AVX2": True, "AVX-512": False, "VNNI": False, "AMX": False, "bf16": False}),
        (
            ("avx2", "avx512f", "avx512_vnni", "amx_tile", "amx_bf16"),
            {"AVX2": True, "AVX-512": True, "VNNI": True, "AMX": True, "bf16": True},
        ),
    ],
)
def test_the_features_that_matter_are_read_from_the_flags(flags, expected):
    assert cpu_facts(flags).features == expected


def test_the_cpus_that_are_available_are_at_most_those_that_are_present():
    found = cpu_facts(())
    assert 1 <= found.available <= found.present


def test_each_engine_has_a_version_or_a_reason():
    found = {one.engine: one for one in engine_facts([], ())}
    assert set(found) >= set(RUNTIMES)
    assert found["onnxruntime"].why_not is None
    assert found["onnxruntime"].version
    assert found["tensorrt"].why_not


def test_gpus_are_named_with_their_capability():
    assert gpu_facts([Gpu("NVIDIA L4", "8.9")]).detail == "NVIDIA L4 (compute capability 8.9)"
    assert gpu_facts([], program="no-such-program").detail == "none: no-such-program is not installed"


def test_the_ports_are_those_of_the_server(taken_port):
    assert [Settings.model_fields[name].default for name in ("host", "port")] == [HOST, PORT]
    assert [one.port for one in port_facts({})] == [8000, 8001]
    assert [one.port for one in port_facts({"TUREEN_PORT": "0"})] == [0, 0]
    clients, operators = port_facts({"TUREEN_PORT": str(taken_port), "TUREEN_ADMIN_PORT": "0"})
    assert (clients.problem, operators.problem) == ("taken", None)
    assert port_problem(99999) == "not a port"


def test_a_taken_port_is_a_reason(taken_port):
    reasons = facts({"TUREEN_PORT": str(taken_port), "TUREEN_ADMIN_PORT": "0"}).reasons
    assert reasons == [f"port {taken_port}, for clients: taken"]


def test_a_directory_is_named_by_what_gives_it_and_is_not_created(tmp_path):
    (file := tmp_path / "file").touch()
    state, cache = directory_facts({"TUREEN_STATE_DIR": str(tmp_path / "new" / "state"), "XDG_CACHE_HOME": str(file)})
    assert (state.source, state.is_writable) == ("TUREEN_STATE_DIR", True)
    assert state.free_bytes > 0
    assert (cache.source, cache.is_writable) == ("XDG_CACHE_HOME", False)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    notes = facts({"TUREEN_STATE_DIR": str(file), "TUREEN_CACHE_DIR": str(tmp_path)}).notes
    assert "the state directory (TUREEN_STATE_DIR) is not writable" in notes


def test_a_clock_that_was_never_set_is_noticed():
    assert clock_facts().is_plausible
    assert clock_facts().is_monotonic
    assert not clock_facts(0).is_plausible


def test_a_bundle_is_named_by_its_model_and_has_its_engines():
    found = bundle_facts(EXAMPLES / "cifar10")
    assert found.model.startswith("cifar10 ")
    assert found.problem is None
    assert found.engines["onnxruntime fp32"] is None
    assert bundle_facts("signs").model.startswith("signs ")


def test_the_path_of_a_bundle_is_in_no_message(tmp_path):
    directory = tmp_path / "alice"
    missing = bundle_facts(directory)
    assert (missing.model, "alice" in missing.problem) == (None, False)
    shutil.copytree(EXAMPLES / "cifar10", directory)
    (directory / "tokens.safetensors").unlink()
    damaged = facts(bundle=directory)
    assert damaged.bundle.model.startswith("cifar10 ")
    assert any(reason.startswith("the bundle cannot be used: ") for reason in damaged.reasons)
    assert "alice" not in damaged.model_dump_json()


def test_what_the_server_says_comes_first():
    found = facts(server_reasons=["no server"], server_notes=["no store"], store="away")
    assert (found.reasons[0], found.notes[0], found.store) == ("no server", "no store", "away")
