"""Turns a data set's name, folder or table into examples that are known to decode."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from torchsnow.data.catalogue import DATASETS
from torchsnow.data.folders import list_folder
from torchsnow.data.hf import list_hf
from torchsnow.data.images import image_problem
from torchsnow.data.listing import ALL, Entry, Listing, Skipped, first_few
from torchsnow.data.named import find_torchvision, list_named
from torchsnow.data.tables import list_csv, list_elpv
from torchsnow.errors import DataError
from torchsnow.files import write_atomically

Progress = Callable[[int, int], None]

EXPECTED = (
    "a folder of class folders, a CSV file with the header path,label[,split], elpv, elpv:binary, "
    f"{', '.join(DATASETS)}, torchvision:NAME or hf:ORGANISATION/NAME"
)


@dataclass(frozen=True)
class Example:
    """One image file and the index of its class."""

    path: Path
    label: int


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
    "train" among them. `skipped` are the files that cannot be used. `fingerprint` is a SHA-256 over the relative
    paths, class names and file sizes of all examples; where the data lies does not change it.
    """

    name: str
    root: Path
    classes: tuple[str, ...]
    splits: dict[str, list[Example]]
    skipped: tuple[Skipped, ...]
    fingerprint: str

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


def load_data(data: str | Path, *, max_bad_share: float = 0.1, progress: Progress | None = None) -> LoadedData:
    """List a data set and decode every image of it once, so that no training run meets a damaged file hours later.

    `data` is a folder of class folders (with or without train, val and test folders above them), a CSV file with the
    header `path,label[,split]` and paths relative to its own folder, `elpv` (solar cells, four defect probabilities)
    or `elpv:binary` (functional or defective), a name in `DATASETS`, the same as `torchvision:NAME` where torchvision
    has that data set, or `hf:ORGANISATION/NAME`. A folder of that name comes before a bare name. `progress` is called
    with (images checked, images in all). What has a name is fetched when it is missing, and its images are decoded
    only until they were all found good once.

    Images that cannot be read, and links that leave the data's folder, are skipped and listed in `.skipped`. Raises
    DataError when they are over `max_bad_share` of all files or a whole class, and for data that is missing, empty,
    contradictory, or has fewer than two classes.
    """
    try:
        listing = _list(str(data))
    except OSError as error:
        raise DataError(f"cannot read the data {data}: {error}") from error
    check_classes(listing)
    check_unique(listing.entries)
    good, unreadable = _check_images_once(listing, progress)
    return loaded(listing, good, (*listing.skipped, *unreadable), max_bad_share)


def loaded(listing: Listing, good: Sequence[Entry], skipped: tuple[Skipped, ...], max_bad_share: float) -> LoadedData:
    """The data of which `good` are usable. Raises DataError when too much of it is not."""
    _check_bad_share(listing, good, skipped, max_bad_share)
    labels = {name: label for label, name in enumerate(listing.classes)}
    splits: dict[str, list[Example]] = {entry.split: [] for entry in listing.entries}
    for entry in good:
        splits[entry.split].append(Example(entry.path, labels[entry.class_name]))
    return LoadedData(listing.name, listing.root, listing.classes, splits, skipped, _fingerprint(good, listing.root))


def _list(data: str) -> Listing:
    prefix, _, name = data.partition(":")
    if prefix == "torchvision":
        return list_named(find_torchvision(name))
    if prefix == "hf":
        return list_hf(name)
    if data in ("elpv", "elpv:binary"):
        return list_elpv(binary=data == "elpv:binary")
    path = Path(data).expanduser()
    if data.strip() and path.is_dir():
        return list_folder(path)
    if path.is_file() and path.suffix.lower() == ".csv":
        return list_csv(path)
    if data in DATASETS:
        return list_named(DATASETS[data])
    problem = "is a file, but not a .csv" if path.is_file() else "does not exist"
    raise DataError(f"the data {data!r} {problem}: expected {EXPECTED}")


def check_classes(listing: Listing) -> None:
    """Raise DataError unless there are two classes to train on, and no others elsewhere."""
    if not listing.classes:
        raise DataError(f"{listing.name} has no images to train on: put some into its train split")
    if len(listing.classes) < 2:
        raise DataError(f"{listing.name} has only the class {listing.classes[0]!r}: a task needs at least two")
    known = set(listing.classes)
    strange = [entry for entry in listing.entries if entry.class_name not in known]
    if strange:
        names = sorted({f"{entry.class_name!r} in {entry.split}" for entry in strange})
        raise DataError(f"classes of {listing.name} that its train split does not have: {first_few(names)}")


def check_unique(entries: Sequence[Entry]) -> None:
    """One file twice would leak from training into test, or have two labels."""
    seen: dict[str, Path] = {}
    for entry in entries:
        first = seen.setdefault(os.path.realpath(entry.path), entry.path)
        if first is not entry.path:
            raise DataError(f"{first} and {entry.path} are one file listed twice: remove one of them")


def _check_images_once(listing: Listing, progress: Progress | None) -> tuple[list[Entry], list[Skipped]]:
    mark = listing.checked_mark
    if mark is None:
        return check_images(listing.entries, progress)
    fingerprint = _fingerprint(listing.entries, listing.root)
    if mark.is_file() and mark.read_bytes() == fingerprint.encode():
        return list(listing.entries), []
    good, skipped = check_images(listing.entries, progress)
    if not skipped:
        with suppress(DataError):  # a data folder that cannot be written to is checked every time
            write_atomically(mark, fingerprint, DataError)
    return good, skipped


def check_images(entries: Sequence[Entry], progress: Progress | None) -> tuple[list[Entry], list[Skipped]]:
    """Decode all images: those that can be used, and the others."""
    good, skipped = [], []
    # Pillow decodes outside the interpreter lock, so threads are enough.
    with ThreadPoolExecutor(max_workers=min(16, os.cpu_count() or 1)) as pool:
        problems = pool.map(image_problem, [entry.path for entry in entries])
        for done, (entry, problem) in enumerate(zip(entries, problems, strict=True), start=1):
            if problem is None:
                good.append(entry)
            else:
                skipped.append(Skipped(entry.path, problem))
            if progress is not None:
                progress(done, len(entries))
    return good, skipped


def _check_bad_share(listing: Listing, good: Sequence[Entry], skipped: Sequence[Skipped], max_bad_share: float) -> None:
    reasons = first_few([f"{bad.path}: {bad.reason}" for bad in skipped])
    trainable = {entry.class_name for entry in good if entry.split in (ALL, "train")}
    lost = [name for name in listing.classes if name not in trainable]
    if lost:
        raise DataError(f"no image of the class {lost[0]!r} in {listing.name} can be used: {reasons}")
    total = len(good) + len(skipped)
    if len(skipped) > max_bad_share * total:
        raise DataError(
            f"{len(skipped)} of {total} files in {listing.name} cannot be used, more than {max_bad_share:.0%}; "
            f"repair or remove them: {reasons}"
        )


def _fingerprint(entries: Sequence[Entry], root: Path) -> str:
    lines = [
        (entry.path.relative_to(root).as_posix(), entry.class_name, entry.path.stat().st_size) for entry in entries
    ]
    return hashlib.sha256(repr(sorted(lines)).encode()).hexdigest()
