"""Every way to change a hub, to be disturbed at every step. The hub is a copy of `past`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from sample_tasks import sample_task
from torchsnow.hub import Hub
from torchsnow.source import Source
from torchsnow.task_file import content_hash

CHANGES: dict[str, Callable[[Hub, Source], Any]] = {
    "add": lambda hub, source: hub.add(sample_task(source, "new")),
    "replace": lambda hub, source: hub.add(sample_task(source, "a", seed=9), replace=True),
    "remove": lambda hub, source: hub.remove("a"),
    "rollback": lambda hub, source: hub.rollback("a"),
    "bring-back": lambda hub, source: hub.rollback("c"),
    "gc": lambda hub, source: hub.gc(),
}


def versions(hub: Hub) -> dict[str, list[str]]:
    """The versions of every task that the index names, the current one first; "-" for that of a removed task."""
    index = hub.folder.read_index()
    return {
        name: [index.tasks[name].sha256 if name in index.tasks else "-"]
        + [entry.sha256 for entry in index.former.get(name, ())]
        for name in sorted({**index.tasks, **index.former})
    }


def damaged(hub: Hub) -> list[str]:
    """The versions whose file is missing or has another content; what `verify` finds, without building deltas."""
    index = hub.folder.read_index()
    files = [hub.folder.task_file(name, e) for name in {**index.tasks, **index.former} for e in index.versions(name)]
    return [file.stem for file in files if not file.exists() or content_hash(file.read_bytes()) != file.stem]


def strays(hub: Hub) -> list[Path]:
    return list(hub.folder.strays(hub.folder.read_index()))
