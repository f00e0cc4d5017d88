from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sample_tasks import logits, sample_task
from torchsnow.errors import HubError
from torchsnow.hub import Hub, Problem
from torchsnow.source import FeatureMaps, Request, Source, load_source
from torchsnow.task_file import content_hash


def task_file(hub: Hub, name: str) -> Path:
    (path,) = (hub.folder.path / "tasks" / name).iterdir()
    return path


# the store


def test_create_makes_what_open_reads(tmp_path: Path, source: Source) -> None:
    assert Hub.create(tmp_path / "new" / "hub", source).names() == []
    hub = Hub.open(tmp_path / "new" / "hub")
    assert (hub.names(), hub.infos(), hub.generation) == ([], {}, 0)
    assert hub.source_info.input_config == source.input_config
    assert hub.verify() == []
    assert hub.predict(torch.zeros(1, 3, 64, 64)) == {}


def test_tasks_are_stored_and_found_again(hub: Hub, source: Source, images: torch.Tensor) -> None:
    again = Hub.open(hub.folder.path)
    assert again.names() == ["a", "b"]
    assert again.generation == 2
    assert again.infos()["b"].num_classes == 4
    assert again.infos()["a"].size_bytes == task_file(hub, "a").stat().st_size
    assert again.infos()["a"].sha256 == content_hash(task_file(hub, "a").read_bytes()) == task_file(hub, "a").stem
    assert again.info("b").classes == ("cat", "dog", "Überhund", "fox")
    assert again.verify() == []
    expected = logits(source, sample_task(source, "a", seed=1), images)
    assert torch.equal(logits(source, again.task("a"), images), expected)


def test_the_source_is_loaded_when_first_needed(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = []

    def load(*arguments: Any) -> Source:
        loaded.append(arguments)
        return load_source(*arguments)

    monkeypatch.setattr("torchsnow.source.load_source", load)
    again = Hub.open(hub.folder.path)
    assert again.info("a").name == "a"
    assert loaded == []
    again.task("a")
    again.task("b")
    config = hub.source_info.input_config
    assert loaded == [("test_resnet", "random", "fp32", config.mean, config.std)]


def test_tasks_are_loaded_once_and_again_after_a_change(hub: Hub, source: Source) -> None:
    first = hub.task("a")
    assert hub.task("a") is first
    Hub.open(hub.folder.path).add(sample_task(source, "a", seed=9), replace=True)  # another process
    assert hub.task("a") is not first


def test_unknown_tasks_are_named_with_a_guess(hub: Hub, source: Source, tmp_path: Path) -> None:
    hub.add(sample_task(source, "flowers"))
    with pytest.raises(HubError, match="no task 'flower'; did you mean flowers"):
        hub.predict(torch.zeros(1, 3, 64, 64), ["flower"])
    with pytest.raises(HubError, match="no tasks yet"):
        Hub.create(tmp_path / "empty", source).task("a")
    with pytest.raises(HubError, match=r"no task '\.\./a'"):
        hub.info("../a")


# predictions


def test_one_pass_serves_all_tasks(hub: Hub, source: Source, images: torch.Tensor) -> None:
    narrow = {"taps": ("layer1.0.conv1",), "head_taps": (), "head_last": False}
    hub.add(sample_task(source, "narrow", **narrow))
    passes: list[Request] = []

    class Counting:
        def __call__(self, images: torch.Tensor, request: Request) -> FeatureMaps:
            passes.append(request)
            features: FeatureMaps = source(images, request)
            return features

        def __getattr__(self, name: str) -> Any:
            return getattr(source, name)

    again = Hub.open(hub.folder.path, Counting())  # type: ignore[arg-type]
    results = again.predict(images)
    assert list(results) == ["a", "b", "narrow"]
    assert results["b"].shape == (2, 4)
    assert not results["a"].requires_grad
    again.predict(images, ["narrow"])
    everything, little = passes
    assert set(everything.taps) == set(source.taps)
    assert everything.last
    assert little == Request(taps=("layer1.0.conv1",))


def test_predictions_are_in_eval_mode(hub: Hub, images: torch.Tensor) -> None:
    expected = hub.predict(images)["a"]
    hub.task("a").delta.train()
    assert torch.equal(hub.predict(images)["a"], expected)


def test_old_tasks_never_change(hub: Hub, source: Source, images: torch.Tensor) -> None:
    before, content = hub.predict(images), task_file(hub, "a").read_bytes()
    for number in range(4):
        hub.add(sample_task(source, f"later-{number}", seed=number))
        after = hub.predict(images)
        assert torch.equal(after["a"], before["a"])
        assert torch.equal(after["b"], before["b"])
    assert task_file(hub, "a").read_bytes() == content
    fresh = Hub.open(hub.folder.path).predict(images, ["a"])
    assert torch.equal(fresh["a"], before["a"])


def test_a_task_alone_and_among_many(tmp_path: Path, source: Source, images: torch.Tensor) -> None:
    hub = Hub.create(tmp_path, source)
    tasks = [sample_task(source, f"t{number}", seed=number, pool_divisor=1 + number) for number in range(8)]
    for task in tasks:
        hub.add(task)
    together = hub.predict(images)
    for task in tasks:
        torch.testing.assert_close(together[task.name], logits(source, task, images), rtol=1e-5, atol=1e-5)


# damage


def test_one_corrupt_file_leaves_the_others_alone(hub: Hub, images: torch.Tensor) -> None:
    path = task_file(hub, "a")
    content = bytearray(path.read_bytes())
    content[-3] ^= 1  # one bit of one weight: only the checksum can tell
    path.write_bytes(content)
    (problem,) = hub.verify()
    assert problem.task == "a"
    assert "damaged" in problem.message
    assert str(path) in problem.message
    for names in (None, ["a"], ["b", "a"]):
        with pytest.raises(HubError, match=r"task 'a' of the hub .* cannot be used: .*damaged"):
            hub.predict(images, names)
        left_out: list[Problem] = []
        results = hub.predict(images, names, left_out.append)
        assert set(results) == {"b"} & set(names or "ab")
        assert left_out == [problem]
    assert set(hub.predict(images, ["b"])) == {"b"}
    with pytest.raises(HubError, match="no task 'c'"):
        hub.predict(images, ["b", "c"], left_out.append)
    hub.remove("a")
    hub.gc()
    assert hub.verify() == []


def test_logits_that_are_not_finite_leave_the_others_alone(hub: Hub, images: torch.Tensor) -> None:
    torch.nn.init.constant_(hub.task("a").delta.head.fc.local.bias, torch.inf)  # type: ignore[union-attr, arg-type]
    for names in (None, ["a"], ["b", "a"]):
        with pytest.raises(HubError, match=r"task 'a' of the hub .*: its logits are not finite numbers"):
            hub.predict(images, names)
        left_out: list[Problem] = []
        assert set(hub.predict(images, names, left_out.append)) == {"b"} & set(names or "ab")
        assert [problem.task for problem in left_out] == ["a"]
    assert set(hub.predict(images, ["b"])) == {"b"}


def edit_index(hub: Hub, change: Callable[[dict[str, Any]], Any]) -> None:
    values = json.loads(hub.folder.index_file.read_text())
    change(values)
    hub.folder.index_file.write_text(json.dumps(values))


def test_verify_names_everything(hub: Hub, source: Source) -> None:
    (hub.folder.path / "notes.txt").touch()
    (hub.folder.path / "tasks" / "old").mkdir()
    (hub.folder.path / "tasks" / "b" / ".0123.tmp").touch()
    task_file_of_a = task_file(hub, "a")
    shutil.copy(task_file_of_a, hub.folder.path / "tasks" / "b" / task_file_of_a.name)
    task_file_of_a.unlink()
    edit_index(hub, lambda values: values["tasks"]["b"].update(num_classes=9))
    problems = hub.verify()
    assert [problem.task for problem in problems] == ["a", "b", None, None, None, None]
    assert "no such file" in problems[0].message
    assert "9 classes" in problems[1].message
    strays = ("notes.txt", "tasks/old", "tasks/b/.0123.tmp")
    assert {f"{hub.folder.path}/{path} is no part of the hub" for path in strays} < {p.message for p in problems[2:]}


def test_a_file_under_another_name_is_refused(hub: Hub) -> None:
    path = task_file(hub, "a")
    (hub.folder.path / "tasks" / "c").mkdir()
    shutil.copy(path, hub.folder.path / "tasks" / "c")
    edit_index(hub, lambda values: values["tasks"].update(c=values["tasks"]["a"]))
    with pytest.raises(HubError, match=r"task 'c' .*holds the task 'a'"):
        hub.task("c")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.update(schema_version=3), "schema version is 3, this torchsnow reads 2; upgrade"),
        (lambda v: v.update(schema_version=1), "schema version is 1, this torchsnow reads 2; an older torchsnow wrote"),
        (lambda v: v.pop("former"), "index lacks 'former'"),
        (lambda v: v["former"].update(a={}), "index.former.a is {}; expected a list"),
        (lambda v: v["former"].update({"../x": []}), "'../x' cannot be a task's name"),
        (
            lambda v: v["former"].update(a=[{**v["tasks"]["a"], "sha256": "x"}]),
            r"former.a\[0\].sha256 is not a SHA-256",
        ),
        (lambda v: v.pop("generation"), "index lacks 'generation'"),
        (lambda v: v["tasks"].update({"../x": v["tasks"]["a"]}), "'../x' cannot be a task's name"),
        (lambda v: v["tasks"]["a"].update(sha256="../x"), "sha256 is not a SHA-256"),
        (lambda v: v["tasks"]["a"].update(size_bytes="1"), "expected a whole number"),
    ],
)
def test_a_bad_index_is_refused(hub: Hub, change: Any, message: str) -> None:
    edit_index(hub, change)
    with pytest.raises(HubError, match=message):
        Hub.open(hub.folder.path)


def test_an_index_with_two_tasks_of_one_name_is_refused(hub: Hub) -> None:
    text = hub.folder.index_file.read_text()
    hub.folder.index_file.write_text(text.replace('"b": {', '"a": {'))
    with pytest.raises(HubError, match="""the key "a" occurs twice"""):
        Hub.open(hub.folder.path)


def test_folders_that_are_no_hub(hub: Hub, tmp_path: Path, source: Source) -> None:
    for path in (tmp_path, tmp_path / "missing", task_file(hub, "a")):
        with pytest.raises(HubError, match=r"is not a hub: it has no source.json"):
            Hub.open(path)
    with pytest.raises(HubError, match="is a hub already"):
        Hub.create(hub.folder.path, source)
    with pytest.raises(HubError, match="is not empty"):
        Hub.create(tmp_path, source)
    with pytest.raises(HubError, match=r"cannot make a hub in .*"):
        Hub.create(task_file(hub, "a"), source)
    hub.folder.index_file.unlink()
    with pytest.raises(HubError, match=r"cannot read .*index.json: no such file"):
        Hub.open(hub.folder.path)
    hub.folder.source_file.write_text("{")
    with pytest.raises(HubError, match=r"source.json: not valid JSON"):
        Hub.open(hub.folder.path)


def test_links_inside_are_refused(hub: Hub, tmp_path: Path, source: Source) -> None:
    path = task_file(hub, "a")
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    (hub.folder.path / "tasks" / "c").symlink_to(tmp_path)
    with pytest.raises(HubError, match=r"safetensors is a symbolic link"):
        hub.task("a")
    with pytest.raises(HubError, match=r"tasks/c is a symbolic link"):
        hub.add(sample_task(source, "c"))
    assert (tmp_path / "elsewhere").exists()
    assert {problem.task for problem in hub.verify()} == {"a", None}
    os.rename(hub.folder.path / "tasks", tmp_path / "tasks")
    (hub.folder.path / "tasks").symlink_to(tmp_path / "tasks")
    with pytest.raises(HubError, match=r"tasks is a symbolic link"):
        hub.task("b")


# sources


def test_another_source_is_refused(hub: Hub, source: Source) -> None:
    other = load_source("test_efficientnet", weights="random")
    with pytest.raises(HubError, match=r"on another source: test_resnet .* is not test_efficientnet .*differ in name"):
        Hub.open(hub.folder.path, other)
    with pytest.raises(HubError, match=r"'pets' does not belong to the hub .*differ in name"):
        hub.add(sample_task(other))
    moved = Source(source.model, source.name, replace(source.input_config, crop_pct=0.5), source.weights)
    with pytest.raises(HubError, match="differ in preprocessing"):
        Hub.open(hub.folder.path, moved)


def test_a_source_that_changed_or_is_gone(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    other = load_source("test_efficientnet", weights="random")
    monkeypatch.setattr("torchsnow.source.load_source", lambda *_: other)
    with pytest.raises(HubError, match="on another source"):
        _ = Hub.open(hub.folder.path).source
    monkeypatch.undo()
    values = json.loads(hub.folder.source_file.read_text())
    hub.folder.source_file.write_text(json.dumps({**values, "weights": "gone.safetensors"}))
    for use in (lambda hub: hub.source, lambda hub: hub.predict(torch.zeros(1, 3, 64, 64), None, pytest.fail)):
        with pytest.raises(HubError, match=r"cannot be loaded: no weight file gone.safetensors.*open the hub with it"):
            use(Hub.open(hub.folder.path))
