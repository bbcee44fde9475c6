"""What can go wrong with the operator's settings, and who must act.

ServeError
└── ControlError
    ├── InvalidChangeError       caller: the change is wrong, or leads to settings that are
    ├── StaleRevisionError       caller: somebody else has changed the settings since
    ├── UnknownRevisionError     caller: there is no such revision
    ├── ChoiceNotAllowedError    caller: clients choose no β here
    ├── BetaOutOfBoundsError     caller: the β is outside what clients may choose
    ├── UnknownPolicyError       caller: there is no such policy
    ├── UnknownApiKeyError       caller: the API key stands for nothing
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


class ChoiceNotAllowedError(ControlError):
    def __init__(self) -> None:
        super().__init__("the operator lets no client choose here: leave beta, betas and policy out")


class BetaOutOfBoundsError(ControlError):
    def __init__(self, beta: float, least: float, most: float) -> None:
        super().__init__(f"β is {beta:g}; the operator lets clients choose from {least:g} to {most:g}")


class UnknownPolicyError(ControlError):
    def __init__(self) -> None:
        super().__init__("there is no policy of this name: leave policy out for the default")


class UnknownApiKeyError(ControlError):
    def __init__(self) -> None:
        super().__init__("the X-API-Key stands for nothing: leave it out for the default")
