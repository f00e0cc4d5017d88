"""Workers are started, replaced and ended; small scripts stand for them."""

from __future__ import annotations

import errno
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from torchsnow.errors import ServingError
from torchsnow.serving import workers as module
from torchsnow.serving.settings import ServeSettings
from torchsnow.serving.siblings import Place
from torchsnow.serving.workers import Workers, bind

# Answers on its socket, notes that it was here, and ends in peace.
ANSWERS = """
import json, os, signal, socket, sys, threading
place = json.loads(sys.stdin.buffer.readline())["place"]
path = f"{place['folder']}/{place['number']}"
if os.path.exists(path):
    os.unlink(path)
server = socket.socket(socket.AF_UNIX)
server.bind(path)
server.listen()
open(f"{sys.argv[1]}/{place['number']}-{os.getpid()}", "x").close()
signal.signal(signal.SIGTERM, lambda *given: sys.exit(0))
while True:
    peer, _ = server.accept()
    if not os.path.exists(f"{sys.argv[1]}/stuck"):
        peer.sendall(b"true")
    peer.close()
"""


def pids(folder: Path) -> dict[int, list[int]]:
    """By worker, the processes that were there."""
    found: dict[int, list[int]] = {}
    for name in (file.name for file in folder.iterdir() if "-" in file.name):
        number, pid = map(int, name.split("-"))
        found.setdefault(number, []).append(pid)
    return found


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def wait_until(holds: Callable[[], Any]) -> None:
    end_s = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < end_s
        time.sleep(0.01)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs workers by a script while a test does something in a thread, after which they are told to stop."""
    monkeypatch.setattr(module, "LONGEST_PAUSE_S", 0.0)
    monkeypatch.setattr(module, "_ROUND_S", 0.01)
    monkeypatch.setattr(signal, "signal", lambda *given: None)

    def run(script: str, during: Callable[[Workers], None] = lambda workers: None) -> None:
        popen = subprocess.Popen
        words = [sys.executable, "-S", "-c", script, str(tmp_path)]
        monkeypatch.setattr(subprocess, "Popen", lambda given, **how: popen(words, **how))
        with bind("127.0.0.1", 0) as listener:
            workers = Workers(tmp_path, "cpu", ServeSettings(workers=2, drain_s=0, deadline_s=1), listener)

            def act() -> None:
                try:
                    during(workers)
                finally:
                    workers._stop(signal.SIGTERM, None)

            acting = threading.Thread(target=act)
            acting.start()
            try:
                workers.run()
            finally:
                acting.join()

    return run


def test_a_worker_that_is_killed_is_replaced_and_all_end_with_the_server(
    run: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def kill(workers: Workers) -> None:
        wait_until(lambda: len(pids(tmp_path)) == 2)
        os.kill(pids(tmp_path)[1][0], signal.SIGKILL)
        wait_until(lambda: len(pids(tmp_path)[1]) == 2)

    with caplog.at_level(logging.INFO):
        run(ANSWERS, kill)
    own = pids(tmp_path)
    assert (len(own[0]), len(own[1])) == (1, 2)
    assert not any(is_running(pid) for found in own.values() for pid in found)
    assert [r.getMessage() for r in caplog.records] == ["a worker ended and is replaced", "stopped"]


def test_a_worker_that_is_stuck_is_killed_and_replaced(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STUCK_S", 0.2)
    monkeypatch.setattr(module, "_ASK_EVERY_S", 0.02)

    def stick(workers: Workers) -> None:
        wait_until(lambda: all(worker.heard_s for worker in workers._workers))
        (tmp_path / "stuck").touch()
        wait_until(lambda: all(len(own) == 2 for own in pids(tmp_path).values()))
        (tmp_path / "stuck").unlink()

    run(ANSWERS, stick)


def test_a_machine_that_has_no_room_for_a_worker_is_asked_again(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    start, calls = Workers._start, []

    def lacking(self: Workers, place: Place) -> Any:
        calls.append(place)
        if len(calls) == 2:
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        return start(self, place)

    monkeypatch.setattr(Workers, "_start", lacking)
    run(ANSWERS, lambda workers: wait_until(lambda: len(pids(tmp_path)) == 2))
    assert [r.getMessage() for r in caplog.records].count("a worker does not start") == 1


def test_workers_that_cannot_start_end_the_server_and_leave_nothing(run: Any) -> None:
    with pytest.raises(ServingError, match="the workers cannot start; the lines above say why"):
        run("import sys; sys.exit(2)", lambda workers: time.sleep(0.5))


def test_a_worker_that_does_not_end_is_killed(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_END_S", -0.8)
    stubborn = ANSWERS.replace("sys.exit(0)", "None")
    run(stubborn, lambda workers: wait_until(lambda: len(pids(tmp_path)) == 2))
    assert not any(is_running(pid) for found in pids(tmp_path).values() for pid in found)


def test_a_worker_ends_when_its_server_is_gone(tmp_path: Path) -> None:
    """Even one that is only about to load."""
    script = "import time; from torchsnow.serving import workers; workers.Hub.open = lambda path: time.sleep(60); "
    words = [sys.executable, "-c", script + "workers.work()"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    told = {"hub": "none", "device": "cpu", "settings": ServeSettings().to_dict(), "place": vars(Place())}
    with subprocess.Popen(words, stdin=subprocess.PIPE, env=environment) as process:
        assert process.stdin is not None
        process.stdin.write(json.dumps(told).encode() + b"\n")
        process.stdin.close()
        assert process.wait(60) == -signal.SIGTERM


def test_workers_have_the_same_settings(tmp_path: Path) -> None:
    given = ServeSettings(token="a" * 16, hosts=("x",), formats=("JPEG",), workers=3, proxies=("10.0.0.0/8",))
    assert ServeSettings.from_dict(json.loads(json.dumps(given.to_dict()))) == given


def test_a_folder_whose_name_is_too_long_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signal, "signal", lambda *given: None)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / ("x" * 100)))
    with bind("127.0.0.1", 0) as listener:
        workers = Workers(tmp_path, "cpu", ServeSettings(workers=2), listener)
        with pytest.raises(ServingError, match=r"cannot make a folder in .*: no such file"):
            workers.run()
        (tmp_path / ("x" * 100)).mkdir()
        with pytest.raises(ServingError, match="set TMPDIR to a shorter one"):
            workers.run()


def test_a_port_is_listened_on_by_workers_alone() -> None:
    """While none is there yet, connections are refused rather than left to wait."""
    with bind("127.0.0.1", 0) as listener, pytest.raises(ConnectionRefusedError):
        socket.create_connection(listener.getsockname(), timeout=5)


def test_a_port_is_taken_as_soon_as_it_is_bound() -> None:
    """Of two servers that start at the same moment, the second is told at once, not when it begins to listen."""
    with bind("127.0.0.1", 0) as first, pytest.raises(ServingError, match=r"port \d+: Address already in use; choose"):
        bind("127.0.0.1", first.getsockname()[1])
