"""Data sets by name: fetched when missing, and checked against what their authors published."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path

from torchsnow.data.catalogue import DATASETS, NamedData
from torchsnow.data.listing import Listing
from torchsnow.data.names import ALL, first_few
from torchsnow.data.prepared import CHECKED, data_folder, list_given
from torchsnow.errors import DataError
from torchsnow.io.files import refuse_unwritable


def list_named(data: NamedData) -> Listing:
    """The data set in its folder of the data folder, fetched or written there first if it is missing.

    Raises DataError when that fails, or when classes, counts or files are not those that its authors published.
    """
    folder = data_folder() / data.name
    try:
        listing = list_given(folder)
        if listing is None and not folder.exists():  # what lies there by hand can be read from a read-only disk
            refuse_unwritable(folder, DataError)
        listing = listing or data.read(folder)
    except DataError:
        raise
    # Downloads, archives and parsers fail with nearly every exception there is.
    except Exception as error:
        raise DataError(_not_there(data, folder, error)) from error
    _check_counts(data, listing, folder)
    _check_files(data, listing, folder)
    return replace(listing, name=data.name, checked=folder / CHECKED)


def find_torchvision(name: str) -> NamedData:
    """The data set with this name, ours or torchvision's, in capital or small letters. Raises DataError."""
    ours = [data for data in DATASETS.values() if data.torchvision]
    known = {word.lower(): data for data in ours for word in (data.torchvision, data.name)}
    if name.lower() in known:
        return known[name.lower()]
    near = get_close_matches(name.lower(), known, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    have = ", ".join(data.name for data in ours)
    raise DataError(f"torchvision:{name} is not known: expected one of {have}, or torchvision's names of these{hint}")


def _check_counts(data: NamedData, listing: Listing, folder: Path) -> None:
    splits = Counter(entry.split for entry in listing.entries)
    found = {"train": splits["train"] + splits["val"], "test": splits["test"]}
    if ALL in splits or ALL in data.counts:
        found = {ALL: splits.total()}
    if found != data.counts or len(listing.classes) != data.num_classes:
        raise DataError(
            f"{data.name} has {_counted(data.counts, data.num_classes)}, but {listing.root} holds "
            f"{_counted(found, len(listing.classes))}: delete {folder} and load or fetch it again"
        )


def _counted(counts: Mapping[str, int], num_classes: int) -> str:
    return " and ".join(f"{count} images in {split}" for split, count in counts.items()) + f", {num_classes} classes"


def _check_files(data: NamedData, listing: Listing, folder: Path) -> None:
    paths = [entry.path for entry in listing.entries]
    outside = [str(path) for path in paths if not path.is_relative_to(listing.root)]
    if outside:
        raise DataError(f"{data.name} names files outside {listing.root}: {first_few(outside)}")
    missing = [str(path) for path in paths if not path.is_file()]
    if missing:
        raise DataError(
            f"{len(missing)} files of {data.name} are missing: {first_few(missing)}: delete {folder} and load or fetch "
            "it again"
        )


def _not_there(data: NamedData, folder: Path, error: Exception) -> str:
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    if isinstance(error, FileNotFoundError) and error.filename:
        reason = f"there is no {error.filename}"
    files = f"{data.by_hand}, or " if data.by_hand else ""
    return (
        f"{data.name} is missing or incomplete in {folder}, and could not be fetched ({reason}): put {files}folders "
        "train/CLASS and test/CLASS of images there; digits and elpv need no download, nor does fashion-mnist with "
        "Debian's package dataset-fashion-mnist"
    )
