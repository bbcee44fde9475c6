"""Writes logs to standard error, one JSON object per line."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping
from datetime import UTC, datetime

FIELDS = "fields"


class JsonFormatter(logging.Formatter):
    """Formats a record as one line of JSON. The items of `extra={"fields": {…}}` become keys of the object."""

    def __init__(self, constant: Mapping[str, object]) -> None:
        """constant: keys and values of every line."""
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
    """Writes the records of every logger, from `level` up, to standard error as JSON with the constant fields."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(constant))
    logging.captureWarnings(True)  # such as those of Pillow about damaged EXIF data
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)
