"""The interface between the processes of a server and the operators' listener. Knows no HTTP and no messages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from serve.control.revision_store import Revision
from serve.telemetry.metrics import Metrics
from tureen.bundle.manifest import Manifest

ApplySettings = Callable[[Revision, bool], None]
"""Applies the settings of a revision in every process of the server. The bool is whether the store is reachable.

Called when the listener opens, and after each change of the revision or of the bool.
"""


@dataclass(frozen=True)
class WorkerState:
    """The state of one process of the server, as operators see it. worker: the number of the process."""

    worker: int
    pid: int
    is_ready: bool
    revision: int  # of the settings under which it admits requests
    model: str | None  # name and version of the bundle that it serves


class AdminServer(Protocol):
    """An open operators' listener. It runs in the event loop in which it was opened."""

    def show_model(self, manifest: Manifest) -> None:
        """Sets the model that operators see, from its manifest. Called when every process serves this model."""

    def notify_workers_changed(self) -> None:
        """Must be called after each change of a worker's state.

        Requests that wait until every worker has applied a revision then check the workers again.
        """

    async def close(self) -> None:
        """Closes the listener and the store of the settings."""


class OpenAdminServer(Protocol):
    """Opens the operators' listener. The caller opens it before the server accepts a request."""

    async def __call__(
        self, metrics: Metrics, *, apply: ApplySettings, workers: Callable[[], list[WorkerState]]
    ) -> AdminServer:
        """Returns the open listener. Raises TureenError if the listener or the store of the settings cannot be opened.

        metrics: of all processes. apply: receives each change of the settings. workers: returns the state of each
        process.
        """
