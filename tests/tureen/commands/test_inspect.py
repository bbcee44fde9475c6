import copy
import json
import os
import re

import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto

from tureen.bundle.bundle import GOLDEN, MANIFEST, MAX_GRAPH_BYTES, TOKENS
from tureen.bundle.manifest import BACKBONE
from tureen.cli import main
from tureen.commands.inspection import inspect_bundle

INT8 = "engines/backbone-int8.onnx"


PLAN = "engines/tensorrt-fp16.plan"


def states(inspection):
    return {file.name: file.state for file in inspection.files}


def shown(capsys, *arguments):
    """Status, what was printed and the error of `tureen inspect`."""
    status = main(["inspect", *map(str, arguments)])
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err
    assert len(printed.err.splitlines()) == (status != 0)
    return status, printed.out, printed.err


def edit_manifest(bundle, change):
    manifest = json.loads((bundle / MANIFEST).read_text())
    change(manifest)
    (bundle / MANIFEST).write_text(json.dumps(manifest))


def add_parity_row(bundle, engine, precision, artefact, **changes):
    """Adds a parity row for one more engine, with the figures of the first row."""
    row = {"engine": engine, "precision": precision, "artefact": artefact}
    edit_manifest(bundle, lambda m: m["parity"].append({**m["parity"][0], **row}) or m.update(changes))


def plan_record(**changes):
    return {
        "engine": "tensorrt", "precision": "fp16", "graph_sha256": "0" * 64, "runtime_version": "11.4",
        "device": "NVIDIA L4", "compute_capabilities": ["8.9"], "batch": [1, 8, 32], **changes,
    }  # fmt: skip


def test_a_valid_bundle_is_described_in_full(bundle_path, capsys):
    status, out, _ = shown(capsys, bundle_path)
    assert status == 0
    for part in (
        "10 labels, RGB 8 × 8", "0, 1, 2", "bicubic to 8 × 8", "opset ONNX 20", "bytes of weights",
        "in      pixels uint8 (batch, 8, 8, 3)", "out     logits float32 (batch, 10)", "LayerNormalization", "verified",
        "backbone.onnx", "same label", "onnxruntime fp32", "seems to run", "auto", "PGD-10", "seed",
    ):  # fmt: skip
        assert part in out


def test_json_holds_the_same_facts(bundle_path, capsys):
    status, out, _ = shown(capsys, bundle_path, "--json")
    facts = json.loads(out)
    assert status == 0
    assert facts["name"] == facts["manifest"]["name"] == "digits"
    assert facts["error"] is None
    assert facts["graphs"][BACKBONE]["inputs"][0] == {"name": "pixels", "dtype": "uint8", "shape": ["batch", 8, 8, 3]}
    assert {file["state"] for file in facts["files"]} == {"verified"}
    assert facts["engines"][0]["engine"] == "onnxruntime"
    assert facts["engines"][0]["can_run"]
    assert facts["auto"]["why"]


def test_a_trial_reports_the_golden_rows_of_each_engine(bundle_path, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("TUREEN_CACHE_DIR", str(tmp_path))
    inspection = inspect_bundle(bundle_path, is_trial=True)
    assert all(engine.can_run for engine in inspection.engines)
    assert all(0 <= engine.largest_difference < 1e-3 for engine in inspection.engines if engine.precision == "fp32")
    assert inspection.auto.engine in [f"{engine.engine} {engine.precision}" for engine in inspection.engines]
    status, out, _ = shown(capsys, bundle_path, "--try")
    assert status == 0
    assert "largest difference from the golden logits" in out


def test_the_state_of_every_file_is_reported(own_bundle, put_file, capsys):
    (own_bundle / TOKENS).write_bytes(b"other")
    (own_bundle / GOLDEN).unlink()
    os.mkfifo(own_bundle / GOLDEN)
    (own_bundle / "README.md").unlink()
    os.truncate(own_bundle / BACKBONE, MAX_GRAPH_BYTES + 1)
    put_file(own_bundle, INT8, b"no graph")
    (own_bundle / "thesis.tex").write_text("years of work")
    inspection = inspect_bundle(own_bundle)
    assert states(inspection) == {
        TOKENS: "changed",
        GOLDEN: "not a regular file",
        "README.md": "missing",
        BACKBONE: "too large",
        INT8: "not an ONNX graph",
        "thesis.tex": "not in the manifest",
    }
    status, out, err = shown(capsys, own_bundle)
    assert status == 1
    assert "digits" in out
    assert "APGD-5" in out
    assert inspection.error in err


def test_the_strength_and_the_calibration_have_a_line_each(own_bundle, capsys):
    out = shown(capsys, own_bundle)[1]
    assert re.search(r"^strength 0, ¼, ½, ¾, 1 is β 0\.00, .*, 1\.00; measured on 135 images$", out, re.M)
    assert re.search(
        r"^calibration error, worst β: 0\.\d{3}; with a temperature .*: 0\.\d{3}; on 450 test images, "
        r"fitted on 135 validation images$",
        out,
        re.M,
    )
    edit_manifest(own_bundle, lambda m: (m.pop("strength"), m.pop("calibration")))
    out = shown(capsys, own_bundle)[1]
    assert "\nstrength: not measured, so it equals β\ncalibration error: not measured\n" in out


def test_a_newer_schema_shows_name_version_and_files(own_bundle, capsys):
    edit_manifest(own_bundle, lambda m: m.update(schema_version=4, name="later\x1b[2J", accuracy="another way"))
    status, out, err = shown(capsys, own_bundle)
    assert status == 1
    assert "later\\x1b[2J" in out
    assert "of schema version 4" in out
    assert len(re.findall("  verified", out)) == 4
    assert "upgrade Tureen" in err
    status, out, _ = shown(capsys, own_bundle, "--json")
    assert status == 1
    assert (json.loads(out)["schema_version"], json.loads(out)["manifest"]) == (4, None)


def test_a_graph_with_external_data_is_shown_and_refused(own_bundle, put_file, capsys):
    proto = onnx.load(own_bundle / BACKBONE)
    tensor = proto.graph.initializer[0]
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../\x1b]0;fine\x07")
    put_file(own_bundle, BACKBONE, proto.SerializeToString())
    status, out, err = shown(capsys, own_bundle)
    assert status == 1
    assert r"REFERS  to another file: ../\x1b]0;fine\x07" in out
    assert "never read" in err


def test_a_damaged_engine_is_reported_even_if_others_can_serve(own_bundle, put_file, capsys):
    put_file(own_bundle, INT8, (own_bundle / BACKBONE).read_bytes())
    add_parity_row(own_bundle, "openvino", "int8", INT8)
    assert inspect_bundle(own_bundle).error is None
    (own_bundle / INT8).write_bytes(b"other")
    inspection = inspect_bundle(own_bundle)
    assert f"{INT8} is not what the manifest describes" in inspection.error
    assert [engine.can_run for engine in inspection.engines if engine.artefact == INT8] == [False]
    status, out, _ = shown(capsys, own_bundle)
    assert status == 1
    assert "does not run" in out


def test_a_plan_for_another_machine_is_reported(own_bundle, put_file, capsys):
    put_file(own_bundle, PLAN, b"a plan")
    add_parity_row(own_bundle, "tensorrt", "fp16", PLAN, plans={PLAN: plan_record()})
    status, out, _ = shown(capsys, own_bundle)
    assert status == 0
    assert "built on NVIDIA L4, batches of 1 to 32" in out
    assert re.search(r"tensorrt fp16 +does not run: ", out)


def test_served_accuracy_is_shown_with_that_of_fp32(own_bundle, capsys):
    served = {
        "beta": 0.5, "n": 100, "clean": 0.91, "clean_fp32": 0.92, "transferred": 0.43, "transferred_fp32": 0.44,
        "attack": "PGD-40", "epsilon_255": 25.5,
    }  # fmt: skip
    edit_manifest(own_bundle, lambda m: m["parity"][0].update(accuracy=[served]))
    _, out, _ = shown(capsys, own_bundle)
    assert re.search(r"0\.50 +91\.0 +92\.0 +43\.0 +44\.0", out)


def test_texts_of_a_bundle_give_the_terminal_no_commands(own_bundle, capsys):
    def change(manifest):
        manifest["labels"][0] = "zero\x1b[31m\n  backbone.onnx verified"
        manifest["provenance"] = {"\x1b[2J": ["\u202edenifer", {"a\r": "b\x9b"}]}
        manifest["parity"][0]["engine"] = "onnx\x1b[0m"

    edit_manifest(own_bundle, change)
    for flags in ([], ["--try"]):
        _, out, _ = shown(capsys, own_bundle, *flags)
        assert all(line.isprintable() for line in out.split("\n"))
        assert r"zero\x1b[31m\n  backbone.onnx verified, 1" in out


def test_a_graph_with_false_shapes_is_reported_by_a_trial(own_bundle, put_file, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("TUREEN_CACHE_DIR", str(tmp_path))
    proto = onnx.load(own_bundle / BACKBONE)
    for node in proto.graph.node:
        if node.op_type == "Transpose":
            node.attribute[0].ints[:] = range(len(node.attribute[0].ints))
    put_file(own_bundle, BACKBONE, proto.SerializeToString())
    status, out, _ = shown(capsys, own_bundle, "--try")
    assert status == 0
    assert "does not run" in out
    assert "no engine for 'auto'" in out


@pytest.mark.parametrize(
    "text", ["", "[]", "{", "[" * 100_000, '{"schema_version": 1' + "0" * 5000 + "}", "{}", "\ud800"]
)
def test_an_invalid_manifest_is_one_line(own_bundle, capsys, text):
    (own_bundle / MANIFEST).write_bytes(text.encode(errors="surrogatepass"))
    status, _, err = shown(capsys, own_bundle)
    assert status == 1
    assert "is not a Tureen manifest" in err


VALUES = st.sampled_from([None, -1, 0, 2, 1e308, "", "x", "\x1b", "../x", [], {}, [1], {"a": 1}, True, 10**400])


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_change_to_a_manifest_is_shown_or_refused_in_one_line(own_bundle, capsys, data):
    original = (own_bundle / MANIFEST).read_text()
    manifest = json.loads(original)
    try:
        for _ in range(data.draw(st.integers(1, 3))):
            place = manifest
            while True:
                key = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
                if isinstance(place[key], dict | list) and place[key] and data.draw(st.booleans()):
                    place = place[key]
                    continue
                place[key] = copy.deepcopy(data.draw(VALUES))  # later changes may go into it
                break
        (own_bundle / MANIFEST).write_text(json.dumps(manifest))
        status, out, err = shown(capsys, own_bundle)
        assert status in (0, 1)
        assert all(line.isprintable() for line in (out + err).split("\n"))
    finally:
        (own_bundle / MANIFEST).write_text(original)
