"""One writer at a time, over processes and threads."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torchsnow.errors import HubError
from torchsnow.files import clear_os_errors

LOCK_TIMEOUT_S = 10.0
_POLL_S = 0.02


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file, which is made if missing; the system frees it when the process ends, however it ends.

    Raises HubError when another writer holds it for more than `LOCK_TIMEOUT_S`.
    """
    with clear_os_errors("lock", path, HubError):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    try:
        with clear_os_errors("lock", path, HubError):
            _acquire(descriptor, path)
        yield
    finally:
        os.close(descriptor)


def _acquire(descriptor: int, path: Path) -> None:
    deadline_s = time.monotonic() + LOCK_TIMEOUT_S
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() > deadline_s:
                raise HubError(
                    f"another process has been changing the hub {path.parent} for {LOCK_TIMEOUT_S:g} s; "
                    "try again when it is done"
                ) from error
            time.sleep(_POLL_S)
