from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from fake_hub import FakeHub, fake_hub

from sample_tasks import sample_task
from torchsnow.errors import HubError
from torchsnow.hub import Hub
from torchsnow.sharing import pull, push
from torchsnow.source import Source, load_source

NAME = "me/parts"


@pytest.fixture
def remote(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    constants = pytest.importorskip("huggingface_hub").constants
    with fake_hub() as started:
        monkeypatch.setattr(constants, "ENDPOINT", started.url)
        template = f"{started.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", "hf_test")
        monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        yield started


def test_a_hub_goes_out_and_comes_in_bit_by_bit(hub: Hub, remote: FakeHub, tmp_path: Path) -> None:
    pushed = push(hub, NAME, licence="apache-2.0")
    assert pushed.tasks == ("a", "b")
    assert pushed.url.startswith(f"{remote.url}/{NAME}/commit/")
    files = remote.files(NAME)
    stored = {f"tasks/{name}/{entry.sha256}.safetensors" for name, entry in hub.infos().items()}
    assert set(files) == {".gitattributes", "README.md", "source.json", "index.json", *stored}

    pulled = pull(NAME, tmp_path / "other")
    assert (pulled.added, pulled.unchanged) == (("a", "b"), ())
    other = Hub.open(tmp_path / "other", hub.source)
    assert {name: entry.sha256 for name, entry in other.infos().items()} == {
        name: entry.sha256 for name, entry in hub.infos().items()
    }
    assert other.verify() == []
    assert pull(NAME, tmp_path / "other").unchanged == ("a", "b")


def test_what_was_pushed_is_a_hub_to_read_from(
    hub: Hub, remote: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHSNOW_HUBS", str(tmp_path / "copies"))
    push(hub, NAME)
    pushed = Hub.open(f"hf://{NAME}", hub.source)
    assert {name: entry.sha256 for name, entry in pushed.infos().items()} == {
        name: entry.sha256 for name, entry in hub.infos().items()
    }
    assert pushed.verify() == []


def test_one_task_and_what_would_be_lost(hub: Hub, remote: FakeHub, tmp_path: Path) -> None:
    push(hub, NAME, ["a"])
    push(hub, NAME)  # adds "b"
    assert sorted(json.loads(remote.files(NAME)["index.json"])["tasks"]) == ["a", "b"]
    with pytest.raises(HubError, match="would change or drop: b"):
        push(hub, NAME, ["a"])
    push(hub, NAME, ["a"], replace=True)
    assert [path for path in remote.files(NAME) if path.startswith("tasks/b")] == []
    assert pull(NAME, tmp_path / "old", revision=remote.repositories[NAME][-2][0]).added == ("a", "b")
    with pytest.raises(HubError, match="has no task 'c'; it has: a"):
        pull(NAME, tmp_path / "other", ["c"])
    assert not (tmp_path / "other").exists()


def test_a_name_that_is_taken(hub: Hub, remote: FakeHub, tmp_path: Path, source: Source) -> None:
    push(hub, NAME)
    other = Hub.create(tmp_path / "other", source)
    other.add(sample_task(source, "a", seed=9))
    with pytest.raises(HubError, match="another version of a; replace it with --replace"):
        pull(NAME, tmp_path / "other")
    assert other.names() == ["a"]
    assert pull(NAME, tmp_path / "other", replace=True).added == ("a", "b")
    assert len(other.former()["a"]) == 1


def damage(files: dict[str, bytes], key: str, content: bytes | None) -> None:
    path = next(path for path in files if path.startswith(key))
    if content is None:
        del files[path]
    else:
        files[path] = content


@pytest.mark.parametrize(
    ("key", "content", "words"),
    [
        ("tasks/b", b"\x80\x04pickle", "task 'b' of the repository me/parts cannot be used: .*damaged"),
        ("tasks/b", None, "has no tasks/b/.*: it was not pushed by torchsnow"),
        ("index.json", b"{}", "holds no sound hub: .*schema version"),
        ("source.json", b"[" * 10_000, "holds no sound hub"),
        ("index.json", None, "has no index.json: it was not pushed by torchsnow"),
    ],
)
def test_what_comes_in_is_checked_before_anything_is_added(
    key: str, content: bytes | None, words: str, hub: Hub, remote: FakeHub, tmp_path: Path
) -> None:
    push(hub, NAME)
    damage(remote.files(NAME), key, content)
    with pytest.raises(HubError, match=words):
        pull(NAME, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_file_that_is_too_large_is_not_downloaded(
    hub: Hub, remote: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(hub, NAME)
    monkeypatch.setattr("torchsnow.sharing.repository.MAX_SIZE_BYTES", 1000)
    with pytest.raises(HubError, match=r"tasks/a/.* bytes, more than the 1000 allowed"):
        pull(NAME, tmp_path / "other")


def test_a_file_of_another_task_under_a_right_digest(hub: Hub, remote: FakeHub, tmp_path: Path) -> None:
    push(hub, NAME)
    files = remote.files(NAME)
    index = json.loads(files["index.json"])
    index["tasks"]["b"] = index["tasks"]["a"]
    files["index.json"] = json.dumps(index).encode()
    sha256 = index["tasks"]["a"]["sha256"]
    files[f"tasks/b/{sha256}.safetensors"] = files[f"tasks/a/{sha256}.safetensors"]
    with pytest.raises(HubError, match=r"task 'b' .* it holds the task 'a'"):
        pull(NAME, tmp_path / "other")


def test_what_is_damaged_here_does_not_go_out(hub: Hub, remote: FakeHub) -> None:
    file = hub.folder.task_file("a", hub.infos()["a"])
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(HubError, match="task 'a' is damaged"):
        push(hub, NAME)
    assert remote.repositories == {}


def test_something_else_is_not_written_over(hub: Hub, remote: FakeHub) -> None:
    remote.commit(NAME, {"model.bin": b"precious"})
    with pytest.raises(HubError, match=r"holds something else \(model.bin\)"):
        push(hub, NAME, replace=True)
    assert remote.files(NAME) == {"model.bin": b"precious"}


def test_a_commit_of_somebody_else_is_not_lost(hub: Hub, remote: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    push(hub, NAME)

    def meanwhile(*given: Any) -> str:
        remote.commit(NAME, {**remote.files(NAME), "tasks/c/x": b"theirs"})
        return "a card"

    monkeypatch.setattr("torchsnow.sharing.repository.model_card", meanwhile)
    with pytest.raises(HubError, match="if somebody else changed it, try again"):
        push(hub, NAME, ["a"], replace=True)
    assert remote.files(NAME)["tasks/c/x"] == b"theirs"


def test_another_source(remote: FakeHub, hub: Hub, tmp_path: Path) -> None:
    push(hub, NAME)
    Hub.create(tmp_path / "other", load_source("test_resnet", "random", mean=(0.1, 0.1, 0.1)))
    with pytest.raises(HubError, match=r"belong to another source: .*they differ in preprocessing"):
        pull(NAME, tmp_path / "other")


def test_no_such_repository_and_odd_names(remote: FakeHub, tmp_path: Path) -> None:
    with pytest.raises(HubError, match=r"cannot reach the repository me/none .*check its name"):
        pull("me/none", tmp_path / "other")
    for name in ("parts", "a/b/c", "me/../x", ""):
        with pytest.raises(HubError, match="expected ORGANISATION/NAME"):
            pull(name, tmp_path / "other")


def test_without_the_library(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(HubError, match=r"pip install 'torchsnow\[hub\]'"):
        push(hub, NAME)


def test_the_card_says_what_people_need(hub: Hub, remote: FakeHub, source: Source) -> None:
    metrics = {"num_images": 200, "accuracy": 0.9, "balanced_accuracy": 0.85}
    task = sample_task(source, "c", num_classes=3)
    task.metrics.update({"test": metrics})
    task.training.update({"data": "photos|<script>", "epochs": 20})
    hub.add(task)
    push(hub, NAME, ["c"], licence="mit")
    _, head, text = remote.files(NAME)["README.md"].decode().split("---\n", 2)
    assert yaml.safe_load(head) == {
        "license": "mit",
        "library_name": "torchsnow",
        "pipeline_tag": "image-classification",
        "tags": ["torchsnow", "transfer-learning", "channel-pooling"],
    }
    assert "3 classes: cat, dog, Überhund." in text
    assert "| test | 200 | 90.0% | 85.1% to 93.4% | 85.0% |" in text
    assert "| data | photos\\|\\<script\\> |" in text
    assert "torchsnow pull me/parts --hub my-hub" in text
    assert hub.infos()["c"].sha256 in text
    assert "Tasks: mit." in text
    assert source.fingerprint in text
