"""The options that `tureen beta` and `tureen jobs` share, because both are clients of the operators' listener."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

DEFAULT_URL = "http://127.0.0.1:8001"


def listener_options() -> argparse.ArgumentParser:
    """Returns a parent parser for argparse with the options --url, --token, --state-dir and --json."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--url",
        default=os.environ.get("TUREEN_ADMIN_URL", DEFAULT_URL),
        help=f"URL of the operators' listener of the server (default: TUREEN_ADMIN_URL, else {DEFAULT_URL})",
    )
    common.add_argument(
        "--token", help="bearer token (default: TUREEN_ADMIN_TOKEN, else the token file of a server on this machine)"
    )
    common.add_argument("--state-dir", type=Path, help="--state-dir of the server, which holds the token file")
    common.add_argument("--json", action="store_true", help="print JSON")
    return common
