"""Files that are either the old one or the new one, never half of one; clear words for what a disk refuses; and tables
whose texts no spreadsheet takes for formulas."""

from __future__ import annotations

import csv
import errno
import io
import os
import secrets
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torchsnow.errors import TorchsnowError

_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")


def plain_cell(value: Any) -> Any:
    """A value for a CSV file; a text that a spreadsheet would run as a formula gets an apostrophe in front.

    Texts come from names of folders, classes and files, which others may have chosen. Numbers stay unchanged.
    """
    return f"'{value}" if isinstance(value, str) and value.lstrip("'").startswith(_FORMULA) else value


def given_cell(text: str) -> str:
    """The text of which `plain_cell` made this one."""
    return text[1:] if text.startswith("'") and text.lstrip("'").startswith(_FORMULA) else text


def plain_row(row: dict[str, Any]) -> dict[str, Any]:
    """A row by column, every value as `plain_cell` makes it."""
    return {name: plain_cell(value) for name, value in row.items()}


TEMPORARY_SUFFIX = ".tmp"
_TRIED_BYTES = 4096
Stamp = tuple[int, ...] | None

_ADVICE = {
    errno.ENOSPC: "the disk is full; free some space and try again",
    errno.EDQUOT: "the disk quota is used up; free some space and try again",
    errno.EFBIG: "the file is larger than this file system or a limit of the system allows",
    errno.EROFS: "the file system is read-only; choose another folder",
    errno.EACCES: "permission denied; check the owner and the mode, or choose another folder",
    errno.EPERM: "permission denied; check the owner and the mode, or choose another folder",
    errno.ENOENT: "no such file or folder",
    errno.ENOTDIR: "a part of this path is a file, not a folder",
    errno.EISDIR: "this is a folder, not a file",
    errno.ELOOP: "this is a symbolic link, which is not followed here",
}


@contextmanager
def clear_os_errors(action: str, path: Path, error: type[TorchsnowError] = TorchsnowError) -> Iterator[None]:
    """Turn any OSError of the block into `error`: "cannot ACTION PATH: why and what to do"."""
    try:
        yield
    except OSError as e:
        reason = _ADVICE.get(e.errno or 0) or e.strerror or str(e)
        raise error(f"cannot {action} {path}: {reason}") from e


def write_atomically(path: Path | str, content: bytes | str, error: type[TorchsnowError] = TorchsnowError) -> None:
    """Write a whole file: whatever happens meanwhile, `path` holds either what it held before or all of `content`.

    Text is written as UTF-8. The content goes to a temporary file in the same folder, which must exist, reaches the
    disk and is renamed. Raises `error` when the disk is full, the folder read-only and the like; the temporary file
    is removed then. Only a killed process leaves one behind, named `.*.tmp`. A device or a pipe (/dev/null,
    /dev/stdout) is refused: a file would take its place.
    """
    path = Path(path)
    validate_file(path, error)
    data = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{secrets.token_hex(8)}{TEMPORARY_SUFFIX}")
    with clear_os_errors("write", path, error):
        try:
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def validate_file(path: Path, error: type[TorchsnowError] = TorchsnowError) -> None:
    """Raise `error` for what is there and is no file that another can take the place of."""
    if os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path):
        raise error(f"cannot write {path}: it is a device or a pipe; name a file")


def validate_writable_folder(folder: Path, error: type[TorchsnowError] = TorchsnowError) -> None:
    """Raise `error` when a folder, or what is there of its path so far, cannot be written into: by trying, for modes
    and owners do not tell of read-only and full disks. What was tried is gone afterwards."""
    with clear_os_errors("write into", folder, error):
        place = next(path for path in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(path))
        with tempfile.TemporaryDirectory(prefix=".", suffix=TEMPORARY_SUFFIX, dir=place) as tried:
            (Path(tried) / "file").write_bytes(bytes(_TRIED_BYTES))


def make_folder(folder: Path, error: type[TorchsnowError] = TorchsnowError) -> None:
    """Make a folder if it is missing. Raises `error` when that cannot be, or nothing can be written there."""
    with clear_os_errors("make the folder", folder, error):
        folder.mkdir(parents=True, exist_ok=True)
    validate_writable_folder(folder, error)


def reserve(folder: Path, size_bytes: int) -> None:
    """Raise OSError when a folder has no room for a file of so many bytes; for writers that would say it badly.

    macOS cannot reserve room: there nothing is raised.
    """
    if hasattr(os, "posix_fallocate"):
        with tempfile.TemporaryFile(dir=folder) as file:
            os.posix_fallocate(file.fileno(), 0, size_bytes)


def write_csv(
    path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]], error: type[TorchsnowError] = TorchsnowError
) -> None:
    """Write a table with a header, as `write_atomically` does; file names that are no UTF-8 keep their bytes."""
    write_atomically(path, csv_text([columns, *rows]).encode("utf-8", "surrogateescape"), error)


def csv_text(rows: Iterable[Sequence[Any]]) -> str:
    """Rows as lines of a CSV file, whose texts no spreadsheet takes for formulas."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(map(plain_cell, row) for row in rows)
    return text.getvalue()


def file_stamp(path: Path) -> Stamp:
    """Numbers that change when a file is written or replaced, as far as the file system keeps them; None if none is
    there. They say when to look at what is in it, never that it is the same.
    """
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def sync_folder(folder: Path) -> None:
    """Let the folder's list of names reach the disk. Raises OSError."""
    if sys.platform == "win32":  # which opens no folders, and writes their lists on its own
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
