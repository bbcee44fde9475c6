"""What the commands that ask an operator's listener have in common."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

DEFAULT_URL = "http://127.0.0.1:8001"


def listener_options() -> argparse.ArgumentParser:
    """The options that say which listener, and as whom: a parent for parsers."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--url",
        default=os.environ.get("TUREEN_ADMIN_URL", DEFAULT_URL),
        help=f"the server's operator listener; default: TUREEN_ADMIN_URL, else {DEFAULT_URL}",
    )
    common.add_argument("--token", help="default: TUREEN_ADMIN_TOKEN, else what a server on this machine has left")
    common.add_argument("--state-dir", type=Path, help="as given to `tureen serve`, whose token is there")
    common.add_argument("--json", action="store_true", help="for programs")
    return common
