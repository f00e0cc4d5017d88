"""A server follows its hub's folder."""

from __future__ import annotations

import difflib
import shutil
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from running_server import Running, picture, running

from sample_tasks import sample_task
from torchsnow.hub import Entry, Hub
from torchsnow.hub.folder import Index
from torchsnow.hub.live import LiveHub
from torchsnow.serving import batcher
from torchsnow.serving.api_error import ApiError
from torchsnow.serving.hub_watcher import HubWatcher
from torchsnow.serving.metrics import Metrics
from torchsnow.serving.settings import ServeSettings
from torchsnow.task_file import Task


def speaks(server: Running, name: str) -> str | None:
    """The SHA-256 of the version of a task that answers."""
    reply = server.predict([picture()], [name])
    assert reply.status in (200, 404), reply.body
    return reply.json["images"][0]["answers"][0]["sha256"] if reply.status == 200 else None


def seconds_until(server: Running, name: str, sha256: str | None) -> float:
    start_s = time.monotonic()
    server.wait_until(lambda: speaks(server, name) == sha256)
    return time.monotonic() - start_s


def test_a_task_that_is_added_answers_within_two_seconds_and_so_on(server: Running, hub: Hub) -> None:
    hub.add(sample_task(hub.source, "new", seed=7))
    first = hub.infos()["new"].sha256
    assert seconds_until(server, "new", first) < 2
    hub.add(sample_task(hub.source, "new", seed=8), replace=True)
    second = hub.infos()["new"].sha256
    assert second != first
    assert seconds_until(server, "new", second) < 2
    hub.remove("new")
    assert seconds_until(server, "new", None) < 2
    server.wait_until(lambda: len(server.call("GET", "/tasks").json["tasks"]) == 3)
    server.wait_until(lambda: b'task="new"' not in server.call("GET", "/metrics").body)


def test_a_damaged_task_is_reported_and_the_others_answer(server: Running, hub: Hub) -> None:
    hub.add(sample_task(hub.source, "d", seed=7))
    file = next((hub.folder.path / "tasks" / "d").glob("*.safetensors"))
    other = Hub.open(hub.folder.path, hub.source)
    other.add(sample_task(hub.source, "e", seed=9))
    damaged = next((hub.folder.path / "tasks" / "e").glob("*.safetensors"))
    server.wait_until(lambda: speaks(server, "e") is not None)
    # The next change makes the server look at the folder again, where a file is not what the index says.
    hub.add(sample_task(hub.source, "e", seed=10), replace=True)
    damaged = next(path for path in (hub.folder.path / "tasks" / "e").glob("*") if path.stem == hub.infos()["e"].sha256)
    damaged.write_bytes(file.read_bytes()[:-1] + b"\0")
    server.wait_until(lambda: server.predict([picture()], ["d"]).status == 200)
    reply = server.predict([picture()])
    assert reply.status == 200
    assert {"a", "b", "c", "d"} <= {answer["task"] for answer in reply.json["images"][0]["answers"]}


def test_a_file_that_is_damaged_later_is_reported_and_its_task_answers(
    server: Running, hub: Hub, caplog: pytest.LogCaptureFixture
) -> None:
    file, before = next((hub.folder.path / "tasks" / "b").glob("*.safetensors")), speaks(server, "b")
    kept = file.read_bytes()
    assert server.call("GET", "/tasks").json["damaged"] == []
    file.write_bytes(b"damaged")
    server.wait_until(lambda: server.call("GET", "/tasks").json["damaged"] == ["b"])
    server.wait_until(lambda: b"torchsnow_unusable_tasks 1.0" in server.call("GET", "/metrics").body)
    assert speaks(server, "b") == before
    assert [r.getMessage() for r in caplog.records].count("the file of a task is damaged") == 1
    file.unlink()
    time.sleep(0.2)
    assert server.call("GET", "/tasks").json["damaged"] == ["b"]
    file.write_bytes(kept)
    server.wait_until(lambda: server.call("GET", "/tasks").json["damaged"] == [])
    file.write_bytes(b"damaged")
    server.wait_until(lambda: server.call("GET", "/tasks").json["damaged"] == ["b"])
    hub.add(sample_task(hub.source, "b", seed=10), replace=True)
    server.wait_until(lambda: speaks(server, "b") == hub.infos()["b"].sha256)
    server.wait_until(lambda: server.call("GET", "/tasks").json["damaged"] == [])


def test_a_file_that_changes_while_it_is_damaged_is_reported_once(hub: Hub, caplog: pytest.LogCaptureFixture) -> None:
    live, file = LiveHub(hub), hub.folder.task_file("b", hub.infos()["b"])
    watcher = HubWatcher(live, Metrics(), 60)
    assert watcher.poll()
    for half in (b"", b"half", b"damaged"):
        file.write_bytes(half)
        assert watcher.poll()
        assert set(watcher.damaged) == {"b"}
    assert [r.getMessage() for r in caplog.records] == ["the file of a task is damaged"]


def test_a_bad_file_from_the_start_until_it_is_brought_back(hub: Hub) -> None:
    file = next((hub.folder.path / "tasks" / "b").glob("*.safetensors"))
    kept = file.read_bytes()
    file.write_bytes(b"damaged")
    with running(LiveHub(Hub.open(hub.folder.path, hub.source)), follow_s=0.05) as server:
        assert server.call("GET", "/tasks").json["unusable"] == ["b"]
        assert [a["task"] for a in server.predict([picture()]).json["images"][0]["answers"]] == ["a", "c"]
        reply = server.predict([picture()], ["b"])
        assert (reply.status, reply.json["code"]) == (409, "task_unusable")
        assert str(hub.folder.path) not in reply.body.decode()
        assert server.call("GET", "/v2/models/b/ready").status == 404
        states = {row["name"]: row["state"] for row in server.call("POST", "/v2/repository/index").json}
        assert states == {"a": "READY", "b": "UNAVAILABLE", "c": "READY"}
        file.write_bytes(kept)
        server.wait_until(lambda: server.call("GET", "/tasks").json["unusable"] == [])
        server.wait_until(lambda: "b" in {row["task"] for row in server.call("GET", "/tasks").json["tasks"]})
        assert speaks(server, "b") == hub.infos()["b"].sha256


def test_a_name_that_there_is_not_is_compared_with_few(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the event loop, where a hub of 10,000 tasks would hold up all others for 0.3 s."""
    live, compare, compared = LiveHub(hub), difflib.get_close_matches, []

    def noting(name: str, others: Iterable[str], n: int) -> list[str]:
        found = list(others)
        compared.append(len(found))
        return compare(name, found, n)

    entry = hub.infos()["a"]
    index = Index(1, {**{f"name-{number}": entry for number in range(1000)}, "other": entry})
    monkeypatch.setattr(live, "_now", replace(live.now, index=index))
    monkeypatch.setattr(difflib, "get_close_matches", noting)
    watcher = HubWatcher(live, Metrics(), 60)
    with pytest.raises(ApiError, match="did you mean 'name-7'"):
        watcher.tasks_at_hand(["name-7x"])
    with pytest.raises(ApiError, match="GET /tasks lists"):
        watcher.tasks_at_hand([""])
    assert compared == [200, 0]


def test_a_hub_that_cannot_be_read_goes_on_answering(server: Running, hub: Hub) -> None:
    index = hub.folder.path / "index.json"
    kept = index.read_bytes()
    index.write_bytes(b"{")
    time.sleep(0.3)
    assert speaks(server, "a") == server.call("GET", "/tasks").json["tasks"][0]["sha256"]
    index.write_bytes(kept)
    hub.add(sample_task(hub.source, "new", seed=7))
    server.wait_until(lambda: speaks(server, "new") is not None)


def test_an_index_behind_a_link_is_not_read(server: Running, hub: Hub, tmp_path: Path) -> None:
    index, before = hub.folder.path / "index.json", speaks(server, "a")
    outside = tmp_path / "index.json"
    outside.write_text(index.read_text().replace('"a"', '"z"').replace('"generation": 3', '"generation": 9'))
    index.unlink()
    index.symlink_to(outside)
    time.sleep(0.3)
    assert speaks(server, "z") is None
    assert speaks(server, "a") == before


def test_a_hub_that_is_brought_back_from_a_copy_is_taken_over(server: Running, hub: Hub, tmp_path: Path) -> None:
    """Also where its index has the same number of changes behind it."""
    copy = Hub.open(shutil.copytree(hub.folder.path, tmp_path / "copy"), hub.source)
    hub.add(sample_task(hub.source, "new", seed=7))
    server.wait_until(lambda: speaks(server, "new") is not None)
    copy.remove("a")
    assert copy.generation == hub.generation
    shutil.copytree(copy.folder.path, hub.folder.path, dirs_exist_ok=True)
    server.wait_until(lambda: [row["task"] for row in server.call("GET", "/tasks").json["tasks"]] == ["b", "c"])
    assert speaks(server, "a") is speaks(server, "new") is None


def test_a_version_answers_until_the_next_is_loaded(server: Running, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, version, before = threading.Event(), Hub.version, speaks(server, "a")

    def slow(self: Hub, name: str, entry: Entry) -> Task:
        gate.wait(30)
        return version(self, name, entry)

    monkeypatch.setattr(Hub, "version", slow)
    hub.add(sample_task(hub.source, "a", seed=7), replace=True)
    server.wait_until(lambda: server.service.live.now.entries["a"].sha256 == hub.infos()["a"].sha256)
    assert speaks(server, "a") == before
    gate.set()
    server.wait_until(lambda: speaks(server, "a") == hub.infos()["a"].sha256)


def test_a_folder_that_is_gone_for_a_while(server: Running, hub: Hub) -> None:
    away = hub.folder.path.with_name("away")
    shutil.move(hub.folder.path, away)
    time.sleep(0.3)
    assert speaks(server, "a") is not None
    shutil.move(away, hub.folder.path)
    assert speaks(server, "b") is not None


# faults that are nobody's but ours


@pytest.fixture
def watched(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    """A server that is not ready once a loop of its has failed for 0.4 s."""
    monkeypatch.setattr(ServeSettings, "longest_age_s", 0.4)
    monkeypatch.setattr(batcher, "_IDLE_S", 0.05)
    with running(LiveHub(hub), follow_s=0.05) as started:
        started.wait_until(lambda: readiness(started) == 200)
        yield started


def readiness(server: Running) -> int:
    return server.call("GET", "/v2/health/ready").status


def age_s(server: Running, loop: str = "follow") -> float:
    lines = server.call("GET", "/metrics").body.decode().splitlines()
    (line,) = [line for line in lines if line.startswith(f'torchsnow_loop_age_seconds{{loop="{loop}"}}')]
    return float(line.split()[1])


def test_a_round_may_take_a_deadline_and_some_time_more() -> None:
    assert ServeSettings(deadline_s=2, follow_s=0.1, stale_s=30).longest_age_s == 32
    assert ServeSettings(deadline_s=2, follow_s=60, stale_s=30).longest_age_s == 90


@pytest.mark.parametrize("error", [MemoryError, RuntimeError])
@pytest.mark.parametrize("place", [(LiveHub, "poll"), (HubWatcher, "_poll"), (Hub, "index")])
def test_the_follower_outlives_any_exception_and_says_so(
    watched: Running,
    hub: Hub,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    place: tuple[type, str],
    error: type[Exception],
) -> None:
    def broken(*_: object) -> None:
        raise error("not a fault of the hub")

    watched.wait_until(lambda: max(age_s(watched), age_s(watched, "passes")) < 0.4)
    with monkeypatch.context() as patch:
        patch.setattr(*place, broken)
        watched.wait_until(lambda: age_s(watched) >= 0.4)
        assert readiness(watched) == 503
        hub.remove("a")
    watched.wait_until(lambda: speaks(watched, "a") is None)
    watched.wait_until(lambda: readiness(watched) == 200)
    assert "not a fault of the hub" in caplog.text


def test_a_task_that_fails_to_load_oddly_keeps_no_other_back_and_is_tried_again(
    watched: Running, hub: Hub, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    version, before = Hub.version, speaks(watched, "b")

    def failing(self: Hub, name: str, entry: Entry) -> Task:
        if name == "b":
            raise MemoryError("no room for it")
        return version(self, name, entry)

    with monkeypatch.context() as patch:
        patch.setattr(Hub, "version", failing)
        hub.add(sample_task(hub.source, "b", seed=7), replace=True)
        hub.add(sample_task(hub.source, "d", seed=8))
        hub.remove("a")
        watched.wait_until(lambda: speaks(watched, "d") is not None)
        watched.wait_until(lambda: speaks(watched, "a") is None)  # it may have gone after the others were taken over
        listed = [row["task"] for row in watched.call("GET", "/tasks").json["tasks"]]
        assert (listed, speaks(watched, "b")) == (["b", "c", "d"], before)
        watched.wait_until(lambda: readiness(watched) == 503)
    watched.wait_until(lambda: speaks(watched, "b") == hub.infos()["b"].sha256)
    watched.wait_until(lambda: readiness(watched) == 200)
    assert "taking over the task 'b'" in caplog.text


def test_a_hub_that_cannot_be_read_for_long_makes_the_server_not_ready(watched: Running, hub: Hub) -> None:
    """What was removed meanwhile still answers, so that somebody has to know."""
    index = hub.folder.path / "index.json"
    kept = index.read_bytes()
    index.write_bytes(b"{")
    watched.wait_until(lambda: readiness(watched) == 503)
    assert speaks(watched, "a") is not None
    index.write_bytes(kept)
    watched.wait_until(lambda: readiness(watched) == 200)


def test_a_change_that_a_request_saw_first_is_taken_over(server: Running, hub: Hub) -> None:
    hub.add(sample_task(hub.source, "new", seed=7))
    server.service.live.poll()
    server.wait_until(lambda: "new" in {row["task"] for row in server.call("GET", "/tasks").json["tasks"]})
