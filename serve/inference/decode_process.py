"""A process that decodes images which are not small, and the messages to it.

`python -P -m serve.inference.decode_process` starts it.

Some decoders hold the interpreter's lock for a second. In a process, at a lower priority, they delay no other request,
and where the system runs out of memory it ends this process first. Answers are bytes and JSON, never pickled objects:
a decoder that hostile data took over cannot make the server run anything.
"""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from typing import IO, Any

import numpy as np

from serve.inference.memory import return_large_blocks
from tureen.errors import (
    EmptyImageError,
    ImageError,
    ImageTooLargeError,
    UndecodableImageError,
    UnsupportedImageTypeError,
)
from tureen.preprocess import ImageLimits, Pixels, PreprocessSpec, pixels_from_bytes

ERRORS = {
    cls.__name__: cls for cls in (EmptyImageError, ImageTooLargeError, UndecodableImageError, UnsupportedImageTypeError)
}
_LENGTHS = struct.Struct("!II")  # of JSON and of bytes
STOP_S = 5


class DecodeProcessEndedError(Exception):
    """The process ended before it answered."""


@dataclass(frozen=True)
class DecodeOptions:
    """How images become pixels."""

    preprocess: PreprocessSpec
    limits: ImageLimits
    jpeg_scaling: bool

    def pixels(self, image: bytes) -> Pixels:
        """Raises an ImageError."""
        return pixels_from_bytes(image, self.preprocess, self.limits, jpeg_scaling=self.jpeg_scaling)


class DecodeProcess:
    """One process, which decodes one image at a time. `decode` blocks; `kill` may be called from another thread."""

    def __init__(self, nice: int) -> None:
        """nice: added to that of this process."""
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "serve.inference.decode_process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        # Here and not there, so that its imports are at the low priority too.
        with suppress(OSError):  # it has ended already
            os.setpriority(os.PRIO_PROCESS, self._process.pid, os.getpriority(os.PRIO_PROCESS, 0) + nice)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    def decode(self, image: bytes, decoding: DecodeOptions) -> Pixels:
        """The pixels; raises an ImageError, or DecodeProcessEndedError."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        how = {
            "preprocess": decoding.preprocess.model_dump(),
            "limits": decoding.limits.model_dump(),
            "jpeg_scaling": decoding.jpeg_scaling,
        }
        try:
            _write(self._process.stdin, how, image)
            answer, data = _read(self._process.stdout)
        except (EOFError, OSError, ValueError):
            raise DecodeProcessEndedError from None
        if "error" in answer:
            error = ERRORS.get(str(answer["error"]), UndecodableImageError)
            raised = error.__new__(error)
            ImageError.__init__(raised, str(answer["message"]))
            raise raised
        size = decoding.preprocess.image_size
        return np.frombuffer(data, np.uint8).reshape(size, size, 3)

    def kill(self) -> None:
        """End the process at once; a `decode` that waits for it raises."""
        self._process.kill()

    def close(self) -> None:
        """End the process and forget it; called by no thread while another is in `decode`."""
        self._process.kill()
        self._process.wait(STOP_S)
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with suppress(OSError):  # what was not yet written cannot be any more
                pipe.close()


def main() -> None:
    """Decode image after image until there is no server any more."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # a terminal and a service manager send these to every process
    _be_ended_first()
    return_large_blocks()
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    try:
        while True:
            how, image = _read(requests)
            decoding = DecodeOptions(
                PreprocessSpec(**how["preprocess"]), ImageLimits(**how["limits"]), jpeg_scaling=how["jpeg_scaling"]
            )
            try:
                pixels = decoding.pixels(image)
            except ImageError as error:
                _write(answers, {"error": type(error).__name__, "message": str(error)}, b"")
            else:
                _write(answers, {}, pixels.tobytes())
    except (EOFError, OSError):
        pass


def _be_ended_first() -> None:
    """Where memory runs out, Linux ends this process rather than the server. Needs no capability."""
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")
    except OSError:  # another system, or a read-only /proc
        pass


def _write(pipe: IO[bytes], header: dict[str, Any], data: bytes) -> None:
    text = json.dumps(header).encode()
    pipe.write(_LENGTHS.pack(len(text), len(data)) + text)
    pipe.write(data)
    pipe.flush()


def _read(pipe: IO[bytes]) -> tuple[dict[str, Any], bytes]:
    header_length, data_length = _LENGTHS.unpack(_exactly(pipe, _LENGTHS.size))
    header: dict[str, Any] = json.loads(_exactly(pipe, header_length))
    return header, _exactly(pipe, data_length)


def _exactly(pipe: IO[bytes], count: int) -> bytes:
    data = pipe.read(count)
    if len(data) < count:
        raise EOFError
    return data


if __name__ == "__main__":
    main()
