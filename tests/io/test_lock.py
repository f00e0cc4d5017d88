from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from torchsnow.errors import TrainingError
from torchsnow.io.lock import LOCK_FILE, OWNER_FILE, FolderLock, locked

OWNER = """
import os, sys, time
from pathlib import Path
from torchsnow.errors import TrainingError
from torchsnow.io.lock import FolderLock

with FolderLock(Path(sys.argv[1]), TrainingError).held():
    if sys.argv[2] == "alone" or os.fork() == 0:
        print(os.getpid(), flush=True)
    time.sleep(60)
"""


@contextmanager
def other_owner(folder: Path, *, child: bool = False) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A process that owns a folder, and the id of its child, if it is to make one when it owns it."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    words = [sys.executable, "-c", OWNER, str(folder), "with-child" if child else "alone"]
    with subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process, process.stdout.readline().strip()
        finally:
            process.kill()


def lock_of(folder: Path) -> FolderLock:
    return FolderLock(folder, TrainingError)


def own(lock: FolderLock) -> None:
    with lock.held():
        pass


def owns(lock: FolderLock) -> bool:
    try:
        own(lock)
    except TrainingError:
        return False
    return True


@pytest.mark.parametrize("attempt", [own, FolderLock.validate_unheld])
def test_another_process_is_named(tmp_path: Path, attempt: Callable[[FolderLock], None]) -> None:
    with other_owner(tmp_path) as (process, _), pytest.raises(TrainingError) as caught:
        attempt(lock_of(tmp_path))
    (sentence,) = str(caught.value).splitlines()
    assert sentence.startswith(f"{tmp_path} is in use by process {process.pid} on {socket.gethostname()} since 20")
    assert sentence.endswith("wait until that is done, or choose another folder")


@pytest.mark.parametrize("child", [False, True])
def test_a_killed_owner_owns_no_more(tmp_path: Path, child: bool) -> None:
    """Also where a process that it had made lives on, as those that load images do for a while."""
    with other_owner(tmp_path, child=child) as (process, child_id):
        assert not owns(lock_of(tmp_path))
        process.send_signal(signal.SIGKILL)
        process.wait(30)
        assert owns(lock_of(tmp_path))
        if child:
            os.kill(int(child_id), signal.SIGKILL)  # it was alive


def test_the_owner_is_written_beside_the_lock(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "folder"
    with lock_of(folder).held():
        owner = json.loads((folder / OWNER_FILE).read_text())
        assert (owner["pid"], owner["host"]) == (os.getpid(), socket.gethostname())
        (folder / OWNER_FILE).write_text("{")
        with pytest.raises(TrainingError, match="is in use by another process; wait"):
            lock_of(folder).validate_unheld()


def test_one_object_may_be_held_twice_by_one_thread_and_no_other(tmp_path: Path) -> None:
    lock, found = lock_of(tmp_path), []
    with lock.held():
        with lock.held():
            lock.validate_unheld()
        assert not owns(lock_of(tmp_path))  # the inner block has not let it go
        thread = threading.Thread(target=lambda: found.append(owns(lock)))
        thread.start()
        thread.join()
    assert found == [False]
    assert owns(lock_of(tmp_path))


def test_nothing_is_left_of_a_folder_that_nothing_was_written_to(tmp_path: Path) -> None:
    own(lock_of(tmp_path / "deep" / "folder"))
    assert list(tmp_path.iterdir()) == []
    own(lock_of(tmp_path))  # one that was there stays
    assert list(tmp_path.iterdir()) == []
    with lock_of(tmp_path / "deep" / "folder").held():
        (tmp_path / "deep" / "folder" / "result").touch()
    assert {path.name for path in (tmp_path / "deep" / "folder").iterdir()} == {"result", LOCK_FILE}


def test_looking_writes_nothing(tmp_path: Path) -> None:
    lock_of(tmp_path / "nowhere").validate_unheld()
    lock_of(tmp_path).validate_unheld()
    assert list(tmp_path.iterdir()) == []


def test_an_error_inside_is_let_out_and_frees_the_folder(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="of the block"), lock_of(tmp_path).held():
        raise OSError("of the block")
    assert owns(lock_of(tmp_path))


def test_a_disk_that_refuses_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(TrainingError, match=r"cannot create the folder .*file"), lock_of(tmp_path / "file").held():
        pass
    (tmp_path / LOCK_FILE).mkdir()
    with pytest.raises(TrainingError, match=r"cannot lock .*\.lock: this is a folder"), lock_of(tmp_path).held():
        pass


def test_a_folder_that_is_gone_is_not_made(tmp_path: Path) -> None:
    """It may be about to be brought back from a copy."""
    gone = tmp_path / "gone"
    with (
        pytest.raises(TrainingError, match=r"cannot lock .*: no such file or folder"),
        locked(gone / LOCK_FILE, 0, busy, TrainingError),
    ):
        pass
    assert not gone.exists()


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / LOCK_FILE).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(TrainingError, match="symbolic link"), lock_of(tmp_path).held():
        pass
    assert not (tmp_path / "elsewhere").exists()


def test_a_lock_is_waited_for(tmp_path: Path) -> None:
    held, path = threading.Event(), tmp_path / "lock"

    def busy() -> TrainingError:
        return TrainingError("busy")

    def hold() -> None:
        with locked(path, 10, busy, TrainingError):
            held.set()
            time.sleep(0.2)

    thread = threading.Thread(target=hold)
    thread.start()
    assert held.wait(10)
    with pytest.raises(TrainingError, match="busy"), locked(path, 0, busy, TrainingError):
        pass
    with locked(path, 10, busy, TrainingError):
        pass
    thread.join()


def test_a_lock_file_that_is_deleted_lets_nobody_in(tmp_path: Path) -> None:
    path = tmp_path / LOCK_FILE
    with locked(path, 0, busy, TrainingError):
        path.unlink()
        with pytest.raises(TrainingError, match="busy"), locked(path, 0, busy, TrainingError):
            pass
    with locked(path, 0, busy, TrainingError):
        pass
    with other_owner(tmp_path) as (process, _):
        path.unlink()
        assert not owns(lock_of(tmp_path))
        process.kill()
        process.wait(30)
        assert owns(lock_of(tmp_path))


def busy() -> TrainingError:
    return TrainingError("busy")
