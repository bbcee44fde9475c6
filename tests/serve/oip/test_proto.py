"""The generated modules are the output of protoc for inference.proto."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PROTO = "serve/oip/proto/inference.proto"


def test_the_generated_modules_are_those_of_the_proto(tmp_path):
    protoc = pytest.importorskip("grpc_tools.protoc")
    outputs = [f"--python_out={tmp_path}", f"--pyi_out={tmp_path}"]
    assert protoc.main(["protoc", f"-I{ROOT}", *outputs, str(ROOT / PROTO)]) == 0
    for suffix in ("py", "pyi"):
        name = PROTO.replace(".proto", f"_pb2.{suffix}")
        again = f"python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. {PROTO}"
        assert (tmp_path / name).read_text() == (ROOT / name).read_text(), f"run {again}"


def test_the_generated_modules_take_the_oldest_protobuf_that_the_extra_allows():
    stubs = (ROOT / "serve/oip/proto/inference_pb2.py").read_text()
    (made_for,) = re.findall(r"^# Protobuf Python Version: (.*)$", stubs, re.MULTILINE)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert f"protobuf>={made_for},<8" in extras["grpc"]
