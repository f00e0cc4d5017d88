"""Every image of a data set decoded once, and what is wrong with the data as a whole."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from torchsnow.data.images import Examined, examine_image
from torchsnow.data.listing import Entry, Listing, Skipped
from torchsnow.data.names import ALL, NO_LABEL, as_text, counted, first_few
from torchsnow.errors import DataError
from torchsnow.io.files import file_stamp, write_atomically

Progress = Callable[[int, int], None]
_Remembered = tuple[list[int], str, tuple[int, int] | None, int | None]  # the file's stamp, and what `Examined` has
_SCHEMA = 3
_NARROW_BELOW = 32_768  # values between the lowest and the highest of 65,536 greys in all 16-bit images


@dataclass(frozen=True)
class Checked:
    """What is known of the images of a data set: a hash of the content of each that can be used, and the others.

    `greys` are the lowest and the highest of the images with 16 bits, `brightest` the highest of coloured ones.
    """

    digests: Mapping[Path, str]
    skipped: tuple[Skipped, ...]
    greys: Mapping[Path, tuple[int, int]]
    brightest: Mapping[Path, int]


def check_images(entries: Sequence[Entry], progress: Progress | None, memory: Path | None = None) -> Checked:
    """Decode all images, but for those that the file `memory` has known to be good since they were last written."""
    known = {} if memory is None else _recall(memory)
    stamps = {entry.path: list(file_stamp(entry.path) or ()) for entry in entries} if memory is not None else {}
    found: dict[Path, Examined] = {}
    for path, stamp in stamps.items():
        old_stamp, digest, greys, brightest = known.get(str(path), (None, "", None, None))
        if old_stamp == stamp:
            found[path] = Examined(None, digest, greys, brightest)
    fresh = [entry.path for entry in entries if entry.path not in found]
    # Pillow decodes outside the interpreter lock, so threads are enough.
    with ThreadPoolExecutor(max_workers=min(16, os.cpu_count() or 1)) as pool:
        for done, (path, examined) in enumerate(zip(fresh, pool.map(examine_image, fresh), strict=True), start=1):
            found[path] = examined
            if progress is not None:
                progress(len(entries) - len(fresh) + done, len(entries))
    if memory is not None and fresh:
        _remember(memory, {str(path): (stamps[path], *one[1:]) for path, one in found.items() if one.problem is None})
    return Checked(
        {path: one.digest for path, one in found.items() if one.problem is None},
        tuple(Skipped(entry.path, problem) for entry in entries if (problem := found[entry.path].problem) is not None),
        {path: one.greys for path, one in found.items() if one.greys is not None},
        {path: one.brightest for path, one in found.items() if one.brightest is not None},
    )


def _recall(memory: Path) -> dict[str, _Remembered]:
    try:
        content = json.loads(memory.read_text(encoding="utf-8", errors="surrogateescape"))
        return dict(content["images"]) if content["schema"] == _SCHEMA else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _remember(memory: Path, images: Mapping[str, _Remembered]) -> None:
    with suppress(DataError):  # a data folder that cannot be written to is checked every time
        write_atomically(memory, json.dumps({"schema": _SCHEMA, "images": images}, allow_nan=False), DataError)


def validate_classes(listing: Listing, for_training: bool = True) -> None:
    """Raise DataError unless there are two classes to train on, and no others elsewhere."""
    if not listing.classes:
        to_train = " to train on: put some into its train split" if for_training else ""
        raise DataError(f"{listing.name} has no images{to_train}")
    if not for_training:
        return
    if len(listing.classes) < 2:
        raise DataError(f"{listing.name} has only the class {listing.classes[0]!r}: a task needs at least two")
    known = set(listing.classes)
    strange = [(name, entry.split) for entry in listing.entries for name in entry.names if name not in known]
    if strange:
        names = sorted({f"{name!r} in {split}" for name, split in strange})
        raise DataError(f"classes of {listing.name} that its train split does not have: {first_few(names)}")


def validate_unique(entries: Sequence[Entry]) -> None:
    """One file twice would leak from training into test, or have two labels."""
    seen: dict[str, Path] = {}
    for entry in entries:
        first = seen.setdefault(os.path.realpath(entry.path), entry.path)
        if first is not entry.path:
            raise DataError(f"{first} and {entry.path} are one file listed twice: remove one of them")


def validate_bad_share(
    listing: Listing, good: Sequence[Entry], skipped: Sequence[Skipped], max_bad_share: float
) -> None:
    """Raise DataError when too many files cannot be used, or all of a class."""
    to_train = [entry for entry in good if entry.split in (ALL, "train")]
    usable = {name for entry in to_train or good for name in entry.names}
    lost = [name for name in listing.classes if name not in usable]
    if lost:
        own = [bad for bad in skipped if lost[0] in map(as_text, bad.path.relative_to(listing.root).parts)]
        raise DataError(f"no image of the class {lost[0]!r} in {listing.name} can be used: {_reasons(own or skipped)}")
    total = len(good) + len(skipped)
    if len(skipped) > max_bad_share * total:
        raise DataError(
            f"{len(skipped)} of {total} files in {listing.name} cannot be used, more than {max_bad_share:.0%}; "
            f"repair or remove them: {_reasons(skipped)}"
        )


def _reasons(skipped: Sequence[Skipped]) -> str:
    return first_few([f"{bad.path}: {bad.reason}" for bad in skipped])


def fingerprint(entries: Iterable[Entry], digests: Mapping[Path, str], root: Path) -> str:
    """A SHA-256 over the relative paths, class names and contents of images."""
    lines = [(one.path.relative_to(root).as_posix(), one.class_name, digests[one.path]) for one in entries]
    return hashlib.sha256(repr(sorted(lines)).encode("utf-8", "surrogateescape")).hexdigest()


def warnings_on(entries: Sequence[Entry], checked: Checked, root: Path) -> list[str]:
    """A sentence for everything that makes results misleading and is no reason to refuse the data."""
    brightest = [checked.brightest[one.path] for one in entries if one.path in checked.brightest]
    return [
        *_on_copies(entries, checked.digests, root),
        *_on_groups(entries),
        *_on_classes(entries),
        *_on_colours(brightest),
    ]


def _on_copies(entries: Sequence[Entry], digests: Mapping[Path, str], root: Path) -> list[str]:
    alike: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        alike[digests[entry.path]].append(entry)
    copies = [same for same in alike.values() if len(same) > 1]
    notes = []
    for same, what, effect in (
        (
            [same for same in copies if len({one.split for one in same}) > 1],
            "several splits",
            "measured accuracy is too good; remove the copies",
        ),
        (
            [same for same in copies if len({one.class_name for one in same}) > 1],
            "several classes",
            "one of the labels is wrong",
        ),
    ):
        pairs = [" = ".join(one.path.relative_to(root).as_posix() for one in group) for group in same]
        if pairs:
            num_images = f"{counted(len(pairs), 'image')} of {len(alike)}"
            notes.append(f"copies of {num_images}, byte for byte, are in {what} ({first_few(pairs)}): {effect}")
    return notes


def _on_groups(entries: Sequence[Entry]) -> list[str]:
    places: dict[str, set[str]] = defaultdict(set)
    for entry in entries:
        if entry.group:
            places[entry.group].add(entry.split)
    torn = sorted(group for group, splits in places.items() if len(splits) > 1)
    if not torn:
        return []
    return [f"images of {counted(len(torn), 'group')} are in several splits ({first_few(torn)}): accuracy is too good"]


def _on_classes(entries: Sequence[Entry]) -> list[str]:
    counts = Counter(entry.class_name for entry in entries if entry.class_name in NO_LABEL)
    return [
        f"{counted(count, 'image')} {'has' if count == 1 else 'have'} the class {name!r}, which programs write where "
        "no label is known: if it is none, leave them out"
        for name, count in sorted(counts.items())
    ]


def _on_colours(brightest: Sequence[int]) -> list[str]:
    most = max(brightest, default=255)
    if most >= _NARROW_BELOW // 256:
        return []
    return [
        f"the colours of {counted(len(brightest), 'image')} of 16 bits end at {256 * most + 255:,} of 65,535, and "
        f"{most + 1} of 256 values are left of them: spread them over all 16 bits, or save them with 8"
    ]


def advice_on_greys(greys: Sequence[tuple[int, int]]) -> list[str]:
    """A sentence when the lowest and highest values of grey images of 16 bits leave half of the range empty."""
    low, high = min((low for low, _ in greys), default=0), max((high for _, high in greys), default=65_535)
    if high - low >= _NARROW_BELOW:
        return []
    return [
        f"the values of {counted(len(greys), 'grey image')} of 16 bits are {low:,} to {high:,} of 65,535, of which "
        f"{high // 257 - low // 257 + 1} of 256 greys are left, with --grey-range more "
        f"(--grey-range {low} {max(high, low + 1)} spreads these)"
    ]
