"""What a data set says about its images before any is opened: which class and split each belongs to."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torchsnow.errors import DataError

ALL = "all"
SPLIT_WORDS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


@dataclass(frozen=True)
class Skipped:
    """A file that is not used, and why."""

    path: Path
    reason: str


@dataclass(frozen=True)
class Entry:
    """One image by its names: `split` is "all", "train", "val" or "test"."""

    path: Path
    class_name: str
    split: str


@dataclass(frozen=True)
class Listing:
    """A data set as its author wrote it down; `classes` are in label order, all paths lie below `root`.

    `checked_mark` is a file for the fingerprint of the data, once every image of it was decoded without a fault.
    """

    name: str
    root: Path
    classes: tuple[str, ...]
    entries: tuple[Entry, ...]
    skipped: tuple[Skipped, ...] = ()
    checked_mark: Path | None = None


def lies_inside(path: Path, root: Path) -> bool:
    """Whether `path` is below `root` once every link and `..` is followed."""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root))


def natural_sorted(names: Iterable[str]) -> list[str]:
    """Sorted as people do: img2 before img10, and capitals beside small letters."""

    def key(name: str) -> tuple[list[str | int], str]:
        # Odd parts are runs of digits, so equal positions always compare equal types.
        parts = re.split(r"([0-9]+)", name.casefold())
        return [int(part) if place % 2 else part for place, part in enumerate(parts)], name

    return sorted(names, key=key)


def first_few(items: Sequence[str], count: int = 3, between: str = "; ") -> str:
    """The first items as one text, and how many more there are."""
    more = f" and {len(items) - count} more" if len(items) > count else ""
    return between.join(items[:count]) + more


def stripped_names(names: Sequence[str], what: str) -> list[str]:
    """The names without surrounding spaces; two that differ in nothing else are refused."""
    stripped = [name.strip() for name in names]
    twice = [name for name, count in Counter(stripped).items() if count > 1]
    if twice:
        raise DataError(f"{what} differ only in spaces: {twice}; give each class one name")
    return stripped
