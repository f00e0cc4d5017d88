"""A server that is told to stop says that it is not ready, continues for a moment, and ends soon."""

from __future__ import annotations

import resource
import signal
import socket
import threading
import time
from typing import Any

import pytest
from running_server import picture, running

from torchsnow.hub import Hub
from torchsnow.hub.live import LiveHub
from torchsnow.serving import bodies, run
from torchsnow.serving.run import DrainingServer, max_connections


class Told:
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.words: list[str] = []

    def drain(self) -> None:
        self.words.append("drain")

    def end(self) -> None:
        self.words.append("end")


def told(number: int, drain_s: float) -> tuple[DrainingServer, Told]:
    served, config = Told(), Any
    server = DrainingServer(config, served, drain_s)  # type: ignore[arg-type]
    server.handle_exit(number, None)
    return server, served


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
def test_it_goes_on_for_a_moment_and_a_second_signal_ends_that(number: int) -> None:
    server, served = told(number, 60)
    assert (server.should_exit, served.words) == (False, ["drain"])
    server.handle_exit(number, None)
    assert server.should_exit


def test_who_waits_at_a_terminal_need_not_wait_for_that() -> None:
    server, served = told(signal.SIGINT, 60)
    assert (server.should_exit, served.words) == (True, ["drain"])


def test_readiness_is_false_while_it_drains_and_a_slow_body_does_not_delay_the_end(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bodies, "_STOP_S", 0.2)
    with running(LiveHub(hub)) as server:
        slow = server.socket()
        slow.sendall(b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-length: 9000\r\n\r\nx")
        server.wait_until(lambda: server.service.bodies._held_bytes == 1)
        server.service.drain()
        assert server.call("GET", "/v2/health/ready").status == 503
        assert server.call("GET", "/v2/health/live").status == 200
        assert server.predict([picture()]).status == 200
        replies: list[bytes] = []
        dripping = threading.Thread(target=drip, args=(slow, replies))
        dripping.start()
        start_s = time.monotonic()
    assert time.monotonic() - start_s < 5
    dripping.join()
    assert replies[0].startswith(b"HTTP/1.1 503 ")
    slow.close()


def drip(client: socket.socket, replies: list[bytes]) -> None:
    client.settimeout(0.05)
    for _ in range(200):
        try:
            client.sendall(b"x")
            replies.append(client.recv(4096))
            return
        except TimeoutError:
            continue


def test_connections_leave_files_for_other_things(monkeypatch: pytest.MonkeyPatch) -> None:
    for files, most in ((100_000, 1_000), (256, 256 - run._OTHER_FILES), (10, 1)):
        monkeypatch.setattr(resource, "getrlimit", lambda which, files=files: (files, 100_000))
        assert max_connections() == most
