"""What can go wrong with the operator's settings, and who must act.

ServeError
└── ControlError
    ├── InvalidChangeError       caller: the change is wrong, or leads to settings that are
    ├── StaleRevisionError       caller: somebody else has changed the settings since
    ├── UnknownRevisionError     caller: there is no such revision
    ├── ControlStoreError        operator: where the settings are kept cannot be reached
    └── BrokenHistoryError       operator: the history has been tampered with, or damaged
"""

from __future__ import annotations

from serve.errors import ServeError


class ControlError(ServeError):
    """Base of the errors of this package."""


class InvalidChangeError(ControlError):
    pass


class StaleRevisionError(ControlError):
    def __init__(self, head: int) -> None:
        self.head = head
        super().__init__(f"the settings are at revision {head} by now: look at what changed, then change that")


class UnknownRevisionError(ControlError):
    def __init__(self, revision: int) -> None:
        super().__init__(f"there is no revision {revision}: see the history")


class ControlStoreError(ControlError):
    pass


class BrokenHistoryError(ControlError):
    def __init__(self, revision: int, what: str) -> None:
        self.revision = revision
        super().__init__(f"the history is broken at revision {revision}: {what}")
