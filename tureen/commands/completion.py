"""`tureen completion`: prints the script with which a shell completes `tureen`. Imports no other command.

The scripts are files. `make completions` writes them from the parsers of all commands.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Final

from tureen.arguments import one_of

SCRIPTS: Final = {"bash": "tureen.bash", "zsh": "tureen.zsh", "fish": "tureen.fish"}
DIRECTORY: Final = Path(__file__).parents[1] / "completions"


def completion(arguments: list[str]) -> int:
    """Prints the completion script of a shell. Returns exit status 0.

    arguments: those after `tureen completion`.
    """
    parser = argparse.ArgumentParser(
        prog="tureen completion",
        description="Print the script with which a shell completes commands, options, choices and names of examples.",
        epilog="example: tureen completion bash > ~/.local/share/bash-completion/completions/tureen",
    )
    parser.add_argument("shell", type=one_of(SCRIPTS), choices=list(SCRIPTS), help="shell that completes `tureen`")
    options = parser.parse_args(arguments)
    sys.stdout.write((DIRECTORY / SCRIPTS[options.shell]).read_text())
    return 0
