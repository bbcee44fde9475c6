"""Turns off the usage reports that runtimes send to their vendors.

Knows only the environment variables and the package that control the reports.
"""

from __future__ import annotations

import os
import sys

_SWITCHES = {
    "ORT_DISABLE_TELEMETRY": "1",  # ONNX Runtime from 1.29 on (mobile.events.data.microsoft.com)
    "RAY_USAGE_STATS_ENABLED": "0",  # usage-stats.ray.io
    "HF_HUB_DISABLE_TELEMETRY": "1",  # huggingface_hub (the hub)
    "MLFLOW_DISABLE_TELEMETRY": "true",  # config.mlflow-telemetry.io
    "WANDB_ERROR_REPORTING": "false",  # to the server of Weights & Biases, besides the run
}
_OPENVINO_REPORTS = "openvino_telemetry"  # a separate package (www.google-analytics.com), which NNCF uses too


def disable_vendor_telemetry() -> None:
    """Turns the usage reports off. Call this function before the import of a runtime.

    Sets environment variables, which child processes inherit. A variable that is already set keeps its value.
    OpenVINO's telemetry package has no variable, so this function blocks the import of the package in this process.
    Without the package, OpenVINO and NNCF report nothing. A package that is already imported stays imported.
    """
    for name, value in _SWITCHES.items():
        os.environ.setdefault(name, value)
    sys.modules.setdefault(_OPENVINO_REPORTS, None)  # type: ignore[arg-type] # makes the import fail
