"""Data sets that are tables of paths and labels: a CSV file, and the packaged solar cells."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from torchsnow.data.listing import (
    ALL,
    SPLIT_WORDS,
    Entry,
    Listing,
    first_few,
    lies_inside,
    natural_sorted,
    stripped_names,
)
from torchsnow.errors import DataError

ELPV_CLASSES = {0.0: "defect-0.00", 1 / 3: "defect-0.33", 2 / 3: "defect-0.67", 1.0: "defect-1.00"}


def list_csv(table: Path) -> Listing:
    """A table with the header `path,label[,split]`; paths are relative to the table's folder."""
    root = table.resolve().parent
    rows, _ = read_rows(table, ("path", "label"))
    raw_labels = sorted({row["label"] for _, row in rows})
    stripped = dict(zip(raw_labels, stripped_names(raw_labels, f"labels in {table}"), strict=True))
    entries = []
    for number, row in rows:
        entries.append(Entry(path_of(row, table, number), stripped[row["label"]], split_of(row, table, number)))
    check_files(table, [(number, entry.path) for (number, _), entry in zip(rows, entries, strict=True)])
    classes = natural_sorted({entry.class_name for entry in entries if entry.split in (ALL, "train")})
    return Listing(table.stem, root, tuple(classes), tuple(entries))


def read_rows(table: Path, required: tuple[str, ...]) -> tuple[list[tuple[int, dict[str, str]]], list[str]]:
    """(row number in the file, cells) of every row, and the header.

    No cell of the columns `required`, nor of the split if there is one, is empty.
    """
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, skipinitialspace=True)
            rows = [(reader.line_num, row) for row in reader]
            header = list(reader.fieldnames or [])
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cannot read the table {table}: {error}") from error
    if not set(required) <= set(header):
        names = ",".join(required) if len(required) > 1 else f"{required[0]},TASK,... with a column per task"
        raise DataError(f"{table}: the first line must be the header {names} (and split, if you like), not {header}")
    if not rows:
        raise DataError(f"{table} has a header and no rows")
    for number, row in rows:
        for column in [name for name in (*required, "split") if name in header]:
            if not (row[column] or "").strip() or "\0" in row[column]:
                raise DataError(f"{table}, row {number}: the {column} is empty or has a null byte")
    return rows, header


def path_of(row: dict[str, str], table: Path, number: int) -> Path:
    """The image of a row. Raises DataError when it is outside the table's folder."""
    root = table.resolve().parent
    path = root / row["path"]
    if os.path.isabs(row["path"]) or not lies_inside(path, root):
        raise DataError(f"{table}, row {number}: the path {row['path']!r} leaves the folder {root}")
    return path


def check_files(table: Path, paths: Sequence[tuple[int, Path]]) -> None:
    """Raise DataError naming rows whose file does not exist."""
    missing = [f"row {number}: {path}" for number, path in paths if not os.path.isfile(path)]
    if missing:
        raise DataError(f"{table} names {len(missing)} files that do not exist: {first_few(missing)}")


def split_of(row: dict[str, str], table: Path, number: int) -> str:
    """The split that a row names, or "all". Raises DataError for another word."""
    if "split" not in row:
        return ALL
    word = row["split"].strip().lower()
    if word not in SPLIT_WORDS:
        raise DataError(f"{table}, row {number}: unknown split {row['split']!r}; expected train, val or test")
    return SPLIT_WORDS[word]


def list_elpv(binary: bool) -> Listing:
    """Solar cells by probability of a defect (four classes), or functional (below 0.5) against defective."""
    try:
        table = Path(str(resources.files("elpv_dataset"))) / "data" / "labels.csv"
    except ModuleNotFoundError as error:
        raise DataError("the data set elpv is not installed: pip install 'torchsnow[demo]'") from error
    rows = [line.split() for line in table.read_text(encoding="utf-8").splitlines()]
    classes = ("functional", "defective") if binary else tuple(ELPV_CLASSES.values())
    entries = [Entry(table.parent / path, _elpv_class(float(share), binary), ALL) for path, share, _ in rows]
    return Listing("elpv-binary" if binary else "elpv", table.parent, classes, tuple(entries))


def _elpv_class(probability: float, binary: bool) -> str:
    if binary:
        return "functional" if probability < 0.5 else "defective"
    return ELPV_CLASSES[probability]
