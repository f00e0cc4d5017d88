"""Where a hub keeps what, and the two small JSON files in it.

source.json                   the source that all tasks belong to; it makes a folder a hub
index.json                    the tasks and their former versions: the hub holds what this file names, and nothing else
tasks/NAME/SHA256.safetensors one task file each, named by its content
.lock                         held by whoever changes the hub
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torchsnow.errors import HubError, TaskFileError
from torchsnow.io.files import TEMPORARY_SUFFIX, clear_os_errors, sync_folder, write_atomically
from torchsnow.io.lock import LOCK_FILE, locked
from torchsnow.task_file import SourceInfo, validate_task_name
from torchsnow.task_file.json_shape import parse_json, validate_shape, validate_version

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
        """The current index. Raises HubError for an index that is missing, damaged or of another version."""
        with clear_os_errors("read", self.path, HubError):
            content = self.path.read_bytes()
        known, index = self._read
        if content != known:
            index = decode_index(content, self.path)
            self._read = content, index
        return index

    def write(self, index: Index) -> None:
        """Replace the index as a whole; the hub's lock must be held."""
        write_atomically(self.path, encode_index(index), HubError)


def read_source_info(path: Path) -> SourceInfo:
    """Raises HubError for a description that is missing, damaged or of another version."""
    with clear_os_errors("read", path, HubError):
        content = path.read_bytes()
    return decode_source_info(content, path)


def decode_source_info(content: bytes, path: Path | str) -> SourceInfo:
    """The source that a file of this path describes. Raises HubError for one that is damaged or of another version."""
    try:
        values = parse_json(content)
        validate_version(values, SOURCE_VERSION)
        return SourceInfo.from_dict({key: value for key, value in values.items() if key != "schema_version"})
    except ValueError as error:
        raise HubError(f"{path}: {error}") from error


def write_source_info(path: Path, info: SourceInfo) -> None:
    """Describe the source of a new hub."""
    write_atomically(path, encode_source_info(info), HubError)


def encode_source_info(info: SourceInfo) -> bytes:
    """What the file says that describes a source."""
    return _encode(SOURCE_VERSION, info.to_dict())


def encode_index(index: Index) -> bytes:
    """What the file of an index says."""
    tasks = {name: vars(entry) for name, entry in index.tasks.items()}
    former = {name: [vars(entry) for entry in entries] for name, entries in index.former.items()}
    return _encode(INDEX_VERSION, {"generation": index.generation, "tasks": tasks, "former": former})


def decode_index(content: bytes, path: Path | str) -> Index:
    """The index that a file of this path holds. Raises HubError for one that is damaged or of another version."""
    try:
        values = parse_json(content)
        validate_version(values, INDEX_VERSION)
        validate_shape(values, _SHAPE, "index")
        tasks = {name: _entry(f"tasks.{name}", entry) for name, entry in values["tasks"].items()}
        former = {
            name: tuple(_entry(f"former.{name}[{i}]", entry) for i, entry in enumerate(entries))
            for name, entries in values["former"].items()
        }
        for name in {**tasks, **former}:
            validate_task_name(name)
    except ValueError as error:
        raise HubError(f"{path}: {error}. Bring this file back from a copy; the task files are not affected") from error
    return Index(values["generation"], tasks, former)


def _entry(where: str, values: dict[str, Any]) -> Entry:
    if len(values["sha256"]) != 64 or set(values["sha256"]) - set("0123456789abcdef"):
        raise ValueError(f"index.{where}.sha256 is not a SHA-256 in hex")
    return Entry(**values)


def _encode(version: int, values: Mapping[str, Any]) -> bytes:
    text = json.dumps({"schema_version": version, **values}, indent=2, sort_keys=True, allow_nan=False)
    return f"{text}\n".encode()


SOURCE_FILE, INDEX_FILE, TASKS_FOLDER = "source.json", "index.json", "tasks"
LOCK_TIMEOUT_S = 10.0
_TASK_FILE = re.compile(r"[0-9a-f]{64}\.safetensors")
_TEMPORARY = re.compile(rf"\.[0-9a-f]{{16}}{re.escape(TEMPORARY_SUFFIX)}")


@dataclass(frozen=True)
class Cleanup:
    """What was deleted from a hub, in files and bytes, and what was left alone because no hub writes such files."""

    num_files: int
    size_bytes: int
    left_alone: tuple[Path, ...]


class Folder:
    """The places inside a hub's folder. Links inside it are refused, wherever they lead."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._index_file = IndexFile(path / INDEX_FILE)

    @property
    def source_file(self) -> Path:
        return self._inside(SOURCE_FILE)

    @property
    def index_file(self) -> Path:
        return self._inside(INDEX_FILE)

    def task_folder(self, name: str) -> Path:
        """The folder of one task's files; `name` must be a valid task name."""
        return self._inside(TASKS_FOLDER, name)

    def task_place(self, name: str, entry: Entry) -> Path:
        """Where the file of one version of a task is or would be, whatever is there now."""
        return self.path / TASKS_FOLDER / name / _file_name(entry)

    def task_file(self, name: str, entry: Entry) -> Path:
        """The file of one version of a task, as the index names it."""
        return self._inside(TASKS_FOLDER, name, _file_name(entry))

    def read_index(self) -> Index:
        """The current index; cheap while nobody changes it. Raises HubError."""
        self._inside(INDEX_FILE)
        return self._index_file.read()

    def write_index(self, index: Index) -> None:
        """Replace the index; the lock must be held. Raises HubError."""
        self._inside(INDEX_FILE)
        self._index_file.write(index)

    def locked(self) -> AbstractContextManager[None]:
        """Hold the hub's lock; for every change. Raises HubError when another writer keeps it."""
        return locked(self._inside(LOCK_FILE), LOCK_TIMEOUT_S, self._busy, HubError)

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
            self.task_folder(name)
            self._delete(self.strays(self.read_index(), name))

    def clean(self) -> Cleanup:
        """Delete all that a hub writes and its index does not name. The lock must be held. Raises HubError."""
        with clear_os_errors("clean up", self.path, HubError):
            return self._delete(self.strays(self.read_index()))

    def strays(self, index: Index, name: str | None = None) -> Iterator[Path]:
        """Everything in the folder that is no part of the hub, of tasks at most what belongs to `name` if that is
        given; a folder after what is in it. Raises OSError."""
        yield from _others(self.path, {SOURCE_FILE, INDEX_FILE, TASKS_FOLDER, LOCK_FILE})
        tasks = self.path / TASKS_FOLDER
        for folder in _others(tasks, set()) if name is None else [tasks / name]:
            versions = index.versions(folder.name)
            if self._is_task_folder(folder):
                yield from _others(folder, {_file_name(entry) for entry in versions})
            if folder.is_symlink() or (not versions and folder.exists()):
                yield folder

    def validate_vacant(self) -> None:
        """Raise HubError unless a hub can be made here: what an interrupted creation leaves may stay."""
        nearest = next(path for path in (self.path, *self.path.parents) if path.exists())
        if not nearest.is_dir():
            raise HubError(f"{nearest} is a file; a hub is a folder, choose a new or empty one")
        if self.source_file.exists():
            raise HubError(f"{self.path} is a hub already; open it, or choose another folder")
        occupied = [path for path in self.strays(Index(0, {})) if not _TEMPORARY.fullmatch(path.name)]
        if occupied:
            raise HubError(f"{self.path} is not empty (it holds {occupied[0].name!r}); choose a new or empty folder")

    def _busy(self) -> HubError:
        return HubError(
            f"another process has been changing the hub {self.path} for {LOCK_TIMEOUT_S:g} s; try again when it is done"
        )

    def _delete(self, strays: Iterator[Path]) -> Cleanup:
        num_files, size_bytes, left_alone = 0, 0, []
        for path in strays:
            if self._is_own_file(path):
                size_bytes += path.stat().st_size
                path.unlink()
                num_files += 1
            elif not self._is_task_folder(path):
                left_alone.append(path)
            elif not any(path.iterdir()):
                path.rmdir()
        return Cleanup(num_files, size_bytes, tuple(left_alone))

    def _is_own_file(self, path: Path) -> bool:
        """Whether a hub writes such files at such places: unfinished ones, and tasks in the folder of a task."""
        if path.is_symlink() or not path.is_file():
            return False
        is_task = _TASK_FILE.fullmatch(path.name) and self._is_task_folder(path.parent)
        return bool(is_task or _TEMPORARY.fullmatch(path.name))

    def _is_task_folder(self, path: Path) -> bool:
        if path.parent != self.path / TASKS_FOLDER or path.is_symlink() or not path.is_dir():
            return False
        with suppress(TaskFileError):
            validate_task_name(path.name)
            return True
        return False

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


def _others(folder: Path, known: set[str]) -> list[Path]:
    """What is in a folder but the known names; nothing for a link, or if there is no such folder."""
    if folder.is_symlink() or not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.name not in known)
