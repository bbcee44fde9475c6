"""What runtimes would report to their makers: nothing, in a program that only uses the library too."""

import os
import subprocess
import sys

import pytest

from tests.patience import DEADLINE_S
from tureen.bundle.examples import EXAMPLES

HUB_PROGRAM = """
from tureen.vendor_telemetry import disable_vendor_telemetry
disable_vendor_telemetry()
from huggingface_hub import constants
print(constants.HF_HUB_DISABLE_TELEMETRY)
"""
RUN_LOGGERS_PROGRAM = """
from tureen.vendor_telemetry import disable_vendor_telemetry
disable_vendor_telemetry()
from mlflow.telemetry.utils import is_telemetry_disabled
from wandb.env import error_reporting_enabled
print(is_telemetry_disabled(), error_reporting_enabled())
"""
PROGRAM = """
import sys, tureen
with tureen.load(sys.argv[1], engine=sys.argv[2]) as soup:
    print(soup.engine.name)
"""


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_a_program_that_loads_a_soup_leaves_no_identifier_in_its_users_home(engine, tmp_path):
    home, cache = tmp_path / "home", tmp_path / "cache"
    home.mkdir()
    # Without the variables of this process: under CI=true the runtimes report nothing.
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
        "HOME": str(home),
        "TUREEN_CACHE_DIR": str(cache),
    }
    command = [sys.executable, "-c", PROGRAM, EXAMPLES / "cifar10", engine]
    ran = subprocess.run([*map(str, command)], env=environment, capture_output=True, text=True, timeout=DEADLINE_S)
    assert ran.stdout.strip() == engine, ran.stderr
    assert list(home.rglob("*")) == []


def test_the_client_of_the_hub_reports_nothing():
    pytest.importorskip("huggingface_hub")
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    ran = subprocess.run([sys.executable, "-c", HUB_PROGRAM], env=environment, capture_output=True, text=True)
    assert ran.stdout.strip() == "True", ran.stderr


def test_mlflow_and_wandb_report_nothing_besides_the_runs():
    pytest.importorskip("mlflow")
    pytest.importorskip("wandb")
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    ran = subprocess.run([sys.executable, "-c", RUN_LOGGERS_PROGRAM], env=environment, capture_output=True, text=True)
    assert ran.stdout.strip() == "True False", ran.stderr
