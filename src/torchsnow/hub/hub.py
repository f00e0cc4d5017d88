"""A hub: one source and many tasks, in a folder; one source pass serves all tasks.

A task file is written first and becomes part of the hub when the index is replaced; what the index no longer names as
current stays as a former version until `gc`, which replaces the index first and deletes files last. So a process that
is killed at any point leaves the old hub or the new one, and at most a file that nobody reads: `verify` names it and
`gc` deletes it.
"""

from __future__ import annotations

import difflib
import threading
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Self

from torchsnow.errors import HubError, SourceError, TaskFileError
from torchsnow.hub.cache import CACHE_BYTES, TaskCache, size_of
from torchsnow.hub.folder import (
    SOURCE_FILE,
    TASKS_FOLDER,
    Cleanup,
    Entry,
    Folder,
    Index,
    read_source_info,
    write_source_info,
)
from torchsnow.hub.remote import folder_at, validate_local
from torchsnow.hub.verify import Problem, read_current, unusable, validate_current, validate_former
from torchsnow.io.files import clear_os_errors, write_atomically
from torchsnow.source.packages import PACKAGES
from torchsnow.task_file.info import TaskInfo, content_hash, read_task_info
from torchsnow.task_file.source_info import SourceInfo

if TYPE_CHECKING:  # a hub's list needs no torch
    from torch import Tensor

    from torchsnow.source import Source
    from torchsnow.task_file import Task


class Hub:
    """A hub on disk; make it with `Hub.create` or `Hub.open`. Threads may share it.

    Every call sees the hub's present state, with what other processes changed. Tasks are loaded when first used and
    kept while `cache` has room for them. `source_info` describes the source.
    """

    def __init__(
        self, folder: Folder, source_info: SourceInfo, source: Source | None, cache_bytes: int = CACHE_BYTES
    ) -> None:
        self.folder, self.source_info = folder, source_info
        self.cache: TaskCache[Task] = TaskCache(cache_bytes)
        self._source = source
        self._loading = threading.RLock()  # of the source or one task; what is loaded already need not wait

    def __repr__(self) -> str:
        return f"Hub({str(self.folder.path)!r}, {len(self.names())} tasks on {self.source_info.name})"

    def _repr_html_(self) -> str:
        """A table of the tasks, as notebooks show it."""
        rows = (
            f"<tr><td>{escape(name)}</td><td>{entry.num_classes}</td><td>{entry.size_bytes / 1e6:.2f}</td>"
            f"<td>{escape(entry.added)}</td></tr>"
            for name, entry in self.infos().items()
        )
        head = "<tr><th>task</th><th>classes</th><th>MB</th><th>added</th></tr>"
        return f"<table><caption>{escape(repr(self))}</caption>{head}{''.join(rows)}</table>"

    @classmethod
    def create(cls, path: Path | str, source: Source) -> Self:
        """A new hub without tasks; the folder is made if missing. Raises HubError if it holds anything."""
        validate_local(path)
        folder, info = Folder(Path(path)), SourceInfo.of(source)
        with clear_os_errors("make a hub in", folder.path, HubError):
            folder.path.mkdir(parents=True, exist_ok=True)
            with folder.locked():
                folder.validate_vacant()
                (folder.path / TASKS_FOLDER).mkdir(exist_ok=True)
                folder.write_index(Index(0, {}))
                write_source_info(folder.source_file, info)  # last: it makes the folder a hub
        return cls(folder, info, source)

    @staticmethod
    def validate_vacant(path: Path | str) -> None:
        """Raise HubError for a place where `create` could not make a hub, because something else is there."""
        validate_local(path)
        with clear_os_errors("make a hub in", Path(path), HubError):
            Folder(Path(path)).validate_vacant()

    @classmethod
    def open(cls, path: Path | str, source: Source | None = None, cache_bytes: int = CACHE_BYTES) -> Self:
        """An existing hub. Without `source`, the one that the hub names is loaded when first needed.

        `path` is a folder, or an address as in "s3://bucket/hub", from where a hub can be read and not changed (see
        `torchsnow.hub.remote`).

        No task file is read. At most `cache_bytes` of loaded tasks are kept in memory, those used last; a single
        prediction holds all its tasks, whatever they take. Raises HubError for a folder that is not a hub, another
        version, or another source than the hub's.
        """
        folder = folder_at(path)
        with clear_os_errors("open the hub", folder.path, HubError):
            if not folder.source_file.exists():
                raise HubError(
                    f"{path} is not a hub: it has no {SOURCE_FILE}; `torchsnow train DATA --task NAME --hub {path}` "
                    "makes one"
                )
        hub = cls(folder, read_source_info(folder.source_file), source, cache_bytes)
        folder.read_index()
        if source is not None:
            hub._validate_source(source)
        return hub

    @property
    def source(self) -> Source:
        """The source, loaded at the first use; to use a device, move it there before the first task is loaded.

        Raises HubError when the source cannot be loaded by its name, or is another one by now.
        """
        with self._loading:
            if self._source is None:
                source = load_described(self.source_info)
                self._validate_source(source)
                self._source = source
            return self._source

    @property
    def generation(self) -> int:
        """How often the hub was changed."""
        return self.folder.read_index().generation

    def names(self) -> list[str]:
        """The names of all tasks, in alphabetical order."""
        return sorted(self.folder.read_index().tasks)

    def infos(self) -> dict[str, Entry]:
        """What the index says of every task, by name; no task file is read."""
        return dict(sorted(self.folder.read_index().tasks.items()))

    def entry(self, name: str, index: Index | None = None) -> Entry:
        """What the index says of a task; no task file is read. Raises HubError for an unknown one."""
        index = index or self.folder.read_index()
        if name in index.tasks:
            return index.tasks[name]
        if name in index.former:
            hint = "it was removed, and a rollback brings it back"
        else:
            near = difflib.get_close_matches(name, index.tasks, n=1) or sorted(index.tasks)[:5]
            hint = f"did you mean {', '.join(near)}?" if near else "it has no tasks yet"
        raise HubError(f"the hub {self.folder.path} has no task {name!r}; {hint}")

    def former(self) -> dict[str, tuple[Entry, ...]]:
        """The former versions that are kept, by name, the one that `rollback` makes current first.

        A name that is not among `names` is that of a removed task. Tasks without former versions are left out.
        """
        return dict(sorted(self.folder.read_index().former.items()))

    def info(self, name: str) -> TaskInfo:
        """What a task's file says about itself. Raises HubError for an unknown task or a damaged file."""
        try:
            return read_task_info(self.folder.task_file(name, self.entry(name)))
        except TaskFileError as error:
            raise unusable(self.folder, name, error) from error

    def task(self, name: str) -> Task:
        """A task, its delta in eval mode. Raises HubError for an unknown task or a damaged file."""
        return self._task(name, self.entry(name))

    def index(self) -> Index:
        """The hub's tasks at this moment, for whoever follows its changes. Raises HubError for a damaged index."""
        return self.folder.read_index()

    def version(self, name: str, entry: Entry) -> Task:
        """One version of a task, as an index named it, loaded again.

        Raises HubError for a file that is gone or damaged.
        """
        return read_current(self.folder, name, entry, self.source)

    def tasks(
        self, names: Iterable[str] | None = None, on_bad: Callable[[Problem], None] | None = None
    ) -> dict[str, Task]:
        """The named tasks, by default all, by name, their deltas in eval mode.

        A task whose file is damaged is passed to `on_bad` and left out; without `on_bad`, HubError is raised, as it
        always is for an unknown task and for a source that cannot be loaded.
        """
        index = self.folder.read_index()
        entries = {name: self.entry(name, index) for name in (sorted(index.tasks) if names is None else names)}
        tasks = {}
        if entries:
            _ = self.source  # an error of the source is none of a task
        for name, entry in entries.items():
            try:
                tasks[name] = self._task(name, entry)
            except HubError as error:
                if names is None and name not in self.folder.read_index().tasks:
                    continue  # it was removed, and its file deleted, since the index was read
                if on_bad is None:
                    raise
                on_bad(Problem(name, str(error)))
        return tasks

    def predict(
        self,
        images: Tensor,
        names: Iterable[str] | None = None,
        on_bad: Callable[[Problem], None] | None = None,
    ) -> dict[str, Tensor]:
        """Logits (B, num_classes) of every named task, by default all, from one source pass.

        `images` (B, 3, H, W) are normalised as the source's `input_config` says, on the source's device.
        A task whose file is damaged, or whose logits are not finite, is passed to `on_bad` and the others answer;
        without `on_bad`, HubError is raised, as it always is for an unknown task. Raises SourceError for images of
        another shape.
        """
        from torchsnow.hub.live import not_finite, predict_together

        tasks = self.tasks(names, on_bad)
        logits = predict_together(self.source, tasks, images) if tasks else {}
        for name in not_finite(logits):
            problem = Problem(name, f"task {name!r} of the hub {self.folder.path}: its logits are not finite numbers")
            if on_bad is None:
                raise HubError(problem.message)
            on_bad(problem)
            del logits[name]
        return logits

    def add(self, task: Task, replace: bool = False, amends: str | None = None) -> Entry:
        """Store a task, and return where it stands. With `replace`, a task of that name becomes a former version. If
        its SHA-256 is `amends`, it was only a stage on the way to this one, and is not kept.

        Raises HubError for a task of another source, a name that is taken (unless `replace`), a disk that refuses, or
        another process that keeps the hub locked; TaskFileError for a task that could not be loaded again. The hub is
        as before then; only if the very last step fails, the flush of the folder, it has the task.
        """
        from torchsnow.task_file import decode_task, encode_task

        difference = task.source_info.difference(self.source_info)
        if difference:
            raise HubError(f"task {task.name!r} does not belong to the hub {self.folder.path}: {difference}")
        content = encode_task(task)
        with self._loading:
            if self._source is not None:  # it is not loaded for this: `encode_task` has checked all that needs none
                decode_task(content, self._source)
        added = datetime.now(UTC).isoformat(timespec="seconds")
        entry = Entry(content_hash(content), len(content), len(task.classes), added)
        with self.folder.locked():
            index = self.folder.read_index()
            current = index.tasks.get(task.name)
            amended = current is not None and current.sha256 == amends
            if current is not None and not (replace or amended):
                raise HubError(f"the hub {self.folder.path} has a task {task.name!r} already; remove or replace it")
            try:
                self.folder.make_task_folder(task.name)
                write_atomically(self.folder.task_file(task.name, entry), content, HubError)
                self.folder.write_index(index.with_task(task.name, entry, amended=amended))
            finally:
                self.folder.sweep(task.name)
        return entry

    def remove(self, name: str) -> None:
        """Remove a task; it stays as a former version. Raises HubError for an unknown task or a disk that refuses."""
        with self.folder.locked():
            index = self.folder.read_index()
            self.entry(name, index)
            self.folder.write_index(index.without_task(name))
        self.cache.drop(name)

    def rollback(self, name: str) -> Entry:
        """Make the former version of a task current again, or bring back a removed task; return what is current now.

        The version that was current becomes the last of the former ones, so going back as often as there are former
        versions, and once more, ends where it began. Raises HubError when no former version is kept, its file is
        damaged, or the disk refuses; the hub is as before then.
        """
        with self.folder.locked():
            index = self.folder.read_index()
            if name not in index.former:
                self.entry(name, index)
                raise HubError(
                    f"task {name!r} of the hub {self.folder.path} has no former version: "
                    "it was never replaced, or `gc` deleted what it was"
                )
            entry = index.former[name][0]
            validate_former(self.folder, name, entry)
            self.folder.write_index(index.rolled_back(name))
        return entry

    def gc(self) -> Cleanup:
        """Delete all former versions, and what killed processes left; files that no hub writes are left alone.

        Raises HubError when the disk refuses or another process keeps the hub locked; no current task is ever touched.
        """
        with self.folder.locked():
            index = self.folder.read_index()
            if index.former:
                self.folder.write_index(index.without_former())
            return self.folder.clean()

    def verify(self, progress: Callable[[int, int], None] = lambda done, total: None) -> list[Problem]:
        """Everything that is wrong with the hub, task by task; an empty list for a sound one.

        Every current task is read, its checksum compared and its delta built; of former versions the checksum is
        compared; the index is compared with the folder. `progress` is told how many versions of how many are done.
        Files that another process is adding meanwhile may show as strays. Raises HubError when the index or the
        source cannot be read.
        """
        index, source = self.folder.read_index(), self.source
        versions = [(name, entry) for name in sorted({**index.tasks, **index.former}) for entry in index.versions(name)]
        problems = []
        for done, (name, entry) in enumerate(versions, 1):
            try:
                if index.tasks.get(name) == entry:
                    validate_current(self.folder, name, entry, source)
                else:
                    validate_former(self.folder, name, entry)
            except HubError as error:
                if entry in self.folder.read_index().versions(name):  # not deleted since the index was read
                    problems.append(Problem(name, str(error)))
            progress(done, len(versions))
        with clear_os_errors("list", self.folder.path, HubError):
            strays = [Problem(None, f"{path} is no part of the hub") for path in self.folder.strays(index)]
        return problems + strays

    def _task(self, name: str, entry: Entry) -> Task:
        try:
            return self._resident(name, entry)
        except HubError:
            now = self.entry(name)
            if now == entry:
                raise
        return self._task(name, now)  # replaced since the index was read

    def _resident(self, name: str, entry: Entry) -> Task:
        task = self.cache.get(name, entry.sha256)
        if task is not None:
            return task
        with self._loading:
            task = self.cache.get(name, entry.sha256)  # another thread may have loaded it meanwhile
            if task is None:
                task = read_current(self.folder, name, entry, self.source)
                self.cache.put(name, entry.sha256, task, size_of(task))
            return task

    def _validate_source(self, source: Source) -> None:
        difference = self.source_info.difference(SourceInfo.of(source))
        if difference:
            raise HubError(f"the hub {self.folder.path} is on another source: {difference}")


def load_described(info: SourceInfo) -> Source:
    """The source that a hub or a repository describes. Raises HubError when it cannot be loaded by its name."""
    from torchsnow.source import load_source

    try:
        name, weights = (info.weights, "pretrained") if info.weights in PACKAGES else (info.name, info.weights)
        return load_source(name, weights, info.precision, info.input_config.mean, info.input_config.std)
    except SourceError as error:
        raise HubError(
            f"the hub's source {info} cannot be loaded: {error}. If you have it, open the hub with it"
        ) from error
