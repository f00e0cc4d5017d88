"""A server that lives before its hub is loaded, and answers before all tasks are."""

from __future__ import annotations

import http.client
import threading
import time
from dataclasses import replace
from typing import Any

import pytest
from running_server import Reply, Running, picture, running, starting

from sample_tasks import sample_task
from torchsnow.errors import HubError
from torchsnow.hub import Hub
from torchsnow.hub.live import LiveHub


def test_it_lives_while_its_hub_is_loaded_and_requests_wait(hub: Hub) -> None:
    go_on, replies = threading.Event(), []

    def load() -> LiveHub:
        go_on.wait(30)
        return LiveHub(hub)

    with starting(load) as (server, _):
        assert server.call("GET", "/v2/health/live").status == 200
        assert server.call("GET", "/v2/health/ready").status == 503
        asking = threading.Thread(target=lambda: replies.append(server.predict([picture()], ["a"])))
        asking.start()
        assert server.call("GET", "/v2/health/live").status == 200
        go_on.set()
        asking.join()
        server.wait_until(lambda: server.call("GET", "/v2/health/ready").status == 200)
    (reply,) = replies
    assert isinstance(reply, Reply)
    assert (reply.status, "x-request-id" in reply.headers) == (200, True)


def test_requests_do_not_wait_beyond_their_deadline_and_a_hub_that_fails_ends_the_server() -> None:
    go_on = threading.Event()

    def load() -> LiveHub:
        go_on.wait(30)
        raise HubError("the source is gone")

    with starting(load, deadline_s=0.05) as (server, app):
        reply = server.predict([picture()])
        assert (reply.status, reply.json["code"], reply.headers["retry-after"]) == (503, "starting", "1")
        go_on.set()
        server.wait_until(lambda: app.failure is not None)
        server.wait_until(lambda: not answers(server))
    assert str(app.failure) == "the source is gone"


def test_a_server_that_is_told_to_stop_while_it_loads_is_never_ready(hub: Hub) -> None:
    go_on = threading.Event()

    def load() -> LiveHub:
        go_on.wait(30)
        return LiveHub(hub)

    with starting(load) as (server, app):
        app.drain()
        go_on.set()
        server.wait_until(lambda: server.predict([picture()], ["a"]).status == 200)
        assert server.call("GET", "/v2/health/ready").status == 503


def answers(server: Running) -> bool:
    try:
        return server.call("GET", "/v2/health/live").status == 200
    except (OSError, http.client.HTTPException):
        return False


def test_tasks_answer_before_all_are_loaded(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    live, loaded, go_on = LiveHub(hub), LiveHub._load, threading.Event()
    monkeypatch.setattr("torchsnow.serving.service._FIRST_POLL_S", 0.01)

    def load(self: LiveHub, name: str, *given: Any) -> Any:
        if name == "c":
            go_on.wait(30)
        return loaded(self, name, *given)

    monkeypatch.setattr(LiveHub, "_load", load)
    with running(live) as server:
        assert [row["task"] for row in server.call("GET", "/tasks").json["tasks"]] == ["a", "b", "c"]
        assert server.call("GET", "/v2/health/ready").status == 503
        assert server.predict([picture()], ["a"]).status == 200
        go_on.set()
        server.wait_until(lambda: server.call("GET", "/v2/health/ready").status == 200)


def test_the_end_does_not_wait_for_all_tasks_to_be_loaded(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    task, loaded, names = sample_task(hub.source, "t"), LiveHub._load, []
    for number in range(6):
        hub.add(replace(task, name=f"t{number}"))
    monkeypatch.setattr("torchsnow.serving.service._FIRST_POLL_S", 0.01)

    def load(self: LiveHub, name: str, *given: Any) -> Any:
        names.append(name)
        time.sleep(0.1)
        return loaded(self, name, *given)

    monkeypatch.setattr(LiveHub, "_load", load)
    with running(LiveHub(hub)):
        pass
    assert len(names) < 9
