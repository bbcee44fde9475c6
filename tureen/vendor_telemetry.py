"""Turns off the reports that runtimes send to their makers; called before one of them is imported.

Knows no runtime but by the name of its switch.
"""

from __future__ import annotations

import os
import sys

# ONNX Runtime from 1.29 on (mobile.events.data.microsoft.com) and Ray (usage-stats.ray.io).
_SWITCHES = {"ORT_DISABLE_TELEMETRY": "1", "RAY_USAGE_STATS_ENABLED": "0"}
_OPENVINO_REPORTS = "openvino_telemetry"  # a package of its own (www.google-analytics.com), which NNCF uses too


def disable_vendor_telemetry() -> None:
    """Turn the reports off for this process and those that it starts; a variable that is set stays as it is.

    OpenVINO's package has no variable: its switch is a file in the user's home. Without the package OpenVINO and NNCF
    report nothing, so that it must appear not to be installed. Where it was imported before, it stays.
    """
    for name, value in _SWITCHES.items():
        os.environ.setdefault(name, value)
    sys.modules.setdefault(_OPENVINO_REPORTS, None)  # type: ignore[arg-type] # how Python marks what cannot be imported
