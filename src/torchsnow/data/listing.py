"""What a data set says about its images before any is opened: which class and split each belongs to."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Skipped:
    """A file that is not used, and why."""

    path: Path
    reason: str


@dataclass(frozen=True)
class Entry:
    """One image by its names: `split` is "all", "train", "val" or "test".

    Images of one `group`, if that is not empty, belong into one split: those of a patient or a video, say. `labels` are
    those of an image that has any number of them, None where every image has one class.
    """

    path: Path
    class_name: str
    split: str
    group: str = ""
    labels: tuple[str, ...] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Its labels, or else its class."""
        return (self.class_name,) if self.labels is None else self.labels


@dataclass(frozen=True)
class Listing:
    """A data set as its author wrote it down; `classes` are in label order, all paths lie below `root`.

    `notes` say what a person should know of it, a sentence each. `checked` is a file that remembers which images were
    decoded without a fault.
    """

    name: str
    root: Path
    classes: tuple[str, ...]
    entries: tuple[Entry, ...]
    skipped: tuple[Skipped, ...] = ()
    notes: tuple[str, ...] = ()
    checked: Path | None = None


def lies_inside(path: Path, root: Path) -> bool:
    """Whether `path` is below `root` once every link and `..` is followed."""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root))
