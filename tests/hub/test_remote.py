from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from torch import Tensor

from sample_tasks import sample_task
from torchsnow.errors import HubError
from torchsnow.hub import Hub, is_hub
from torchsnow.hub.live import LiveHub
from torchsnow.hub.remote import Copy, folder_at, url_of, validate_local
from torchsnow.source import Source

URL = "memory://bucket/hub"


@pytest.fixture(autouse=True)
def copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TORCHSNOW_HUBS", str(tmp_path / "copies"))
    return tmp_path / "copies"


@pytest.fixture
def store() -> Iterator[Any]:
    files = fsspec.filesystem("memory")
    yield files
    files.store.clear()
    files.pseudo_dirs[:] = [""]


def upload(hub: Hub, store: Any) -> None:
    """As the docs say: task files first, the index last."""
    files = sorted(hub.folder.path.rglob("*.*"), key=lambda path: path.name == "index.json")
    for path in files:
        if path.is_file():
            store.pipe_file(f"/bucket/hub/{path.relative_to(hub.folder.path).as_posix()}", path.read_bytes())


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("s3://bucket/hub", "s3://bucket/hub"),
        (Path("s3://bucket/hub/"), "s3://bucket/hub"),
        (Path("memory://hub"), "memory://hub"),
        (Path("hf://org/name"), "hf://org/name"),
        ("file:///srv/hub", "file:///srv/hub"),
        (Path("file:///srv/hub"), "file:///srv/hub"),
        (Path("/srv/hub"), None),
        (Path("hub"), None),
        ("c:/hub", None),
        ("a/b://c", None),
    ],
)
def test_addresses(given: Path | str, url: str | None) -> None:
    assert url_of(given) == url


@pytest.mark.parametrize("address", ["s3://", "s3:///", "file://", "hf://"])
def test_an_address_without_a_place_is_refused(address: str) -> None:
    with pytest.raises(HubError, match=f"{address} names no place; expected an address as {address[:4].strip('/')}"):
        url_of(address)


def test_a_hub_in_a_store_answers_as_the_folder_does(hub: Hub, store: Any, images: Tensor, source: Source) -> None:
    upload(hub, store)
    remote = Hub.open(URL, source)
    assert remote.infos() == hub.infos()
    assert is_hub(Path(URL))
    assert list(remote.folder.path.glob("tasks/*/*")) == []  # nothing is downloaded before it is asked for
    one = remote.predict(images, ["a"])
    assert [path.parent.name for path in remote.folder.path.glob("tasks/*/*")] == ["a"]
    for name, logits in {**one, **remote.predict(images, ["b"])}.items():
        assert torch.equal(logits, hub.predict(images)[name])
    assert remote.verify() == []
    assert remote.info("b").classes == hub.info("b").classes
    again = Hub.open(remote.folder.path, source)  # by the path of the copy, as exports do
    assert isinstance(again.folder, Copy)


def test_the_local_file_system_by_its_address(hub: Hub, source: Source) -> None:
    remote = Hub.open(Path(f"file://{hub.folder.path}"), source)
    assert remote.infos() == hub.infos()
    assert remote.verify() == []


def test_a_former_version_of_what_is_here_is_not_downloaded_again(hub: Hub, store: Any, source: Source) -> None:
    upload(hub, store)
    Hub.open(URL, source).task("a")
    store.rm("/bucket/hub/tasks", recursive=True)
    assert Hub.open(URL, source).task("a").name == "a"
    with pytest.raises(HubError, match=r"there is no memory://bucket/hub/tasks/b/.*: it was deleted, or not copied"):
        Hub.open(URL, source).task("b")


def test_changes_are_followed(hub: Hub, store: Any, source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    upload(hub, store)
    remote = Hub.open(URL, source)
    live = LiveHub(remote)
    assert sorted(live.now.entries) == ["a", "b"]
    hub.remove("b")
    hub.add(sample_task(source, "c"))
    upload(hub, store)
    assert live.poll() is False  # the index is a moment old
    monkeypatch.setattr("torchsnow.hub.remote.REFRESH_S", 0.0)
    assert live.poll() is True
    assert [task.name for task in live.tasks()] == ["a", "c"]


@pytest.mark.parametrize("part", [slice(0, 100), slice(0, 0)], ids=["half", "nothing"])
def test_a_cut_in_the_middle_leaves_what_was_there(
    part: slice, hub: Hub, store: Any, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload(hub, store)
    remote = Hub.open(URL, source)
    monkeypatch.setattr("torchsnow.hub.remote.REFRESH_S", 0.0)
    before = (remote.folder.path / "index.json", remote.index())
    content = store.cat_file("/bucket/hub/index.json")
    path = next(file for file in store.find("/bucket/hub/tasks/a"))
    task = store.cat_file(path)
    store.pipe_file("/bucket/hub/index.json", content[part])
    with pytest.raises(HubError, match=r"memory://bucket/hub/index\.json"):
        remote.names()
    assert before[0].read_bytes() == content
    store.pipe_file("/bucket/hub/index.json", content)
    store.pipe_file(path, task[part])
    with pytest.raises(HubError, match="task 'a' of the hub memory://bucket/hub cannot be used: its file has the SHA"):
        remote.task("a")
    assert remote.task("b").name == "b"
    store.pipe_file(path, task)
    assert remote.task("a").name == "a"


def test_a_task_that_does_not_come_is_fetched_now_and_then(
    hub: Hub, store: Any, source: Source, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By whoever follows the hub, four times a second it may be."""
    upload(hub, store)
    path = next(file for file in store.find("/bucket/hub/tasks/a"))
    content, opened, opens = store.cat_file(path), [], type(store).open
    store.pipe_file(path, content[:100])

    def noting(self: Any, file: str, *given: Any, **how: Any) -> Any:
        opened.append(file)
        return opens(self, file, *given, **how)

    live = LiveHub(Hub.open(URL, source))
    assert list(live.predict(images)) == ["b"]
    monkeypatch.setattr(type(store), "open", noting)
    for _ in range(3):
        assert not live.poll()
        assert list(live.predict(images)) == ["b"]
    assert opened == []
    store.pipe_file(path, content)
    later_s = time.monotonic() + 6
    monkeypatch.setattr(time, "monotonic", lambda: later_s)
    assert live.poll()
    assert list(live.predict(images)) == ["a", "b"]


def test_no_connection(hub: Hub, store: Any, source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    upload(hub, store)
    remote = Hub.open(URL, source)
    monkeypatch.setattr("torchsnow.hub.remote.REFRESH_S", 0.0)

    def cut(*given: Any, **how: Any) -> None:
        raise TimeoutError("no answer")

    monkeypatch.setattr(type(store), "open", cut)
    with pytest.raises(HubError, match=r"cannot read memory://bucket/hub/index.json \(no answer\); check"):
        remote.names()


def test_a_file_that_is_longer_than_the_index_says(hub: Hub, store: Any, source: Source) -> None:
    upload(hub, store)
    path = next(file for file in store.find("/bucket/hub/tasks/a"))
    store.pipe_file(path, store.cat_file(path) + b"x")
    with pytest.raises(HubError, match="has more bytes than the"):
        Hub.open(URL, source).task("a")


def test_what_is_no_hub(store: Any) -> None:
    with pytest.raises(HubError, match=r"there is no memory://bucket/hub/source.json: it is not a hub"):
        Hub.open(URL)
    with pytest.raises(HubError, match="cannot reach nosuch://x"):
        Hub.open("nosuch://x/y")


@pytest.mark.parametrize(("url", "extra"), [("s3://b/hub", "s3"), ("gs://b/hub", "gcs"), ("hf://me/x", "hub")])
def test_without_the_library(url: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def lacks(url: str) -> None:
        raise ImportError("Install it")

    monkeypatch.setattr("fsspec.core.url_to_fs", lacks)
    with pytest.raises(HubError, match=rf"pip install 'torchsnow\[{extra}\]'"):
        folder_at(url)


def test_it_is_never_written(hub: Hub, store: Any, source: Source) -> None:
    upload(hub, store)
    remote = Hub.open(URL, source)
    before = dict(store.store)
    for change in (
        lambda: remote.add(sample_task(source, "c")),
        lambda: remote.remove("a"),
        lambda: remote.rollback("a"),
        lambda: remote.gc(),
        lambda: Hub.create(URL, source),
        lambda: Hub.validate_vacant(Path(URL)),
        lambda: validate_local(remote.folder.path),
    ):
        with pytest.raises(HubError, match=r"the hub memory://bucket/hub can only be read: .* push it there"):
            change()
    assert dict(store.store) == before
    validate_local(hub.folder.path)


def test_an_s3_server(hub: Hub, source: Source, images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("s3fs", reason="needs the extra s3")
    moto = pytest.importorskip("moto.server", reason="needs the package moto[server]")
    for key, value in {"ACCESS_KEY_ID": "a", "SECRET_ACCESS_KEY": "b", "DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(f"AWS_{key}", value)
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://{}:{}".format(*server.get_host_and_port()))
        files = fsspec.filesystem("s3")
        files.mkdir("parts")
        files.put(f"{hub.folder.path}/", "parts/hub", recursive=True)
        remote = Hub.open("s3://parts/hub", source)
        assert remote.verify() == []
        for name, logits in remote.predict(images).items():
            assert torch.equal(logits, hub.predict(images)[name])
    finally:
        server.stop()
