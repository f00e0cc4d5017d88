"""A hub is pushed to object stores: in memory, in a folder, and to a real S3 server."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from sample_tasks import sample_task
from torchsnow.errors import HubError
from torchsnow.hub import Hub
from torchsnow.sharing import push_to_store, store
from torchsnow.source import Source


@pytest.fixture(scope="module")
def s3_server() -> Iterator[str]:
    """The address of an S3 server."""
    if importlib.util.find_spec("moto") is None or importlib.util.find_spec("s3fs") is None:
        pytest.skip("moto or s3fs is not installed")
    words = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        assert process.stdout is not None
        while b"Running on http" not in (line := process.stdout.readline()):
            assert line, "it has ended"
        url = line.split()[-1].decode()
        threading.Thread(target=process.stdout.read, daemon=True).start()
        try:
            yield url
        finally:
            process.terminate()


@pytest.fixture(params=["memory", "file", pytest.param("s3", marks=pytest.mark.integration)])
def url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A place without a hub."""
    monkeypatch.setenv("TORCHSNOW_HUBS", str(tmp_path / "copies"))
    monkeypatch.setattr("torchsnow.hub.remote.REFRESH_S", 0.0)
    if request.param == "file":
        yield f"file://{tmp_path}/store/hub"
    elif request.param == "memory":
        yield "memory://bucket/hub"
        fsspec.filesystem("memory").store.clear()
    else:
        server = request.getfixturevalue("s3_server")
        use_s3(server, monkeypatch)
        urllib.request.urlopen(urllib.request.Request(f"{server}/moto-api/reset", method="POST")).close()
        fsspec.filesystem("s3").mkdir("bucket")
        yield "s3://bucket/hub"
        fsspec.get_filesystem_class("s3").clear_instance_cache()


def use_s3(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let S3 be this server; connections are kept, so whoever is done with it forgets them."""
    for name, value in (("ENDPOINT_URL", server), ("ACCESS_KEY_ID", "x"), ("SECRET_ACCESS_KEY", "x")):
        monkeypatch.setenv(f"AWS_{name}", value)
    fsspec.get_filesystem_class("s3").clear_instance_cache()


def contents(url: str) -> dict[str, str]:
    """The tasks that a reader has, after all of their files are checked."""
    opened = Hub.open(url)
    assert [problem for problem in opened.verify() if problem.task is not None] == []
    return {name: entry.sha256 for name, entry in opened.infos().items()}


def own(hub: Hub) -> dict[str, str]:
    return {name: entry.sha256 for name, entry in hub.infos().items()}


def test_what_is_pushed_is_read(url: str, hub: Hub) -> None:
    assert push_to_store(hub, url, ["a"]).tasks == ("a",)
    assert contents(url) == {"a": own(hub)["a"]}
    assert push_to_store(hub, url).tasks == ("a", "b")
    assert contents(url) == own(hub)
    assert Hub.open(url).generation == 2


def test_nothing_is_lost_unless_it_is_said(url: str, hub: Hub, source: Source) -> None:
    push_to_store(hub, url)
    before = own(hub)
    hub.add(sample_task(source, "a", seed=9), replace=True)
    with pytest.raises(HubError, match=r"has tasks that this would change or drop: a; replace"):
        push_to_store(hub, url)
    with pytest.raises(HubError, match=r"would change or drop: a; replace"):
        push_to_store(hub, url, ["b"])
    assert contents(url) == before
    push_to_store(hub, url, replace=True)
    assert contents(url) == own(hub) != before


def test_of_two_pushes_at_once_one_is_refused(url: str, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    push_to_store(hub, url, ["a"])
    swap, both = store.Store.swap, threading.Barrier(2, timeout=30)

    def together(self: Any, *given: Any) -> None:
        both.wait()
        swap(self, *given)

    monkeypatch.setattr(store.Store, "swap", together)
    outcomes: list[Any] = []

    def push(names: list[str]) -> None:
        try:
            outcomes.append(push_to_store(hub, url, names).tasks)
        except HubError as error:
            outcomes.append(str(error))

    threads = [threading.Thread(target=push, args=(names,)) for names in (["a", "b"], ["b", "a"])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(map(type, outcomes), key=str) == [str, tuple]
    assert next(one for one in outcomes if isinstance(one, str)).startswith(f"somebody else changed {url} meanwhile")
    assert contents(url) == own(hub)
    assert Hub.open(url).generation == 2


@pytest.mark.parametrize("file", ["tasks/a", "tasks/b", "source.json", "index.json"])
def test_a_cut_in_the_middle_leaves_what_was_there(
    url: str, file: str, hub: Hub, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    if file != "source.json":
        push_to_store(hub, url)
        before = own(hub)
        for seed, name in enumerate("ab", 7):
            hub.add(sample_task(source, name, seed=seed), replace=True)

    def cut(self: Any, name: str, *given: Any) -> None:
        if name.startswith(file):
            raise HubError("cannot write: the connection is lost")
        kept[type(given[0])](self, name, *given)

    kept = {bytes: store.Store.put, store._Seen: store.Store.swap, type(None): store.Store.swap}
    with monkeypatch.context() as patch:
        patch.setattr(store.Store, "put", cut)
        patch.setattr(store.Store, "swap", cut)
        with pytest.raises(HubError, match="the connection is lost"):
            push_to_store(hub, url, replace=True)
    if file == "source.json":
        with pytest.raises(HubError, match="it is not a hub"):
            Hub.open(url)
    else:
        assert contents(url) == before
    push_to_store(hub, url, replace=True)
    assert contents(url) == own(hub)


@pytest.mark.integration
def test_no_bucket_is_made(hub: Hub, s3_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use_s3(s3_server, monkeypatch)
    with pytest.raises(HubError, match=r"cannot write s3://buckte/hub/.*bucket does not exist"):
        push_to_store(hub, "s3://buckte/hub")
    fsspec.get_filesystem_class("s3").clear_instance_cache()


@pytest.mark.integration
def test_a_server_that_is_gone_is_named(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("s3fs")
    use_s3("http://127.0.0.1:9", monkeypatch)
    start_s = time.monotonic()
    with pytest.raises(HubError, match=r"cannot read s3://bucket/other/index.json .* The hub there is as it was"):
        push_to_store(hub, "s3://bucket/other")
    assert time.monotonic() - start_s < 60
    fsspec.get_filesystem_class("s3").clear_instance_cache()


def test_places_without_a_conditional_write_are_refused(hub: Hub) -> None:
    with pytest.raises(HubError, match=r"knows no conditional write there; expected .* s3, s3a, file, local, memory"):
        push_to_store(hub, "zip://hub::/tmp/x.zip")
