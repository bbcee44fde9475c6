"""Writes logs to standard error, one JSON object per line."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from collections.abc import Mapping
from contextlib import nullcontext
from datetime import UTC, datetime
from typing import TextIO

FIELDS = "fields"
_to_json = json.JSONEncoder(ensure_ascii=False, default=str).encode


class JsonFormatter(logging.Formatter):
    """Formats a log record as one line of JSON. A caller adds keys with `extra={"fields": {…}}`."""

    def __init__(self, constant: Mapping[str, object]) -> None:
        """constant: keys and values that every line has."""
        super().__init__()
        self._constant = constant

    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **self._constant,
            **getattr(record, FIELDS, {}),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return _to_json(entry)


class BatchedHandler(logging.StreamHandler[TextIO]):
    """Writes the lines of one step of the event loop by one system call, at the start of the next step.

    So the requests of a batch, whose responses are sent in one step, cost one write. Writes a line immediately if it
    is a warning or an error, or if its thread has no event loop. Lines keep their order.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._lines.append(self.format(record))
            if record.levelno >= logging.WARNING or not self._is_flushed_soon():
                self.flush()
        except Exception:  # noqa: BLE001 - as each handler of the standard library
            self.handleError(record)

    def _is_flushed_soon(self) -> bool:
        """Makes the event loop of this thread write the lines. Returns False if the thread has none."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return False
        if len(self._lines) == 1:
            loop.call_soon(self.flush)
        return True

    def flush(self) -> None:
        """Writes the lines."""
        with self.lock or nullcontext():
            lines, self._lines = self._lines, []
            if lines:
                self.stream.write("\n".join(lines) + "\n")
            super().flush()


def log_event(logger: logging.Logger, level: int, message: str, fields: Mapping[str, object]) -> None:
    """Logs a message with fields if `level` is enabled. Costs half of `Logger.log`, which looks for its caller."""
    if logger.isEnabledFor(level):
        record = logging.LogRecord(logger.name, level, "", 0, message, (), None)
        setattr(record, FIELDS, fields)
        logger.handle(record)


def configure_logs(level: str, **constant: object) -> None:
    """Makes every logger of the process write to standard error, one JSON object per line.

    level: name of the lowest level that is written, such as "info". constant: fields that every line has.
    """
    handler = BatchedHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(constant))
    logging.captureWarnings(True)  # logs Python's warnings too, such as Pillow's about damaged EXIF data
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)
