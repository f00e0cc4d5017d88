"""The two small JSON files of a hub: which source it is on, and which tasks it has."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torchsnow.errors import HubError
from torchsnow.io.files import clear_os_errors, write_atomically
from torchsnow.task_file import SourceInfo, check_task_name
from torchsnow.task_file.json_shape import check_shape, check_version, parse_json

SOURCE_VERSION, INDEX_VERSION = 1, 2
_ENTRY = {"sha256": str, "size_bytes": int, "num_classes": int, "added": str}
_SHAPE = {"schema_version": int, "generation": int, "tasks": {str: _ENTRY}, "former": {str: [_ENTRY]}}


@dataclass(frozen=True)
class Entry:
    """One version of a task: the SHA-256 (hex) and size of its file, its classes, when it was added (ISO, UTC)."""

    sha256: str
    size_bytes: int
    num_classes: int
    added: str


@dataclass(frozen=True)
class Index:
    """The tasks of a hub, and the former versions of these and of removed tasks, in the order of going back.

    `generation` counts the changes; indexes of one number may differ, so compare them whole. An index is never changed:
    every method but `versions` gives the next one.
    """

    generation: int
    tasks: Mapping[str, Entry]
    former: Mapping[str, tuple[Entry, ...]] = field(default_factory=dict)

    def with_task(self, name: str, entry: Entry, *, amended: bool = False) -> Index:
        """A task added, or replaced by a version that becomes current; an amended one does not become a former one."""
        return self._next(name, entry, self.former.get(name, ()) if amended else self.versions(name))

    def without_task(self, name: str) -> Index:
        """A task removed; what was current is a former version then."""
        return self._next(name, None, self.versions(name))

    def rolled_back(self, name: str) -> Index:
        """The first of the former versions made current; what was current, if anything, becomes the last of them."""
        latest, *earlier = self.former[name]
        current = [self.tasks[name]] if name in self.tasks else []
        return self._next(name, latest, (*earlier, *current))

    def without_former(self) -> Index:
        """All former versions dropped."""
        return Index(self.generation + 1, self.tasks)

    def versions(self, name: str) -> tuple[Entry, ...]:
        """All versions of a task that the hub keeps, the current one first unless the task is removed."""
        current = (self.tasks[name],) if name in self.tasks else ()
        return (*current, *self.former.get(name, ()))

    def _next(self, name: str, current: Entry | None, former: tuple[Entry, ...]) -> Index:
        tasks = {other: entry for other, entry in self.tasks.items() if other != name}
        if current is not None:
            tasks[name] = current
            former = tuple(entry for entry in former if entry.sha256 != current.sha256)
        others = {other: entries for other, entries in self.former.items() if other != name}
        return replace(
            self,
            generation=self.generation + 1,
            tasks=tasks,
            former={**others, name: former} if former else others,
        )


class IndexFile:
    """A hub's index on disk, parsed again only when it holds other bytes. Safe for threads.

    The bytes are compared, not times or the generation: a hub that was brought back from a copy may equal the one
    before in both.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._read: tuple[bytes | None, Index] = None, Index(0, {})

    def read(self) -> Index:
        """The index as it is now. Raises HubError for an index that is missing, damaged or of another version."""
        with clear_os_errors("read", self.path, HubError):
            content = self.path.read_bytes()
        known, index = self._read
        if content != known:
            index = decode_index(content, self.path)
            self._read = content, index
        return index

    def write(self, index: Index) -> None:
        """Replace the index as a whole; the hub's lock must be held."""
        tasks = {name: vars(entry) for name, entry in index.tasks.items()}
        former = {name: [vars(entry) for entry in entries] for name, entries in index.former.items()}
        _write(self.path, INDEX_VERSION, {"generation": index.generation, "tasks": tasks, "former": former})


def read_source_info(path: Path) -> SourceInfo:
    """Raises HubError for a description that is missing, damaged or of another version."""
    with clear_os_errors("read", path, HubError):
        content = path.read_bytes()
    try:
        values = parse_json(content)
        check_version(values, SOURCE_VERSION)
        return SourceInfo.from_dict({key: value for key, value in values.items() if key != "schema_version"})
    except ValueError as error:
        raise HubError(f"{path}: {error}") from error


def write_source_info(path: Path, info: SourceInfo) -> None:
    """Describe the source of a new hub."""
    _write(path, SOURCE_VERSION, info.to_dict())


def decode_index(content: bytes, path: Path | str) -> Index:
    """The index that a file of this path holds. Raises HubError for one that is damaged or of another version."""
    try:
        values = parse_json(content)
        check_version(values, INDEX_VERSION)
        check_shape(values, _SHAPE, "index")
        tasks = {name: _entry(f"tasks.{name}", entry) for name, entry in values["tasks"].items()}
        former = {
            name: tuple(_entry(f"former.{name}[{i}]", entry) for i, entry in enumerate(entries))
            for name, entries in values["former"].items()
        }
        for name in {**tasks, **former}:
            check_task_name(name)
    except ValueError as error:
        raise HubError(f"{path}: {error}. Bring this file back from a copy; the task files are not affected") from error
    return Index(values["generation"], tasks, former)


def _entry(where: str, values: dict[str, Any]) -> Entry:
    if len(values["sha256"]) != 64 or set(values["sha256"]) - set("0123456789abcdef"):
        raise ValueError(f"index.{where}.sha256 is not a SHA-256 in hex")
    return Entry(**values)


def _write(path: Path, version: int, values: Mapping[str, Any]) -> None:
    text = json.dumps({"schema_version": version, **values}, indent=2, sort_keys=True, allow_nan=False)
    write_atomically(path, text + "\n", HubError)
