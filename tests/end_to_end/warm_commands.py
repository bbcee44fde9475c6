"""Runs `tureen train` and other commands, each in a fork of a process that has imported their libraries.

Reads requests from standard input, a JSON line each: the arguments, the directory, and the files for the output. Writes
a line with the exit status. A fork saves the imports, which take longer than most commands of a test.
"""

import json
import os
import sys
import traceback

COMMANDS = ("attack", "gallery", "train", "evaluate", "tune", "export", "calibrate", "adapt")


def main():
    from tureen.vendor_telemetry import disable_vendor_telemetry

    disable_vendor_telemetry()
    import matplotlib.pyplot  # noqa: F401
    import nncf  # noqa: F401
    import onnxscript  # noqa: F401
    import torch._dynamo
    import torch.onnx._internal.exporter._core  # noqa: F401

    import export.commands.adapt
    import export.commands.export  # noqa: F401
    import training.commands.attack
    import training.commands.evaluate
    import training.commands.gallery
    import training.commands.train  # noqa: F401

    for line in sys.stdin:
        print(run_in_fork(**json.loads(line)), flush=True)


def run_in_fork(arguments, directory, stdout, stderr):
    """Run `tureen` with the arguments in the directory, its output in two files; return its exit status."""
    if child := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    status = 1
    try:
        from tureen.cli import main as tureen

        for stream, path in ((0, os.devnull), (1, stdout), (2, stderr)):
            os.dup2(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), stream)
        os.chdir(directory)
        sys.argv = ["tureen", *arguments]
        status = tureen(arguments)
    except SystemExit as error:
        status = error.code
    finally:
        if sys.exc_info()[0] is not None:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status or 0)


if __name__ == "__main__":
    main()
