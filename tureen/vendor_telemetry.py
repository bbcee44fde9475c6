"""Turns off the usage reports that runtimes send to their makers. Call it before the import of a runtime.

Knows only the names of the switches.
"""

from __future__ import annotations

import os
import sys

# ONNX Runtime from 1.29 on (mobile.events.data.microsoft.com) and Ray (usage-stats.ray.io).
_SWITCHES = {"ORT_DISABLE_TELEMETRY": "1", "RAY_USAGE_STATS_ENABLED": "0"}
_OPENVINO_REPORTS = "openvino_telemetry"  # a separate package (www.google-analytics.com), which NNCF uses too


def disable_vendor_telemetry() -> None:
    """Turns the reports off for this process and its children. Variables that are already set stay unchanged.

    The package of OpenVINO has no variable; its switch is a file in the user's home. Without the package OpenVINO and
    NNCF report nothing, so its import is made to fail. If it was imported before, it stays.
    """
    for name, value in _SWITCHES.items():
        os.environ.setdefault(name, value)
    sys.modules.setdefault(_OPENVINO_REPORTS, None)  # type: ignore[arg-type] # makes the import fail
