"""The errors of export. After each of them the caller or the operator must act.

TureenError
└── ExportError                      the checkpoint cannot be exported
    └── ParityError                  the logits of an engine differ too much from PyTorch; no bundle was written
"""

from __future__ import annotations

from tureen.errors import TureenError


class ExportError(TureenError):
    """The checkpoint cannot be exported; the message says what to do next."""


class ParityError(ExportError):
    pass
