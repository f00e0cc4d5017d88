"""Logs of a server: one JSON object a line, on stderr, which holds up nobody who has something to log."""

from __future__ import annotations

import atexit
import json
import logging
import os
import threading
import time
from collections.abc import Hashable
from datetime import UTC, datetime
from queue import Full, Queue
from typing import Any

_LOGGER = logging.getLogger("torchsnow.serving")
_FIELDS = "fields"
_MAX_WAITING = 5_000  # lines that nobody has read
_END_S = 1.0  # for them to be read, when the process ends
_WINDOW_S, _MAX_ALIKE = 60.0, 10


class JsonLines(logging.Formatter):
    """Every record as one line, whatever its text holds, with the number of the worker if it is one of several."""

    def __init__(self, worker: int | None = None) -> None:
        super().__init__()
        self._own = {} if worker is None else {"worker": worker}

    def format(self, record: logging.LogRecord) -> str:
        """The record in JSON; an exception with its trace, for the log alone."""
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line: dict[str, Any] = {"time": time, "level": record.levelname.lower(), "event": record.getMessage()}
        line |= self._own
        line |= getattr(record, _FIELDS, {})
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, allow_nan=False)


class FewAlike(logging.Filter):
    """Of warnings and errors that say the same, lets through a few a minute; the next one tells how many it was."""

    def __init__(self) -> None:
        super().__init__()
        self._counts: dict[Hashable, tuple[float, int]] = {}  # since when, and how many

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record shall be written."""
        if record.levelno < logging.WARNING:
            return True
        fields = getattr(record, _FIELDS, {})
        alike = (record.name, record.getMessage(), str(fields))
        since_s, count = self._counts.get(alike, (record.created, 0))
        if record.created - since_s > _WINDOW_S:
            if count > _MAX_ALIKE:
                setattr(record, _FIELDS, {**fields, "not_written": count - _MAX_ALIKE})
            since_s, count = record.created, 0
        if len(self._counts) > _MAX_WAITING:
            self._counts.clear()
        self._counts[alike] = since_s, count + 1
        return count < _MAX_ALIKE


class Writer(logging.Handler):
    """Writes to a file descriptor from a thread of its own. What cannot be written is counted; nobody waits for it.

    A pipe that nobody reads is full after 64 KiB, and a write to it returns when somebody reads.
    """

    def __init__(self, descriptor: int, max_waiting: int = _MAX_WAITING) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._lines: Queue[bytes] = Queue(max_waiting)
        self._num_dropped = 0
        threading.Thread(target=self._run, name="logs", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        """Put a line in the queue, if there is room."""
        try:
            self._lines.put_nowait(self.format(record).encode("utf-8", "replace") + b"\n")
        except Full:
            self._num_dropped += 1
        except Exception:
            self.handleError(record)

    def wait(self, timeout_s: float) -> None:
        """Until all lines are written, but not for longer than that."""
        end_s = time.monotonic() + timeout_s
        while self._lines.unfinished_tasks and time.monotonic() < end_s:
            time.sleep(0.005)

    def _run(self) -> None:
        while True:
            self._write(self._lines.get())
            dropped, self._num_dropped = self._num_dropped, 0
            if dropped:
                self._write(self._about(dropped))
            self._lines.task_done()

    def _about(self, dropped: int) -> bytes:
        fields = {"msg": "log lines were dropped, for nobody read them", "levelname": "WARNING", "lines": dropped}
        record = logging.makeLogRecord({**fields, _FIELDS: {"lines": dropped}})
        return self.format(record).encode() + b"\n"

    def _write(self, line: bytes) -> None:
        while line:
            try:
                line = line[os.write(self._descriptor, line) :]
            except BlockingIOError:
                time.sleep(0.05)
            except OSError:  # whoever read it is gone
                return


def log(event: str, **fields: Any) -> None:
    """Something that happened, with what belongs to it."""
    _LOGGER.info(event, extra={_FIELDS: fields})


def log_trouble(event: str, **fields: Any) -> None:
    """Something that a person should look at."""
    _LOGGER.warning(event, extra={_FIELDS: fields})


def log_fault(event: str, error: BaseException, **fields: Any) -> None:
    """A bug in torchsnow, with its trace."""
    _LOGGER.error(event, exc_info=error, extra={_FIELDS: fields})


def write_logs(worker: int | None = None) -> None:
    """Send the logs of this process, and Python's warnings, to stderr, as JSON lines."""
    writer = Writer(2)
    writer.setFormatter(JsonLines(worker))
    writer.addFilter(FewAlike())
    logging.basicConfig(level=logging.INFO, handlers=[writer], force=True)
    logging.captureWarnings(True)
    atexit.register(writer.wait, _END_S)
