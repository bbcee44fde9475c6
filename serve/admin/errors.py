"""What can go wrong on the operator's listener besides the settings themselves, and who must act.

ServeError
└── AdminError
    ├── UnauthorizedError       caller: no bearer token, or a wrong one
    ├── ForbiddenError          caller: its credential may look and not change
    ├── IfMatchRequiredError    caller: it did not say which revision it changes
    └── AdminListenerError      operator: the listener cannot be opened, or must not be
"""

from __future__ import annotations

from serve.errors import ServeError


class AdminError(ServeError):
    """Base of the errors of this package."""


class UnauthorizedError(AdminError):
    def __init__(self) -> None:
        super().__init__("send Authorization: Bearer TOKEN with an operator's token")


class ForbiddenError(AdminError):
    def __init__(self) -> None:
        super().__init__("this credential may look and not change: it needs the role operate")


class IfMatchRequiredError(AdminError):
    def __init__(self) -> None:
        super().__init__('send If-Match with the ETag of GET /admin/beta, such as "12": the revision that you change')


class AdminListenerError(AdminError):
    pass
