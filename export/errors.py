"""What can go wrong while exporting.

TureenError
└── ExportError                      caller or operator
    └── ParityError                  an engine's answers are too far from PyTorch's; no bundle was written
"""

from __future__ import annotations

from tureen.errors import TureenError


class ExportError(TureenError):
    """The checkpoint cannot be exported; the message says what to do."""


class ParityError(ExportError):
    pass
