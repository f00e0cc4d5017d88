"""Many tasks, and many threads: what is in memory stays within its budget, and everybody sees the hub's present
state."""

from __future__ import annotations

import gc
import os
import shutil
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import fx

from sample_tasks import logits, sample_task
from torchsnow.errors import HubError
from torchsnow.hub import Hub, folder
from torchsnow.hub.cache import size_of
from torchsnow.source import Source


@pytest.fixture
def four(hub: Hub, source: Source) -> Hub:
    """A hub with the tasks "a" to "d" and room for two and a half in memory."""
    for name in "cd":
        hub.add(sample_task(source, name, num_classes=3))
    return Hub.open(hub.folder.path, source, cache_bytes=5 * size_of(hub.task("a")) // 2)


# cache


def test_opening_and_listing_read_no_task_file(hub: Hub) -> None:
    expected = hub.infos()
    for name in hub.names():
        for file in hub.folder.task_folder(name).iterdir():
            file.unlink()
    again = Hub.open(hub.folder.path)
    assert (again.names(), again.infos(), again.former()) == (["a", "b"], expected, {})
    assert again.cache.names() == []


def test_those_used_longest_ago_leave_first(four: Hub) -> None:
    first = four.task("a")
    four.task("b")
    assert four.task("a") is first
    four.task("c")
    assert four.cache.names() == ["a", "c"]
    assert four.task("a") is first
    four.predict(torch.zeros(1, 3, 32, 32), ["d"])
    assert four.cache.names() == ["a", "d"]
    assert four.cache.size_bytes == size_of(first) + size_of(four.task("d")) <= four.cache.budget_bytes


def test_a_prediction_may_need_more_than_the_budget(four: Hub, source: Source, images: torch.Tensor) -> None:
    held = four.task("a")
    expected = Hub.open(four.folder.path, source).predict(images)
    for _ in range(2):
        results = four.predict(images)
        assert set(results) == set("abcd")
        assert all(torch.equal(result, expected[name]) for name, result in results.items())
        assert four.cache.names() == ["c", "d"]
    assert torch.equal(logits(source, held, images), expected["a"])  # it left, and whoever has it can use it


def test_a_task_larger_than_the_budget_does_not_stay(hub: Hub, source: Source, images: torch.Tensor) -> None:
    none = Hub.open(hub.folder.path, source, cache_bytes=0)
    assert torch.equal(none.predict(images)["a"], hub.predict(images)["a"])
    assert (none.cache.names(), none.cache.size_bytes) == ([], 0)


def test_a_size_counts_numbers_and_modules(hub: Hub) -> None:
    task = hub.task("a")
    num_bytes = sum(tensor.nbytes for tensor in task.delta.state_dict().values())
    assert num_bytes < size_of(task) < num_bytes + 10_000 * len(list(task.delta.modules()))


def test_tasks_that_come_and_go_leave_nothing(hub: Hub, source: Source, request: pytest.FixtureRequest) -> None:
    guest, images, gone = sample_task(source, "guest"), torch.zeros(1, 3, 32, 32), []
    hub.predict(images)
    before, texts = hub.cache.size_bytes, 0
    gc.disable()  # what left must not wait for the garbage collector
    request.addfinalizer(gc.enable)
    for number in range(12):
        hub.add(replace(guest, image_size=32 + number))
        hub.predict(images, ["guest"])
        gone += [weakref.ref(parameter) for parameter in hub.task("guest").delta.parameters()]
        hub.add(replace(guest, image_size=64 + number), replace=True)
        hub.predict(images, ["guest"])
        hub.remove("guest")
        texts = texts or len(fx.graph_module._loader.eval_cache)
    assert [parameter for parameter in gone if parameter() is not None] == []
    assert (sorted(hub.cache.names()), hub.cache.size_bytes) == (["a", "b"], before)
    assert len(fx.graph_module._loader.eval_cache) == texts  # torch.fx would keep the code of every task for good
    assert hub.gc().num_files == 24
    assert set(hub.folder.path.rglob("*.safetensors")) == {
        hub.folder.task_file(name, entry) for name, entry in hub.infos().items()
    }


# the index in memory


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The index files that were parsed."""
    paths: list[Path] = []
    decode = folder.decode_index

    def counting(content: bytes, path: Path) -> Any:
        paths.append(path)
        return decode(content, path)

    monkeypatch.setattr(folder, "decode_index", counting)
    return paths


def test_an_index_that_nobody_changed_is_parsed_once(hub: Hub, source: Source, decoded: list[Path]) -> None:
    reader = Hub.open(hub.folder.path)
    for _ in range(3):
        assert reader.names() == ["a", "b"]
    assert len(decoded) == 1
    hub.add(sample_task(source, "c"))
    del decoded[:]
    assert reader.names() == reader.names() == ["a", "b", "c"]
    assert len(decoded) == 1


def test_an_index_of_the_same_size_time_and_generation_is_read_again(
    hub: Hub, source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when a hub is brought back from a copy, on file systems whose times and numbers tell nothing."""
    other = Hub.open(shutil.copytree(hub.folder.path, tmp_path / "other"))
    hub.add(sample_task(source, "c"))
    other.add(sample_task(source, "d"))
    assert hub.names() == ["a", "b", "c"]
    for call in ("stat", "fstat"):
        monkeypatch.setattr(os, call, _without_change_time(getattr(os, call)))
    file, content = hub.folder.index_file, other.folder.index_file.read_bytes()
    assert len(content) == file.stat().st_size
    os.utime(file, (10**9, 10**9))
    assert hub.names() == ["a", "b", "c"]
    file.write_bytes(content)
    os.utime(file, (10**9, 10**9))
    assert hub.generation == other.generation
    assert hub.names() == ["a", "b", "d"]


def _without_change_time(look: Callable[..., os.stat_result]) -> Callable[..., Any]:
    def looked(*arguments: Any, **options: Any) -> Any:
        found = look(*arguments, **options)
        fields = {name: getattr(found, name) for name in dir(found) if name.startswith("st_")}
        return SimpleNamespace(**{**fields, "st_ctime_ns": 0})

    return looked


# threads


def run_all(*actions: Callable[[], None]) -> list[BaseException]:
    """Run actions at once, each in a thread of its own, and return what they raised."""
    errors: list[BaseException] = []

    def run(action: Callable[[], None]) -> None:
        try:
            action()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(action,)) for action in actions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


def test_threads_adding_at_once_all_end_up_in(hub: Hub, source: Source) -> None:
    tasks = [sample_task(source, f"t{number}", seed=number) for number in range(6)]
    hubs = [hub, hub, hub, *(Hub.open(hub.folder.path) for _ in range(3))]
    adding = [lambda hub=hub, task=task: hub.add(task) for hub, task in zip(hubs, tasks, strict=True)]
    assert run_all(*adding) == []
    assert hub.names() == ["a", "b", *(task.name for task in tasks)]
    assert hub.verify() == []


def test_threads_load_a_task_once(hub: Hub, source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    again, found = Hub.open(hub.folder.path), []
    assert run_all(*[lambda: found.append(again.task("a"))] * 4) == []
    assert len({id(task) for task in found}) == 1
    assert len(found) == 4


def test_threads_share_a_hub(four: Hub, source: Source, images: torch.Tensor) -> None:
    expected, done = four.predict(images, ["a", "b"]), threading.Event()
    answers = []

    def come_and_go(name: str) -> None:
        old, new = (sample_task(source, name, seed=seed) for seed in (5, 6))
        for _ in range(3):
            four.add(old)
            assert torch.equal(four.predict(images, [name])[name], logits(source, old, images))
            four.add(new, replace=True)
            assert torch.equal(four.predict(images, [name])[name], logits(source, new, images))
            with suppress(HubError):  # gc may have been there
                four.rollback(name)
            four.remove(name)

    def answer() -> None:
        while not done.is_set():
            results = four.predict(images)
            assert all(torch.equal(results[name], logits) for name, logits in expected.items())
            answers.append(set(results))

    def collect() -> None:
        while not done.wait(0.05):
            four.gc()

    def change() -> None:
        assert run_all(lambda: come_and_go("x"), lambda: come_and_go("y")) == []

    def finish() -> None:
        try:
            change()
        finally:
            done.set()

    assert run_all(finish, answer, answer, collect) == []
    assert len(answers) > 2
    assert set.union(*answers) <= set("abcdxy")
    four.gc()
    assert four.names() == list("abcd")
    assert four.verify() == []
    assert four.cache.size_bytes <= four.cache.budget_bytes
