"""Where a hub keeps what.

source.json                   the source that all tasks belong to; it makes a folder a hub
index.json                    the tasks: the hub holds what this file names, and nothing else
tasks/NAME/SHA256.safetensors one task file each, named by its content
.lock                         held by whoever changes the hub
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, suppress
from pathlib import Path

from torchsnow.errors import HubError
from torchsnow.files import TEMPORARY_SUFFIX, clear_os_errors, sync_folder
from torchsnow.hub.index import Entry, Index, read_index
from torchsnow.hub.lock import locked

SOURCE_FILE, INDEX_FILE, TASKS_FOLDER, LOCK_FILE = "source.json", "index.json", "tasks", ".lock"
_TASK_FILE = re.compile(r"[0-9a-f]{64}\.safetensors")


class Folder:
    """The places inside a hub's folder. Links inside it are refused, wherever they lead."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def source_file(self) -> Path:
        return self._inside(SOURCE_FILE)

    @property
    def index_file(self) -> Path:
        return self._inside(INDEX_FILE)

    def task_folder(self, name: str) -> Path:
        """The folder of one task's files; `name` must be a valid task name."""
        return self._inside(TASKS_FOLDER, name)

    def task_file(self, name: str, entry: Entry) -> Path:
        """The file of one task, as the index names it."""
        return self._inside(TASKS_FOLDER, name, _file_name(entry))

    def locked(self) -> AbstractContextManager[None]:
        """Hold the hub's lock; for every change. Raises HubError when another writer keeps it."""
        return locked(self._inside(LOCK_FILE))

    def make_task_folder(self, name: str) -> None:
        """Make a task's folder unless it is there."""
        folder = self.task_folder(name)
        with clear_os_errors("make the folder", folder, HubError):
            folder.mkdir(exist_ok=True)
            sync_folder(folder.parent)

    def sweep(self, name: str) -> None:
        """Delete the files of a task that the index does not name, and what killed writers left, as far as the disk
        lets us. The lock must be held. What cannot be deleted harms nobody, and `strays` finds it.
        """
        with suppress(OSError, HubError):
            folder, entry = self.task_folder(name), read_index(self.index_file).tasks.get(name)
            kept = "" if entry is None else _file_name(entry)
            written = [path for path in folder.iterdir() if _TASK_FILE.fullmatch(path.name) and path.name != kept]
            unfinished = [path for path in (*self.path.iterdir(), *folder.iterdir()) if _is_temporary(path)]
            for path in written + unfinished:
                path.unlink()
            if entry is None:
                folder.rmdir()

    def strays(self, index: Index) -> Iterator[Path]:
        """Everything in the folder that is no part of the hub. Raises OSError."""
        known = {self.path / part for part in (SOURCE_FILE, INDEX_FILE, TASKS_FOLDER, LOCK_FILE)}
        tasks = self.path / TASKS_FOLDER
        for name, entry in index.tasks.items():
            known |= {tasks / name, tasks / name / _file_name(entry)}
        for folder in (self.path, tasks, *(tasks / name for name in index.tasks)):
            if folder.is_dir() and not folder.is_symlink():
                yield from sorted(path for path in folder.iterdir() if path not in known)

    def refuse_occupied(self) -> None:
        """Raise HubError unless a hub can be made here: what an interrupted creation leaves may stay."""
        nearest = next(path for path in (self.path, *self.path.parents) if path.exists())
        if not nearest.is_dir():
            raise HubError(f"{nearest} is a file; a hub is a folder, choose a new or empty one")
        if self.source_file.exists():
            raise HubError(f"{self.path} is a hub already; open it, or choose another folder")
        occupied = [path for path in self.strays(Index(0, {})) if not _is_temporary(path)]
        if occupied:
            raise HubError(f"{self.path} is not empty (it holds {occupied[0].name!r}); choose a new or empty folder")

    def _inside(self, *parts: str) -> Path:
        path = self.path
        for part in parts:
            path = path / part
            with clear_os_errors("look at", path, HubError):
                is_link = path.is_symlink()
            if is_link:
                raise HubError(f"{path} is a symbolic link; links inside a hub are not followed, put the file there")
        return path


def _file_name(entry: Entry) -> str:
    return f"{entry.sha256}.safetensors"


def _is_temporary(path: Path) -> bool:
    return path.name.startswith(".") and path.name.endswith(TEMPORARY_SUFFIX)
