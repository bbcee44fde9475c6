"""Runs `tureen` as forks of one process that has imported the libraries of the server, or those of training and export.

The imports take longer than most commands of a test. `ForkedTureen` starts that process, and `ForkedProcess` is one
command in it, with the methods of `subprocess.Popen` that the tests call. A fork runs `tureen.cli` as `python -m` does.
Tests of the start, of worker processes and of several processes that train together start real processes.
"""

import contextlib
import gc
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
MAX_REQUEST_BYTES = 2**20


SERVING = ("batch", "beta", "credentials", "inspect", "jobs", "serve", "tokens")
TRAINING = ("adapt", "attack", "calibrate", "evaluate", "export", "gallery", "train", "tune")


class ForkedTureen:
    """The process that forks. `close` ends it; its forks continue.

    commands: SERVING or TRAINING; the process imports their modules. Those of TRAINING compute on one thread, because
    a process that has started the threads of OpenMP cannot fork.
    """

    def __init__(self, commands=SERVING):
        self.commands = commands
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            command = [sys.executable, "-m", "tests.forked_tureen", str(theirs.fileno()), commands[0]]
            options = {"cwd": ROOT, "pass_fds": [theirs.fileno()], "stdin": subprocess.DEVNULL}
            if commands == TRAINING:
                options["env"] = {**os.environ, "OMP_NUM_THREADS": "1"}
            self._process = subprocess.Popen(command, **options)

    def start(self, arguments, *, stdout=None, stderr=None, env=None, directory=None):
        """Run `tureen ARGUMENTS`; return its ForkedProcess. stdout, stderr: files. Other defaults: of this process."""
        ours, theirs = socket.socketpair()
        request = {"arguments": [*map(str, arguments)], "env": dict(os.environ if env is None else env)}
        request["directory"] = str(directory or os.getcwd())
        streams = [stream.fileno() if stream else number for number, stream in ((1, stdout), (2, stderr))]
        with theirs:
            socket.send_fds(self._socket, [json.dumps(request).encode()], [theirs.fileno(), *streams])
        return ForkedProcess(request["arguments"], ours)

    def run(self, arguments, *, timeout, **options):
        """Run `tureen ARGUMENTS` to its end; return a CompletedProcess with text."""
        with tempfile.TemporaryFile("w+") as stdout, tempfile.TemporaryFile("w+") as stderr:
            status = self.start(arguments, stdout=stdout, stderr=stderr, **options).wait(timeout)
            texts = []
            for stream in (stdout, stderr):
                stream.seek(0)
                texts.append(stream.read())
        return subprocess.CompletedProcess(arguments, status, *texts)

    def close(self):
        self._socket.close()
        self._process.wait()


class ForkedProcess:
    """A running command."""

    def __init__(self, arguments, status_socket):
        self._arguments = arguments
        self._messages = status_socket.makefile("rb", buffering=0)  # the pid, and after the end the exit status
        status_socket.close()
        self.pid = int(self._messages.readline())
        self.returncode = None

    def poll(self):
        if self.returncode is None and select.select([self._messages], [], [], 0)[0]:
            self._read_status()
        return self.returncode

    def wait(self, timeout=None):
        if self.returncode is None:
            if not select.select([self._messages], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self._arguments, timeout)
            self._read_status()
        return self.returncode

    def send_signal(self, signal_number):
        if self.poll() is None:
            os.kill(self.pid, signal_number)

    def kill(self):
        self.send_signal(signal.SIGKILL)

    def _read_status(self):
        self.returncode = int(self._messages.readline())
        self._messages.close()


def import_serving():
    import pyarrow.parquet  # noqa: F401

    import serve.commands.batch
    import serve.commands.beta
    import serve.commands.credentials
    import serve.commands.jobs
    import serve.commands.tokens
    import serve.jobs.runner
    import serve.server  # noqa: F401
    import tureen.commands.inspect  # noqa: F401


def import_training():
    import sklearn.datasets
    import sklearn.model_selection  # noqa: F401
    import torch._dynamo  # noqa: F401

    import training.commands.evaluate
    import training.commands.gallery
    import training.commands.train
    import training.run  # noqa: F401


def import_export():
    import matplotlib.pyplot  # noqa: F401
    import nncf  # noqa: F401
    import onnxscript  # noqa: F401
    import torch.onnx._internal.exporter._core  # noqa: F401

    import export.commands.export  # noqa: F401


def main(descriptor, imports):
    gc.disable()
    from tureen.vendor_telemetry import disable_vendor_telemetry

    disable_vendor_telemetry()
    imports()
    gc.enable()
    gc.freeze()  # a collection in a fork would copy the pages of every object
    requests = socket.socket(fileno=descriptor)
    while True:
        message, descriptors, *_ = socket.recv_fds(requests, MAX_REQUEST_BYTES, 3)
        with contextlib.suppress(ChildProcessError):  # no monitor is left
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        if not message:
            return
        if json.loads(message)["arguments"][:1] == ["export"]:
            import_export()  # takes ten seconds, so only for this command
        if os.fork() == 0:
            requests.close()
            monitor(json.loads(message), *descriptors)
        for received in descriptors:
            os.close(received)


def monitor(request, status_descriptor, stdout, stderr):
    """Fork the command, write its pid, wait for its end, and write its exit status. Does not return."""
    for signal_number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signal_number, signal.SIG_DFL)
    child = os.fork()
    if child == 0:
        os.close(status_descriptor)
        run(request, stdout, stderr)
    os.dup2(os.open(os.devnull, os.O_RDWR), 1)
    for number in (2, stdout, stderr):
        os.dup2(1, number)
    os.write(status_descriptor, f"{child}\n".encode())
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os.write(status_descriptor, f"{status}\n".encode())
    os._exit(0)


def run(request, stdout, stderr):
    """Run the command in this process, which ends by SystemExit."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for received, number in ((stdout, 1), (stderr, 2)):
        os.dup2(received, number)
        os.close(received)
    os.chdir(request["directory"])
    os.environ.clear()
    os.environ.update(request["env"])
    sys.argv = ["tureen", *request["arguments"]]
    runpy.run_module("tureen.cli", run_name="__main__", alter_sys=True)  # raises SystemExit


if __name__ == "__main__":
    main(int(sys.argv[1]), import_serving if sys.argv[2] == SERVING[0] else import_training)
