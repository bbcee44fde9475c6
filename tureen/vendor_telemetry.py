"""Turns off the usage reports that runtimes send to their vendors.

Knows only the names of the switches.
"""

from __future__ import annotations

import os
import sys

# ONNX Runtime from 1.29 on (mobile.events.data.microsoft.com) and Ray (usage-stats.ray.io).
_SWITCHES = {"ORT_DISABLE_TELEMETRY": "1", "RAY_USAGE_STATS_ENABLED": "0"}
_OPENVINO_REPORTS = "openvino_telemetry"  # a separate package (www.google-analytics.com), which NNCF uses too


def disable_vendor_telemetry() -> None:
    """Turns the usage reports off for this process and its children. Call it before the import of a runtime.

    Does not change variables that are already set. OpenVINO's telemetry package has no environment variable, so its
    import is blocked: OpenVINO and NNCF report nothing without it. A package that is already imported is not removed.
    """
    for name, value in _SWITCHES.items():
        os.environ.setdefault(name, value)
    sys.modules.setdefault(_OPENVINO_REPORTS, None)  # type: ignore[arg-type] # makes the import fail
