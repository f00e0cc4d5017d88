"""Upload, remove and roll back."""

from __future__ import annotations

import json
import struct

import pytest
from running_server import BEARER, Running, picture

from sample_tasks import sample_task
from torchsnow.hub import Hub
from torchsnow.source import load_source
from torchsnow.task_file import encode_task


def upload(server: Running, content: bytes, query: str = "") -> int:
    return server.call("POST", f"/admin/tasks{query}", content, BEARER).status


def test_a_task_is_uploaded_replaced_and_removed(guarded: Running, hub: Hub) -> None:
    first, second = (encode_task(sample_task(hub.source, "new", seed=seed)) for seed in (7, 8))
    reply = guarded.call("POST", "/admin/tasks", first, BEARER)
    assert (reply.status, reply.json) == (201, {"task": "new", "sha256": hub.infos()["new"].sha256})
    answered = guarded.predict([picture()], ["new"], **BEARER).json["images"][0]["answers"][0]
    assert answered["sha256"] == reply.json["sha256"]  # at once, not at the next poll at the folder
    assert upload(guarded, second) == 409
    assert hub.infos()["new"].sha256 == reply.json["sha256"]
    assert upload(guarded, second, "?replace=true") == 201
    assert hub.infos()["new"].sha256 != reply.json["sha256"]
    assert guarded.call("DELETE", "/admin/tasks/new", None, BEARER).json == {"removed": "new"}
    assert guarded.predict([picture()], ["new"], **BEARER).status == 404
    assert guarded.call("DELETE", "/admin/tasks/new", None, BEARER).status == 404
    assert upload(guarded, second, "?replace=maybe") == 400


def test_rolling_back(guarded: Running, hub: Hub) -> None:
    reply = guarded.call("POST", "/admin/tasks/a/rollback", b"", BEARER)
    assert reply.status == 409  # there is no former version yet
    first = hub.infos()["a"].sha256
    assert upload(guarded, encode_task(sample_task(hub.source, "a", seed=9)), "?replace=true") == 201
    reply = guarded.call("POST", "/admin/tasks/a/rollback", b"", BEARER)
    assert (reply.status, reply.json) == (200, {"task": "a", "sha256": first})
    assert guarded.call("POST", "/admin/tasks/never/rollback", b"", BEARER).status == 404


def damaged(content: bytes) -> dict[str, bytes]:
    (size,) = struct.unpack("<Q", content[:8])
    head = json.loads(content[8 : 8 + size])
    info = json.loads(head["__metadata__"]["torchsnow"])

    def renamed(name: str) -> bytes:
        text = json.dumps(
            {**head, "__metadata__": {"torchsnow": json.dumps({**info, "name": name}, sort_keys=True)}}
        ).encode()
        return struct.pack("<Q", len(text)) + text + content[8 + size :]

    return {
        "empty": b"",
        "cut off": content[:-1],
        "more behind": content + b"x",
        "pickle": b"\x80\x04" + content,
        "zip": b"PK\x03\x04" + content,
        "huge header": struct.pack("<Q", 2**60) + content[8:],
        "name up": renamed("../../up"),
        "name absolute": renamed("/etc/passwd"),
        "name NUL": renamed("a\0b"),
        "name backslash": renamed("..\\a"),
    }


@pytest.mark.parametrize(
    "what", [*damaged(encode_task(sample_task(load_source("test_resnet", weights="random"), "x")))]
)
def test_a_bad_upload_changes_nothing(guarded: Running, hub: Hub, what: str) -> None:
    content = damaged(encode_task(sample_task(hub.source, "new", seed=7)))[what]
    before = {file: file.read_bytes() for file in hub.folder.path.rglob("*") if file.is_file()}
    assert upload(guarded, content, "?replace=true") == 422
    assert {file: file.read_bytes() for file in hub.folder.path.rglob("*") if file.is_file()} == before
    assert guarded.predict([picture()], **BEARER).status == 200


def test_a_task_of_another_source_is_refused(guarded: Running) -> None:
    other = load_source("test_efficientnet", weights="random")
    assert upload(guarded, encode_task(sample_task(other, "new"))) == 422


def test_what_is_wrong_with_an_upload_is_said_without_paths(guarded: Running, hub: Hub) -> None:
    good = encode_task(sample_task(hub.source, "new", seed=7))
    other = encode_task(sample_task(load_source("test_efficientnet", weights="random"), "new"))
    for content, why in (
        (b"\x80\x04" + good, "never unpickled"),
        (other, "it belongs to another source"),
        (damaged(good)["name up"], "cannot be a task's name"),
        (good[:-1], "not a readable .safetensors file"),
    ):
        error = guarded.call("POST", "/admin/tasks", content, BEARER).json["error"]
        assert error.startswith("this hub cannot take the upload: "), error
        assert why in error
        assert "tmp" not in error
        assert str(hub.folder.path) not in error
    error = guarded.call("POST", "/admin/tasks/a/rollback", b"", BEARER).json["error"]
    assert error.startswith("the hub was not changed: task 'a' of the hub has no former version")
    assert str(hub.folder.path) not in error


def test_an_upload_is_bounded(guarded: Running) -> None:
    object.__setattr__(guarded.service.settings, "max_upload_bytes", 1000)
    assert upload(guarded, bytes(2000)) == 413
