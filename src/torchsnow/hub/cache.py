"""The tasks that a hub holds in memory: up to a number of bytes, those used longest ago leave first."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from torchsnow.task_file import Task

T = TypeVar("T")

CACHE_BYTES = 2**30
"""How many bytes of tasks a hub keeps in memory unless told otherwise: about 200 tasks on a ResNet-50."""

_MODULE_BYTES = 5_000  # measured: what a module takes in Python besides its numbers


@dataclass(frozen=True)
class _Cached(Generic[T]):
    sha256: str
    task: T
    size_bytes: int


class TaskCache(Generic[T]):
    """Loaded tasks by name, of one version each. Whoever uses a task keeps it alive after it left. Safe for threads."""

    def __init__(self, budget_bytes: int) -> None:
        self.budget_bytes = budget_bytes
        self._size_bytes = 0
        self._by_name: OrderedDict[str, _Cached[T]] = OrderedDict()  # the one used last comes last
        self._lock = threading.Lock()

    @property
    def size_bytes(self) -> int:
        """What all of them take, numbers and modules."""
        return self._size_bytes

    def names(self) -> list[str]:
        """From the one that was used longest ago to the latest."""
        with self._lock:
            return list(self._by_name)

    def get(self, name: str, sha256: str) -> T | None:
        """The task of this version, if it is here; it counts as used."""
        with self._lock:
            cached = self._by_name.get(name)
            return self._used(name, cached) if cached is not None and cached.sha256 == sha256 else None

    def latest(self, name: str) -> T | None:
        """Whichever version of a task is here; it counts as used."""
        with self._lock:
            cached = self._by_name.get(name)
            return None if cached is None else self._used(name, cached)

    def put(self, name: str, sha256: str, task: T, size_bytes: int) -> None:
        """Keep a task instead of another version of it. One that is larger than the whole budget does not stay."""
        cached = _Cached(sha256, task, size_bytes)
        with self._lock:
            self._drop(name)
            self._by_name[name] = cached
            self._size_bytes += cached.size_bytes
            while self._size_bytes > self.budget_bytes:
                self._drop(next(iter(self._by_name)))

    def drop(self, name: str) -> None:
        """Let a task go, if it is here."""
        with self._lock:
            self._drop(name)

    def _used(self, name: str, cached: _Cached[T]) -> T:
        self._by_name.move_to_end(name)
        return cached.task

    def _drop(self, name: str) -> None:
        cached = self._by_name.pop(name, None)
        if cached is not None:
            self._size_bytes -= cached.size_bytes


def size_of(task: Task) -> int:
    """About how many bytes a loaded task takes."""
    numbers: int = sum(tensor.nbytes for tensor in task.delta.state_dict().values())
    return numbers + _MODULE_BYTES * len(list(task.delta.modules()))
