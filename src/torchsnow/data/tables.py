"""Data sets that are tables of paths and labels, with a header."""

from __future__ import annotations

import csv
import io
import os
import re
import shlex
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from torchsnow.data.listing import Entry, Listing, lies_inside
from torchsnow.data.names import (
    ALL,
    as_text,
    counted,
    first_few,
    is_no_label,
    natural_sorted,
    splits_named,
    validate_distinct,
)
from torchsnow.errors import DataError

TABLE_SUFFIXES = (".csv", ".tsv")
_DELIMITERS = ",;\t|"
BETWEEN = "|"
"""Between the names of an image with several labels."""
# Blank lines, comments, and Excel's way to name the delimiter.
_BEFORE_HEADER = re.compile(r'([ \t,;|]*|[ \t]*#[^\r\n]*|"?sep=[^\r\n]*)(\r\n?|\n)', re.IGNORECASE)
_LIKELY_SPLITS = ("set", "subset", "partition", "phase", "usage", "dataset", "data_set", "fold")
_LIKE_A_SPLIT = re.compile(
    r"(^|[ _-])(train(ing)?|test(ing)?|val(id|idation)?|split|fold|set|subset|partition|holdout)($|[ _-])",
    re.IGNORECASE,
)
_YES_OR_NO = {
    **dict.fromkeys(("1", "1.0", "true", "t", "yes", "y"), True),
    **dict.fromkeys(("0", "0.0", "false", "f", "no", "n"), False),
}
_FLAGS = {**_YES_OR_NO, "": False}
_FEW_ODD = 0.1  # of a column of 0 and 1: so many other cells, of those that are filled, are slips
_LIKELY_GROUPS = re.compile(
    r"(patient|subject|person|participant|video|clip|scene|site|location|session|series|study|specimen|animal|camera|"
    r"lesion|slide|case|individual|plant|object)"
    r"([ _-]?(id|name|no|number))?s?",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Columns:
    """Which columns of a table are used, by their headers; what is empty is looked for.

    That is `path` and `label` by these names, and the split and the group, where there are any.
    """

    path: str = ""
    label: str = ""
    split: str = ""
    group: str = ""


@dataclass(frozen=True)
class Table:
    """A table whose columns are known: (line number, cells by header) of every row, and what to know of it."""

    file: Path
    header: tuple[str, ...]
    rows: tuple[tuple[int, dict[str, str]], ...]
    columns: Columns
    notes: tuple[str, ...] = ()

    @property
    def root(self) -> Path:
        """The folder that the table is in, and that its images must be in."""
        return self.file.resolve().parent

    @property
    def others(self) -> list[str]:
        """The headers of the columns without a meaning so far."""
        columns = self.columns
        used = {columns.path, columns.label, columns.split, columns.group} - {""}
        return [name for name in self.header if name not in used]

    def entries(self, rows: Sequence[tuple[int, dict[str, str]]], follow_links: bool = False) -> list[Entry]:
        """The images of some rows. Raises DataError for paths outside the folder, files that are missing and words
        that mean no split."""
        split, group, label = self.columns.split, self.columns.group, self.columns.label
        means = _meanings(split, [row[split].strip() for _, row in rows]) if split else {}
        entries, missing = [], []
        for number, row in rows:
            path = self._path(row[self.columns.path], number, follow_links)
            if not os.path.isfile(path):
                missing.append((f"row {number}: {path}", row[self.columns.path]))
            if split and row[split].strip() not in means:
                raise DataError(
                    f"{self.file}, row {number}: unknown split {row[split]!r} in the column {split!r}; "
                    "expected train, val or test"
                )
            name = as_text(row[label]) if label else ""
            in_group = (row[group] or "").strip() if group else ""
            entries.append(Entry(path, name, means[row[split].strip()] if split else ALL, in_group))
        if missing:
            raise DataError(
                f"{self.file} names {len(missing)} files that do not exist: {first_few([what for what, _ in missing])}"
                f"{self._meant(missing[0][1])}"
            )
        return entries

    def _path(self, cell: str, number: int, follow_links: bool) -> Path:
        """The image that a cell means: with slashes or backslashes, composed or decomposed, or as a full path."""
        spellings = (cell.strip(), cell.strip().replace("\\", "/"))
        forms = [unicodedata.normalize(form, one) for form in ("NFC", "NFD") for one in spellings]
        path = self.root / next((one for one in (*spellings, *forms) if os.path.isfile(self.root / one)), spellings[-1])
        if os.path.isabs(path) and not path.is_relative_to(self.root):
            path = self.root / os.path.relpath(os.path.realpath(path.parent), self.root) / path.name
        plain = Path(os.path.normpath(path))
        inside = plain.is_relative_to(self.root) and (follow_links or lies_inside(path, self.root))
        if not inside:
            how = (
                "--follow-links follows links out of it"
                if plain.is_relative_to(self.root)
                else f"images must lie in the folder of the table, and paths are relative to it{self._meant(cell)}"
            )
            raise DataError(f"{self.file}, row {number}: the path {cell!r} leaves the folder {self.root}; {how}")
        return plain

    def _meant(self, cell: str) -> str:
        """The question after the file that a path may mean: its end alone, with a suffix, or in another case."""
        plain = PurePosixPath(cell.strip().replace("\\", "/"))
        tails = [PurePosixPath(*plain.parts[at:]) for at in range(1, len(plain.parts))]
        likely = [tail for tail in tails if ".." not in tail.parts]
        folder = self.root / plain.parent
        if ".." not in plain.parts and not plain.is_absolute() and folder.is_dir():
            names = sorted(os.listdir(folder))
            likely += [
                plain.parent / one
                for one in names
                if one != plain.name and f"{one}.".casefold().startswith(f"{plain.name}.".casefold())
            ]
        found = next((one for one in likely if os.path.isfile(self.root / one)), None)
        return f"; is {found} meant?" if found else ""


def list_table(
    file: Path,
    columns: Columns = Columns(),
    *,
    follow_links: bool = False,
    distinct_names: bool = False,
    for_training: bool = True,
    multi_label: bool = False,
) -> Listing:
    """A table with a row per image. Not `for_training`, it need not have rows to train on."""
    if multi_label:
        return _list_labels(file, columns, follow_links, distinct_names, for_training)
    table = read_table(file, columns, needs_label=True)
    entries = table.entries(table.rows, follow_links)
    written = {row[table.columns.label] for _, row in table.rows}
    validate_distinct(written, f"the column {table.columns.label!r} of {file}", distinct_names)
    trained = {entry.class_name for entry in entries if entry.split in (ALL, "train")}
    classes = natural_sorted(trained if trained or for_training else {entry.class_name for entry in entries})
    notes = (*table.notes, *_unused(table))
    if any(BETWEEN in name for name in written):
        notes += (
            f"names in {file} have a {BETWEEN} in them: --multi-label takes what is between for labels of one image",
        )
    return Listing(as_text(file.stem), table.root, tuple(classes), tuple(entries), notes=notes)


def _list_labels(file: Path, columns: Columns, follow_links: bool, distinct_names: bool, for_training: bool) -> Listing:
    """A table whose images have any number of labels: names in one column, or a column of 0 and 1 per label."""
    table = read_table(file, columns, needs_label=False)
    label = _find(file, table.header, columns.label, "label")
    flags = [] if label else [name for name in table.others if name and _is_flag(row[name] for _, row in table.rows)]
    if not label and not flags:
        raise DataError(
            f"{file} has neither a column label with names, as red|round, nor columns of 0 and 1, one per label; "
            "--label-column names another column"
        )
    for name in table.others if flags else ():
        filled = [(number, row[name]) for number, row in table.rows if row[name].strip()]
        odd = [(number, cell) for number, cell in filled if not _is_flag([cell])]
        if name and 0 < len(odd) <= _FEW_ODD * len(filled):
            raise DataError(
                f"the column {name!r} of {file} has 0 or 1 but for {counted(len(odd), 'cell')}, the first in row "
                f"{odd[0][0]}, {odd[0][1]!r}: correct it, or leave the column out"
            )
    entries = []
    for (_, row), entry in zip(table.rows, table.entries(table.rows, follow_links), strict=True):
        named = row[label].split(BETWEEN) if label else [name for name in flags if _FLAGS[row[name].strip().lower()]]
        labels = tuple(dict.fromkeys(as_text(name) for name in named if name.strip()))
        entries.append(replace(entry, class_name=BETWEEN.join(labels), labels=labels))
    validate_distinct({name for entry in entries for name in entry.names}, f"the labels of {file}", distinct_names)
    used = [entry for entry in entries if entry.split in (ALL, "train")] if for_training else entries
    classes = natural_sorted({name for entry in used for name in entry.names})
    notes = (*table.notes, *_unused(table, [label] if label else flags))
    if label and not any(len(entry.names) > 1 for entry in entries) and any(set(name) & set(",;") for name in classes):
        notes += (f"no image of {file} has two labels, and names have commas in them: write {BETWEEN} between labels",)
    return Listing(as_text(file.stem), table.root, tuple(classes), tuple(entries), notes=notes)


def _is_flag(cells: Iterable[str]) -> bool:
    return {cell.strip().lower() for cell in cells} <= set(_FLAGS)


def read_table(file: Path, columns: Columns, *, needs_label: bool) -> Table:
    """The rows of a file, and its columns. No cell of a path or of a label that is needed is empty, nor holds what
    programs write for no label.

    The delimiter may be a comma, a semicolon, a tab or a bar; the text UTF-8 or UTF-16.
    """
    header, rows = _parse(file)
    path = _find(file, header, columns.path, "path")
    label = _find(file, header, columns.label, "label") if needs_label else ""
    if not path or (needs_label and not label):
        names = "path,label" if needs_label else "path,TASK,... with a column per task"
        options = "--path-column and --label-column name" if needs_label else "--path-column names"
        raise DataError(
            f"{file}: the first line must be the header {names} (and split, if you like), not {header}; "
            f"{options} other columns"
        )
    if not rows:
        raise DataError(f"{file} has a header and no rows")
    table = Table(file, tuple(header), tuple(rows), Columns(path, label))
    group = _find(file, header, columns.group, "group")
    if group and not columns.group and _tells_splits("set", [row[group].strip() for _, row in rows]):
        group = ""  # these are no groups of images
    table = _with_split(replace(table, columns=replace(table.columns, group=group)), columns.split)
    if group and not columns.group:
        note = f"images of one value of the column {group!r} of {file} stay in one split"
        table = replace(table, notes=(*table.notes, note))
    used = [column for column in (path, label, group, table.columns.split) if column]
    if len(set(used)) < len(used):
        raise DataError(
            f"one column of {file} is named for two things: {', '.join(used)}; give each a column of its own"
        )
    for column in filter(None, (path, label)):
        _validate_filled(table, column, is_no_label if column == label else lambda cell: not cell.strip())
    return table


def _validate_filled(table: Table, column: str, is_missing: Callable[[str], bool]) -> None:
    bad = [(number, row[column]) for number, row in table.rows if is_missing(row[column]) or "\0" in row[column]]
    if bad:
        cells = first_few([f"row {number}: {cell!r}" for number, cell in bad], between=", ")
        raise DataError(
            f"{table.file} has no {column} in {counted(len(bad), 'row')} ({cells}): fill them in, or remove them"
        )


def _parse(file: Path) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    try:
        text = _decoded(file.read_bytes())
        before = 0
        while line := _BEFORE_HEADER.match(text):
            text, before = text[line.end() :], before + 1
        first_line = text.split("\n", 1)[0]
        if "\0" in first_line:
            raise DataError(
                f"{file} is no text: expected a table with commas, as spreadsheets save it as CSV, in UTF-8"
            )
        delimiter = max(_DELIMITERS, key=first_line.count)
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
        rows = [(before + reader.line_num, row) for row in reader if any(map(_is_filled, row.values()))]
        header = [name.strip() for name in reader.fieldnames or []]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise DataError(f"cannot read the table {file}: {reason}") from error
    twice = [name for name, count in Counter(header).items() if count > 1 and name]
    if twice:
        raise DataError(f"{file} has two columns {twice[0]!r}: give each one name, or remove one")
    for number, row in rows:
        if len(header) > 1 and _is_filled(row.get(None)):  # one cell is a title, and refused as a header
            raise DataError(
                f"{file}, row {number} has more cells than the header; put what has a {delimiter!r} in it into quotes"
            )
        if len(header) > 1 and any(_holds_rows(cell, delimiter, len(header)) for cell in row.values()):
            raise DataError(f"{file} has a cell with whole rows in it, which ends in row {number}: close its quotes")
    clean = [(number, {name: row[raw] or "" for name, raw in zip(header, reader.fieldnames or [], strict=True)})
             for number, row in rows]  # fmt: skip
    return header, clean


def _is_filled(cell: str | list[str] | None) -> bool:
    """Whether a cell, or one of those that the header does not name, has a text."""
    return bool("".join(cell or ()).strip())


def _holds_rows(cell: str | list[str] | None, delimiter: str, num_cells: int) -> bool:
    """Whether a cell goes on over rows that follow, as one does whose quotes are not closed."""
    return isinstance(cell, str) and any(line.count(delimiter) == num_cells - 1 for line in cell.splitlines()[1:])


def _decoded(content: bytes) -> str:
    """The text of a file. Raises UnicodeDecodeError."""
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return content.decode("utf-16")
    for zeros, encoding in ((content[1:8:2], "utf-16-le"), (content[0:8:2], "utf-16-be")):
        if len(zeros) == 4 and not any(zeros):
            return content.decode(encoding)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        error.reason += "; save it as UTF-8 (it may be in a Windows or Mac encoding)"
        raise


def _find(file: Path, header: Sequence[str], given: str, usual: str) -> str:
    """The header of the column that was named, or of the one with the usual name in any case, or nothing."""
    wanted = given or usual
    if given and given in header:
        return given
    alike = [name for name in header if name.casefold() == wanted.casefold()]
    if len(alike) > 1:
        raise DataError(f"{file} has the columns {', '.join(alike)}: say which one with --{usual}-column")
    if given and not alike:
        raise DataError(f"{file} has no column {given!r}; it has {', '.join(header)}")
    return alike[0] if alike else ""


def _with_split(table: Table, given: str) -> Table:
    """The table with the column of its splits, if it has one by name or by content."""
    column = _find(table.file, table.header, given, "split")
    if not column:
        likely = [name for name in table.others if _tells_splits(name, [row[name].strip() for _, row in table.rows])]
        if len(likely) > 1:
            raise DataError(
                f"{table.file} has several columns of splits ({', '.join(likely)}): say which one with --split-column"
            )
        if not likely:
            return table
        column = likely[0]
        table = replace(table, notes=(*table.notes, f"the column {column!r} of {table.file} is used as the split"))
    return replace(table, columns=replace(table.columns, split=column))


def _meanings(column: str, cells: Sequence[str]) -> dict[str, str]:
    """Of the cells of a column, those that mean a split, with which: also yes and no, where the column is a split's."""
    words = sorted(set(cells))
    asked = set(splits_named([re.sub(r"^(is|in|for|use)(?=[A-Z _-])", "", column)]).values())
    if asked and all(word.casefold() in _YES_OR_NO for word in words):
        named = asked.pop()
        other = "test" if named == "train" else "train"
        return {word: named if _YES_OR_NO[word.casefold()] else other for word in words}
    return splits_named(words)


def _tells_splits(name: str, cells: Sequence[str]) -> bool:
    words = set(cells)
    meant = splits_named(sorted(words))
    if name.casefold() in _LIKELY_SPLITS:
        return "train" in meant.values() or (bool(meant) and len(meant) == len(words))
    return len(meant) == len(words) and "train" in meant.values() and len(set(meant.values())) > 1


def _unused(table: Table, labels: Collection[str] = ()) -> list[str]:
    # Without a header is what pandas numbers rows by.
    names = [name for name in table.others if name and name not in labels]
    if not names:
        return notes_on_splits(table)
    notes = [f"not used: {counted(len(names), 'column')} of {table.file}: {', '.join(map(repr, names))}"]
    groups = [name for name in names if _LIKELY_GROUPS.fullmatch(name)]
    if groups and not table.columns.group:
        notes.append(
            f"images of one {groups[0]!r} may be both trained on and tested with; keep them together by "
            f"--group-column {shlex.quote(groups[0])}"
        )
    return notes + notes_on_splits(table)


def notes_on_splits(table: Table) -> list[str]:
    """What to do with a column that sounds like a split and is not used."""
    if table.columns.split:
        return []
    cells_of = {name: [row[name].strip() for _, row in table.rows] for name in table.others}
    splits = [name for name, cells in cells_of.items() if _sounds_like_a_split(name, cells)]
    if not splits:
        return []
    column, quoted = splits[0], shlex.quote(splits[0])
    cells = cells_of[column]
    how = (
        f"use it by --split-column {quoted}"
        if set(cells) <= _meanings(column, cells).keys()
        else f"write train, val and test there, and name it by --split-column {quoted}; or keep the images of one "
        f"value in one split by --group-column {quoted}"
    )
    return [
        f"the column {column!r} sounds like a split and is not used as one: images for the test may be trained on; "
        f"{how}"
    ]


def _sounds_like_a_split(name: str, cells: Sequence[str]) -> bool:
    meant = set(splits_named(sorted(set(cells))).values())  # perhaps next to cells that are empty, or mean none
    by_name = _LIKE_A_SPLIT.search(re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name))
    return bool(by_name) or ("train" in meant and len(meant) > 1)
