"""What verbs print: results on stdout, as text for a person or JSON for a machine; progress and notes on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from rich.table import Table
from rich.text import Text

from torchsnow.errors import TorchsnowError
from torchsnow.io.bars import TimeLeft
from torchsnow.io.files import validate_file, validate_writable_folder

if TYPE_CHECKING:
    from torchsnow.data import LoadedData

_PIPE_WIDTH = 100_000  # characters: what is read by a program is not folded


def print_json(value: Any) -> None:
    """Write one JSON document."""
    print(json.dumps(value, indent=1, allow_nan=False))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Write rows under column names; cells are shown literally, never as markup."""
    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(Text(_printable(column)), overflow="fold")
    for row in rows:
        table.add_row(*(Text(_printable(cell)) for cell in row))
    Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH).print(table)


def say(line: str) -> None:
    """One line of the result, written at once, so that a log can be followed."""
    print(_printable(line), flush=True)


def note(line: str) -> None:
    """One line next to the result: what was skipped, what went wrong."""
    print(_printable(line), file=sys.stderr)


def _printable(value: Any) -> str:
    """With control characters and undecodable bytes as escapes: names of files and classes can hold anything."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(value))


def validate_writable(file: Path) -> None:
    """Raise TorchsnowError for a file that cannot be written, before the work whose result it is to hold."""
    if file.is_dir() or not file.parent.is_dir():
        reason = "it is a folder" if file.is_dir() else f"there is no folder {file.parent}"
        raise TorchsnowError(f"cannot write {file}: {reason}; name a file in a folder that exists")
    validate_file(file)
    validate_writable_folder(file.parent)


def load_checked(data: str, quiet: bool, **how: Any) -> LoadedData:
    """Load a data set, `how` as `load_data` has it, with a progress bar, and say what was skipped and why."""
    from torchsnow.data import load_data

    with counting("checking images", quiet) as progress:
        loaded = load_data(data, progress=progress, **how)
    for sentence in loaded.notes:
        note(f"warning: {sentence}")
    for skipped in loaded.skipped[:10]:
        note(f"skipped {skipped.path}: {skipped.reason}")
    if loaded.skipped:
        note(f"{len(loaded.skipped)} of {len(loaded.skipped) + len(loaded.examples)} images were skipped")
    return loaded


@contextmanager
def counting(what: str, quiet: bool) -> Iterator[Any]:
    """A progress bar, gone at the end, and the function that moves it: (done, total). Nothing in a pipe."""
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeLeft())
    # FORCE_COLOR makes no terminal of a log, whatever Rich takes it for.
    with Progress(
        *columns, console=Console(stderr=True), transient=True, disable=quiet or not sys.stderr.isatty()
    ) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def percent(share: float | None) -> str:
    """A share from 0 to 1 for a person."""
    return "-" if share is None else f"{100 * share:.1f}%"
