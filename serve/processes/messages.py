"""Defines the messages between the supervisor and a worker process: lines of JSON on a socket pair.

The field `kind` identifies the class of a message. The first message is a WorkerConfig from the supervisor. The end of
the stream means that the other process has ended.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, Field, TypeAdapter

from serve.control.settings_state import SettingsState
from serve.settings import Settings
from tureen.bundle.manifest import Manifest

MAX_LINE_BYTES = 2**26  # a manifest of many labels, or a thousand API keys, is longer than asyncio's 64 KiB


class SettingsUpdate(BaseModel):
    """Message to a worker: apply these settings of the operator. The worker replies with SettingsApplied."""

    kind: Literal["control"] = "control"
    revision: int
    state: SettingsState
    is_reachable: bool = Field(description="whether the store of the settings is reachable")


class SettingsApplied(BaseModel):
    """Message from a worker: the worker admits requests under this revision of the operator's settings.

    Sent again after a reload, because the new model may be unable to use other tokens.
    """

    kind: Literal["applied"] = "applied"
    revision: int
    parked_tokens: dict[str, str] = Field(default={}, description="reasons by name of tokens that it cannot use")


class CheckToken(BaseModel):
    """Message to a worker: check a token file in the token cache. The worker replies with TokenChecked."""

    kind: Literal["check token"] = "check token"
    sha256: str


class TokenChecked(BaseModel):
    """Message from a worker: whether its model can use the token file."""

    kind: Literal["token checked"] = "token checked"
    sha256: str
    error: str | None = Field(description="why the model cannot use it; null: it can")


class WorkerConfig(BaseModel):
    """First message to a worker: everything that it needs to start."""

    kind: Literal["orders"] = "orders"
    worker: int = Field(description="number of the worker, and index of its listener")
    settings: Settings = Field(description="settings of this worker: its share of threads, permits and memory")
    listeners: list[int] = Field(description="file descriptors of all listeners, by worker")
    metrics: str = Field(description="directory for the metrics of all workers")
    control: SettingsUpdate | None = Field(default=None, description="the operator's settings at the start")


class Accept(BaseModel):
    """Message to a worker: accept connections from these listeners only.

    listeners: indices, which are the numbers of the workers. reports_ready: whether the worker may report that it
    is ready.
    """

    kind: Literal["accept"] = "accept"
    listeners: set[int]
    reports_ready: bool = False


class Drain(BaseModel):
    """Message to a worker: stop listening after the drain delay, finish the accepted requests, then exit.

    A second Drain message skips the rest of the drain delay.
    """

    kind: Literal["drain"] = "drain"


class Reload(BaseModel):
    """Message to a worker: load a bundle and serve it. The worker replies with ReloadResult."""

    kind: Literal["reload"] = "reload"
    bundle: Path = Field(description="directory of the bundle")


class Heartbeat(BaseModel):
    """Message to a worker. The worker sends the same message back, which shows that its event loop runs."""

    kind: Literal["pulse"] = "pulse"


class Ready(BaseModel):
    """Message from a worker: the worker is ready. Its engine has reproduced the golden rows of the bundle."""

    kind: Literal["ready"] = "ready"


class ServingModel(BaseModel):
    """Message from a worker: the manifest of the bundle that the worker serves, and its tokens."""

    kind: Literal["serves"] = "serves"
    manifest: Manifest
    own_tokens: list[str] = Field(default=[], description="names of the tokens that no operator added")


class ReloadResult(BaseModel):
    """Message from a worker after Reload. ok: True if the new bundle is served, False if the previous one is."""

    kind: Literal["reloaded"] = "reloaded"
    ok: bool


Message = Annotated[
    WorkerConfig
    | Accept
    | SettingsUpdate
    | SettingsApplied
    | CheckToken
    | TokenChecked
    | Drain
    | Reload
    | Heartbeat
    | Ready
    | ServingModel
    | ReloadResult,
    Field(discriminator="kind"),
]
_MESSAGE: TypeAdapter[Message] = TypeAdapter(Message)


class WorkerChannel:
    """One end of the socket pair between supervisor and worker."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def connect(cls, end: socket.socket) -> WorkerChannel:
        return cls(*await asyncio.open_connection(sock=end, limit=MAX_LINE_BYTES))

    def send(self, message: Message) -> None:
        """Sends the message to the other process. Does nothing if the channel is closed."""
        if not self._writer.is_closing():
            self._writer.write(message.model_dump_json().encode() + b"\n")

    async def messages(self) -> AsyncIterator[Message]:
        """Yields the messages of the other process until that process ends or closes its channel."""
        try:
            async for line in self._reader:
                yield _MESSAGE.validate_json(line)
        except (ConnectionResetError, BrokenPipeError):  # it ended before it had read all messages of this process
            return

    def close(self) -> None:
        self._writer.close()


def read_worker_config(end: socket.socket) -> WorkerConfig:
    """Receives the first message to a worker from the socket `end`. Blocks, because no event loop runs yet.

    Raises EOFError if the supervisor ended before it sent the whole message.
    """
    line = bytearray()
    while not line.endswith(b"\n"):
        byte = end.recv(1)
        if not byte:
            raise EOFError("the supervisor ended before it sent the configuration of the worker")
        line += byte
    return WorkerConfig.model_validate_json(line)
