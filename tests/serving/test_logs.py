"""Logs hold up nobody, and do not say the same thing without end."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from torchsnow.serving.logs import FewAlike, JsonLines, Writer, log, log_trouble, write_logs


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    yield reader, writer
    os.close(reader)
    os.close(writer)


def logger_for(descriptor: int, max_waiting: int = 5_000) -> tuple[logging.Logger, Writer]:
    writer = Writer(descriptor, max_waiting)
    writer.setFormatter(JsonLines())
    writer.addFilter(FewAlike())
    logger = logging.Logger("test")
    logger.addHandler(writer)
    return logger, writer


def test_a_pipe_that_nobody_reads_holds_up_nobody(pipe: tuple[int, int]) -> None:
    logger, writer = logger_for(pipe[1], max_waiting=100)
    start_s = time.monotonic()
    for number in range(1_000):
        logger.info("x" * 1000, extra={"fields": {"number": number}})
    writer.wait(0.05)
    assert time.monotonic() - start_s < 1
    lines = []
    with os.fdopen(os.dup(pipe[0]), "rb") as stream:  # somebody reads again
        told = False
        while not lines or lines[-1]["event"] != "last":
            if lines and not told and not writer._lines.full():  # there is room again
                logger.info("last")
                told = True
            lines.append(json.loads(stream.readline()))
    dropped = [line for line in lines if "dropped" in line["event"]]
    assert {line["level"] for line in dropped} == {"warning"}
    written = len(lines) - len(dropped) - 1
    assert written + sum(line["lines"] for line in dropped) == 1_000


def test_a_reader_that_is_gone_is_no_matter() -> None:
    reader, descriptor = os.pipe()
    os.close(reader)
    logger, writer = logger_for(descriptor)
    logger.info("nobody")
    writer.wait(1)
    assert writer._lines.unfinished_tasks == 0
    os.close(descriptor)


def read(pipe: tuple[int, int], writer: Writer) -> list[dict[str, Any]]:
    writer.wait(1)
    return [json.loads(line) for line in os.read(pipe[0], 2**16).splitlines()]


def test_what_says_the_same_is_written_a_few_times(pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchsnow.serving.logs._WINDOW_S", 0.2)
    logger, writer = logger_for(pipe[1])
    for number in range(1_000):
        logger.error("socket.accept() out of system resource")
        if number < 50:
            logger.info("a request")
            logger.warning("damaged", extra={"fields": {"task": f"t{number}"}})
    events = [line["event"] for line in read(pipe, writer)]
    assert len(events) == 10 + 50 + 50
    time.sleep(0.25)
    logger.error("socket.accept() out of system resource")
    (line,) = read(pipe, writer)
    assert line["not_written"] == 990


def test_a_process_ends_with_its_log_written_or_not() -> None:
    code = "from torchsnow.serving.logs import log, write_logs; write_logs(); [log('x' * 100) for _ in range(3000)]"
    for is_read in (True, False):
        process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE)
        assert process.stderr is not None
        if is_read:
            assert len(process.stderr.read().splitlines()) == 3000
        assert process.wait(30) == 0
        process.stderr.close()


def test_the_logs_of_a_process_go_to_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    kept, level = root.handlers[:], root.level
    try:
        write_logs()
        log("something", number=1)
        log_trouble("something else")
        next(handler for handler in root.handlers if isinstance(handler, Writer)).wait(1)
    finally:
        logging.captureWarnings(False)
        root.handlers[:] = kept
        root.setLevel(level)
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    assert [(line["event"], line["level"]) for line in lines] == [("something", "info"), ("something else", "warning")]
    assert lines[0]["number"] == 1
