"""Handles SIGINT and SIGTERM during a run, so that the run ends after a step and its state can be saved.

Knows nothing about training or files.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SAVE_INTERVAL_S = 10.0  # between two saves of the state of a run
SIGNALS = (signal.SIGINT, signal.SIGTERM)
SECOND_AFTER_S = 1.0  # an earlier repeat is the same signal: the terminal sends it, and torchrun forwards it


class InterruptedRun(KeyboardInterrupt):
    """A signal ended the run. number: signal number. saved: text about the saved state; empty if no state was saved."""

    def __init__(self, number: int, saved: str = "") -> None:
        super().__init__(saved)
        self.number = number
        self.saved = saved

    @property
    def exit_status(self) -> int:
        """The exit status of the process, 128 + signal number as in a shell: 130 for SIGINT, 143 for SIGTERM."""
        return 128 + self.number


class StopSignals:
    """Raises InterruptedRun at SIGINT or SIGTERM. Inside `deferred`, stores the first signal in `received` instead.

    Inside `deferred`, a second signal raises InterruptedRun, unless `ignores_repeats` is True. A distributed run sets
    `ignores_repeats`, because torchrun repeats a signal, and kills its processes after 30 s.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self.received = 0  # the number of the first signal, 0 before any
        self.ignores_repeats = False
        self._received_at = 0.0
        self._is_deferred = False

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Handles SIGINT and SIGTERM during the `with` block, if this is the main thread.

        A signal that the process already ignores, as under nohup, stays ignored.
        """
        before = {}
        if threading.current_thread() is threading.main_thread():
            before = {number: signal.getsignal(number) for number in SIGNALS}
        handled = {number: handler for number, handler in before.items() if handler is not signal.SIG_IGN}
        for number in handled:
            signal.signal(number, self._handle)
        try:
            yield
        finally:
            for number, handler in handled.items():
                signal.signal(number, handler)

    @contextmanager
    def deferred(self, is_deferred: bool = True) -> Iterator[None]:
        """Lets the `with` block finish after a signal, and stores the number of the signal in `received`.

        A second signal, more than SECOND_AFTER_S later, raises InterruptedRun unless `ignores_repeats` is True. In a
        nested block with `deferred(False)`, each signal raises InterruptedRun immediately.
        """
        before, self._is_deferred = self._is_deferred, is_deferred
        try:
            yield
        finally:
            self._is_deferred = before

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now = self._now()
        is_second = bool(self.received) and now - self._received_at > SECOND_AFTER_S
        if not self.received:
            self.received, self._received_at = number, now
            if self._is_deferred:
                print("\nstopping after this step; a second signal stops immediately", file=sys.stderr)
        if not self._is_deferred or (is_second and not self.ignores_repeats):
            raise InterruptedRun(self.received)
