"""Starts the ASGI task of a request when the body is complete or reaches 128 KiB.

Without this module, uvicorn starts the task when the head is complete, and resumes it for every read. Hundreds of
clients that send their bodies byte by byte would then slow down all others. Knows nothing about deadlines, limits or
responses.
"""

from __future__ import annotations

from typing import Any

from serve.connection.graceful_shutdown import DrainingProtocol

START_BYTES = 128 * 1024  # most photographs are smaller, so the application never waits for their bodies


class DeferredStartProtocol(DrainingProtocol):
    """A connection that starts the ASGI task of a request when the body is complete or has START_BYTES bytes.

    If the client waits for "100 Continue", the task starts when the head is complete.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._unstarted: Any = None  # the application that the current request will start; None if it has started

    @property
    def is_started(self) -> bool:
        """Whether the ASGI task of the last request on the connection has started."""
        return self._unstarted is None

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        # The application sends "100 Continue", so a client that waits for it needs the task immediately.
        if cycle.more_body and not cycle.waiting_for_100_continue and len(cycle.body) < START_BYTES:
            self._unstarted = app
        else:
            super()._start_asgi_task(cycle, app)

    def on_body(self, body: bytes) -> None:
        self.cycle.body += body
        if len(self.cycle.body) >= START_BYTES:
            self.flow.pause_reading()
            self._start_or_resume()

    def on_message_complete(self) -> None:
        self.cycle.more_body = False
        self._start_or_resume()

    def _start_or_resume(self) -> None:
        app, self._unstarted = self._unstarted, None
        if app is not None:
            super()._start_asgi_task(self.cycle, app)
        self.cycle.message_event.set()
