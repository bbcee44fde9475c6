"""What the supervisor and a worker say to each other: lines of JSON on a socket pair, the worker's orders first.

Whoever reads the end of the stream knows that the other process is no more.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from typing import Annotated, Literal

from pydantic import BaseModel, Field, TypeAdapter

from serve.control.settings_state import SettingsState
from serve.settings import Settings
from tureen.bundle.manifest import Manifest

MAX_LINE_BYTES = 2**26  # bytes; a manifest of many labels, or a thousand API keys, is longer than asyncio's 64 KiB


class SettingsUpdate(BaseModel):
    """To a worker: the operator's settings in force from now on; answered with Applied."""

    kind: Literal["control"] = "control"
    revision: int
    state: SettingsState
    is_reachable: bool = Field(description="whether the store that they come from can be reached")


class SettingsApplied(BaseModel):
    """From a worker: whoever is admitted from now on is admitted under this revision."""

    kind: Literal["applied"] = "applied"
    revision: int


class WorkerConfig(BaseModel):
    """The first line to a worker: all that it needs to know."""

    kind: Literal["orders"] = "orders"
    worker: int = Field(description="its number, which is also that of the listener it accepts from")
    settings: Settings = Field(description="its share of the server's")
    listeners: list[int] = Field(description="file descriptors, by number")
    metrics: str = Field(description="directory that the workers share their metrics in")
    control: SettingsUpdate | None = Field(default=None, description="the operator's settings in force at its start")


class Accept(BaseModel):
    """To a worker: accept from these listeners and no others."""

    kind: Literal["accept"] = "accept"
    listeners: set[int]


class Drain(BaseModel):
    """To a worker: finish what was accepted, and end; a second one: without delay."""

    kind: Literal["drain"] = "drain"


class Reload(BaseModel):
    """To a worker: load the bundle anew; answered with Reloaded."""

    kind: Literal["reload"] = "reload"


class Heartbeat(BaseModel):
    """To a worker and back: its event loop turns."""

    kind: Literal["pulse"] = "pulse"


class Ready(BaseModel):
    """From a worker: it has reproduced the golden rows."""

    kind: Literal["ready"] = "ready"


class ServedModel(BaseModel):
    """From a worker: the manifest of the bundle that it serves from now on."""

    kind: Literal["serves"] = "serves"
    manifest: Manifest


class ReloadResult(BaseModel):
    """From a worker: whether it serves the bundle that lies there now; if not, it goes on with the one it had."""

    kind: Literal["reloaded"] = "reloaded"
    ok: bool


Message = Annotated[
    WorkerConfig
    | Accept
    | SettingsUpdate
    | SettingsApplied
    | Drain
    | Reload
    | Heartbeat
    | Ready
    | ServedModel
    | ReloadResult,
    Field(discriminator="kind"),
]
_MESSAGE: TypeAdapter[Message] = TypeAdapter(Message)


class WorkerChannel:
    """One end of the connection between supervisor and worker."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def on(cls, end: socket.socket) -> WorkerChannel:
        return cls(*await asyncio.open_connection(sock=end, limit=MAX_LINE_BYTES))

    def say(self, message: Message) -> None:
        """Send, where somebody is left to read it."""
        if not self._writer.is_closing():
            self._writer.write(message.model_dump_json().encode() + b"\n")

    async def messages(self) -> AsyncIterator[Message]:
        """What the other says, until it is no more."""
        try:
            async for line in self._reader:
                yield _MESSAGE.validate_json(line)
        except (ConnectionResetError, BrokenPipeError):  # it died with something of ours unread
            return

    def close(self) -> None:
        self._writer.close()


def read_worker_config(end: socket.socket) -> WorkerConfig:
    """The first message, before there is a loop to wait in; raises EOFError where the supervisor is gone."""
    line = bytearray()
    while not line.endswith(b"\n"):
        byte = end.recv(1)
        if not byte:
            raise EOFError("the supervisor ended before it said what to do")
        line += byte
    return WorkerConfig.model_validate_json(line)
