"""The two small JSON files of a hub: which source it is on, and which tasks it has."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torchsnow.errors import HubError
from torchsnow.files import clear_os_errors, write_atomically
from torchsnow.task_file import SourceInfo, check_task_name
from torchsnow.task_file.json_shape import check_shape, check_version, parse_json

SCHEMA_VERSION = 1
_ENTRY = {"sha256": str, "size_bytes": int, "num_classes": int, "added": str}
_SHAPE = {"schema_version": int, "generation": int, "tasks": {str: _ENTRY}}


@dataclass(frozen=True)
class Entry:
    """One task of a hub: the SHA-256 (hex) and size of its file, its classes, when it was added (ISO, UTC)."""

    sha256: str
    size_bytes: int
    num_classes: int
    added: str


@dataclass(frozen=True)
class Index:
    """The tasks of a hub; `generation` counts the changes."""

    generation: int
    tasks: Mapping[str, Entry]

    def with_task(self, name: str, entry: Entry) -> Index:
        """The next generation, with a task added or replaced."""
        return replace(self, generation=self.generation + 1, tasks={**self.tasks, name: entry})

    def without_task(self, name: str) -> Index:
        """The next generation, with a task removed."""
        tasks = {other: entry for other, entry in self.tasks.items() if other != name}
        return replace(self, generation=self.generation + 1, tasks=tasks)


def read_index(path: Path) -> Index:
    """Raises HubError for an index that is missing, damaged or of a newer version."""
    values = _read(path)
    try:
        check_shape(values, _SHAPE, "index")
        for name, entry in values["tasks"].items():
            check_task_name(name)
            if len(entry["sha256"]) != 64 or set(entry["sha256"]) - set("0123456789abcdef"):
                raise ValueError(f"index.tasks.{name}.sha256 is not a SHA-256 in hex")
    except ValueError as error:
        raise HubError(f"{path}: {error}") from error
    return Index(values["generation"], {name: Entry(**entry) for name, entry in values["tasks"].items()})


def write_index(path: Path, index: Index) -> None:
    """Replace the index as a whole."""
    _write(path, asdict(index))


def read_source_info(path: Path) -> SourceInfo:
    """Raises HubError for a description that is missing, damaged or of a newer version."""
    values = _read(path)
    try:
        return SourceInfo.from_dict({key: value for key, value in values.items() if key != "schema_version"})
    except ValueError as error:
        raise HubError(f"{path}: {error}") from error


def write_source_info(path: Path, info: SourceInfo) -> None:
    """Describe the source of a new hub."""
    _write(path, info.to_dict())


def _read(path: Path) -> dict[str, Any]:
    with clear_os_errors("read", path, HubError):
        content = path.read_bytes()
    try:
        values: dict[str, Any] = parse_json(content)
        check_version(values, SCHEMA_VERSION)
    except ValueError as error:
        raise HubError(f"{path}: {error}") from error
    return values


def _write(path: Path, values: Mapping[str, Any]) -> None:
    text = json.dumps({"schema_version": SCHEMA_VERSION, **values}, indent=2, sort_keys=True)
    write_atomically(path, text + "\n", HubError)
