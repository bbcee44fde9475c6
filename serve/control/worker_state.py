"""What a server needs of the operator: to be told what is in force, and to say which process follows what."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from serve.control.revision_store import Revision
from tureen.bundle.manifest import Manifest

ApplySettings = Callable[[Revision, bool], None]
"""Told the settings in force, and whether their store can be reached: at once, and whenever either changes."""


@dataclass(frozen=True)
class WorkerState:
    """A process of the server, and the revision that it admits requests under."""

    worker: int
    pid: int
    is_ready: bool
    revision: int
    model: str | None  # name and version of what it serves


class AdminServer(Protocol):
    """Where an operator changes settings. Opened before anything is served, closed last, in one loop."""

    async def open(self, follow: ApplySettings, workers: Callable[[], list[WorkerState]]) -> None:
        """Have the settings followed from now on; raises TureenError where they cannot be had."""

    def shows(self, manifest: Manifest) -> None:
        """Have operators see this model: every process serves it from now on."""

    async def close(self) -> None:
        """Follow no more."""
