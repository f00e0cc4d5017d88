from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from torchsnow.errors import HubError, TorchsnowError
from torchsnow.io.files import make_folder, reserve, validate_writable_folder, write_atomically


def test_writes_text_and_bytes_and_leaves_nothing_else(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a.json", "é")
    write_atomically(str(tmp_path / "b"), b"\x00")
    assert (tmp_path / "a.json").read_bytes() == "é".encode()
    assert (tmp_path / "b").read_bytes() == b"\x00"
    assert sorted(os.listdir(tmp_path)) == ["a.json", "b"]


def test_files_have_the_usual_mode(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a", "new")
    (tmp_path / "b").write_text("plain")
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == stat.S_IMODE((tmp_path / "b").stat().st_mode)


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EIO])
def test_a_refusing_disk_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, code: int
) -> None:
    (tmp_path / "a").write_text("old")

    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, step, refuse)
    with pytest.raises(HubError, match=r"cannot write .*a: .+"):
        write_atomically(tmp_path / "a", "new", HubError)
    assert (tmp_path / "a").read_text() == "old"
    assert os.listdir(tmp_path) == ["a"]


def test_an_interrupted_write_removes_its_temporary_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "a", "new")
    assert os.listdir(tmp_path) == []


def test_full_disk_is_said_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(TorchsnowError, match="the disk is full; free some space"):
        write_atomically(tmp_path / "a", "new")


def test_missing_folder_and_folder_in_the_way(tmp_path: Path) -> None:
    with pytest.raises(TorchsnowError, match="no such file or folder"):
        write_atomically(tmp_path / "missing" / "a", "new")
    with pytest.raises(TorchsnowError, match="a folder, not a file"):
        write_atomically(tmp_path, "new")
    with pytest.raises(TorchsnowError, match="is a file, not a folder"):
        write_atomically(Path(__file__) / "a", "new")


def test_a_folder_that_can_be_written_into_is_left_as_it_was(tmp_path: Path) -> None:
    validate_writable_folder(tmp_path)
    validate_writable_folder(tmp_path / "not" / "there" / "yet")
    assert list(tmp_path.iterdir()) == []


def test_folders_that_cannot_be_written_into_are_known_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(HubError, match=r"cannot write into .*hub: a part of this path is a file"):
        validate_writable_folder(tmp_path / "file" / "hub", HubError)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("torchsnow.io.files.tempfile.TemporaryDirectory", refuse)
    with pytest.raises(HubError, match=r"cannot write into .*new: the file system is read-only; choose another"):
        validate_writable_folder(tmp_path / "new", HubError)


def test_a_link_to_a_folder_that_is_not_there_is_known_before(tmp_path: Path) -> None:
    (tmp_path / "hub").symlink_to(tmp_path / "nowhere")
    with pytest.raises(HubError, match=r"cannot write into .*hub: no such file or folder"):
        validate_writable_folder(tmp_path / "hub", HubError)


def test_a_pipe_or_device_stays_what_it_is(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    for name in ("pipe", "link"):
        with pytest.raises(HubError, match=rf"cannot write .*{name}: it is a device or a pipe; name a file"):
            write_atomically(tmp_path / name, "new", HubError)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "pipe").is_fifo()


def test_a_folder_is_made_or_refused_before_the_work(tmp_path: Path) -> None:
    make_folder(tmp_path / "a" / "b")
    make_folder(tmp_path / "a" / "b")
    assert list((tmp_path / "a" / "b").iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(TorchsnowError, match="a part of this path is a file, not a folder"):
        make_folder(tmp_path / "file" / "bench")


def test_a_system_that_cannot_reserve_room_does_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "posix_fallocate")
    reserve(tmp_path, 2**60)
