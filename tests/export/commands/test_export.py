"""The command `tureen export`."""

import json
import re

from tureen.bundle.bundle import load_bundle, read_manifest
from tureen.cli import main
from tureen.remote.hub_card import hub_card


def test_the_command_exports_the_requested_engines_and_overwrites_on_request(digits_run, tmp_path, capsys):
    out = tmp_path / "bundle"
    arguments = [
        "export",
        str(digits_run),
        "--out",
        str(out),
        "--engine",
        "onnxruntime",
        "--precision",
        "fp32",
        "--json",
    ]
    (tmp_path / "note.md").write_text("## Data\n\nScanned digits.\n")
    noted = ["--note", str(tmp_path / "note.md"), "--license", "apache-2.0"]
    assert main([*arguments, "--name", "mine", "--default-beta", "robust", *noted]) == 0
    manifest = json.loads(capsys.readouterr().out)
    assert "\n\n## Data\n\nScanned digits.\n\n## Engines\n" in (out / "README.md").read_text()
    assert "\n- license: apache-2.0\n" in (out / "README.md").read_text()
    assert "\nlicense: apache-2.0\n" in hub_card(read_manifest(out), (out / "README.md").read_text())
    assert (manifest["name"], manifest["default_beta"]) == ("mine", 1.0)
    assert [(row["engine"], row["precision"]) for row in manifest["parity"]] == [("onnxruntime", "fp32")]
    assert main(arguments) == 1
    assert "exists already" in capsys.readouterr().err
    assert main([*(word for word in arguments if word != "--json"), "--force"]) == 0
    assert f"\nnext: tureen serve {out}\n" in capsys.readouterr().out
    assert load_bundle(out).manifest.name == "digits"


def test_a_note_that_is_no_text_is_an_error_before_the_compilation(digits_run, tmp_path, capsys):
    (tmp_path / "note.md").write_bytes(b"\xff\xfe")
    arguments = ["export", str(digits_run), "--out", str(tmp_path / "bundle"), "--note", str(tmp_path / "note.md")]
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert "note.md cannot be read: --note takes a text file in UTF-8" in error
    assert "compiling" not in error


def test_without_a_gpu_plans_are_built_and_left_out_with_time_size_and_reason(digits_run, tmp_path, capsys):
    arguments = ["export", str(digits_run), "--out", str(tmp_path / "bundle"), "--engine", "tensorrt-rtx"]
    assert main([*arguments, "--precision", "fp32", "--precision", "bf16"]) == 1
    error = capsys.readouterr().err
    for precision in ("fp32", "bf16"):
        assert re.search(rf"built a plan for tensorrt-rtx {precision} in \d+\.\d s, [\d,]+ bytes", error)
        reason = "built, but it does not run on this machine: this machine has no NVIDIA GPU, or no driver for it"
        assert f"left out: tensorrt-rtx {precision}: {reason}" in error
    assert "tensorrt-rtx, fp32, bf16 could not be proven: " in error
    assert not list(tmp_path.iterdir())
