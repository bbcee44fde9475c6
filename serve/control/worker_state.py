"""Defines the interface between the processes of a server and the operators' listener. Knows no HTTP, no messages."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from serve.control.revision_store import Revision
from serve.telemetry.metrics import Metrics
from tureen.bundle.manifest import Manifest

ApplySettings = Callable[[Revision, bool], None]
"""Applies the settings of a revision in every process of the server. The second argument is whether the store is
reachable. The function is called when the listener opens, and after each change of one of its arguments.
"""


CheckToken = Callable[[str], Awaitable[None]]
"""Checks that the served model can use a token file in the token cache. The argument is the SHA-256 of the file. Raises
TokenFileError if the model cannot use it, and NotReadyError if no process has loaded a model.
"""


@dataclass(frozen=True)
class WorkerState:
    """The state of one process of the server, for the responses to operators. worker: the number of the process."""

    worker: int
    pid: int  # process id
    is_ready: bool  # whether it has loaded its model
    revision: int  # of the settings under which it admits requests
    model: str | None  # name and version of the bundle that it serves
    parked_tokens: Mapping[str, str] = field(default_factory=dict)  # reasons by name of tokens that it cannot use
    own_tokens: Collection[str] = ()  # names of its tokens that no operator added; empty before it has loaded its model


class AdminServer(Protocol):
    """An operators' listener that is open. Its methods must be called in the event loop in which it was opened."""

    def show_model(self, manifest: Manifest) -> None:
        """Sets the model whose name and version are in the responses to operators.

        Must be called after every process has begun to serve this model. manifest: of the model.
        """

    def notify_workers_changed(self) -> None:
        """Reports that the state of a worker has changed. Must be called after each such change.

        A request that changes the settings waits until every ready worker has applied the new revision. After this
        call, each waiting request re-checks the workers.
        """

    async def close(self) -> None:
        """Closes the listener and the store of the settings."""


class OpenAdminServer(Protocol):
    """A function that opens the operators' listener. It must be called before the server accepts a request."""

    async def __call__(
        self,
        metrics: Metrics,
        *,
        apply: ApplySettings,
        workers: Callable[[], list[WorkerState]],
        check_token: CheckToken,
    ) -> AdminServer:
        """Returns the open listener. Raises TureenError if the listener cannot be opened.

        metrics: of all processes. apply: receives each change of the settings. workers: returns the state of each
        process. check_token: checks a token before the settings have it.
        """
