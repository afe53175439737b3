"""Logs as lines of JSON, for machines to read; they never hold a text that was asked."""

from __future__ import annotations

import json
import logging
import sys
from datetime import datetime, timezone

LOGGER = "peft_aot.serving"
FIELDS = "fields"


class JsonLines(logging.Formatter):
    """Writes a record as one line of JSON: time, level, message, and what `fields(...)` added."""

    def format(self, record: logging.LogRecord) -> str:
        """Write a record."""
        line = {
            "time": datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, FIELDS, {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def fields(**values: object) -> dict[str, dict[str, object]]:
    """Return the `extra` of a log call that adds fields to its line."""
    return {FIELDS: values}


def log_to_stderr(level: int = logging.INFO) -> None:
    """Send this server's and uvicorn's logs to standard error as JSON, and nowhere else."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    for name in (LOGGER, "uvicorn"):
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.setLevel(level)
        logger.propagate = False
