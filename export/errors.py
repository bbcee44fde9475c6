"""The errors of export, each with the party that must act.

TureenError
└── ExportError                      caller or operator
    └── ParityError                  the logits of an engine differ too much from PyTorch; no bundle was written
"""

from __future__ import annotations

from tureen.errors import TureenError


class ExportError(TureenError):
    """The checkpoint cannot be exported; the message says what to do next."""


class ParityError(ExportError):
    pass
