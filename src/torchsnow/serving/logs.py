"""Logs of a server: one JSON object a line, on stderr."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from typing import Any

_LOGGER = logging.getLogger("torchsnow.serving")
_FIELDS = "fields"


class JsonLines(logging.Formatter):
    """Every record as one line, whatever its text holds."""

    def format(self, record: logging.LogRecord) -> str:
        """The record in JSON; an exception with its trace, for the log alone."""
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line: dict[str, Any] = {"time": time, "level": record.levelname.lower(), "event": record.getMessage()}
        line |= getattr(record, _FIELDS, {})
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, allow_nan=False)


def log(event: str, **fields: Any) -> None:
    """Something that happened, with what belongs to it."""
    _LOGGER.info(event, extra={_FIELDS: fields})


def log_trouble(event: str, **fields: Any) -> None:
    """Something that a person should look at."""
    _LOGGER.warning(event, extra={_FIELDS: fields})


def log_fault(event: str, error: BaseException, **fields: Any) -> None:
    """A mistake of ours, with its trace."""
    _LOGGER.error(event, exc_info=error, extra={_FIELDS: fields})


def write_logs() -> None:
    """Send the logs of this process to stderr, as JSON lines."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
