"""A port, and several processes that answer on it, each with its own source, queue and limits.

They share the listening socket, so that whoever is free takes the next connection. A worker that ends, or does not
answer its siblings for long, is replaced; this process answers nothing itself.
"""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from torchsnow.errors import ServingError, TorchsnowError
from torchsnow.hub import Hub
from torchsnow.io.files import clear_os_errors
from torchsnow.serving.logs import log, log_trouble, write_logs
from torchsnow.serving.loop import LONGEST_PAUSE_S
from torchsnow.serving.pictures import STOP_SIGNALS
from torchsnow.serving.settings import ServeSettings
from torchsnow.serving.siblings import Place, is_alive

STUCK_S = 60.0
"""After so long without an answer, a worker that has answered before is killed."""
_ROUND_S, _ASK_EVERY_S = 0.2, 1.0
_END_S = 10.0  # more than it may take a worker to end
_MAX_PATH = 90  # bytes of a folder for Unix sockets, whose addresses are short
_REFUSED = 2  # the exit code of what can never work: an option, or a hub


def bind(host: str, port: int) -> socket.socket:
    """A listening place; port 0 is any free one. Raises ServingError when the system refuses."""
    if not 0 <= port < 2**16:
        raise ServingError(f"cannot listen on port {port}; expected 0 to 65535")
    try:
        # With the protocol: asyncio sends small replies at once (TCP_NODELAY) only where it sees that this is TCP.
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen()  # of two that have bound one port at a time, the second learns it here
        except OSError:
            listener.close()
            raise
        return listener
    except OSError as error:
        reason = error.strerror or error
        raise ServingError(f"cannot listen on {host} port {port}: {reason}; choose another --host or --port") from error


@dataclass
class _Worker:
    process: subprocess.Popen[bytes] | None = None
    start_s: float = 0.0  # of the last start, or of the next
    heard_s: float | None = None


class Workers:
    """Keeps the workers of a server running, from `run` to a signal.

    They are told what to do, rather than read options again: a file with a token or options may have changed when one
    takes the place of another.
    """

    def __init__(self, hub: Path, device: str, settings: ServeSettings, listener: socket.socket) -> None:
        self._told = {"hub": str(hub), "device": device, "settings": settings.to_dict()}
        self._listener, self._settings = listener, settings
        self._workers = [_Worker() for _ in range(settings.workers)]
        self._end_s = math.inf
        self._was_heard = False

    def run(self) -> None:
        """Returns when all workers have ended after a signal. Raises ServingError when they cannot start at all."""
        for stop in STOP_SIGNALS:
            if stop != signal.SIGHUP or signal.getsignal(stop) != signal.SIG_IGN:  # as nohup makes it
                signal.signal(stop, self._stop)
        with clear_os_errors("make a folder in", Path(tempfile.gettempdir()), ServingError):
            private = tempfile.TemporaryDirectory(prefix="torchsnow-")
        with private as folder:
            if len(folder) > _MAX_PATH:
                raise ServingError(f"{folder} is too long a name for sockets; set TMPDIR to a shorter one")
            place = Place(0, len(self._workers), folder, self._listener.fileno())
            try:
                while self._is_running():
                    for number, worker in enumerate(self._workers):
                        self._keep(worker, replace(place, number=number))
                    time.sleep(_ROUND_S)
            finally:
                for worker in self._workers:
                    if worker.process is not None:
                        with worker.process as process:  # which waits for it, and closes the pipe
                            process.kill()
        log("stopped")

    def _is_running(self) -> bool:
        return time.monotonic() < self._end_s if self._processes() else not self._is_ending()

    def _is_ending(self) -> bool:
        return self._end_s < math.inf

    def _processes(self) -> list[subprocess.Popen[bytes]]:
        found = [worker.process for worker in self._workers]
        return [process for process in found if process is not None and process.poll() is None]

    def _stop(self, number: int, frame: object) -> None:
        """Pass a signal on; workers have a process group of their own, so that none comes to them twice."""
        longest_s = self._settings.drain_s + self._settings.deadline_s + _END_S
        self._end_s = min(self._end_s, time.monotonic() + longest_s)
        for process in self._processes():
            process.send_signal(number)

    def _keep(self, worker: _Worker, place: Place) -> None:
        """Start a worker that is not there, and kill one that is stuck."""
        now_s = time.monotonic()
        if worker.process is None:
            if not self._is_ending() and now_s >= worker.start_s:
                self._begin(worker, place)
        elif worker.process.poll() is not None:
            self._note_end(worker, place)
        elif now_s - (worker.heard_s or worker.start_s) >= _ASK_EVERY_S and is_alive(place, place.number):
            worker.heard_s, self._was_heard = time.monotonic(), True
        elif worker.heard_s is not None and now_s - worker.heard_s > STUCK_S:
            log_trouble("a worker does not answer and is killed", worker=place.number)
            worker.process.kill()

    def _begin(self, worker: _Worker, place: Place) -> None:
        try:
            worker.process, worker.start_s, worker.heard_s = self._start(place), time.monotonic(), None
        except OSError as error:  # the machine lacks something; the others continue
            log_trouble("a worker does not start", worker=place.number, reason=str(error))
            worker.start_s = time.monotonic() + LONGEST_PAUSE_S
            return
        if self._is_ending():  # a signal came meanwhile
            worker.process.terminate()

    def _note_end(self, worker: _Worker, place: Place) -> None:
        assert worker.process is not None
        with worker.process as process:
            code = process.wait()
        worker.process = None
        if self._is_ending():
            return
        if code == _REFUSED and not self._was_heard:
            raise ServingError("the workers cannot start; the lines above say why")
        log_trouble("a worker ended and is replaced", worker=place.number, code=code)
        lasted_s = time.monotonic() - worker.start_s
        worker.start_s = time.monotonic() + max(0.0, LONGEST_PAUSE_S - lasted_s)

    def _start(self, place: Place) -> subprocess.Popen[bytes]:
        # The same path as here, for the same code, and not the working folder before it.
        code = f"import sys; sys.path[:] = {sys.path!r}; from torchsnow.serving.workers import work; work()"
        threads = str(max(1, (os.cpu_count() or 1) // place.of))
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            bufsize=0,
            stdin=subprocess.PIPE,  # which ends with this process, however it ends
            pass_fds=[place.descriptor],
            env={"OMP_NUM_THREADS": threads, **os.environ},
            start_new_session=True,
        )
        assert process.stdin is not None
        with suppress(BrokenPipeError):  # it has ended already, and is replaced
            process.stdin.write(json.dumps({**self._told, "place": vars(place)}, allow_nan=False).encode() + b"\n")
        return process


def work() -> None:
    """Be a worker, as the first line of stdin says, until a signal, or until stdin ends with who started it."""
    told = json.loads(sys.stdin.buffer.readline())
    place = Place(**told["place"])
    write_logs(place.number)

    def end() -> None:
        os.read(0, 1)  # not by sys.stdin, whose lock the end of Python would wait for
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=end, name="parent", daemon=True).start()
    try:
        from torchsnow.serving.run import answer  # which needs torch, as who starts workers does not

        settings = ServeSettings.from_dict(told["settings"])
        with socket.socket(fileno=place.descriptor) as listener:
            answer(Hub.open(told["hub"]), told["device"], settings, listener, place)
    except TorchsnowError as error:
        log_trouble("the worker cannot continue", reason=str(error))
        sys.exit(_REFUSED)
