"""Turns a data set's name, folder or table into examples that are known to decode."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass, field
from pathlib import Path

from torchsnow.data.catalogue import DATASETS, find_torchvision, list_named
from torchsnow.data.checking import (
    Checked,
    Progress,
    check_images,
    fingerprint,
    validate_bad_share,
    validate_classes,
    validate_unique,
    warnings_on,
)
from torchsnow.data.folders import list_folder
from torchsnow.data.hf import list_hf
from torchsnow.data.listing import Listing, Skipped
from torchsnow.data.published import list_elpv
from torchsnow.data.shards import list_shards
from torchsnow.data.tables import TABLE_SUFFIXES, Columns, list_table
from torchsnow.errors import DataError

EXPECTED = (
    "a folder of class folders, a CSV file with the header path,label[,split], elpv, elpv:binary, "
    f"{', '.join(DATASETS)}, torchvision:NAME, hf:ORGANISATION/NAME or wds:FOLDER of tar files"
)


@dataclass(frozen=True)
class Example:
    """One image file and the index of its class.

    `labels` are the indices of an image that has any number of labels, None where every image has one class; `label` is
    the rarest of them then, by which splits are drawn.
    """

    path: Path
    label: int
    labels: tuple[int, ...] | None = None

    @property
    def all_labels(self) -> tuple[int, ...]:
        """Its labels, or else its class."""
        return (self.label,) if self.labels is None else self.labels


def by_class(examples: Iterable[Example], num_classes: int) -> list[list[Example]]:
    """The examples of every class, by label, in the order in which they come."""
    members: list[list[Example]] = [[] for _ in range(num_classes)]
    for example in examples:
        members[example.label].append(example)
    return members


@dataclass(frozen=True)
class LoadedData:
    """A checked data set.

    `splits` is either {"all": ...} or has those of "train", "val" and "test" that the data itself defines, always
    "train" among them if it was loaded for training. `skipped` are the files that cannot be used. `fingerprint` is a
    SHA-256 over the relative paths, class names and contents of all examples; where the data lies does not change it.
    `notes` say what a person should know of the data, a sentence each. `groups` has the images that belong into one
    split with others, and the name of their group; `digests` a hash of the content of every image; `greys` the lowest
    and the highest value of those of 16-bit grey.
    """

    name: str
    root: Path
    classes: tuple[str, ...]
    splits: dict[str, list[Example]]
    skipped: tuple[Skipped, ...]
    fingerprint: str
    notes: tuple[str, ...] = ()
    groups: Mapping[Path, str] = field(default_factory=dict)
    digests: Mapping[Path, str] = field(default_factory=dict)
    greys: Mapping[Path, tuple[int, int]] = field(default_factory=dict)

    @property
    def examples(self) -> list[Example]:
        """The examples of all splits."""
        return [example for split in self.splits.values() for example in split]

    def __repr__(self) -> str:
        sizes = ", ".join(f"{len(examples)} {split}" for split, examples in self.splits.items())
        return f"LoadedData({self.name!r}, {len(self.classes)} classes, images: {sizes})"

    def relative_path(self, example: Example) -> str:
        """An example's path below `root`, with forward slashes: its name in files."""
        return example.path.relative_to(self.root).as_posix()


def load_data(
    data: str | Path,
    *,
    max_bad_share: float = 0.1,
    progress: Progress | None = None,
    columns: Columns = Columns(),  # noqa: B008 # it cannot change
    follow_links: bool = False,
    distinct_names: bool = False,
    for_training: bool = True,
    multi_label: bool = False,
) -> LoadedData:
    """List a data set and decode every image of it once, so that no training run meets a damaged file hours later.

    `data` is a folder of class folders (with or without folders for train, val and test above them), a CSV file with
    the header `path,label[,split][,group]` (or other `columns`) and paths relative to its own folder, `elpv` (solar
    cells, four defect probabilities) or `elpv:binary` (functional or defective), a name in `DATASETS`, the same as
    `torchvision:NAME` where torchvision has that data set, `hf:ORGANISATION/NAME`, or `wds:PLACE`, a folder or
    pattern of tar files (see `list_shards`). A folder of that name comes before a bare name. `progress` is called
    with (images checked, images in all). What has a name is fetched when it is missing, and its images are decoded
    again only when they change. Class names that look alike (`Red` and `red`) are refused unless they are
    `distinct_names`. In a `multi_label` CSV file, an image has any number of labels: their names with `|` between
    in the label column, or without such a column a column of 0 and 1 per label.

    Images that cannot be read, and links that leave the data's folder (unless `follow_links`), are skipped and listed
    in `.skipped`. Raises DataError when they are over `max_bad_share` of all files or a whole class, and for data that
    is missing, empty or contradictory, or, if it is `for_training`, has fewer than two classes to train on.
    """
    try:
        how = {"follow_links": follow_links, "distinct_names": distinct_names, "for_training": for_training}
        listing = _list(str(data), columns, how, multi_label)
    except OSError as error:
        raise DataError(f"cannot read the data {data}: {error.filename}: {error.strerror or error}") from error
    validate_classes(listing, for_training)
    validate_unique(listing.entries)
    return loaded(listing, check_images(listing.entries, progress, listing.checked), max_bad_share)


def validate_exists(data: str) -> None:
    """Raise DataError for data that is neither there nor known by name. Nothing is read: it is asked first of all."""
    path = Path(os.path.expanduser(data))  # which leaves a user that there is not, where Path's own raises
    is_named = data in ("elpv", "elpv:binary", *DATASETS) or data.startswith(("torchvision:", "hf:", "wds:"))
    if is_named or (data.strip() and path.is_dir()) or (path.is_file() and path.suffix.lower() in TABLE_SUFFIXES):
        return
    problem = "is a file, but not a .csv" if path.is_file() else "does not exist"
    raise DataError(f"the data {data!r} {problem}: expected {EXPECTED}")


def loaded(listing: Listing, checked: Checked, max_bad_share: float) -> LoadedData:
    """The data with the images that can be used. Raises DataError when too much of it cannot."""
    good = [entry for entry in listing.entries if entry.path in checked.digests]
    paths = {entry.path for entry in listing.entries}
    skipped = (*listing.skipped, *(one for one in checked.skipped if one.path in paths))
    validate_bad_share(listing, good, skipped, max_bad_share)
    labels = {name: label for label, name in enumerate(listing.classes)}
    splits: dict[str, list[Example]] = {entry.split: [] for entry in listing.entries}
    counts = Counter(name for entry in good for name in entry.names)
    for entry in good:
        rarest = min(entry.names, key=counts.__getitem__, default=listing.classes[0])
        own = None if entry.labels is None else tuple(sorted(labels[name] for name in entry.labels))
        splits[entry.split].append(Example(entry.path, labels[rarest], own))
    return LoadedData(
        listing.name,
        listing.root,
        listing.classes,
        splits,
        skipped,
        fingerprint(good, checked.digests, listing.root),
        (*listing.notes, *warnings_on(good, checked, listing.root)),
        {entry.path: entry.group for entry in good if entry.group},
        {entry.path: checked.digests[entry.path] for entry in good},
        {entry.path: checked.greys[entry.path] for entry in good if entry.path in checked.greys},
    )


def _list(data: str, columns: Columns, how: Mapping[str, bool], multi_label: bool) -> Listing:
    validate_exists(data)
    path = Path(os.path.expanduser(data))
    is_table = path.is_file() and path.suffix.lower() in TABLE_SUFFIXES
    if columns != Columns() and not is_table:
        named = ", ".join(filter(None, astuple(columns)))
        raise DataError(f"columns are named ({named}), but {data} is not a CSV file: leave them out")
    if multi_label and not is_table:
        raise DataError(f"images with several labels come from a CSV file, and {data} is none")
    prefix, _, name = data.partition(":")
    if prefix == "torchvision":
        return list_named(find_torchvision(name))
    if prefix == "hf":
        return list_hf(name)
    if prefix == "wds":
        return list_shards(name)
    if data in ("elpv", "elpv:binary"):
        return list_elpv(binary=data == "elpv:binary")
    if data.strip() and path.is_dir():
        return list_folder(path, **how)
    if is_table:
        return list_table(path, columns, **how, multi_label=multi_label)
    return list_named(DATASETS[data])
