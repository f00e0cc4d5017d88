"""A table with a column of labels for each of several tasks, and one split for all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import floor
from pathlib import Path

import numpy as np

from torchsnow.data.checking import Progress, check_images, validate_classes, validate_unique
from torchsnow.data.listing import Entry, Listing
from torchsnow.data.loading import Example, LoadedData, loaded
from torchsnow.data.names import ALL, as_text, is_no_label, natural_sorted, validate_distinct
from torchsnow.data.splits import NAMES, NO_TEST_NOTE, Splits, draw_groups
from torchsnow.data.tables import Columns, Table, notes_on_splits, read_table
from torchsnow.errors import DataError


@dataclass(frozen=True)
class TaskTable:
    """Images with labels for several tasks: `tasks` by name, each with the images that have a label for it.

    `split_of` has every image that can be used, in the table's order, and its split: "all", "train", "val" or "test".
    """

    path: Path
    tasks: Mapping[str, LoadedData]
    split_of: Mapping[Path, str]
    notes: tuple[str, ...] = ()


def load_task_table(
    file: Path,
    *,
    columns: Columns = Columns(),  # noqa: B008 # it cannot change
    follow_links: bool = False,
    distinct_names: bool = False,
    max_bad_share: float = 0.1,
    progress: Progress | None = None,
) -> TaskTable:
    """Read a CSV with the columns `path` and, where there are any, `split` and `group`; every other one is a task.

    The header of a column is the task's name, a cell the name of a class, and an empty cell (or `nan`, `null`) no
    label; images without any label are left out. Paths are relative to the table's folder. Every image is decoded once,
    as by `load_data`, and `progress` called as there. Raises DataError for what `load_data` refuses, in the table or in
    a task of it.
    """
    table = read_table(file, columns, needs_label=False)
    names = _task_names(table)
    used = [(number, row) for number, row in table.rows if any(_label(row, name) for name in names)]
    if not used:
        raise DataError(f"{file} has no labels: every cell of its tasks {', '.join(names)} is empty")
    entries = table.entries(used, follow_links)
    validate_unique(entries)
    listings = {name: _listing(table, name, [row for _, row in used], entries, distinct_names) for name in names}
    for listing in listings.values():
        validate_classes(listing)
    checked = check_images(entries, progress)
    tasks = {name: loaded(listing, checked, max_bad_share) for name, listing in listings.items()}
    notes = dict.fromkeys(
        [*table.notes, *notes_on_splits(table), *(note for data in tasks.values() for note in data.notes)]
    )
    usable = {entry.path: entry.split for entry in entries if entry.path in checked.digests}
    return TaskTable(file, tasks, usable, tuple(notes))


def split_table(
    table: TaskTable, val_share: float = 0.15, test_share: float = 0.15, seed: int = 0
) -> dict[str, Splits]:
    """One split of the images for all tasks: no image is trained on for one task and chosen by for another.

    A split that the table defines is kept, and completed as by `make_splits`. What is drawn has the given shares of
    the images with the same labels, as nearly as their numbers, groups and copies allow. Raises DataError when a task
    is left without validation images, or a class without training images.
    """
    defined = set(table.split_of.values())
    shares = (0.0 if "val" in defined else val_share, 0.0 if defined & {"val", "test"} else test_share)
    pool = [path for path, split in table.split_of.items() if split in (ALL, "train")]
    groups = _groups(table, pool)
    draw = _draw if len(set(groups)) == len(groups) else partial(_draw_groups, groups)
    drawn = draw(pool, _labels(table), shares, seed)
    split_of = {path: drawn.get(path, split) for path, split in table.split_of.items()}
    note = NO_TEST_NOTE if "val" in defined and "test" not in defined else ""
    return {name: _splits(data, name, split_of, seed, note) for name, data in table.tasks.items()}


def _task_names(table: Table) -> list[str]:
    names = table.others
    if not names:
        raise DataError(
            f"{table.file} has no column for a task: expected path,TASK,TASK,... with class names in the cells"
        )
    if not all(names):
        raise DataError(f"{table.file} has a column without a name: its header must be the task's")
    return names


def _label(row: Mapping[str, str], name: str) -> str:
    return "" if is_no_label(row[name]) else as_text(row[name])


def _listing(
    table: Table, name: str, rows: Sequence[Mapping[str, str]], entries: Sequence[Entry], distinct_names: bool
) -> Listing:
    """One task's part of the table."""
    written = {row[name] for row in rows if _label(row, name)}
    validate_distinct(written, f"the column {name!r} of {table.file}", distinct_names)
    own = [
        replace(entry, class_name=_label(row, name))
        for row, entry in zip(rows, entries, strict=True)
        if _label(row, name)
    ]
    classes = natural_sorted({entry.class_name for entry in own if entry.split in (ALL, "train")})
    return Listing(f"{as_text(table.file.stem)}:{name}", table.root, tuple(classes), tuple(own))


def _labels(table: TaskTable) -> dict[Path, tuple[int, ...]]:
    """Every image's labels, task by task, -1 for none."""
    known = [{example.path: example.label for example in data.examples} for data in table.tasks.values()]
    return {path: tuple(labels.get(path, -1) for labels in known) for path in table.split_of}


def _draw(
    pool: Sequence[Path], labels: Mapping[Path, tuple[int, ...]], shares: tuple[float, float], seed: int
) -> dict[Path, str]:
    """The split of every image in the pool.

    The shuffled images stand in order of their labels, and every so many of them is held out: so each combination of
    labels gives its share.
    """
    order = np.random.default_rng(seed).permutation(len(pool))
    shuffled = sorted((pool[i] for i in order), key=labels.__getitem__)
    held = _every(shuffled, sum(shares))
    val = set(_every(held, shares[0] / sum(shares))) if held else set()
    return {
        **dict.fromkeys(pool, "train"),
        **{path: "val" if path in val else "test" for path in held},
    }


def _groups(table: TaskTable, pool: Sequence[Path]) -> list[str]:
    """The group of every image in the pool; copies of one image are one too."""
    groups = {path: group for data in table.tasks.values() for path, group in data.groups.items()}
    digests = {path: digest for data in table.tasks.values() for path, digest in data.digests.items()}
    return [groups.get(path) or digests.get(path, str(path)) for path in pool]


def _draw_groups(
    groups: Sequence[str],
    pool: Sequence[Path],
    labels: Mapping[Path, tuple[int, ...]],
    shares: tuple[float, float],
    seed: int,
) -> dict[Path, str]:
    """The same, with whole groups in one split."""
    combinations = {combination: number for number, combination in enumerate(sorted(set(labels.values())))}
    parts = draw_groups([combinations[labels[path]] for path in pool], groups, shares, seed)
    return {pool[at]: split for split, places in zip(NAMES, parts, strict=True) for at in places}


def _every(paths: Sequence[Path], share: float) -> list[Path]:
    """That share of the paths, evenly spaced."""
    return [path for at, path in enumerate(paths) if floor((at + 1.5) * share) > floor((at + 0.5) * share)]


def _splits(data: LoadedData, name: str, split_of: Mapping[Path, str], seed: int, note: str) -> Splits:
    known = {example.path: example for example in data.examples}
    parts: dict[str, list[Example]] = {split: [] for split in NAMES}
    for path, split in split_of.items():
        if path in known:
            parts[split].append(known[path])
    parts["train"].sort(key=data.relative_path)  # as `make_splits` has them
    seen = {example.label for example in parts["train"]}
    missing = [one for label, one in enumerate(data.classes) if label not in seen]
    advice = "add labels, or say in a column split which images are train, val and test"
    if missing:
        raise DataError(f"the task {name!r} has no label {missing[0]!r} in the training split; {advice}")
    if not parts["val"]:
        raise DataError(f"the task {name!r} has no labels in the validation split; {advice}")
    train, val, test = (tuple(parts[split]) for split in NAMES)
    return Splits(train, val, test, data.classes, seed, data.root, data.fingerprint, note)
