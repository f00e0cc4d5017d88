"""The tasks that a server offers: those of a hub's folder, at every moment."""

from __future__ import annotations

import asyncio
import difflib
import threading
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from types import MappingProxyType

from torchsnow.errors import HubError, TorchsnowError
from torchsnow.hub import Entry
from torchsnow.hub.live import LiveHub, LiveTask, Snapshot, TransientError
from torchsnow.serving.api_error import ApiError
from torchsnow.serving.logs import log, log_trouble
from torchsnow.serving.loop import Loop
from torchsnow.serving.metrics import Metrics
from torchsnow.task_file import TaskInfo, read_task_info

_MAX_COMPARED = 200  # names with one that there is not: each takes as long as a thousand characters of a request


@dataclass(frozen=True)
class Listed:
    """One task as the hub has it: its entry and what its file says about itself."""

    entry: Entry
    info: TaskInfo


class HubWatcher:
    """Follows a hub. Everything here but its `loop` may take the time of a disk: call it from a thread."""

    def __init__(self, live: LiveHub, metrics: Metrics, every_s: float) -> None:
        self.live = live
        self.loop = Loop("follow", partial(asyncio.to_thread, self.poll), every_s)
        self._metrics = metrics
        self._turn, self._loading = threading.Lock(), threading.Lock()
        self._unloaded: frozenset[str] = frozenset()
        self._trouble: str | None = None
        self.listed: Mapping[str, Listed] = MappingProxyType({})
        self.has_polled = threading.Event()
        """Set when the tasks that were there at first are loaded; each of them answers before, at its first request."""
        self._taken: dict[str, Entry] = {}  # what was loaded, where there was room, or found unusable
        self._ended = False
        self._taken_over: Snapshot | None = None
        self._told: frozenset[str] = frozenset()  # of damaged files
        self._refused: dict[str, str] = {}  # what the log said last of tasks that cannot be used

    @property
    def faults(self) -> Mapping[str, str]:
        """Why tasks cannot be used, by name; the words hold paths and are for the log."""
        return self.live.now.faults

    @property
    def damaged(self) -> Mapping[str, str]:
        """Why the files of tasks are not sound that were when they were loaded; what was loaded keeps answering."""
        return self.live.now.damaged

    @property
    def unloaded(self) -> frozenset[str]:
        """Tasks that are not offered, by request."""
        return self._unloaded

    def poll(self) -> bool:
        """Take over what has changed. New versions are loaded here; until they are, the old ones answer.

        Returns whether the hub could be read. One that cannot is reported once, and its tasks keep answering. Raises
        what is no fault of the hub; the next poll does again what this one could not.
        """
        with self._turn:
            try:
                self._poll()
                self._trouble = None
            except TorchsnowError as error:
                if str(error) != self._trouble:
                    log_trouble("the hub cannot be read", reason=str(error))
                self._trouble = str(error)
            finally:
                self.has_polled.set()
                self._metrics.tasks.set(len(self.listed))
                self._metrics.unusable.set(len(self.faults.keys() | self.damaged.keys()))
                self._metrics.keep(self.live.now.entries)
            return self._trouble is None

    def _poll(self) -> None:
        self.live.poll()
        now = self.live.now  # requests follow the hub too, when they find a version gone
        if now != self._taken_over:
            self._take_over(now.entries)
            self._taken_over = replace(now, faults=self.live.now.faults)  # with those that were found just now
        for name in self.damaged.keys() - self._told:
            log_trouble("the file of a task is damaged", task=name, reason=self.damaged[name])
        for name in (self._told & self.listed.keys()) - self.damaged.keys():
            log("the file of a task is sound again", task=name)
        self._told = frozenset(self.damaged)

    def _take_over(self, entries: Mapping[str, Entry]) -> None:
        """Raises what loading raised, when all tasks had their turn."""
        for name in sorted(self.listed.keys() - entries):
            log("task removed", task=name)
            self._forget(name)
        self._list(entries)
        failed = []
        for name, entry in sorted(entries.items()):
            if self._taken.get(name) == entry:
                continue
            if self._ended:
                return
            try:
                self._take(name, entry)
                self.loop.progress()
            except Exception as error:
                error.add_note(f"This came of taking over the task {name!r}.")
                failed.append(error)
        if failed:
            raise ExceptionGroup("tasks could not be taken over", failed)

    def _list(self, entries: Mapping[str, Entry]) -> None:
        """List tasks that are new before any of them is loaded, which takes a hundred times as long."""
        found = {}
        for name in entries.keys() - self.listed.keys() - self.faults.keys():
            with suppress(TorchsnowError, OSError):  # loading it will say what is wrong
                found[name] = self._listed(name, entries[name])
        self.listed = MappingProxyType({**self.listed, **found})

    def _listed(self, name: str, entry: Entry) -> Listed:
        return Listed(entry, read_task_info(self.live.hub.folder.task_file(name, entry)))

    def _take(self, name: str, entry: Entry) -> None:
        """Offer a version of a task, loaded if there is room, or no version if this one cannot be used."""
        residents = self.live.cache
        try:
            if residents.latest(name) is not None or residents.size_bytes < residents.budget_bytes:
                self._load(name)
            listed = self._listed(name, entry)
        except TransientError:
            raise
        except TorchsnowError as error:
            self._forget(name)
            if self.live.now.entries.get(name) == entry and self._refused.get(name) != str(error):
                self._refused[name] = str(error)
                log_trouble("task cannot be used", task=name, reason=str(error))
            return
        self._refused.pop(name, None)
        log("task replaced" if name in self._taken else "task added", task=name, sha256=entry.sha256)
        self._taken[name] = entry
        self.listed = MappingProxyType({**self.listed, name: listed})

    def end(self) -> None:
        """Load nothing more: whoever waits for a poll need not wait for all tasks."""
        self._ended = True

    def _forget(self, name: str) -> None:
        self._taken.pop(name, None)
        self.live.cache.drop(name)
        self.listed = MappingProxyType({other: own for other, own in self.listed.items() if other != name})

    def tasks_at_hand(self, names: Sequence[str] | None) -> list[LiveTask] | None:
        """What `tasks` would return if that takes no time, else None."""
        if names is None:
            return None
        warm = [self.live.cache.latest(name) for name in dict.fromkeys(names)]
        for name in names:
            self._validate_known(name)
        found = [task for task in warm if task is not None]
        return found if len(found) == len(warm) else None

    def tasks(self, names: Sequence[str] | None) -> list[LiveTask]:
        """The named tasks, or all that answer. Raises ApiError: 404 for an unknown name, 409 for an unusable task; and
        TransientError for one that this machine cannot load now."""
        if names is None:
            usable, lacking = [], None
            for name in sorted(self.live.now.entries.keys() - self._unloaded):
                try:
                    task = self._found(name)
                except TransientError as error:  # the others answer
                    lacking = error
                    continue
                usable += [task] if task is not None else []
            if not usable:
                if lacking is not None:
                    raise lacking
                raise ApiError(404, "no_tasks", "there are no tasks yet")
            return usable
        for name in names:
            self._validate_known(name)
        tasks = []
        for name in dict.fromkeys(names):
            task = self._found(name)
            if task is None:
                self._validate_known(name)  # it may have gone meanwhile
                raise ApiError(409, "task_unusable", "a task that was asked for is damaged; the others answer")
            tasks.append(task)
        return tasks

    def _found(self, name: str) -> LiveTask | None:
        """A task, from the disk if need be; None for one that cannot be used. Raises TransientError."""
        task = self.live.cache.latest(name)
        try:
            return self._load(name) if task is None else task
        except TransientError:
            raise
        except HubError:
            return None

    def _load(self, name: str) -> LiveTask:
        with self._loading:  # one at a time: who waits finds it loaded
            return self.live.tasks([name])[0]

    def set_offered(self, name: str, offered: bool) -> None:
        """Offer a task or not, in this server alone. Raises ApiError (404) for an unknown one."""
        if name not in self.live.now.entries:
            self._validate_known(name)
        self._unloaded = self._unloaded - {name} if offered else self._unloaded | {name}

    def take_over_unloaded(self, names: Iterable[str]) -> None:
        """Do not offer what another worker does not."""
        self._unloaded |= frozenset(names)

    def _validate_known(self, name: str) -> None:
        known = self.live.now.entries
        if name in known and name not in self._unloaded:
            return
        alike = (other for other in known if other[0] == name[:1] and other not in self._unloaded)
        near = difflib.get_close_matches(name[:64], islice(alike, _MAX_COMPARED), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "; GET /tasks lists those there are"
        raise ApiError(404, "unknown_task", f"there is no task of this name{hint}")
