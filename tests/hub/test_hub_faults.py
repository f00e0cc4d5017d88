"""Disks that refuse and processes that die: a hub is the old one or the new one, never half of one."""

from __future__ import annotations

import errno
import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_changes import CHANGES, damaged, strays, versions

from sample_tasks import sample_task
from torchsnow.errors import HubError
from torchsnow.hub import Hub
from torchsnow.hub import folder as hub_folder
from torchsnow.source import Source


def changed(before: dict[str, list[str]], change: str) -> Callable[[dict[str, list[str]]], bool]:
    """Whether versions are those after a change."""
    (c3, c2, c1), (c0,) = before["a"], before["c"][1:]
    expected: dict[str, dict[str, list[str]]] = {
        "remove": {"a": ["-", c3, c2, c1]},
        "rollback": {"a": [c2, c1, c3]},
        "bring-back": {"c": [c0]},
    }
    if change == "add":
        return lambda after: {**after, "new": []} == {**before, "new": []} and len(after.get("new", [])) == 1
    if change == "replace":
        return lambda after: {**after, "a": after["a"][1:]} == before
    if change == "gc":
        return lambda after: after == {"a": [c3], "b": before["b"]}
    return lambda after: after == {**before, **expected[change]}


# disks


class _FullFile:
    """A file that is open, and of which the disk takes only the first half."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def __enter__(self) -> _FullFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, data: bytes) -> None:
        self._file.write(data[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")


def fail_at(patch: pytest.MonkeyPatch, step: int) -> None:
    """Let the call number `step` of those that change the disk fail as on a full one."""
    calls, open_file = itertools.count(), Path.open

    def failing(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if next(calls) == step:
                raise OSError(errno.ENOSPC, "No space left on device")
            return function(*arguments, **options)

        return call

    def opened(path: Path, mode: str = "r", *rest: Any, **options: Any) -> Any:
        file = open_file(path, mode, *rest, **options)
        return _FullFile(file) if mode == "xb" and next(calls) == step else file

    for name in ("fsync", "replace", "mkdir", "unlink", "rmdir"):
        patch.setattr(os, name, failing(getattr(os, name)))
    patch.setattr(Path, "open", opened)


def disturbed(change: Callable[[], Any], step: int) -> str | None:
    """The error of a change of which one step fails, None if there is none."""
    with pytest.MonkeyPatch.context() as patch:
        fail_at(patch, step)
        try:
            change()
        except HubError as error:
            return str(error)
    return None


@pytest.mark.parametrize("change", CHANGES)
def test_a_disk_that_refuses_leaves_the_old_hub_or_the_new_one(
    past: Path, tmp_path: Path, source: Source, change: str
) -> None:
    """Every single step of a change fails once."""
    before = versions(Hub.open(past))
    is_new, ends = changed(before, change), []
    for step in range(14):  # more than any change has
        hub = Hub.open(shutil.copytree(past, tmp_path / str(step)), source)
        message = disturbed(lambda hub=hub: CHANGES[change](hub, source), step)
        after = versions(hub)
        assert after == before or is_new(after)
        assert damaged(hub) == []
        assert strays(hub) == [] or change == "gc"  # what is left then, the next one deletes
        hub.gc()
        assert strays(hub) == []
        if message is None:
            assert is_new(after)
        else:
            assert "the disk is full" in message
            ends.append(is_new(after))
    assert ends == sorted(ends)  # once new, never old again
    assert ends.count(False) >= 3  # content, flush, rename of the index


def test_a_read_only_folder_can_be_read(
    past: Path, tmp_path: Path, source: Source, images: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, open_os, open_file = Path(shutil.copytree(past, tmp_path / "hub")), os.open, Path.open
    (path / ".lock").unlink()

    def read_only(*_: Any, **__: Any) -> Any:
        raise OSError(errno.EROFS, "Read-only file system")

    def opened_os(name: Any, flags: int, *rest: Any, **options: Any) -> int:
        return read_only() if flags & (os.O_RDWR | os.O_WRONLY) else open_os(name, flags, *rest, **options)

    def opened(name: Path, mode: str = "r", *rest: Any, **options: Any) -> Any:
        return read_only() if set(mode) & set("wxa+") else open_file(name, mode, *rest, **options)

    before = versions(Hub.open(path))
    with monkeypatch.context() as patch:
        for name in ("replace", "mkdir", "unlink", "rmdir"):
            patch.setattr(os, name, read_only)
        patch.setattr(os, "open", opened_os)
        patch.setattr(Path, "open", opened)
        hub = Hub.open(path, source)
        assert (hub.names(), list(hub.former())) == (["a", "b"], ["a", "c"])
        assert set(hub.predict(images)) == {"a", "b"}
        assert hub.info("a").name == "a"
        assert hub.verify() == []
        for change in CHANGES.values():
            with pytest.raises(HubError, match=r"cannot lock .*: the file system is read-only; choose another folder"):
                change(hub, source)
        with pytest.raises(HubError, match="file system is read-only"):
            Hub.create(tmp_path / "other", source)
    assert versions(hub) == before
    assert hub.verify() == []


def test_a_held_lock_is_waited_for_and_then_named(hub: Hub, source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_folder, "LOCK_TIMEOUT_S", 0.05)
    with hub.folder.locked():
        for change in (lambda: hub.add(sample_task(source, "c")), lambda: hub.rollback("a"), hub.gc):
            with pytest.raises(HubError, match=r"another process has been changing .* for 0.05 s"):
                change()
    hub.add(sample_task(source, "c"))
    assert hub.names() == ["a", "b", "c"]


def test_an_interrupted_creation_can_be_repeated(tmp_path: Path, source: Source) -> None:
    is_hub, num_failed = False, 0
    for step in range(16):  # more than it has
        path = tmp_path / str(step)
        if disturbed(lambda path=path: Hub.create(path, source), step) is not None:
            num_failed += 1
            is_hub = is_hub or (path / "source.json").exists()
            assert (path / "source.json").exists() == is_hub
            if not is_hub:
                Hub.create(path, source)
        assert Hub.open(path, source).verify() == []
    assert num_failed > 8


# processes

PROCESSES = """
import os, shutil, signal, sys
from hub_changes import CHANGES
from sample_tasks import sample_task
from torchsnow.hub import Hub
from torchsnow.source import load_source

past, out = sys.argv[1:]
source = load_source("test_resnet", weights="random")
source.fingerprint
tasks = [sample_task(source, name, seed=5) for name in "defg"]

def kill_before(step):
    left = [step]
    def dying(function):
        def call(*arguments, **options):
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1
            return function(*arguments, **options)
        return call
    for name in ("replace", "fsync", "mkdir", "unlink", "rmdir"):
        setattr(os, name, dying(getattr(os, name)))

def started(action):
    pid = os.fork()
    if pid == 0:
        action()
        os._exit(0)
    return pid

def killed(change, step):
    hub = Hub.open(shutil.copytree(past, f"{out}/{change}-{step:02}"), source)
    def action():
        kill_before(step)
        CHANGES[change](hub, source)
    return os.waitpid(started(action), 0)[1] == signal.SIGKILL

for change in CHANGES:
    step = 0
    while killed(change, step):
        step += 1
shutil.copytree(past, f"{out}/shared")
pids = [started(lambda task=task: Hub.open(f"{out}/shared", source).add(task)) for task in tasks]
assert all(os.waitpid(pid, 0)[1] == 0 for pid in pids)
"""


@pytest.fixture(scope="module")
def after_processes(past: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copies of a hub, each with a process killed at another step, and one that four processes added to at once."""
    path = tmp_path_factory.mktemp("processes")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", PROCESSES, str(past), str(path)], env=environment, check=True, timeout=240)
    return path


@pytest.mark.parametrize("change", CHANGES)
def test_a_process_killed_at_any_point_leaves_the_old_or_the_new_hub(
    past: Path, after_processes: Path, source: Source, change: str
) -> None:
    before = versions(Hub.open(past))
    is_new, ends = changed(before, change), []
    for path in sorted(after_processes.glob(f"{change}-*")):
        hub = Hub.open(path, source)
        after = versions(hub)
        assert after == before or is_new(after)
        ends.append(is_new(after))
        assert damaged(hub) == []  # at most there are files that nobody reads
        hub.gc()
        assert (damaged(hub), strays(hub)) == ([], [])
        assert set(hub.infos()) == {name for name in after if after[name][0] != "-"}
    assert ends == sorted(ends)  # killed early it is the old one, killed later the new one
    assert ends.count(False) > 1
    assert ends.count(True) > 1
    assert hub.verify() == []


def test_processes_adding_at_once_all_end_up_in(past: Path, after_processes: Path, source: Source) -> None:
    hub = Hub.open(after_processes / "shared", source)
    assert hub.names() == list("abdefg")
    assert hub.generation == Hub.open(past).generation + 4
    assert hub.verify() == []
