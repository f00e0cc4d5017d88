"""From a review to a table of moves that a person edits, and from the table to files in other class folders."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from torchsnow.data.folders import list_folder
from torchsnow.data.listing import Entry, Listing
from torchsnow.data.names import ALL, first_few
from torchsnow.data.tables import Columns, read_table
from torchsnow.errors import DataError
from torchsnow.io.files import clear_os_errors, given_cell, sync_folder, write_atomically, write_csv
from torchsnow.review.findings import Image, Review, num_classes, num_splits

COLUMNS = ("path", "class", "move_to", "reason", "likelier", "taken_for", "probability", "split")
SCHEMA = 1


@dataclass(frozen=True)
class Move:
    """A file's path below the data's folder, before and after."""

    old: str
    new: str


def write_moves(review: Review, path: Path) -> None:
    """Write a row per image and reason, with a class in `move_to` where the label is surely wrong."""
    likelier = {one.image.path: one.likelier for one in review.mislabelled}
    surely = {one.image.path: one.likelier for one in review.mislabelled if one.is_sure}
    reasons = [
        ("likely mislabelled", [one.image for one in review.mislabelled]),
        ("confidently wrong", review.wrong),
        ("doubtful", review.doubtful),
        *_reasons(review.duplicates),
    ]
    rows = []
    for reason, images in reasons:
        for i in images:
            if reason == "likely mislabelled" or i.path not in likelier:  # one row to edit for what may move
                known = (i.label, surely.get(i.path, ""), reason, likelier.get(i.path, ""), i.taken_for)
                rows.append((i.path, *known, f"{i.probability:.4f}", i.split))
    write_csv(path, COLUMNS, rows, DataError)


def _reasons(groups: Iterable[Sequence[Image]]) -> Iterator[tuple[str, Sequence[Image]]]:
    for number, group in enumerate(groups, 1):
        across = [what for what, count in (("splits", num_splits(group)), ("classes", num_classes(group))) if count > 1]
        yield f"near-duplicates, group {number}" + (f", across {' and '.join(across)}" if across else ""), group


def plan_moves(root: Path, table: Path) -> list[Move]:
    """What the rows of a table with the columns `path`, `class` and `move_to` ask for; rows without a class to move to
    ask for nothing.

    A file whose name is taken in its new folder gets a number. Raises DataError for a table that cannot be read, and
    for a row that names an image that is not there or of another class by now, a class that there is not, or one image
    for two classes.
    """
    listing = _listing(root)
    entries = {entry.path.relative_to(listing.root).as_posix(): entry for entry in listing.entries}
    parsed = read_table(table, Columns(path="path", label="class"), needs_label=True)
    if "move_to" not in parsed.header:
        raise DataError(f"{table} has no column move_to; its header is {','.join(parsed.header)}")
    wanted: dict[str, str] = {}
    for number, cells in parsed.rows:
        row = {name: given_cell(cell or "") for name, cell in cells.items()}
        move_to = row["move_to"].strip()
        if move_to:
            _validate_row(row, f"{table}, row {number}", listing, entries)
            if wanted.setdefault(row["path"], move_to) != move_to:
                raise DataError(f"{table}, row {number}: {row['path']} is to move to two classes; keep one row of it")
    taken = {os.fspath(entry.path.relative_to(listing.root)) for entry in listing.entries}
    moves = []
    for old, move_to in wanted.items():
        if entries[old].class_name != move_to:
            folder, name = _folder_of(listing, entries[old], move_to), _parts(listing, entries[old])[1]
            moves.append(Move(old, _free(folder / name, listing, taken)))
    return moves


def write_record(record: Path, moves: Sequence[Move]) -> None:
    """Write down moves that are about to be made, for `plan_undo`. Raises DataError when the disk refuses."""
    content = {"schema": SCHEMA, "moves": [[move.old, move.new] for move in moves]}
    write_atomically(record, json.dumps(content, indent=1, allow_nan=False) + "\n", DataError)


def move_files(root: Path, moves: Sequence[Move], progress: Callable[[int, int], None]) -> None:
    """Move files; nothing is overwritten. Raises DataError when the disk refuses; what was moved stays moved."""
    for done, move in enumerate(moves, 1):
        _move(root / move.old, root / move.new)
        progress(done, len(moves))


def plan_undo(root: Path, record: Path) -> list[Move]:
    """The way back of those moves of a record that were made and not undone yet.

    Raises DataError for a file that is no record, and when a file is where it may not be: nothing is overwritten.
    """
    try:
        content = json.loads(record.read_text(encoding="utf-8"))
        if content["schema"] != SCHEMA:
            raise ValueError(f"its schema is {content['schema']}, this version reads {SCHEMA}")
        moves = [Move(str(new), str(old)) for old, new in content["moves"]]
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise DataError(f"{record} is no record of moves: {error}; `torchsnow relabel` writes one") from error
    inside = root.resolve()
    for move in moves:
        if any(not (inside / path).resolve().is_relative_to(inside) for path in (move.old, move.new)):
            raise DataError(f"{record} names {move.old!r}, which leaves the folder {root}")
        if (root / move.old).exists() == (root / move.new).exists():
            where = "both places" if (root / move.old).exists() else "neither place"
            raise DataError(f"cannot undo {record}: {move.new} and {move.old} are one file, and it is in {where}")
    return [move for move in moves if (root / move.old).exists()]


def record_next_to(table: Path) -> Path:
    """A name for a record that is not taken: moves.csv gets moves.undo-1.json, then moves.undo-2.json."""
    number = 1
    while (record := table.with_name(f"{table.stem}.undo-{number}.json")).exists():
        number += 1
    return record


def _listing(root: Path) -> Listing:
    if not root.is_dir():
        kind = "a file: labels of a table are changed in the table itself" if root.is_file() else "not there"
        raise DataError(f"relabel moves images between class folders, and {root} is {kind}")
    return list_folder(root, distinct_names=True)


def _validate_row(row: dict[str, str], where: str, listing: Listing, entries: dict[str, Entry]) -> None:
    entry, move_to = entries.get(row["path"]), row["move_to"].strip()
    if entry is None:
        raise DataError(f"{where}: there is no image {row['path']!r} in {listing.root}; was it moved already?")
    if entry.class_name != row["class"].strip():
        raise DataError(f"{where}: {row['path']} is of the class {entry.class_name!r}, not {row['class']!r}, by now")
    if move_to not in listing.classes:
        near = difflib.get_close_matches(move_to, listing.classes, n=1)
        hint = f"did you mean {near[0]!r}" if near else f"it has {first_few(listing.classes, 10, ', ')}"
        raise DataError(f"{where}: {listing.root} has no class {move_to!r}; {hint}. A new class needs a folder first")


def _folder_of(listing: Listing, entry: Entry, class_name: str) -> Path:
    """The folder of a class in the split of an entry, below the root; names on the disk may have spaces around."""
    for other in listing.entries:
        if (other.split, other.class_name) == (entry.split, class_name):
            return _parts(listing, other)[0]
    return _parts(listing, entry)[0].parent / class_name


def _parts(listing: Listing, entry: Entry) -> tuple[Path, Path]:
    """An entry's class folder below the root, and its path below that."""
    path = entry.path.relative_to(listing.root)
    depth = 1 if entry.split == ALL else 2
    return Path(*path.parts[:depth]), Path(*path.parts[depth:])


def _free(new: Path, listing: Listing, taken: set[str]) -> str:
    number, path = 1, new
    while os.fspath(path) in taken or (listing.root / path).exists():
        number += 1
        path = new.with_stem(f"{new.stem}-{number}")
    taken.add(os.fspath(path))
    return path.as_posix()


def _move(old: Path, new: Path) -> None:
    with clear_os_errors(f"move {old} to", new, DataError):
        new.parent.mkdir(parents=True, exist_ok=True)
        if new.exists():
            raise DataError(f"cannot move {old} to {new}: a file of that name appeared there")
        old.rename(new)
        sync_folder(new.parent)
        sync_folder(old.parent)
