"""A server that lives before its hub is loaded, and answers before all tasks are."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
from running_server import Reply, Running, picture, running

from sample_tasks import sample_task
from torchsnow.errors import HubError
from torchsnow.hub import Hub
from torchsnow.hub.live import LiveHub
from torchsnow.serving.run import _server, bind
from torchsnow.serving.settings import ServeSettings
from torchsnow.serving.starting import Starting


@contextmanager
def starting(load: Any, **settings: Any) -> Iterator[tuple[Running, Starting]]:
    """A server whose hub is loaded as the test says."""
    given = ServeSettings(**settings)

    def give_up() -> None:
        server.should_exit = True

    app = Starting(load, given, give_up)
    server = _server(app, given, app)
    with bind("127.0.0.1", 0) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            while not server.started:
                time.sleep(0.01)
            yield Running(listener.getsockname()[1], None), app  # type: ignore[arg-type]
        finally:
            server.should_exit = True
            thread.join(30)
    assert not thread.is_alive()


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


def answers(server: Running) -> bool:
    try:
        return server.call("GET", "/v2/health/live").status == 200
    except (OSError, http.client.HTTPException):
        return False


def test_tasks_answer_before_all_are_loaded(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    live, loaded, go_on = LiveHub(hub), LiveHub._load, threading.Event()
    monkeypatch.setattr("torchsnow.serving.service._FIRST_LOOK_S", 0.01)

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
    monkeypatch.setattr("torchsnow.serving.service._FIRST_LOOK_S", 0.01)

    def load(self: LiveHub, name: str, *given: Any) -> Any:
        names.append(name)
        time.sleep(0.1)
        return loaded(self, name, *given)

    monkeypatch.setattr(LiveHub, "_load", load)
    with running(LiveHub(hub)):
        pass
    assert len(names) < 9
