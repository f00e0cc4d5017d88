"""What verbs print: a person's table or a machine's JSON on stdout, progress and warnings on stderr."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

if TYPE_CHECKING:
    from torchsnow.data import LoadedData

_stdout = Console()
_stderr = Console(stderr=True)


def print_json(value: Any) -> None:
    """Write one JSON document."""
    print(json.dumps(value, indent=1, ensure_ascii=False))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Write rows under column names; cells are shown as they are, never as markup."""
    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(_escaped(cell) for cell in row))
    _stdout.print(table)


def _escaped(cell: Any) -> str:
    return str(cell).replace("[", r"\[")


def say(line: str) -> None:
    """One line for the person at the terminal, on stderr."""
    _stderr.print(line, markup=False, highlight=False)


def load_checked(data: str, quiet: bool) -> LoadedData:
    """Load a data set with a progress bar, and name the images that were skipped."""
    from torchsnow.data import load_data

    with _checking(quiet) as progress:
        loaded = load_data(data, progress=progress)
    for skipped in loaded.skipped[:10]:
        say(f"skipped {skipped.path}: {skipped.reason}")
    if loaded.skipped:
        say(f"{len(loaded.skipped)} of {len(loaded.skipped) + len(loaded.examples)} images were skipped")
    return loaded


@contextmanager
def _checking(quiet: bool) -> Iterator[Any]:
    with Progress(console=_stderr, transient=True, disable=quiet) as bar:
        task = bar.add_task("checking images", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def percent(share: float | None) -> str:
    """A share from 0 to 1 for a person."""
    return "-" if share is None else f"{100 * share:.1f}%"


def file_list(folder: Path) -> str:
    """The names of the files of a folder."""
    return ", ".join(sorted(path.name for path in folder.iterdir() if path.is_file()))
