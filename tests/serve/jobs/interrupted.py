"""`tureen batch` on an engine that costs nothing, in a process that dies or whose disk fails at a given call.

    python -m tests.serve.jobs.interrupted

The n-th of what changes the disk: opening a file to write, each write to it, fsync, rename, unlink.
"""

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
from tureen.commands.demo import EXAMPLES
from tureen.errors import TureenError
from tureen.soup import Soup

REAL = {"fsync": os.fsync, "rename": os.rename, "unlink": os.unlink}


class CheapEngine:
    """Logits that depend on pixels and token alone."""

    name, precision, version = "onnxruntime", "fp32", "cheap"

    def run(self, pixels, tokens):
        means = pixels.reshape(len(pixels), -1)[:, : 10 * 300].reshape(len(pixels), 10, 300).mean(axis=2)
        return (means / 25 + tokens.sum(axis=1, keepdims=True) * np.arange(10)).astype(np.float32)

    def close(self):
        pass


class Disk:
    """Counts the calls; before one of them, does what is to go wrong."""

    def __init__(self, at, goes_wrong):
        self.calls, self.at, self.goes_wrong = 0, at, goes_wrong

    def passes(self):
        self.calls += 1
        if self.calls == self.at:
            self.goes_wrong()

    def wrapped(self, call):
        def counted(*arguments, **options):
            self.passes()
            return call(*arguments, **options)

        return counted

    def open(self, path, mode="r", *arguments, **options):
        if "w" not in mode and "x" not in mode:
            return open(path, mode, *arguments, **options)
        self.passes()
        disk = self

        class Counted(io.FileIO):
            def write(self, data):
                disk.passes()
                return super().write(data)

        raw = io.BufferedWriter(Counted(path, mode.strip("b")))
        return raw if "b" in mode else io.TextIOWrapper(raw, encoding=options.get("encoding"))


def killed():
    os.kill(os.getpid(), signal.SIGKILL)


def full():
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def broken():
    raise OSError(errno.EIO, os.strerror(errno.EIO))


WAYS = {"kill": killed, "full": full, "broken": broken, "slow": full}


def run(arguments, at=0, goes_wrong=killed, slowly=False):
    """The exit status, and how many calls there were; at: 0 for never."""
    soup = Soup(load_bundle(EXAMPLES / "cifar10"), CheapEngine())
    if slowly:
        cheap = soup.engine.run
        soup.engine.run = lambda *both: time.sleep(0.002) or cheap(*both)
    tureen.load = lambda *_, **__: soup
    disk = Disk(0 if slowly else at, goes_wrong)
    for name, call in REAL.items():
        setattr(os, name, disk.wrapped(call))
    Path.open = lambda path, *arguments, **options: disk.open(path, *arguments, **options)
    try:
        status = batch([str(EXAMPLES / "cifar10"), *map(str, arguments)])
    except OSError as error:
        print(error, file=sys.stderr)
        status = 1
    return status, disk.calls


def main():
    """For each line of JSON [at, how, arguments] a fork of this process, and its exit status and calls as a line."""
    import pyarrow.parquet  # noqa: F401 - once, not in each fork

    for line in sys.stdin:
        at, how, arguments = json.loads(line)
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            try:
                status, calls = run(arguments, at, WAYS[how], slowly=how == "slow")
            except TureenError as error:
                status, calls = 1, str(error)
            os.write(writing, json.dumps(calls).encode())
            os._exit(status)
        os.close(writing)
        if how == "slow":  # at is seconds
            time.sleep(at)
            os.kill(child, signal.SIGKILL)
        with open(reading, "rb") as told:
            calls = told.read()
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(json.dumps([status, json.loads(calls) if calls else None]), flush=True)


if __name__ == "__main__":
    main()
