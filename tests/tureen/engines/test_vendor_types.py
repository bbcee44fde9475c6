"""What no machine of ours can run is checked against the vendors' own bindings, by mypy.

Their packages carry no types, so stubs are drawn from the installed ones: from pybind11's signatures (tensorrt_rtx),
from Cython's (cuda.bindings), from the source (torch_tensorrt, which cannot be imported without a driver).
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
CHECKED = [
    "tureen/engines/tensorrt_run.py",
    "tureen/engines/tensorrt_build.py",
    "tureen/engines/cuda.py",
    "export/torch_plan.py",
]


def stubgen(module: str, out: Path) -> Path:
    # Compiled, it is no module that `python -m` runs.
    command = [
        sys.executable,
        "-c",
        "from mypy.stubgen import main; main()",
        "--inspect-mode",
        "--quiet",
        "-m",
        module,
        "-o",
        str(out),
    ]
    subprocess.run(command, check=True, capture_output=True)
    return out / f"{module.replace('.', '/')}.pyi"


def tensorrt_rtx_stubs(out: Path) -> None:
    file = stubgen("tensorrt_rtx_bindings.tensorrt_rtx", out)
    text = file.read_text()
    # What is in no signature: protocols of C, and None for failure. Building and opening plans shows all of it.
    for drawn, true in [
        ("class IHostMemory:\n", "class IHostMemory:\n    def __buffer__(self, flags: int, /) -> memoryview: ...\n"),
        ("class Dims:\n", "class Dims:\n    def __iter__(self) -> typing.Iterator[int]: ...\n"),
        ("config: IBuilderConfig) -> IHostMemory:", "config: IBuilderConfig) -> IHostMemory | None:"),
        ("typing_extensions.Buffer) -> ICudaEngine:", "typing_extensions.Buffer) -> ICudaEngine | None:"),
        ("def get_error(self, *args, **kwargs): ...", "def get_error(self, index: int) -> ParserError: ..."),
    ]:
        assert drawn in text, drawn
        text = text.replace(drawn, true)
    file.write_text("".join(map(parsable, text.splitlines(keepends=True))))
    (out / "tensorrt_rtx").mkdir()
    (out / "tensorrt_rtx" / "__init__.pyi").write_text(
        "from tensorrt_rtx_bindings.tensorrt_rtx import *\n__version__: str\n"
    )


def parsable(line: str) -> str:
    """The line, or where Python cannot read the signature (a default before none), one that takes anything."""
    definition = re.match(r"(\s+def \w+)\(", line)
    try:
        if definition:
            ast.parse(line.strip())
    except SyntaxError:
        return f"{definition[1]}(self, *args: Any, **kwargs: Any) -> Any: ...\n"
    return line


def cuda_stubs(out: Path) -> None:
    from cuda.bindings import runtime

    def function(match: re.Match[str]) -> str:
        parameters = inspect.signature(getattr(runtime, match[1])).parameters.values()
        shown = ", ".join(
            f"{p.name}: {'Any' if p.annotation is p.empty else p.annotation}"
            + ("" if p.default is p.empty else " = ...")
            for p in parameters
        )
        return f"def {match[1]}({shown}) -> tuple[Any, ...]: ..."

    file = stubgen("cuda.bindings.runtime", out)
    text = re.sub(r"^(\w+): \w+\.cython_function_or_method$", function, file.read_text(), flags=re.MULTILINE)
    text = text.replace("cuda.bindings._internal._fast_enum.FastEnum", "int")
    file.write_text("from typing import Any\n" + text)


def torch_tensorrt_stubs(out: Path) -> None:
    source = Path(importlib.util.find_spec("torch_tensorrt").submodule_search_locations[0])
    tree = ast.parse((source / "dynamo" / "_compiler.py").read_text())
    name = "convert_exported_program_to_serialized_trt_engine"
    function = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name)
    arguments = function.args
    keywords = "".join(f", {argument.arg}: Any = ..." for argument in arguments.kwonlyargs)
    (out / "torch_tensorrt" / "dynamo").mkdir(parents=True)
    # Without its **kwargs, which swallows what is misspelt.
    (out / "torch_tensorrt" / "dynamo" / "__init__.pyi").write_text(
        "from typing import Any\nfrom torch.export import ExportedProgram\n"
        f"def {name}(exported_program: ExportedProgram, inputs: Any = ..., *{keywords}) -> bytes: ...\n"
    )
    read = re.findall(r'kwargs(?:\.get\(|\[)"(\w+)"', (source / "_Input.py").read_text())
    fields = "".join(f", {field}: Any = ..." for field in dict.fromkeys(read))
    (out / "torch_tensorrt" / "__init__.pyi").write_text(
        "from typing import Any\nfrom torch_tensorrt import dynamo as dynamo\n"
        f"class Input:\n    def __init__(self, *{fields}) -> None: ...\n"
    )


@pytest.fixture(scope="module")
def stubs(tmp_path_factory):
    if importlib.util.find_spec("torch_tensorrt") is None:
        pytest.skip("torch_tensorrt is not installed: `make setup` does")
    out = tmp_path_factory.mktemp("stubs")
    tensorrt_rtx_stubs(out)
    cuda_stubs(out)
    torch_tensorrt_stubs(out)
    return out


@pytest.fixture(scope="module")
def complaints(stubs, tmp_path_factory):
    """What mypy has to say of files, and of nothing else."""
    directory = tmp_path_factory.mktemp("mypy")
    # Of torch only a little is used, and reading it takes longer than all the rest.
    config = "[mypy]\ndisallow_untyped_calls = true\n[mypy-torch.*]\nfollow_imports = skip\n"
    (directory / "mypy.ini").write_text(config)

    def check(files: list[str]) -> list[str]:
        command = [sys.executable, "-m", "mypy", "--config-file", str(directory / "mypy.ini"), "--show-absolute-path"]
        command += ["--cache-dir", str(directory / "cache"), "--follow-imports", "silent", *files]
        environment = {**os.environ, "MYPYPATH": str(stubs)}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode in (0, 1), done.stdout + done.stderr
        return [line for line in done.stdout.splitlines() if ": error:" in line and line.split(":")[0] in files]

    return check


def test_every_call_fits_the_installed_bindings(complaints):
    assert complaints([str(ROOT / name) for name in CHECKED]) == []


PLANTED = [
    ("tureen/engines/tensorrt_run.py", "execute_async_v3(", "execute_async_v4(", 'no attribute "execute_async_v4"'),
    (
        "tureen/engines/tensorrt_run.py",
        "set_tensor_address(n, address)",
        "set_tensor_address(address, n)",
        "incompatible type",
    ),
    ("tureen/engines/tensorrt_run.py", "TensorIOMode.OUTPUT", "TensorIOMode.OUTPUTS", 'no attribute "OUTPUTS"'),
    ("tureen/engines/tensorrt_run.py", "if opened is None:", "if False:", "ICudaEngine | None"),
    ("tureen/engines/tensorrt_build.py", "clear_flag(", "clear_flags(", 'no attribute "clear_flags"'),
    ("tureen/engines/tensorrt_build.py", "error.node_operator()", "error.operator()", 'no attribute "operator"'),
    ("tureen/engines/tensorrt_build.py", "(cache, ignore_mismatch", "(cache, ignore_mismatches", "ignore_mismatches"),
    ("tureen/engines/cuda.py", "cudaGraphLaunch(graph, stream)", "cudaGraphLaunch(graph)", "Missing positional"),
    ("tureen/engines/cuda.py", "cudaMemcpyHostToDevice", "cudaMemcpyHostToGpu", "cudaMemcpyHostToGpu"),
    ("tureen/engines/cuda.py", "array.nbytes, kind, stream", "array.nbytes, stream, kind", "incompatible type"),
    ("export/torch_plan.py", "arg_inputs=", "arguments=", 'Unexpected keyword argument "arguments"'),
    ("export/torch_plan.py", "opt_shape=", "best_shape=", 'Unexpected keyword argument "best_shape"'),
]


def test_wrong_calls_are_caught(complaints, tmp_path):
    """The check above can fail: each mistake below, planted in a copy, is found."""
    files = []
    for index, (name, right, wrong, _) in enumerate(PLANTED):
        source = (ROOT / name).read_text()
        assert right in source, f"{name} has no {right} to spoil"
        files.append(tmp_path / f"planted_{index}.py")
        files[-1].write_text(source.replace(right, wrong, 1))
    found = complaints([str(file) for file in files])
    for file, (name, right, wrong, message) in zip(files, PLANTED, strict=True):
        assert any(file.name in line and message in line for line in found), (name, right, wrong, found)
