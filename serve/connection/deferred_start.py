"""Starts the application for a request once its body is here, or so much of it that it had better be taken.

uvicorn starts it with the head, and wakes it for every byte that comes: a client that sends its body byte by byte costs
that much, hundreds of them cost everybody else. Knows nothing about deadlines, limits or answers.
"""

from __future__ import annotations

from typing import Any

from serve.connection.graceful_shutdown import DrainingProtocol

WAKING_BYTES = 128 * 1024  # most photographs: of these the application never waits


class DeferredStartProtocol(DrainingProtocol):
    """A connection whose request under way may not have begun for the application."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._unstarted: Any = None  # the application that the request under way is for, while it waits for its body

    @property
    def is_started(self) -> bool:
        """Whether the application has, or has had, the last request."""
        return self._unstarted is None

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        # Who waits to be told to go on is told so by the application.
        if cycle.more_body and not cycle.waiting_for_100_continue and len(cycle.body) < WAKING_BYTES:
            self._unstarted = app
        else:
            super()._start_asgi_task(cycle, app)

    def on_body(self, body: bytes) -> None:
        self.cycle.body += body
        if len(self.cycle.body) >= WAKING_BYTES:
            self.flow.pause_reading()
            self._wake()

    def on_message_complete(self) -> None:
        self.cycle.more_body = False
        self._wake()

    def _wake(self) -> None:
        app, self._unstarted = self._unstarted, None
        if app is not None:
            super()._start_asgi_task(self.cycle, app)
        self.cycle.message_event.set()
