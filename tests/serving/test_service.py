"""A server whose decoding is stuck says so, continues, and ends when it is told to."""

from __future__ import annotations

import os
import signal
import threading
import time

from running_server import Reply, Running, picture, running

from torchsnow.hub import Hub
from torchsnow.hub.live import LiveHub


def stop_decoding(server: Running) -> None:
    """Make every process that decodes hang for good."""
    since_s = server.service.decoders._since_s
    server.wait_until(lambda: len(since_s) == server.service.settings.decode_processes)
    for process in list(since_s):
        os.kill(process.pid, signal.SIGSTOP)


def asking(server: Running, number: int) -> tuple[list[threading.Thread], list[Reply]]:
    """Requests that wait for their answers, and the answers that have come."""
    replies: list[Reply] = []
    threads = [threading.Thread(target=lambda: replies.append(server.predict([picture()]))) for _ in range(number)]
    for thread in threads:
        thread.start()
    return threads, replies


def test_stuck_decoding_is_seen_and_mended(hub: Hub) -> None:
    with running(LiveHub(hub), decode_timeout_s=2) as server:
        stop_decoding(server)
        threads, replies = asking(server, 3)
        server.wait_until(lambda: server.call("GET", "/v2/health/ready").status == 503)
        assert server.call("GET", "/v2/health/live").status == 200
        assert len(server.call("GET", "/tasks").json["tasks"]) == 3
        for thread in threads:
            thread.join()
        assert sorted(reply.status for reply in replies) == [200, 422, 422]
        assert "it takes more than 2 s" in next(reply.json["error"] for reply in replies if reply.status == 422)
        server.wait_until(lambda: server.call("GET", "/v2/health/ready").status == 200)
        assert server.predict([picture()]).status == 200


def test_stuck_decoding_does_not_keep_a_server_from_its_end(hub: Hub) -> None:
    with running(LiveHub(hub), decode_timeout_s=60, deadline_s=2) as server:
        stop_decoding(server)
        threads, _ = asking(server, 3)
        server.wait_until(lambda: b"torchsnow_queue_images 3.0" in server.call("GET", "/metrics").body)
        start_s = time.monotonic()
    assert time.monotonic() - start_s < 10
    for thread in threads:
        thread.join()
