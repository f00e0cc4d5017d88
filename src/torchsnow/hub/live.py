"""A hub that answers while tasks are added, replaced, rolled back and removed, by this process or by others."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from torchsnow.engines import DeltaRequest, Engine
from torchsnow.errors import HubError, SourceError, TorchsnowError
from torchsnow.hub import Entry, Hub
from torchsnow.hub.cache import TaskCache, size_of
from torchsnow.hub.folder import Index
from torchsnow.hub.remote import REFRESH_S, Copy
from torchsnow.io.files import Stamp, file_stamp
from torchsnow.io.shortage import shortage
from torchsnow.source import Framing, Request, Source
from torchsnow.task_file import Task
from torchsnow.task_file.labels import Thresholds

CACHE_BYTES = 2 * 2**30  # of tasks; about 400 on ResNet-50


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


def unknown_scores(distances: Tensor | None, unknown_above: float | None) -> Tensor | None:
    """Distances (B,) over the one from where on images are unknown; None where one of them is not known.

    What is too far away for a number gets the largest.
    """
    if distances is None or unknown_above is None:
        return None
    return torch.nan_to_num(distances / unknown_above, nan=torch.finfo(torch.float32).max)


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
    unknown_above: float | None
    thresholds: Thresholds
    prepared: Any = field(repr=False)
    size_bytes: int


@dataclass(frozen=True)
class Answer:
    """Logits (B, num_classes) of one task for the images that asked for it, and which version of it spoke.

    `unknown_scores` (B,) above 1 are of images unlike those that the task was trained for; None where that is not
    known.
    """

    task: LiveTask
    logits: Tensor
    unknown_scores: Tensor | None


@dataclass(frozen=True)
class Snapshot:
    """The tasks of a hub at one moment; never changed.

    `faults` are the tasks that cannot be used, and why; `damaged` those that were loaded before their files were, and
    answer from memory.
    """

    index: Index
    faults: Mapping[str, str]
    damaged: Mapping[str, str]

    @property
    def entries(self) -> Mapping[str, Entry]:
        """The current version of every task."""
        return self.index.tasks


@dataclass(frozen=True)
class _Seen:
    """A version that was loaded, or could not be; its file, what that was like, and when to fetch it from afar."""

    entry: Entry
    file: Path
    stamp: Stamp
    fetch_s: float

    def is_new(self) -> bool:
        """Whether the file is to be read again."""
        return file_stamp(self.file) != self.stamp or (self.stamp is None and time.monotonic() > self.fetch_s)


class TransientError(HubError):
    """A task could not be loaded, for a reason that is not in its file: it is tried again."""


class LiveHub:
    """Answers for the tasks of a hub, and follows its folder.

    Every prediction works on the tasks of one moment. A change makes a new `Snapshot` off to the side and puts it in
    place in one step; predictions that run keep the old versions until they are done. Tasks are loaded when first
    asked for, and those used last stay, up to `cache_bytes`; `cache` says which are there. Safe to be used
    by several threads at once.
    """

    def __init__(self, hub: Hub, cache_bytes: int = CACHE_BYTES) -> None:
        self.hub = hub
        self.engine = Engine(hub.source)
        self.cache: TaskCache[LiveTask] = TaskCache(cache_bytes)
        self._lock = threading.Lock()
        self._seen: dict[str, _Seen] = {}
        self._now = Snapshot(Index(-1, {}), MappingProxyType({}), MappingProxyType({}))
        self.poll()

    @property
    def now(self) -> Snapshot:
        """The tasks that answer at present."""
        return self._now

    def poll(self) -> bool:
        """Take over what has changed in the hub's folder, files behind the index's back too; returns whether anything
        has.

        Raises HubError when the index cannot be read; the tasks that were there keep answering.
        """
        index = self.hub.index()
        with self._lock:
            before = self._now
            self._seen = {name: seen for name, seen in self._seen.items() if index.tasks.get(name) == seen.entry}
            rewritten = {name: seen for name, seen in self._seen.items() if seen.is_new()}
            for name in before.faults.keys() & rewritten.keys():  # to be tried again by whoever asks for it
                del self._seen[name]
            faults = {name: why for name, why in before.faults.items() if name in self._seen}
            damaged = {name: why for name, why in before.damaged.items() if name in self._seen}
            self._now = Snapshot(index, MappingProxyType(faults), MappingProxyType(damaged))
        for name in rewritten.keys() - before.faults.keys():
            self._check(name, rewritten[name])
        return self._now != before

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
        """Every image to its own tasks: for each the answers, logits (num_classes,) and a score (), by task name.

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
            scores = answer.unknown_scores
            for place, row in enumerate(own_rows):
                score = None if scores is None else scores[place]
                result[row][answer.task.name] = Answer(answer.task, answer.logits[place], score)
        return result

    def run(self, images: Tensor, tasks: Sequence[LiveTask], rows: Sequence[Iterable[int]]) -> list[Answer]:
        """Answers of given versions of tasks, each for its own rows of the images (ascending), from one source pass."""
        if not tasks:
            return []
        _validate_images(images)
        requests = [DeltaRequest(task.prepared, tuple(own)) for task, own in zip(tasks, rows, strict=True)]
        outputs = zip(tasks, self.engine.run(images, requests), strict=True)
        return [
            Answer(task, output.logits, unknown_scores(output.distances, task.unknown_above))
            for task, output in outputs
        ]

    def _task(self, now: Snapshot, name: str) -> LiveTask:
        entry = now.entries.get(name)
        if entry is None:
            raise HubError(f"the hub {self.hub.folder.path} has no task {name!r}")
        cached = self.cache.get(name, entry.sha256)
        if cached is not None:
            return cached
        if name in now.faults:
            raise HubError(now.faults[name])
        seen = self._look_at(name, entry)  # before the file is read: it may be mended right after
        try:
            task = self._load(name, entry)
        except Exception as error:  # whatever it is, those who ask for other tasks must not meet it
            if self.poll():  # changed by another process since: what was asked for may be another file by now
                return self._task(self._now, name)
            why = str(error) if isinstance(error, TorchsnowError) else f"task {name!r} cannot be loaded: {error!r}"
            if isinstance(error, OSError) or shortage(error) is not None:
                raise TransientError(why) from error
            self._note_fault(name, seen, why)
            raise HubError(why) from error
        with self._lock:
            self._seen[name] = self._look_at(name, entry)
        return task

    def _load(self, name: str, entry: Entry) -> LiveTask:
        task = self.hub.version(name, entry)
        prepared = self.engine.prepare(task.delta)
        of_file = task.classes, task.framing, task.unknown_above, task.thresholds
        live = LiveTask(name, entry.sha256, *of_file, prepared, entry.size_bytes)
        self.cache.put(name, entry.sha256, live, size_of(task))
        return live

    def _look_at(self, name: str, entry: Entry) -> _Seen:
        folder = self.hub.folder
        fetch_s = time.monotonic() + REFRESH_S if isinstance(folder, Copy) else math.inf
        file = folder.task_place(name, entry)
        return _Seen(entry, file, file_stamp(file), fetch_s)

    def _check(self, name: str, seen: _Seen) -> None:
        """Note whether the file of a task that was loaded is sound."""
        found, why = self._look_at(name, seen.entry), None
        try:
            self.hub.version(name, seen.entry)
        except HubError as error:
            why = str(error)
        with self._lock:
            if self._seen.get(name) == seen:
                others = {other: own for other, own in self._now.damaged.items() if other != name}
                damaged = others if why is None else {**others, name: why}
                self._seen[name], self._now = found, replace(self._now, damaged=MappingProxyType(damaged))

    def _note_fault(self, name: str, seen: _Seen, why: str) -> None:
        with self._lock:
            if self._now.entries.get(name) == seen.entry:
                self._seen[name] = seen
                self._now = replace(self._now, faults=MappingProxyType({**self._now.faults, name: why}))
                self.cache.drop(name)  # a former version does not speak for it


def _validate_images(images: Tensor) -> None:
    """Raise SourceError for what is no batch of normalised images: engines would not all answer to it alike."""
    if not isinstance(images, Tensor) or images.dtype != torch.float32 or images.ndim != 4:
        given = f"{images.dtype} {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
        raise SourceError(f"images are {given}; expected a float32 tensor (B, 3, H, W), one image as images[None]")
    if not bool(images.isfinite().all()):
        raise SourceError("the images hold NaN or infinite numbers; there is no answer to them")
