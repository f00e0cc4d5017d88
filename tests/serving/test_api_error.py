"""Errors say whose fault it is: what this server lacks is 503, and never a damaged picture."""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Callable
from typing import Any

import pytest
import torch
from running_server import BEARER, Reply, Running, picture

from sample_tasks import sample_task
from torchsnow.data import images
from torchsnow.errors import TaskFileError
from torchsnow.hub import Hub, folder
from torchsnow.serving import pictures
from torchsnow.serving.api_error import ApiError
from torchsnow.serving.pictures import Picture
from torchsnow.task_file import encode_task

NO_MEMORY = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")


def raising(error: BaseException) -> Callable[..., Any]:
    def fail(*given: object, **named: object) -> None:
        raise error

    return fail


def check(reply: Reply, words: str) -> None:
    assert (reply.status, reply.json["code"]) == (503, "no_resources"), reply.body
    assert words in reply.json["error"]
    assert int(reply.headers["retry-after"]) > 0
    assert "/" not in reply.json["error"]


def test_a_picture_for_which_there_is_no_memory_is_not_damaged(monkeypatch: pytest.MonkeyPatch) -> None:
    for where in ("_open", "upright_rgb"):
        monkeypatch.setattr(images, where, raising(MemoryError()))
        with pytest.raises(ApiError, match="out of memory") as refused:
            pictures.decode(Picture(picture(), "x"), [], 10_000)
        assert (refused.value.status, refused.value.retry_after_s) == (503, 5)


@pytest.mark.parametrize("error", [NO_MEMORY, MemoryError(), torch.OutOfMemoryError("CUDA out of memory")])
def test_a_pass_without_memory_is_no_mistake_of_a_task(
    server: Running, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(server.service.live, "run", raising(error))
        check(server.predict([picture()]), "out of memory")
        check(server.predict([picture()], ["a"]), "out of memory")
    assert server.predict([picture()]).json["images"][0]["errors"] == []  # no task has to rest


@pytest.mark.parametrize("error", [NO_MEMORY, MemoryError(), OSError(errno.EMFILE, "no")])
def test_whatever_a_request_meets(server: Running, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    monkeypatch.setattr(server.service.watcher, "tasks", raising(error))
    check(server.predict([picture()]), "too many open files" if isinstance(error, OSError) else "out of memory")


def without_files() -> TaskFileError:
    error = TaskFileError("cannot read task file /hub/x: too many open files")
    error.__cause__ = OSError(errno.EMFILE, "no")
    return error


@pytest.mark.parametrize(
    ("error", "words"), [(MemoryError(), "out of memory"), (without_files(), "too many open files")]
)
def test_a_task_that_cannot_be_read_now_is_not_damaged(
    server: Running, hub: Hub, monkeypatch: pytest.MonkeyPatch, error: Exception, words: str
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("torchsnow.task_file.load_task", raising(error))
        hub.add(sample_task(hub.source, "d", seed=5))
        server.service.live.poll()
        check(server.predict([picture()], ["d"]), words)
        assert len(server.predict([picture()]).json["images"][0]["answers"]) == 3
        assert server.service.live.now.faults == {}
    server.wait_until(lambda: server.predict([picture()], ["d"]).status == 200)


def test_an_upload_without_room(guarded: Running, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    content = encode_task(sample_task(hub.source, "d", seed=5))
    full, readonly = OSError(errno.ENOSPC, "no", "/tmp/x"), OSError(errno.EROFS, "no", "/tmp/x")
    for module, name, error, words in (
        (tempfile, "TemporaryDirectory", full, "no space left on device"),
        (tempfile, "TemporaryDirectory", FileNotFoundError(errno.ENOENT, "no", "/tmp"), "no such file"),
        (tempfile, "TemporaryDirectory", PermissionError(errno.EACCES, "no", "/tmp"), "permission denied"),
        (folder, "sync_folder", full, "no space left on device"),
        (folder.Folder, "write_index", readonly, "read-only file system"),
        (hub, "add", MemoryError(), "out of memory"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, raising(error))
            check(guarded.call("POST", "/admin/tasks", content, BEARER), words)
            if module is folder.Folder:
                check(guarded.call("DELETE", "/admin/tasks/a", None, BEARER), words)
    assert guarded.call("POST", "/admin/tasks", content, BEARER).status == 201


def test_a_change_that_another_undoes_was_made(
    guarded: Running, hub: Hub, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    content, look = encode_task(sample_task(hub.source, "d", seed=5)), guarded.service.watcher.poll

    def removed_meanwhile() -> bool:
        if "d" in hub.names():
            hub.remove("d")
        return look()

    monkeypatch.setattr(guarded.service.watcher, "poll", removed_meanwhile)
    reply = guarded.call("POST", "/admin/tasks", content, BEARER)
    assert (reply.status, reply.json["task"]) == (201, "d")
    reply = guarded.call("POST", "/admin/tasks/d/rollback", b"", BEARER)
    assert (reply.status, len(reply.json["sha256"])) == (200, 64)
    monkeypatch.setattr(guarded.service.watcher, "poll", raising(MemoryError()))
    assert guarded.call("DELETE", "/admin/tasks/a", None, BEARER).status == 200
    assert "a" not in hub.names()
    assert "a change was not taken over yet" in caplog.text
