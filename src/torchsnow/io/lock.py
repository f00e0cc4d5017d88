"""One owner at a time: locks that the system frees when their process ends, however it ends."""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from torchsnow.errors import TorchsnowError
from torchsnow.io.files import clear_os_errors, write_atomically

if sys.platform != "win32":
    import fcntl

LOCK_FILE, OWNER_FILE = ".lock", ".owner.json"
_POLL_S = 0.02


@contextmanager
def locked(
    path: Path, timeout_s: float, busy: Callable[[], TorchsnowError], error: type[TorchsnowError]
) -> Iterator[None]:
    """Hold a lock file, over processes and threads; it is made if missing, and stays. Its folder is locked as well,
    where the file system can do that: a lock file that somebody deletes lets nobody else in.

    Raises what `busy` makes when somebody else holds it for more than `timeout_s`, and `error` when the disk refuses.
    """
    lock = FileLock(path, timeout=timeout_s)
    with clear_os_errors("lock", path, error):
        path.parent.stat()  # the library would make the folder of a hub that is gone
        try:
            lock.acquire(poll_interval=_POLL_S)
        except Timeout:  # an OSError too
            raise busy() from None
    try:
        with _locked_folder(path.parent, busy):
            yield
    finally:
        lock.release()


@contextmanager
def _locked_folder(folder: Path, busy: Callable[[], TorchsnowError]) -> Iterator[None]:
    """Whoever has the lock file has this at once, unless that was deleted, and another one made."""
    if sys.platform == "win32":  # there nobody can delete an open file
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    _folders.add(descriptor)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise busy() from None
        except OSError:  # of file systems that lock no folders
            pass
        yield
    finally:
        _folders.discard(descriptor)
        os.close(descriptor)


def _forget_folders() -> None:
    """In a child: a lock belongs to all who have the file open, and what it guards is not the child's."""
    for descriptor in _folders:
        os.close(descriptor)
    _folders.clear()


_folders: set[int] = set()
if sys.platform != "win32":
    os.register_at_fork(after_in_child=_forget_folders)


class FolderLock:
    """The lock of a folder that one owner at a time may write: a run, a comparison and the like.

    The owner is in `.owner.json` next to the lock file, which others cannot read everywhere while it is held.
    """

    def __init__(self, folder: Path, error: type[TorchsnowError]) -> None:
        self._folder, self._error = folder, error
        self._thread: int | None = None  # that holds it by this object

    @contextmanager
    def held(self) -> Iterator[None]:
        """Own the folder, which is made if missing. A thread may own it by one object several times over.

        A folder that was made and into which nothing was written is gone afterwards. Raises the lock's error, with who
        the owner is, when there is another one.
        """
        if self._thread == threading.get_ident():
            yield
            return
        with clear_os_errors("create the folder", self._folder, self._error):
            missing = [path for path in (self._folder, *self._folder.parents) if not path.exists()]
            self._folder.mkdir(parents=True, exist_ok=True)
        with self._locked():
            self._thread = threading.get_ident()
            try:
                owner = {"pid": os.getpid(), "host": socket.gethostname(), "since": _now()}
                write_atomically(self._folder / OWNER_FILE, json.dumps(owner, allow_nan=False) + "\n", self._error)
                yield
            finally:
                self._thread = None
                self._tidy(missing)

    def validate_unheld(self) -> None:
        """Raise the lock's error when the folder has another owner; nothing is written."""
        with clear_os_errors("look at", self._folder, self._error):
            is_new = not (self._folder / LOCK_FILE).exists()
        if not is_new and self._thread != threading.get_ident():
            with self._locked():
                pass

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with locked(self._folder / LOCK_FILE, 0, self._busy, self._error):
            yield

    def _tidy(self, made: Sequence[Path]) -> None:
        """Delete the owner's note, and an empty folder; while the lock is held, so that nobody else's are meant."""
        with suppress(OSError):  # what stays harms nobody
            (self._folder / OWNER_FILE).unlink(missing_ok=True)
            if [path.name for path in self._folder.iterdir()] == [LOCK_FILE]:
                (self._folder / LOCK_FILE).unlink()
                for path in made:
                    path.rmdir()

    def _busy(self) -> TorchsnowError:
        return self._error(
            f"{self._folder} is in use by {self._owner()}; wait until that is done, or choose another folder"
        )

    def _owner(self) -> str:
        try:
            owner = json.loads((self._folder / OWNER_FILE).read_text(encoding="utf-8"))
            return f"process {owner['pid']} on {owner['host']} since {owner['since']}"
        except (OSError, ValueError, KeyError, TypeError):
            return "another process"  # that has only just begun, or whose note was lost


def _now() -> str:
    return datetime.now(UTC).isoformat(" ", timespec="seconds")
