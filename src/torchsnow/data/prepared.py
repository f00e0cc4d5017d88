"""Data sets that come as arrays or tables of bytes, written once as class folders of image files."""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import unquote

from torchsnow.data.folders import list_folder
from torchsnow.data.formats import PREFIX_BYTES, SUFFIXES, format_of
from torchsnow.data.listing import Listing
from torchsnow.data.names import ALL
from torchsnow.errors import DataError
from torchsnow.io.files import TEMPORARY_SUFFIX, clear_os_errors, validate_writable_folder

DATA_VARIABLE = "TORCHSNOW_DATA"
DEFAULT_FOLDER = "~/.cache/torchsnow/data"
PREPARED = "prepared"
CHECKED = "checked.json"
# What some file system does not allow in a name, what hides or changes it, and the percent sign that replaces these.
UNSAFE = re.compile(r'[%/\\:*?"<>|\x00-\x1f\x7f]|^[. ]|[. ]$')


@dataclass(frozen=True)
class Picture:
    """One image as the content of its file; `split` is "all", "train", "val" or "test"."""

    split: str
    class_name: str
    content: bytes
    suffix: str = ".png"

    @classmethod
    def of_file(cls, split: str, class_name: str, content: bytes) -> Picture:
        """With the suffix of the format that the content is in. What is no image gets a place too: the check of all
        images says what is wrong with it."""
        return cls(split, class_name, content, SUFFIXES.get(format_of(content[:PREFIX_BYTES]) or "", ".png"))


def data_folder() -> Path:
    """Where data sets with a name lie: the environment variable TORCHSNOW_DATA, or ~/.cache/torchsnow/data.

    Raises DataError for a user without a home, or another one that there is not.
    """
    folder = os.path.expanduser(os.environ.get(DATA_VARIABLE) or DEFAULT_FOLDER)
    if folder.startswith("~"):
        raise DataError(f"{folder} is in no home of this machine; name a folder for data sets in {DATA_VARIABLE}")
    return Path(folder).absolute()


def list_given(folder: Path) -> Listing | None:
    """The class folders in a data set's folder: written by `prepare`, or train and test put there by hand."""
    if (folder / PREPARED).is_dir():
        return _list_prepared(folder)
    return list_folder(folder) if (folder / "train").is_dir() else None


def prepared_once(folder: Path, name: str, pictures: Callable[[], Iterable[Picture]]) -> Listing:
    """The data set `name` in its folder, after its pictures are written there if they are not yet. Raises DataError."""
    listing = list_given(folder)
    if listing is None:
        validate_writable_folder(folder, DataError)
        listing = prepare(folder, pictures())
    return replace(listing, name=name, checked=folder / CHECKED)


def prepare(folder: Path, pictures: Iterable[Picture]) -> Listing:
    """Write [split/]class/number files below `folder`, all of them or none: an interruption leaves no half data set.

    Raises DataError when the disk refuses, or when there are no pictures.
    """
    temporary = folder / f".{secrets.token_hex(8)}{TEMPORARY_SUFFIX}"
    with clear_os_errors("write", folder, DataError):
        temporary.mkdir(parents=True)
        try:
            for number, picture in enumerate(pictures):
                split = "" if picture.split == ALL else picture.split
                class_folder = temporary / split / safe_name(picture.class_name)
                class_folder.mkdir(parents=True, exist_ok=True)
                (class_folder / f"{number:06d}{picture.suffix}").write_bytes(picture.content)
            if not any(temporary.iterdir()):
                raise DataError(f"the data set for {folder} has no image with a class")
            os.sync()  # once for all: a sync of each of 70,000 small files takes minutes
            _put_in_place(temporary, folder / PREPARED)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return _list_prepared(folder)


def safe_name(class_name: str) -> str:
    """A folder's name for any class name: what file systems refuse becomes %XX, as in a web address."""
    return UNSAFE.sub(lambda found: f"%{ord(found[0]):02X}", class_name)


def _put_in_place(temporary: Path, target: Path) -> None:
    try:
        temporary.rename(target)
    except OSError:
        if not target.is_dir():  # otherwise another process was faster, with the same content
            raise


def _list_prepared(folder: Path) -> Listing:
    listing = list_folder(folder / PREPARED, distinct_names=True)
    classes = tuple(unquote(name) for name in listing.classes)
    entries = tuple(replace(entry, class_name=unquote(entry.class_name)) for entry in listing.entries)
    return replace(listing, classes=classes, entries=entries)
