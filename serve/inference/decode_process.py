"""Decodes large images in a child process, and defines the messages between the server and this process.

`python -P -m serve.inference.decode_process` starts the process.

Some decoders hold the interpreter lock for a second. In a process of lower priority they delay no other request. When
the system runs out of memory, it ends this process first. Replies are bytes and JSON, never pickled objects. So a
hostile image that takes over a decoder cannot run code in the server.
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
_LENGTHS = struct.Struct("!II")  # of the JSON header and of the data
STOP_S = 5  # until a killed process has ended


class DecodeProcessEndedError(Exception):
    """The process ended before it replied."""


@dataclass(frozen=True)
class DecodeOptions:
    """The preprocessing and the limits that convert an encoded image to pixels of the model's size."""

    preprocess: PreprocessSpec
    limits: ImageLimits

    def pixels(self, image: bytes) -> Pixels:
        """Decodes an image, and returns its pixels at the model's size, uint8 (H, W, 3).

        Raises an ImageError if the image is damaged, unsupported or too large.
        """
        return pixels_from_bytes(image, self.preprocess, self.limits)


class DecodeProcess:
    """A child process that decodes one image at a time. Any thread may call `kill`, even during `decode`."""

    def __init__(self, nice: int) -> None:
        """Starts the process. nice: added to the nice value of the calling process; a higher value is less priority."""
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "serve.inference.decode_process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        # Set by the parent, so that the imports of the child also run at the low priority.
        with suppress(OSError):  # the child has already ended
            os.setpriority(os.PRIO_PROCESS, self._process.pid, os.getpriority(os.PRIO_PROCESS, 0) + nice)

    @property
    def pid(self) -> int:
        return self._process.pid

    def decode(self, image: bytes, decoding: DecodeOptions) -> Pixels:
        """Decodes an image in the process, and returns its pixels at the model's size, uint8 (H, W, 3). Blocks.

        Raises an ImageError if the image is damaged, unsupported or too large, and DecodeProcessEndedError if the
        process ends before it replies.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        header = {
            "preprocess": decoding.preprocess.model_dump(),
            "limits": decoding.limits.model_dump(),
        }
        try:
            _write(self._process.stdin, header, image)
            reply, data = _read(self._process.stdout)
        except (EOFError, OSError, ValueError):
            raise DecodeProcessEndedError from None
        if "error" in reply:
            cls = ERRORS.get(str(reply["error"]), UndecodableImageError)
            error = cls.__new__(cls)  # without __init__, which would compose the message again
            ImageError.__init__(error, str(reply["message"]))
            raise error
        size = decoding.preprocess.image_size
        return np.frombuffer(data, np.uint8).reshape(size, size, 3)

    def kill(self) -> None:
        """Ends the process immediately. A `decode` in progress raises DecodeProcessEndedError."""
        self._process.kill()

    def close(self) -> None:
        """Ends the process and frees its pipes. Must not be called during `decode`."""
        end_process(self._process)
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with suppress(OSError):  # unwritten data is lost with the process
                pipe.close()


def main() -> None:
    """Runs the child process: decodes images from standard input until the server ends."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # terminals and service managers send these to the whole process group
    prefer_for_oom_kill()
    return_large_blocks()
    requests, replies = sys.stdin.buffer, sys.stdout.buffer
    try:
        while True:
            header, image = _read(requests)
            decoding = DecodeOptions(
                PreprocessSpec(**header["preprocess"]),
                ImageLimits(**header["limits"]),
            )
            try:
                pixels = decoding.pixels(image)
            except ImageError as error:
                _write(replies, {"error": type(error).__name__, "message": str(error)}, b"")
            else:
                _write(replies, {}, pixels.tobytes())
    except (EOFError, OSError):
        pass


def end_process(process: subprocess.Popen[bytes]) -> None:
    """Kills a child process, and waits at most STOP_S seconds for its end. On a stalled machine it ends later."""
    process.kill()
    with suppress(subprocess.TimeoutExpired):
        process.wait(STOP_S)


def prefer_for_oom_kill() -> None:
    """Makes Linux end this process, not the server, when memory runs out. Needs no capability."""
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
    header_length, data_length = _LENGTHS.unpack(_read_exactly(pipe, _LENGTHS.size))
    header: dict[str, Any] = json.loads(_read_exactly(pipe, header_length))
    return header, _read_exactly(pipe, data_length)


def _read_exactly(pipe: IO[bytes], count: int) -> bytes:
    data = pipe.read(count)
    if len(data) < count:
        raise EOFError
    return data


if __name__ == "__main__":
    main()
