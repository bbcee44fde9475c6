"""Writes logs to standard error, one JSON object per line."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping
from datetime import UTC, datetime

FIELDS = "fields"


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
        return json.dumps(entry, ensure_ascii=False, default=str)


def configure_logs(level: str, **constant: object) -> None:
    """Makes every logger of the process write to standard error, one JSON object per line.

    level: name of the lowest level that is written, such as "info". constant: fields that every line has.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(constant))
    logging.captureWarnings(True)  # logs Python's warnings too, such as Pillow's about damaged EXIF data
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)
