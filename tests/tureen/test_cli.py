import inspect
import json
import logging
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from PIL import Image

import tureen
from tureen.bundle.examples import EXAMPLES
from tureen.cli import COMMANDS, main


@pytest.fixture(autouse=True)
def leave_no_log_handler():
    """`tureen serve` logs to the stderr that it finds, which a test closes behind it."""
    yield
    for handler in [handler for handler in logging.root.handlers if type(handler) is logging.StreamHandler]:
        logging.root.removeHandler(handler)


def test_without_a_command_usage_is_printed_with_exit_status_2(capsys):
    assert main([]) == 2
    shown = capsys.readouterr().out
    assert all(name in shown for name in COMMANDS)


def test_help_and_version(capsys):
    assert main(["--help"]) == 0
    assert main(["--version"]) == 0
    assert tureen.__version__ in capsys.readouterr().out


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example(name, capsys):
    with pytest.raises(SystemExit) as exit_:
        main([name, "--help"])
    assert exit_.value.code == 0
    assert f"example: tureen {name}" in capsys.readouterr().out


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_on_a_narrow_terminal(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    with pytest.raises(SystemExit) as exit_:
        main([name, "--help"])
    assert exit_.value.code == 0
    assert "example:" in capsys.readouterr().out


def test_an_unknown_command_is_wrong_use(capsys):
    assert main(["trian"]) == 2
    assert capsys.readouterr().err.startswith("tureen: there is no command 'trian'; did you mean 'train'?\n\nusage: ")
    assert main(["nonsense"]) == 2
    assert capsys.readouterr().err.startswith("tureen: there is no command 'nonsense'\n\nusage: ")


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["inspect", "nowhere"], 1, "is not a bundle"),
        (["export", "nowhere", "--out", "new"], 1, "nowhere does not exist"),
        (["export", ".", "--out", "new"], 1, "not a finished checkpoint"),
        (["evaluate", "nowhere"], 1, "nowhere does not exist"),
        (["evaluate", "."], 1, "not a finished checkpoint"),
        (["bench", "nowhere"], 1, "is not a bundle"),
        (["serve", "nowhere"], 1, "or the name of an example: cifar10"),
        (["batch", "nowhere", ".", "out"], 1, "or the name of an example: cifar10"),
        (["credentials", "nowhere", "list"], 1, "or the name of an example: cifar10"),
        (["train", "digits", "--set", "epochs=0"], 2, "epochs"),
        (["train", "digits", "--set", "model.classes=5"], 2, "10 labels"),
        (["train", "digits", "--set", "model.image_size=16"], 2, "8 pixels"),
        (["train", "digits", "--set", "evaluation_betas=0,1,7"], 2, "evaluation_betas"),
        (["train", "digits", "--out", "/dev/null/x"], 1, "/dev/null/x"),
        (["train", "digits", "--set", "epoch=1"], 2, "has no 'epoch'; did you mean 'epochs'?"),
        (["train", "digits", "--set", "model.deph=1"], 2, "has no 'model.deph'; did you mean 'model.depth'?"),
        (["train", "digits", "--set", "depth=1"], 2, "has no 'depth'; did you mean 'model.depth'?"),
        (["inspect", "cifar"], 1, "did you mean 'cifar10'?"),
        (["train", "digits", "--set", "epochs"], 2, "KEY=VALUE"),
        (["export", ".", "--out", "new", "--default-beta", "2"], 2, "β is"),
    ],
)
def test_an_error_is_one_line_and_a_status(arguments, status, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == status
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arguments",
    [
        ["export", "x", "--out", "y", "--name", "bad name!"],
        ["export", "x", "--out", "y", "--max-logit-diff", "-1"],
        ["demo", "--port", "99999"],
        ["train", "cifar11"],
        ["evaluate", "x", "--betas", "0:2:1"],
        ["evaluate", "x", "--steps", "0"],
        ["bench", "x", "--seconds", "0"],
        ["bench", "x", "--max-batch", "0"],
        ["bench", "x", "--threads", "1", "--streams", "1", "2"],
        ["serve"],
    ],
)
def test_wrong_arguments_exit_with_2(arguments):
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "digit"], "invalid choice: 'digit' (choose from "),
        (["train", "digit"], "; did you mean 'digits'?"),
        (["train", "Digits"], "; did you mean 'digits'?"),
        (["evaluate", "x", "--attack", "agpd"], "; did you mean 'apgd'?"),
        (["export", "x", "--out", "y", "--engine", "onnx-runtime"], "; did you mean 'onnxruntime'?"),
        (["demo", "--bundle", "cifar"], "; did you mean 'cifar10'?"),
        (["demo", "--train", "digit"], "; did you mean 'digits'?"),
    ],
)
def test_a_misspelt_name_is_refused_with_the_similar_one(arguments, message, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err


def test_inspect_shows_and_verifies(bundle_path, capsys):
    assert main(["inspect", str(bundle_path)]) == 0
    shown = capsys.readouterr().out
    assert "verified" in shown
    assert "APGD-5" in shown
    assert "onnxruntime fp32" in shown
    assert main(["inspect", str(bundle_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["name"] == "digits"


def test_inspect_reports_that_a_model_is_not_cotrained(single_token_bundle, equal_tokens_bundle, capsys):
    assert main(["inspect", str(single_token_bundle)]) == 0
    shown = capsys.readouterr().out
    assert "one token, not co-trained: there is no β to choose\naccuracy: not measured" in shown
    assert "no β" in shown
    assert main(["inspect", str(equal_tokens_bundle)]) == 0
    assert "two equal tokens, not co-trained: any β gives the same result" in capsys.readouterr().out
    assert main(["inspect", str(single_token_bundle), "--json"]) == 0
    assert '"has_two_tokens": false' in capsys.readouterr().out


def test_output_survives_a_closed_pipe_and_a_terminal_without_greek(bundle_path):
    environment = {**os.environ, "PYTHONIOENCODING": "latin-1"}
    command = [sys.executable, "-m", "tureen.cli", "inspect", str(bundle_path)]
    shown = subprocess.run(command, capture_output=True, env=environment)
    assert (shown.returncode, shown.stderr) == (0, b"")
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() == 1


def test_looking_for_help_imports_none_of_the_packages():
    code = "import sys, tureen.cli as c; c.main(['--help']); print({'torch', 'fastapi', 'onnx'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.endswith("set()\n")


def test_the_command_line_starts_without_any_package():
    """And without slow modules of Python: until it has started, an interrupt prints a traceback."""
    slow = {
        "numpy",
        "PIL",
        "pydantic",
        "tqdm",
        "argparse",
        "ast",
        "dataclasses",
        "difflib",
        "inspect",
        "json",
        "typing",
    }
    code = f"import sys; before = set(sys.modules); import tureen.cli; print({slow} & (set(sys.modules) - before))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


@pytest.mark.parametrize(
    ("arguments", "module"),
    [
        (["classify", "x.png"], "tureen.commands.classify"),
        (["classify", "x.png"], "numpy"),
        (["demo"], "pydantic"),
        (["demo"], "serve.server"),
        (["demo"], "uvicorn"),
        (["train", "digits"], "torch"),
        (["export", ".", "--out", "new"], "onnx"),
    ],
)
def test_an_interrupt_during_an_import_ends_the_command_with_130_and_no_traceback(arguments, module, tmp_path):
    """Also if the imported library turns the interrupt into another error."""
    program = f"""
import os
import signal
import sys

class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            try:
                os.kill(os.getpid(), signal.SIGINT)
            except KeyboardInterrupt:
                raise ImportError("an initialisation failed")

sys.meta_path.insert(0, Interrupting())
from tureen.cli import main
sys.argv[1:] = {arguments}
sys.exit(main())
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path)
    assert (ended.returncode, ended.stderr) == (130, "")


def test_an_interrupt_during_a_command_or_at_the_exit_ends_it_with_130_and_no_traceback():
    for kill in ("kill()", "atexit.register(kill)"):
        program = f"""
import atexit
import os
import signal
import sys
import types

def kill():
    os.kill(os.getpid(), signal.SIGINT)

def run(arguments):
    {kill}
    return 0

sys.modules["tureen.commands.inspect"] = types.SimpleNamespace(inspect=run)
from tureen.cli import main
sys.argv[1:] = ["inspect", "signs"]
sys.exit(main())
"""
        ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
        assert (ended.returncode, ended.stderr) == (130, ""), kill


def test_a_process_that_ignores_interrupts_still_ignores_them():
    program = "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN); from tureen.cli import main; "
    program += "sys.argv[1:] = ['--version']; main(); os.kill(os.getpid(), signal.SIGINT); print('still here')"
    assert subprocess.check_output([sys.executable, "-c", program], text=True).endswith("still here\n")


BEYOND_SERVE = ("torch", "onnx", "openvino", "grpc", "pyarrow", "fsspec", "ray", "sklearn", "kornia", "matplotlib")


class Refusing:
    """A finder that refuses packages, as if they were not installed."""

    def __init__(self, packages):
        self.packages = packages

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.packages:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_every_command_needs_no_package_beyond_the_extra_serve(name):
    """In a separate process, because this one may have imported the packages."""
    program = f"""
import sys

{inspect.getsource(Refusing)}
sys.meta_path.insert(0, Refusing({BEYOND_SERVE}))
from tureen.cli import main
main([{name!r}, "--help"])
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.startswith(f"usage: tureen {name}")


@pytest.mark.parametrize("arguments", [["train", "digit"], ["evaluate"], ["export", "x", "--engine", "y"], ["attack"]])
def test_wrong_options_are_refused_before_torch_is_imported(arguments):
    program = f"""
import atexit, sys
from tureen.cli import main
atexit.register(lambda: print({{"torch", "onnx"}} & set(sys.modules)))
main({arguments})
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (ran.returncode, ran.stdout) == (2, "set()\n")


@pytest.mark.parametrize(
    ("arguments", "status", "printed"),
    [
        (["batch", "BUNDLE", "IMAGES", "OUT", "--format", "jsonl"], 0, "1 rows of 1 images"),
        (["batch", "BUNDLE", "IMAGES", "OUT"], 1, "pyarrow is not installed: install Tureen with its extra [batch]"),
        (["jobs", "watch", "some-job"], 1, "no operators' listener responds"),
        (
            ["evaluate", "BUNDLE", "--data", "IMAGES"],
            1,
            "torch is not installed: install Tureen with its extra [train]",
        ),
        (["tune", "BUNDLE", "--data", "IMAGES"], 1, "torch is not installed: install Tureen with its extra [train]"),
        (["export", "BUNDLE", "--out", "OUT"], 1, "is not installed: install Tureen with its extra [export]"),
        (["demo", "--dir", "OUT", "--no-serve"], 0, "APGD"),
        (
            ["demo", "--train", "digits", "--dir", "OUT", "--no-serve"],
            1,
            "is not installed: install Tureen with its extra [demo]",
        ),
    ],
)
def test_with_the_extras_serve_and_cpu_alone_a_command_runs_or_names_the_extra(tmp_path, arguments, status, printed):
    """As in an environment with nothing else: a finder refuses the other extras' packages."""
    (tmp_path / "images").mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / "images" / "a.png")
    paths = {"BUNDLE": EXAMPLES / "cifar10", "IMAGES": tmp_path / "images", "OUT": tmp_path / "out"}
    given = [str(paths.get(argument, argument)) for argument in arguments]
    program = f"""
import sys
import tomllib
from pathlib import Path

{inspect.getsource(Refusing)}
sys.meta_path.insert(0, Refusing({BEYOND_SERVE}))
from tureen.cli import main
sys.exit(main({given}))
"""
    ran = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env={**os.environ, "TUREEN_ADMIN_TOKEN": "token"},
    )
    assert ran.returncode == status, ran.stderr
    assert printed in ran.stdout + ran.stderr
    assert "Traceback" not in ran.stderr
    assert "left out" not in ran.stderr


def test_the_extra_serve_includes_the_progress_bar():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert any(need.startswith("tqdm") for need in project["optional-dependencies"]["serve"])
