from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from hub_changes import versions

from sample_tasks import logits, sample_task
from torchsnow.errors import HubError
from torchsnow.hub import Hub
from torchsnow.source import Source
from torchsnow.task_file import load_task


@pytest.fixture
def lived(past: Path, tmp_path: Path, source: Source) -> Hub:
    """A hub of its own with the past of `past`."""
    return Hub.open(shutil.copytree(past, tmp_path / "lived"), source)


@pytest.fixture
def sums(past: Path) -> list[str]:
    """The SHA-256 of what "a" was, from the first version to the current one."""
    files = (past / "tasks" / "a").iterdir()
    return [path.stem for path in sorted(files, key=lambda path: path.stat().st_mtime_ns)]


def task_files(hub: Hub, name: str) -> set[str]:
    return {path.stem for path in (hub.folder.path / "tasks" / name).iterdir()}


def test_replaced_and_removed_tasks_are_kept(lived: Hub, sums: list[str]) -> None:
    assert lived.names() == ["a", "b"]
    assert lived.infos()["a"].sha256 == sums[2]
    assert [entry.sha256 for entry in lived.former()["a"]] == [sums[1], sums[0]]
    assert list(lived.former()) == ["a", "c"]
    assert task_files(lived, "a") == set(sums)
    assert lived.verify() == []
    with pytest.raises(HubError, match="no task 'c'; it was removed, and a rollback brings it back"):
        lived.task("c")


def test_replacing_asks_for_it(hub: Hub, source: Source, images: torch.Tensor) -> None:
    before, new = versions(hub), sample_task(source, "a", seed=7)
    with pytest.raises(HubError, match="has a task 'a' already"):
        hub.add(new)
    assert versions(hub) == before
    hub.add(new, replace=True)
    assert torch.equal(hub.predict(images, ["a"])["a"], logits(source, new, images))


def test_the_same_content_again_is_no_new_version(lived: Hub, source: Source, sums: list[str]) -> None:
    folder = lived.folder.path / "tasks" / "a"
    first, last = (load_task(folder / f"{sums[number]}.safetensors", source) for number in (0, 2))
    lived.add(last, replace=True)
    assert versions(lived)["a"] == [sums[2], sums[1], sums[0]]
    lived.add(first, replace=True)
    assert versions(lived)["a"] == [sums[0], sums[2], sums[1]]
    assert lived.verify() == []


def test_rolling_back_goes_from_version_to_version(
    lived: Hub, source: Source, sums: list[str], images: torch.Tensor
) -> None:
    other = Hub.open(lived.folder.path, source)
    generation = lived.generation
    for number in (1, 0, 2):
        assert lived.rollback("a").sha256 == sums[number] == other.infos()["a"].sha256
        expected = logits(source, sample_task(source, "a", seed=number + 1), images)
        for hub in (lived, other):  # and so does a process that has another version in memory
            assert torch.equal(hub.predict(images)["a"], expected)
    assert versions(lived)["a"] == [sums[2], sums[1], sums[0]]
    assert lived.generation == generation + 3
    assert lived.verify() == []


def test_a_removed_task_comes_back_with_its_past(lived: Hub, sums: list[str]) -> None:
    lived.rollback("c")
    assert lived.names() == ["a", "b", "c"]
    lived.remove("a")
    assert versions(lived)["a"] == ["-", sums[2], sums[1], sums[0]]
    lived.rollback("a")
    assert versions(lived)["a"] == [sums[2], sums[1], sums[0]]
    assert lived.task("a").name == "a"


def test_a_name_is_free_after_a_removal(lived: Hub, source: Source) -> None:
    old = lived.former()["c"][0].sha256
    lived.add(sample_task(source, "c", seed=5))
    assert versions(lived)["c"][1:] == [old]


def test_there_may_be_nothing_to_go_back_to(lived: Hub) -> None:
    before = versions(lived)
    with pytest.raises(HubError, match=r"task 'b' of the hub .* has no former version: it was never replaced, or `gc`"):
        lived.rollback("b")
    with pytest.raises(HubError, match="no task 'd'"):
        lived.rollback("d")
    with pytest.raises(HubError, match=r"no task '\.\./a'"):
        lived.rollback("../a")
    lived.gc()
    with pytest.raises(HubError, match="no former version"):
        lived.rollback("a")
    with pytest.raises(HubError, match="no task 'c'"):
        lived.rollback("c")
    assert versions(lived) == {name: shas[:1] for name, shas in before.items() if name != "c"}


def test_a_damaged_former_version_is_named_and_not_gone_back_to(lived: Hub, sums: list[str]) -> None:
    before = versions(lived)
    path = lived.folder.path / "tasks" / "a" / f"{sums[1]}.safetensors"
    for damage in (lambda: path.write_bytes(path.read_bytes()[:-1] + b"?"), path.unlink):
        damage()
        with pytest.raises(HubError, match=f"the former version {sums[1][:12]} of task 'a'"):
            lived.rollback("a")
        (problem,) = lived.verify()
        assert problem.task == "a"
        assert str(path) in problem.message
    assert versions(lived) == before
    assert set(lived.tasks()) == {"a", "b"}
    lived.gc()
    assert lived.verify() == []


def test_gc_deletes_what_the_hub_wrote_and_nothing_else(lived: Hub, sums: list[str], images: torch.Tensor) -> None:
    before, expected = lived.infos(), lived.predict(images)
    root = lived.folder.path
    former = [entry.size_bytes for entries in lived.former().values() for entry in entries]
    unfinished = (root / ".0123456789abcdef.tmp", root / "tasks" / "a" / ".fedcba9876543210.tmp")
    lost = root / "tasks" / "killed" / f"{'0' * 64}.safetensors"
    lost.parent.mkdir()
    for path in (*unfinished, lost):
        path.write_bytes(b"12345")
    (root / "tasks" / "empty").mkdir()
    foreign = {
        *(root / "notes.txt", root / ".cache.tmp", root / f"{'1' * 64}.safetensors", root / "tasks" / "Mine"),
        *(root / "tasks" / "readme", root / "tasks" / "b" / "old.safetensors", root / "tasks" / "c" / "notes.txt"),
    }
    (root / "tasks" / "Mine").mkdir()
    (root / "tasks" / "Mine" / f"{'2' * 64}.safetensors").touch()
    for path in foreign - {root / "tasks" / "Mine"}:
        path.touch()
    (root / "empty").mkdir()
    (root / "tasks" / "link").symlink_to(root / "tasks" / "a")
    (root / "tasks" / "a" / f"{'3' * 64}.safetensors").symlink_to(root / "notes.txt")
    foreign |= {root / "empty", root / "tasks" / "link", root / "tasks" / "a" / f"{'3' * 64}.safetensors"}

    cleanup = lived.gc()
    assert cleanup.num_files == len(former) + 3
    assert cleanup.size_bytes == sum(former) + 15
    assert set(cleanup.left_alone) == foreign
    assert len(cleanup.left_alone) == len(foreign)
    assert all(path.is_symlink() or path.exists() for path in foreign)
    assert not (root / "tasks" / "killed").exists()
    assert not (root / "tasks" / "empty").exists()
    assert (lived.infos(), lived.former()) == (before, {})
    assert all(torch.equal(found, expected[name]) for name, found in lived.predict(images).items())
    assert {p.message for p in lived.verify()} >= {f"{path} is no part of the hub" for path in foreign}


def test_gc_of_a_clean_hub_changes_nothing(lived: Hub) -> None:
    lived.gc()
    generation = lived.generation
    assert asdict(lived.gc()) == {"num_files": 0, "size_bytes": 0, "left_alone": ()}
    assert lived.generation == generation
    assert {path.name for path in (lived.folder.path / "tasks").iterdir()} == {"a", "b"}


def test_a_hub_in_a_folder_named_tasks(past: Path, tmp_path: Path) -> None:
    """What lies next to a hub's own files is not taken for a task's folder, whatever the hub is called."""
    hub = Hub.open(shutil.copytree(past, tmp_path / "tasks"))
    (hub.folder.path / "mine").mkdir()
    (hub.folder.path / f"{'0' * 64}.safetensors").touch()
    assert set(hub.gc().left_alone) == {hub.folder.path / "mine", hub.folder.path / f"{'0' * 64}.safetensors"}
    assert (hub.folder.path / "mine").exists()
