"""Runs the command `tureen`: imports the module of a sub-command, calls it, and maps errors to exit statuses."""

from __future__ import annotations

import importlib
import io
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import tureen

EXIT_FAILED = 1
EXIT_WRONG_USE = 2
EXIT_INTERRUPTED = 130
IMPORT = "<frozen importlib._bootstrap>"  # the file of a frame that imports a module


class Command:
    """A sub-command of `tureen`.

    module, function: the function that runs the sub-command. It takes the arguments and returns the exit status.
    extra: the optional dependencies that the sub-command needs, such as "serve" in `tureen[serve]`. summary: one line
    for the help. parsers: the module with the function that returns the parser, such as `train_parser`, if `module`
    needs more than `--help` and wrong options do.
    """

    def __init__(self, module: str, function: str, extra: str, summary: str, parsers: str | None = None) -> None:
        self.module = module
        self.function = function
        self.extra = extra
        self.summary = summary
        self.parsers = parsers


TRAINING, EXPORT = "training.commands.parsers", "export.commands.parsers"
COMMANDS = {
    "demo": Command("tureen.commands.demo", "demo", "serve", "serve an example, or train, export and serve one"),
    "classify": Command("tureen.commands.classify", "classify", "serve", "classify images at any strength"),
    "train": Command("training.commands.train", "train", "train", "train a dual-token model from a recipe", TRAINING),
    "evaluate": Command(
        "training.commands.evaluate", "evaluate", "train", "measure a checkpoint's accuracy at any β", TRAINING
    ),
    "tune": Command("training.commands.evaluate", "tune", "train", "choose β by a few labelled images", TRAINING),
    "adapt": Command("export.commands.adapt", "adapt", "export", "learn a token from a few labelled images", EXPORT),
    "attack": Command(
        "export.commands.attack", "attack", "export", "change an image so that the model misreads it", EXPORT
    ),
    "gallery": Command(
        "training.commands.gallery", "gallery", "train", "draw traffic signs and attack each of them", TRAINING
    ),
    "export": Command(
        "export.commands.export", "export", "export", "compile a checkpoint into a verified bundle", EXPORT
    ),
    "calibrate": Command(
        "export.commands.calibrate",
        "calibrate",
        "export",
        "measure strength and calibration on your images",
        EXPORT,
    ),
    "pull": Command("tureen.commands.transfer", "pull", "hub", "download a bundle from the hub or S3"),
    "push": Command("tureen.commands.transfer", "push", "hub", "upload a bundle to the hub or S3"),
    "inspect": Command("tureen.commands.inspect", "inspect", "serve", "show the content of a bundle"),
    "doctor": Command("tureen.commands.doctor", "doctor", "serve", "describe this machine, and what stops a server"),
    "bench": Command("tureen.bench.command", "bench", "serve", "measure the engines, recommend settings"),
    "batch": Command("serve.commands.batch", "batch", "batch", "classify many images into a table"),
    "jobs": Command("serve.commands.jobs", "jobs", "serve", "manage batch jobs of a running service"),
    "beta": Command("serve.commands.beta", "beta", "serve", "change the default β of a running service"),
    "tokens": Command("serve.commands.tokens", "tokens", "serve", "manage the tokens of a running service"),
    "credentials": Command("serve.commands.credentials", "credentials", "serve", "manage the credentials of operators"),
    "completion": Command("tureen.commands.completion", "completion", "serve", "print a completion script for a shell"),
    "serve": Command("serve.server", "serve", "serve", "serve a bundle over HTTP"),
}


def main(arguments: list[str] | None = None) -> int:
    """Runs one sub-command. Prints an error of the sub-command to standard error as one line.

    arguments: of the command line; None: those of this process, which an interrupt may then end during an import.
    Returns the exit status: 0, 1 after a failure, 2 for wrong arguments, 130 after an interrupt. For wrong options and
    for `--help`, argparse raises SystemExit.
    """
    if arguments is not None:
        return _run(arguments)
    with _interrupts_of_process():
        return _run(sys.argv[1:])


def _run(arguments: list[str]) -> int:
    # Imported here, where an interrupt is handled.
    from tureen.errors import TureenError, did_you_mean
    from tureen.vendor_telemetry import disable_vendor_telemetry

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that cannot show β still gets its table
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage())
        return 0 if arguments else EXIT_WRONG_USE
    if arguments[0] == "--version":
        print(f"tureen {tureen.__version__}")
        return 0
    name, *rest = arguments
    if name not in COMMANDS:
        print(f"tureen: there is no command {name!r}{did_you_mean(name, COMMANDS)}\n\n{_usage()}", file=sys.stderr)
        return EXIT_WRONG_USE
    command = COMMANDS[name]
    try:
        disable_vendor_telemetry()
        if command.parsers is not None:
            parser = getattr(importlib.import_module(command.parsers), f"{command.function}_parser")()
            parser.parse_args(rest)  # prints the help or refuses the arguments before PyTorch is imported
        run = getattr(importlib.import_module(command.module), command.function)
        status: int = run(rest)
        sys.stdout.flush()
    except ModuleNotFoundError as error:
        print(
            f"tureen {name}: {error.name} is not installed: install Tureen with its extra [{command.extra}]",
            file=sys.stderr,
        )
        return EXIT_FAILED
    except TureenError as error:
        print(f"tureen {name}: {error}", file=sys.stderr)
        return EXIT_WRONG_USE if isinstance(error, ValueError) else EXIT_FAILED
    except BrokenPipeError:  # the reader has closed the pipe, so the interpreter's last flush would fail too
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except OSError as error:
        print(f"tureen {name}: {error.filename or 'the system'}: {error.strerror or error}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    return status


@contextmanager
def _interrupts_of_process() -> Iterator[None]:
    """Handles SIGINT, also after the `with` block. A process that ignores SIGINT, as under nohup, still ignores it.

    During an import, SIGINT ends the process with status 130: a library may turn a KeyboardInterrupt into an
    ImportError, or print it. Otherwise SIGINT raises KeyboardInterrupt. After the `with` block it ends the process too,
    because the interpreter would print the exception.
    """

    def handle(number: int, frame: FrameType | None) -> None:
        if has_ended or _is_importing(frame):
            os._exit(EXIT_INTERRUPTED)
        raise KeyboardInterrupt

    has_ended = False
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, handle)
    try:
        yield
    except KeyboardInterrupt:
        has_ended = True
        sys.exit(EXIT_INTERRUPTED)
    finally:
        has_ended = True


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename == IMPORT:
            return True
        frame = frame.f_back
    return False


def _usage() -> str:
    width = max(map(len, COMMANDS))
    lines = "\n".join(f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items())
    return f"usage: tureen COMMAND …\n\n{lines}\n\n`tureen COMMAND --help` says more. Begin with: tureen demo"


if __name__ == "__main__":
    sys.exit(main())
