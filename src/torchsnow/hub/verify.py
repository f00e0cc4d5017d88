"""What may be wrong with the files of a hub."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torchsnow.errors import HubError, TaskFileError
from torchsnow.hub.folder import Entry, Folder
from torchsnow.io.files import clear_os_errors

if TYPE_CHECKING:
    from torchsnow.source import Source
    from torchsnow.task_file import Task


@dataclass(frozen=True)
class Problem:
    """Something wrong with a task, or with the folder as a whole if `task` is None."""

    task: str | None
    message: str


def read_current(folder: Folder, name: str, entry: Entry, source: Source) -> Task:
    """The current version of a task from its file. Raises HubError, naming the task, for a file that is damaged."""
    from torchsnow.task_file import load_task  # here: what reads no numbers needs no torch

    try:
        task = load_task(folder.task_file(name, entry), source, entry.sha256)
        if task.name != name:
            raise TaskFileError(f"it holds the task {task.name!r}")
    except TaskFileError as error:
        raise unusable(folder, name, error) from error
    return task


def unusable(folder: Folder, name: str, error: TaskFileError) -> HubError:
    """The error for a task whose file cannot be used."""
    return HubError(
        f"task {name!r} of the hub {folder.path} cannot be used: {error}. "
        "Replace, roll back or remove it; the other tasks are not affected"
    )


def validate_current(folder: Folder, name: str, entry: Entry, source: Source) -> None:
    """Raise HubError unless a task can be loaded and is what the index says."""
    num_classes, path = len(read_current(folder, name, entry, source).classes), folder.task_file(name, entry)
    with clear_os_errors("look at", path, HubError):
        size_bytes = path.stat().st_size
    if (size_bytes, num_classes) != (entry.size_bytes, entry.num_classes):
        raise HubError(
            f"the index says {entry.size_bytes} bytes and {entry.num_classes} classes, "
            f"the file {path} has {size_bytes} bytes and {num_classes} classes"
        )


def validate_former(folder: Folder, name: str, entry: Entry) -> None:
    """Raise HubError unless the file of a former version has the content that it was written with."""
    path, what = folder.task_file(name, entry), f"the former version {entry.sha256[:12]} of task {name!r}"
    with clear_os_errors(f"read {what},", path, HubError), path.open("rb") as file:
        is_sound = hashlib.file_digest(file, "sha256").hexdigest() == entry.sha256
    if not is_sound:
        raise HubError(f"{what} is damaged: {path}; `torchsnow hub gc --hub {folder.path}` deletes former versions")
