"""Runs `tureen batch` with a cheap engine in a process that is killed, or whose disk fails, at the n-th disk call.

    python -m tests.serve.jobs.interrupted

Disk calls are: opening a file to write, each write, fsync, rename, replace and unlink.
"""

import builtins
import errno
import io
import json
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np

import tureen
from serve.commands.batch import batch
from tureen.bundle.bundle import load_bundle
from tureen.bundle.examples import EXAMPLES
from tureen.errors import TureenError
from tureen.soup import Soup

DISK_CALLS = {"fsync": os.fsync, "rename": os.rename, "replace": os.replace, "unlink": os.unlink}
REAL_OPEN = open


class CheapEngine:
    """Logits that depend on pixels and token alone."""

    name, precision, version = "onnxruntime", "fp32", "cheap"

    def run(self, pixels, tokens):
        means = pixels.reshape(len(pixels), -1)[:, : 10 * 300].reshape(len(pixels), 10, 300).mean(axis=2)
        return (means / 25 + tokens.sum(axis=1, keepdims=True) * np.arange(10)).astype(np.float32)

    def close(self):
        pass


class Disk:
    """Counts the disk calls, and runs `fault` before call number `at`."""

    def __init__(self, at, fault):
        self.calls, self.at, self.fault = 0, at, fault

    def count_call(self):
        self.calls += 1
        if self.calls == self.at:
            self.fault()

    def wrap(self, call):
        def counted(*arguments, **options):
            self.count_call()
            return call(*arguments, **options)

        return counted

    def open(self, path, mode="r", *arguments, **options):
        if "w" not in mode and "x" not in mode:
            return REAL_OPEN(path, mode, *arguments, **options)
        self.count_call()
        disk = self

        class Counted(io.FileIO):
            def write(self, data):
                disk.count_call()
                return super().write(data)

        raw = io.BufferedWriter(Counted(path, mode.strip("b"), opener=options.get("opener")))
        return raw if "b" in mode else io.TextIOWrapper(raw, encoding=options.get("encoding"))


def kill_process():
    os.kill(os.getpid(), signal.SIGKILL)


def disk_full():
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def disk_error():
    raise OSError(errno.EIO, os.strerror(errno.EIO))


FAULTS = {"kill": kill_process, "full": disk_full, "broken": disk_error, "slow": disk_full}


def run(arguments, at=0, fault=kill_process, slowly=False):
    """Run the command; return its exit status and the number of disk calls. at: 0 for no fault."""
    soup = Soup(load_bundle(EXAMPLES / "cifar10"), CheapEngine())
    if slowly:
        run_cheap = soup.engine.run
        soup.engine.run = lambda *inputs: time.sleep(0.002) or run_cheap(*inputs)
    tureen.load = lambda *_, **__: soup
    disk = Disk(0 if slowly else at, fault)
    for name, call in DISK_CALLS.items():
        setattr(os, name, disk.wrap(call))
    builtins.open = disk.open
    Path.open = lambda path, *arguments, **options: disk.open(path, *arguments, **options)
    try:
        status = batch([str(EXAMPLES / "cifar10"), *map(str, arguments)])
    except OSError as error:
        print(error, file=sys.stderr)
        status = 1
    return status, disk.calls


def main():
    """Read lines of JSON [at, how, arguments]; run each in a fork, and print its exit status and calls as JSON."""
    import pyarrow.parquet  # noqa: F401 - imported once, not in each fork

    for line in sys.stdin:
        at, how, arguments = json.loads(line)
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            try:
                status, calls = run(arguments, at, FAULTS[how], slowly=how == "slow")
            except TureenError as error:
                status, calls = 1, str(error)
            os.write(writing, json.dumps(calls).encode())
            os._exit(status)
        os.close(writing)
        if how == "slow":  # `at` is in seconds
            time.sleep(at)
            os.kill(child, signal.SIGKILL)
        with open(reading, "rb") as pipe:
            calls = pipe.read()
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(json.dumps([status, json.loads(calls) if calls else None]), flush=True)


if __name__ == "__main__":
    main()
