"""A hub: one source and many tasks, in a folder; one source pass serves all tasks.

A task file is written first and becomes part of the hub when the index is replaced; files that the index no longer
names are deleted last. So a process that is killed at any point leaves the old hub or the new one, and at most a
file that nobody reads: `verify` names it and the next change of that task deletes it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from torchsnow.errors import HubError, SourceError, TaskFileError
from torchsnow.files import clear_os_errors, write_atomically
from torchsnow.hub.folder import SOURCE_FILE, TASKS_FOLDER, Folder
from torchsnow.hub.index import Entry, Index, read_index, read_source_info, write_index, write_source_info
from torchsnow.source import Request, Source, load_source
from torchsnow.source.load import PACKAGES
from torchsnow.task_file import SourceInfo, Task, TaskInfo, content_hash, encode_task, load_task, read_task_info


@dataclass(frozen=True)
class Problem:
    """Something wrong with a task, or with the folder as a whole if `task` is None."""

    task: str | None
    message: str


class Hub:
    """A hub on disk; make it with `Hub.create` or `Hub.open`.

    The index is read anew by every call, so what other processes add is seen. Tasks are loaded when first used and
    kept. `source_info` describes the source.
    """

    def __init__(self, folder: Folder, source_info: SourceInfo, source: Source | None) -> None:
        self.folder, self.source_info = folder, source_info
        self._source = source
        self._loaded: dict[str, tuple[str, Task]] = {}  # name -> (SHA-256, task)

    @classmethod
    def create(cls, path: Path | str, source: Source) -> Self:
        """A new hub without tasks; the folder is made if missing. Raises HubError if it holds anything."""
        folder, info = Folder(Path(path)), SourceInfo.of(source)
        with clear_os_errors("make a hub in", folder.path, HubError):
            folder.path.mkdir(parents=True, exist_ok=True)
            with folder.locked():
                folder.refuse_occupied()
                (folder.path / TASKS_FOLDER).mkdir(exist_ok=True)
                write_index(folder.index_file, Index(0, {}))
                write_source_info(folder.source_file, info)  # last: it makes the folder a hub
        return cls(folder, info, source)

    @staticmethod
    def refuse_occupied(path: Path | str) -> None:
        """Raise HubError for a place where `create` could not make a hub, because something else is there."""
        with clear_os_errors("make a hub in", Path(path), HubError):
            Folder(Path(path)).refuse_occupied()

    @classmethod
    def open(cls, path: Path | str, source: Source | None = None) -> Self:
        """An existing hub. Without `source`, the one that the hub names is loaded when first needed.

        Raises HubError for a folder that is not a hub, a newer version, or another source than the hub's.
        """
        folder = Folder(Path(path))
        with clear_os_errors("open the hub", folder.path, HubError):
            if not folder.source_file.exists():
                raise HubError(
                    f"{path} is not a hub: it has no {SOURCE_FILE}; `torchsnow train DATA --task NAME --hub {path}` "
                    "makes one"
                )
        hub = cls(folder, read_source_info(folder.source_file), source)
        read_index(folder.index_file)
        if source is not None:
            hub._refuse_other(source)
        return hub

    @property
    def source(self) -> Source:
        """The source, loaded at the first use; to use a device, move it there before the first task is loaded.

        Raises HubError when the source cannot be loaded by its name, or is another one by now.
        """
        if self._source is None:
            source = _load(self.source_info)
            self._refuse_other(source)
            self._source = source
        return self._source

    @property
    def generation(self) -> int:
        """How often the hub was changed."""
        return self._index().generation

    def names(self) -> list[str]:
        """The names of all tasks, in alphabetical order."""
        return sorted(self._index().tasks)

    def infos(self) -> dict[str, Entry]:
        """What the index says of every task, by name; no task file is read."""
        return dict(sorted(self._index().tasks.items()))

    def info(self, name: str) -> TaskInfo:
        """What a task's file says about itself. Raises HubError for an unknown task or a damaged file."""
        try:
            return read_task_info(self.folder.task_file(name, self._entry(name)))
        except TaskFileError as error:
            raise self._unusable(name, error) from error

    def task(self, name: str) -> Task:
        """A task, its delta in eval mode. Raises HubError for an unknown task or a damaged file."""
        entry = self._entry(name)
        sha256, task = self._loaded.get(name, (None, None))
        if task is None or sha256 != entry.sha256:
            task = self._read_task(name, entry)
            self._loaded[name] = entry.sha256, task
        return task

    def index(self) -> Index:
        """The hub's tasks at this moment, for whoever follows its changes. Raises HubError for a damaged index."""
        return self._index()

    def version(self, name: str, entry: Entry) -> Task:
        """One version of a task, as an index named it, loaded anew.

        Raises HubError for a file that is gone or damaged.
        """
        try:
            return load_task(self.folder.task_file(name, entry), self.source, entry.sha256)
        except TaskFileError as error:
            raise self._unusable(name, error) from error

    def predict(self, images: Tensor, names: Iterable[str] | None = None) -> dict[str, Tensor]:
        """Logits (B, num_classes) of every named task, by default all, from one source pass.

        `images` (B, 3, H, W) are normalised as the source's `input_config` says, on the source's device.
        Raises HubError for an unknown task or a damaged file, SourceError for images of another shape.
        """
        deltas = {name: self.task(name).delta.eval() for name in (self.names() if names is None else names)}
        if not deltas:
            return {}
        with torch.no_grad():
            requests = (delta.request(delta.choose()) for delta in deltas.values())
            features = self.source(images, Request.together(requests))
            return {name: delta(features) for name, delta in deltas.items()}

    def add(self, task: Task, replace: bool = False) -> None:
        """Store a task.

        Raises HubError for a task of another source, a name that is taken (unless `replace`), a disk that refuses, or
        another process that keeps the hub locked. The hub is as before then; only if the very last step fails, the
        flush of the folder, it has the task.
        """
        difference = task.source_info.difference(self.source_info)
        if difference:
            raise HubError(f"task {task.name!r} does not belong to the hub {self.folder.path}: {difference}")
        content = encode_task(task)
        added = datetime.now(UTC).isoformat(timespec="seconds")
        entry = Entry(content_hash(content), len(content), len(task.classes), added)
        with self.folder.locked():
            index = self._index()
            if task.name in index.tasks and not replace:
                raise HubError(f"the hub {self.folder.path} has a task {task.name!r} already; remove or replace it")
            try:
                self.folder.make_task_folder(task.name)
                write_atomically(self.folder.task_file(task.name, entry), content, HubError)
                write_index(self.folder.index_file, index.with_task(task.name, entry))
            finally:
                self.folder.sweep(task.name)

    def remove(self, name: str) -> None:
        """Remove a task and delete its file. Raises HubError for an unknown task or a disk that refuses."""
        with self.folder.locked():
            self._entry(name)
            write_index(self.folder.index_file, self._index().without_task(name))
            self.folder.sweep(name)
        self._loaded.pop(name, None)

    def verify(self) -> list[Problem]:
        """Everything that is wrong with the hub, task by task; an empty list for a sound one.

        Every task file is read, its checksum compared and its delta built; the index is compared with the folder.
        Files that another process is adding meanwhile may show as strays. Raises HubError when the index or the
        source cannot be read.
        """
        index, _ = self._index(), self.source
        problems = [
            Problem(name, message)
            for name, entry in sorted(index.tasks.items())
            if (message := self._fault(name, entry)) is not None
        ]
        with clear_os_errors("list", self.folder.path, HubError):
            strays = [Problem(None, f"{path} is no part of the hub") for path in self.folder.strays(index)]
        return problems + strays

    def _read_task(self, name: str, entry: Entry) -> Task:
        try:
            task = load_task(self.folder.task_file(name, entry), self.source, entry.sha256)
        except TaskFileError as error:
            if self._entry(name) != entry:  # replaced by another process since the index was read
                return self._read_task(name, self._entry(name))
            raise self._unusable(name, error) from error
        if task.name != name:
            raise self._unusable(name, TaskFileError(f"it holds the task {task.name!r}"))
        return task

    def _fault(self, name: str, entry: Entry) -> str | None:
        try:
            num_classes, path = len(self._read_task(name, entry).classes), self.folder.task_file(name, entry)
            with clear_os_errors("look at", path, HubError):
                size_bytes = path.stat().st_size
        except HubError as error:
            return str(error)
        if (size_bytes, num_classes) == (entry.size_bytes, entry.num_classes):
            return None
        return (
            f"the index says {entry.size_bytes} bytes and {entry.num_classes} classes, "
            f"the file {path} has {size_bytes} bytes and {num_classes} classes"
        )

    def _index(self) -> Index:
        return read_index(self.folder.index_file)

    def _entry(self, name: str) -> Entry:
        tasks = self._index().tasks
        if name not in tasks:
            near = difflib.get_close_matches(name, tasks, n=1) or sorted(tasks)[:5]
            hint = f"did you mean {', '.join(near)}?" if near else "it has no tasks yet"
            raise HubError(f"the hub {self.folder.path} has no task {name!r}; {hint}")
        return tasks[name]

    def _refuse_other(self, source: Source) -> None:
        difference = self.source_info.difference(SourceInfo.of(source))
        if difference:
            raise HubError(f"the hub {self.folder.path} is on another source: {difference}")

    def _unusable(self, name: str, error: TaskFileError) -> HubError:
        return HubError(
            f"task {name!r} of the hub {self.folder.path} cannot be used: {error}. "
            "Replace it from a copy or remove it; the other tasks are not affected"
        )


def _load(info: SourceInfo) -> Source:
    try:
        if info.weights in PACKAGES:
            return load_source(info.weights, precision=info.precision)
        return load_source(info.name, info.weights, info.precision)
    except SourceError as error:
        raise HubError(
            f"the hub's source {info} cannot be loaded: {error}. If you have it, open the hub with it"
        ) from error
