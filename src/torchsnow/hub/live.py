"""A hub that answers while tasks are added, replaced, rolled back and removed, by this process or by others."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from torchsnow.engines import Engine, Work
from torchsnow.errors import HubError, SourceError, TorchsnowError
from torchsnow.hub import Entry, Hub
from torchsnow.hub.folder import Index
from torchsnow.hub.residents import Residents, size_of
from torchsnow.io.files import Stamp, file_stamp
from torchsnow.io.shortage import shortage
from torchsnow.source import Framing, Request, Source
from torchsnow.task_file import Task

RESIDENT_BYTES = 2 * 2**30  # of tasks; about 400 on ResNet-50


def predict_together(source: Source, tasks: Mapping[str, Task], images: Tensor) -> dict[str, Tensor]:
    """Logits (B, num_classes) of every task from one pass over normalised images (B, 3, H, W); none for no tasks.

    All of them are on one device. Raises SourceError for images of another shape.
    """
    deltas = {name: task.delta.eval() for name, task in tasks.items()}
    if not deltas:
        return {}
    with torch.no_grad():
        requests = (delta.request(delta.choose()) for delta in deltas.values())
        features = source(images, Request.together(requests))
        return {name: delta(features) for name, delta in deltas.items()}


def not_finite(logits: Mapping[str, Tensor]) -> list[str]:
    """The tasks with logits that are no finite numbers; an accelerator is waited for once, not for every task."""
    if not logits:
        return []
    are_finite = torch.stack([own.isfinite().all() for own in logits.values()]).tolist()
    return [name for name, is_finite in zip(logits, are_finite, strict=True) if not is_finite]


@dataclass(frozen=True)
class LiveTask:
    """One version of a task, ready to answer; `sha256` is its file's. It stays usable for whoever holds it."""

    name: str
    sha256: str
    classes: tuple[str, ...]
    framing: Framing
    prepared: Any = field(repr=False)
    size_bytes: int


@dataclass(frozen=True)
class Answer:
    """Logits (B, num_classes) of one task for the images that asked for it, and which version of it spoke."""

    task: LiveTask
    logits: Tensor


@dataclass(frozen=True)
class Snapshot:
    """The tasks of a hub at one moment; never changed. `faults` are the tasks that cannot be used, and why."""

    index: Index
    faults: Mapping[str, str]

    @property
    def entries(self) -> Mapping[str, Entry]:
        """The current version of every task."""
        return self.index.tasks


class TransientError(HubError):
    """A task could not be loaded, for a reason that is not in its file: it is tried again."""


class LiveHub:
    """Answers for the tasks of a hub, and follows its folder.

    Every prediction works on the tasks of one moment. A change makes a new `Snapshot` off to the side and puts it in
    place in one step; predictions that run keep the old versions until they are done. Tasks are loaded when first
    asked for, and those used last stay, up to `resident_bytes`; `residents` says which are there. Safe to be used
    by several threads at once.
    """

    def __init__(self, hub: Hub, resident_bytes: int = RESIDENT_BYTES) -> None:
        self.hub = hub
        self.engine = Engine(hub.source)
        self.residents: Residents[LiveTask] = Residents(resident_bytes)
        self._lock = threading.Lock()
        self._faulty: dict[str, Stamp] = {}  # what the files of faulty tasks were like
        self._now = Snapshot(Index(-1, {}), MappingProxyType({}))
        self.follow()

    @property
    def resident_bytes(self) -> int:
        """How much room there is for tasks."""
        return self.residents.budget_bytes

    @property
    def now(self) -> Snapshot:
        """The tasks that answer at present."""
        return self._now

    def follow(self) -> bool:
        """Take over what has changed in the hub's folder; returns whether anything has, the file of a faulty task too.

        Raises HubError when the index cannot be read; the tasks that were there go on answering.
        """
        index = self.hub.index()
        with self._lock:
            now = self._now
            kept = {name: why for name, why in now.faults.items() if self._is_still_faulty(name, index)}
            if index == now.index and kept == now.faults:
                return False
            self._now = Snapshot(index, MappingProxyType(kept))
        return True

    def tasks(self, names: Iterable[str] | None = None) -> list[LiveTask]:
        """The named tasks, or all that can be used, in alphabetical order.

        Raises HubError for a name that the hub does not have, or a named task that cannot be used.
        """
        now = self._now
        if names is not None:
            return [self._task(now, name) for name in dict.fromkeys(names)]
        found = []
        for name in sorted(now.entries):
            try:
                found.append(self._task(now, name))
            except HubError:
                continue  # the others answer
        return found

    def predict(self, images: Tensor, names: Iterable[str] | None = None) -> dict[str, Answer]:
        """Every image to all of the named tasks, by default to all that can be used: answers by task name.

        `images` (B, 3, H, W) are normalised as the source's `input_config` says; one source pass serves them all.
        Raises HubError as `tasks` does, SourceError for images of another shape.
        """
        tasks = self.tasks(names)
        return {answer.task.name: answer for answer in self.run(images, tasks, [range(len(images))] * len(tasks))}

    def route(self, images: Tensor, names: Sequence[Sequence[str]]) -> list[dict[str, Answer]]:
        """Every image to its own tasks: for each the answers, logits (num_classes,), by task name.

        `names` has the tasks of each image. All images go through one source pass. Raises what `predict` raises, and
        HubError when there are not as many lists of names as images.
        """
        if len(names) != len(images):
            raise HubError(f"there are {len(images)} images and {len(names)} lists of tasks; give one list per image")
        if any(isinstance(own, str) for own in names):
            raise HubError("the tasks of an image are a list of names, even where there is one: [['screws'], ...]")
        tasks = self.tasks(name for own in names for name in own)
        rows = [[i for i, own in enumerate(names) if task.name in own] for task in tasks]
        result: list[dict[str, Answer]] = [{} for _ in names]
        for answer, own_rows in zip(self.run(images, tasks, rows), rows, strict=True):
            for row, logits in zip(own_rows, answer.logits, strict=True):
                result[row][answer.task.name] = Answer(answer.task, logits)
        return result

    def run(self, images: Tensor, tasks: Sequence[LiveTask], rows: Sequence[Iterable[int]]) -> list[Answer]:
        """Answers of given versions of tasks, each for its own rows of the images (ascending), from one source pass."""
        if not tasks:
            return []
        _refuse_odd(images)
        work = [Work(task.prepared, tuple(own)) for task, own in zip(tasks, rows, strict=True)]
        return [Answer(task, logits) for task, logits in zip(tasks, self.engine.run(images, work), strict=True)]

    def _task(self, now: Snapshot, name: str) -> LiveTask:
        entry = now.entries.get(name)
        if entry is None:
            raise HubError(f"the hub {self.hub.folder.path} has no task {name!r}")
        resident = self.residents.get(name, entry.sha256)
        if resident is not None:
            return resident
        if name in now.faults:
            raise HubError(now.faults[name])
        stamp = self._stamp(name, entry)  # before the file is read: it may be mended right after
        try:
            task = self._load(name, entry)
        except Exception as error:  # whatever it is, those who ask for other tasks must not meet it
            if self.follow():  # changed by another process since: what was asked for may be another file by now
                return self._task(self._now, name)
            why = str(error) if isinstance(error, TorchsnowError) else f"task {name!r} cannot be loaded: {error!r}"
            if isinstance(error, OSError) or shortage(error) is not None:
                raise TransientError(why) from error
            self._note_fault(name, entry, why, stamp)
            raise HubError(why) from error
        return task

    def _load(self, name: str, entry: Entry) -> LiveTask:
        task = self.hub.version(name, entry)
        prepared = self.engine.prepare(task.delta)
        live = LiveTask(name, entry.sha256, task.classes, task.framing, prepared, entry.size_bytes)
        self.residents.put(name, entry.sha256, live, size_of(task))
        return live

    def _is_still_faulty(self, name: str, index: Index) -> bool:
        entry = index.tasks.get(name)
        return entry is not None and entry == self._now.entries[name] and self._stamp(name, entry) == self._faulty[name]

    def _stamp(self, name: str, entry: Entry) -> Stamp:
        with suppress(HubError):  # of a link, which is not followed
            return file_stamp(self.hub.folder.task_file(name, entry))
        return None

    def _note_fault(self, name: str, entry: Entry, why: str, stamp: Stamp) -> None:
        with self._lock:
            now = self._now
            if now.entries.get(name) == entry:
                self._faulty[name] = stamp
                faults = MappingProxyType({**now.faults, name: why})
                self._now = Snapshot(now.index, faults)


def _refuse_odd(images: Tensor) -> None:
    """Raise SourceError for what is no batch of normalised images: engines would not all answer to it alike."""
    if not isinstance(images, Tensor) or images.dtype != torch.float32 or images.ndim != 4:
        given = f"{images.dtype} {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
        raise SourceError(f"images are {given}; expected a float32 tensor (B, 3, H, W), one image as images[None]")
    if not bool(images.isfinite().all()):
        raise SourceError("the images hold NaN or infinite numbers; there is no answer to them")
