"""Data sets in tar files, as WebDataset has them: members with one name, KEY.jpg and KEY.cls, are one image."""

from __future__ import annotations

import hashlib
import json
import re
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import Any

from torchsnow.data.folders import IMAGE_SUFFIXES
from torchsnow.data.listing import Listing
from torchsnow.data.names import ALL, splits_named
from torchsnow.data.prepared import Picture, data_folder, prepared_once, safe_name
from torchsnow.errors import DataError

CLASS_NAMES = "classnames.txt"
"""Next to the tar files: a line for each number that stands for a class."""
_LABEL_BYTES, _IMAGE_BYTES = 2**20, 2**28  # at most: what a tar says of its members is not believed
_LABELS = (".cls", ".json")
_NUMBER = re.compile("-?[0-9]{1,9}")


def list_shards(place: str) -> Listing:
    """The tar files in a folder, or of a pattern, here or wherever fsspec reaches (s3://bucket/train-*.tar), written
    once as image files into a folder of their own in the data folder.

    Their names say which split they are of, as train-0001.tar; where none does, there are no splits. A class is what
    KEY.cls holds, or under "label" KEY.json: a number or a name. Members are read one by one, so that shards may be
    larger than memory; an image without a class, or with a class below 0, is left out. Raises DataError.
    """
    files, shards = _find(place)
    names = _class_names(files, shards)
    splits = _splits(place, shards)
    versions = [(shard, files.size(shard), str(files.checksum(shard))) for shard in shards]
    digest = hashlib.sha256(repr((place, versions, names)).encode("utf-8", "surrogateescape")).hexdigest()
    name = safe_name(PurePosixPath(shards[0]).parent.name) or "shards"
    folder = data_folder() / f"wds--{name}--{digest[:12]}"
    return prepared_once(folder, name, lambda: _pictures(files, splits, names))


def _find(place: str) -> tuple[Any, list[str]]:
    """A file system, and the paths of tar files on it, ascending."""
    import fsspec

    try:
        files, path = fsspec.core.url_to_fs(place)
        pattern = f"{path.rstrip('/')}/*.tar" if files.isdir(path) else path
        shards = sorted(files.glob(pattern))
    # Its errors come from stores, networks and credentials of many kinds.
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"cannot look for tar files at {place} ({reason})") from error
    if not shards:
        raise DataError(f"there are no tar files at {place}: expected a folder of .tar files, or a pattern of them")
    return files, shards


def _splits(place: str, shards: Sequence[str]) -> dict[str, str]:
    """{shard: split}."""
    stems = {shard: PurePosixPath(shard).name.partition(".")[0] for shard in shards}
    named = splits_named(sorted(set(stems.values())))
    if set(named.values()) <= {"train"}:
        return dict.fromkeys(shards, ALL)
    unnamed = [shard for shard, stem in stems.items() if stem not in named]
    if unnamed:
        raise DataError(
            f"some of the tar files at {place} are named after a split, and {unnamed[0]} is not: expected names as "
            "train-0001.tar, val-0001.tar and test-0001.tar, or no split in any name"
        )
    return {shard: named[stem] for shard, stem in stems.items()}


def _class_names(files: Any, shards: Sequence[str]) -> tuple[str, ...] | None:
    path = f"{PurePosixPath(shards[0]).parent}/{CLASS_NAMES}"
    try:
        if not files.exists(path):
            return None
        lines = files.cat_file(path, 0, _LABEL_BYTES).decode("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}: {error}") from error
    return tuple(line.strip() for line in lines if line.strip())


def _pictures(files: Any, splits: dict[str, str], names: Sequence[str] | None) -> Iterator[Picture]:
    for shard, split in splits.items():
        for key, image, label in _samples(files, shard):
            class_name = _class_of(f"{key} in {shard}", label, names)
            if class_name is not None:
                yield Picture.of_file(split, class_name, image)


def _samples(files: Any, shard: str) -> Iterator[tuple[str, bytes, tuple[str, bytes]]]:
    """Key, image, and the kind and content of the label, of all samples that have both."""
    key, image, label = "", b"", ("", b"")
    try:
        # as a stream: neither the shard nor a list of its members is held in memory
        with files.open(shard, "rb") as content, tarfile.open(fileobj=content, mode="r|*") as tar:
            for member in tar:
                folder, _, base = member.name.rpartition("/")
                stem, _, rest = base.partition(".")
                kind, own = f".{rest.lower()}", f"{folder}/{stem}"
                if own != key:
                    if image and label[0]:
                        yield key, image, label
                    key, image, label = own, b"", ("", b"")
                if kind in IMAGE_SUFFIXES and not image:
                    image = _content(tar, member, shard, _IMAGE_BYTES)
                elif kind in _LABELS and label[0] != _LABELS[0]:
                    label = kind, _content(tar, member, shard, _LABEL_BYTES)
                tar.members = []  # type: ignore[attr-defined] # which a stream keeps, though it cannot go back to them
            if image and label[0]:
                yield key, image, label
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise DataError(f"cannot read the tar file {shard}: {error or type(error).__name__}") from error


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo, shard: str, most_bytes: int) -> bytes:
    if member.size > most_bytes:
        raise DataError(f"{member.name} in {shard} has {member.size} bytes; expected at most {most_bytes}")
    file = tar.extractfile(member) if member.isfile() else None
    content = b"" if file is None else file.read()
    if file is not None and len(content) < member.size:
        raise EOFError("unexpected end of data")
    return content


def _class_of(sample: str, label: tuple[str, bytes], names: Sequence[str] | None) -> str | None:
    """The name of a class; None for none."""
    kind, content = label
    try:
        value = content.decode("utf-8").strip()
        if kind == ".json":
            found = json.loads(value)
            value = str(found["label"]).strip() if isinstance(found, dict) and found.get("label") is not None else ""
    except (ValueError, RecursionError) as error:
        raise DataError(f"the class of {sample} cannot be read: {error}") from error
    if not _NUMBER.fullmatch(value):
        return value or None
    number = int(value)
    if number < 0 or names is None:
        return value if number >= 0 else None
    if number >= len(names):
        raise DataError(f"{sample} is of class {number}, and {CLASS_NAMES} has {len(names)} lines, from 0 on")
    return names[number]
