"""Several workers on one port speak as one server."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from running_server import BEARER, TOKEN, Running, picture, starting

from sample_tasks import sample_task
from torchsnow.hub import Hub
from torchsnow.hub.live import LiveHub
from torchsnow.serving.siblings import Place
from torchsnow.serving.starting import Starting
from torchsnow.serving.workers import bind
from torchsnow.task_file import encode_task

Pair = tuple[Running, list[Starting]]


@pytest.fixture
def pair(hub: Hub, tmp_path: Path) -> Iterator[Pair]:
    """Two workers, which look at the hub by themselves too seldom to matter."""
    with ExitStack() as stack, bind("127.0.0.1", 0) as shared:
        apps = []
        for number in range(2):
            place = Place(number, 2, str(tmp_path))
            opened = Hub.open(hub.folder.path, hub.source)
            listener = socket.socket(fileno=socket.dup(shared.fileno()))
            server, app = stack.enter_context(
                starting(
                    lambda opened=opened: LiveHub(opened), place, listener, token=TOKEN, follow_s=60, decode_processes=1
                )
            )
            apps.append(app)
        server.wait_until(lambda: readiness(server) == 200, 120)
        yield server, apps


def readiness(server: Running) -> int:
    return server.call("GET", "/v2/health/ready").status


def statuses(server: Running, name: str) -> set[int]:
    """What whichever worker is asked says of a task."""
    return {server.predict([picture()], [name], **BEARER).status for _ in range(6)}


def test_a_change_through_one_worker_is_that_of_all(pair: Pair, hub: Hub) -> None:
    server, _ = pair
    task = sample_task(hub.source, "new", seed=7)
    assert server.call("POST", "/admin/tasks", encode_task(task), BEARER).status == 201
    assert statuses(server, "new") == {200}
    assert server.call("POST", "/v2/repository/models/new/unload", b"", BEARER).status == 200
    assert statuses(server, "new") == {404}
    assert server.call("POST", "/v2/repository/models/new/load", b"", BEARER).status == 200
    assert server.call("POST", "/v2/repository/models/nobody/unload", b"", BEARER).status == 404
    assert statuses(server, "new") == {200}
    assert server.call("DELETE", "/admin/tasks/new", None, BEARER).status == 200
    assert statuses(server, "new") == {404}


def test_the_figures_are_those_of_all_workers_and_say_whose(pair: Pair) -> None:
    server, apps = pair
    for app in apps:
        assert app._service is not None
        app._service.metrics.passes.inc(3)
    text = server.call("GET", "/metrics", None, BEARER).body.decode()
    lines = text.splitlines()
    for number in (0, 1):
        assert f'torchsnow_worker_up{{worker="{number}"}} 1.0' in lines
        assert f'torchsnow_source_passes_total{{worker="{number}"}} 3.0' in lines
        assert f'torchsnow_loop_age_seconds{{loop="follow",worker="{number}"}}' in text
    assert len([line for line in lines if line.startswith("# TYPE torchsnow_source_passes_total ")]) == 1


def test_one_worker_that_is_not_ready_is_told_by_all(pair: Pair) -> None:
    server, apps = pair
    assert apps[0]._service is not None
    apps[0]._service.drain()
    assert {readiness(server) for _ in range(6)} == {503}


def test_a_worker_that_is_gone_is_told(pair: Pair, tmp_path: Path) -> None:
    server, _ = pair
    (tmp_path / "0").unlink()  # whoever is asked finds one of the two at least
    (tmp_path / "1").unlink()
    text = server.call("GET", "/metrics", None, BEARER).body.decode()
    assert sorted(line for line in text.splitlines() if line.startswith("torchsnow_worker_up")) in (
        ['torchsnow_worker_up{worker="0"} 0.0', 'torchsnow_worker_up{worker="1"} 1.0'],
        ['torchsnow_worker_up{worker="0"} 1.0', 'torchsnow_worker_up{worker="1"} 0.0'],
    )
    assert readiness(server) == 503


def test_a_worker_that_takes_the_place_of_another_offers_what_the_others_do(
    pair: Pair, hub: Hub, tmp_path: Path
) -> None:
    server, apps = pair
    assert server.call("POST", "/v2/repository/models/a/unload", b"", BEARER).status == 200
    (tmp_path / "0").unlink()
    opened = Hub.open(hub.folder.path, hub.source)
    with starting(lambda: LiveHub(opened), Place(0, 2, str(tmp_path)), token=TOKEN, decode_processes=1) as (other, app):
        other.wait_until(lambda: readiness(other) == 200, 60)
        assert app._service is not None
        assert app._service.watcher.unloaded == {"a"}
    assert apps[0]._service is not None
