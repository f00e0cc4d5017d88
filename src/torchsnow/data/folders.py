"""Data sets that are folders of class folders."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from torchsnow.data.listing import (
    ALL,
    SPLIT_WORDS,
    Entry,
    Listing,
    Skipped,
    first_few,
    natural_sorted,
    stripped_names,
)
from torchsnow.errors import DataError

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"})


def list_folder(root: Path) -> Listing:
    """Class folders, or train, val (valid, validation) and test folders of class folders.

    Hidden files and files without an image's suffix are ignored, links that leave the folder are skipped.
    """
    root = root.resolve()
    entries: list[Entry] = []
    skipped: list[Skipped] = []
    names: dict[str, list[str]] = {}
    for split, split_folder in _split_folders(root).items():
        folders = _class_folders(split_folder)
        names[split] = stripped_names([folder.name for folder in folders], f"class folders of {split_folder}")
        for folder, class_name in zip(folders, names[split], strict=True):
            images, refused = _images_below(folder, root)
            if not images and not refused:
                raise DataError(f"the class folder {folder} holds no images: put some in, or remove it")
            entries += [Entry(path, class_name, split) for path in images]
            skipped += refused
    classes = natural_sorted(names.get(ALL) or names["train"])
    return Listing(root.name, root, tuple(classes), tuple(entries), tuple(skipped))


def _split_folders(root: Path) -> dict[str, Path]:
    """{split: its folder}; {"all": root} when the folders in `root` are the classes."""
    folders = _visible_folders(root)
    splits = [folder for folder in folders if folder.name.lower() in SPLIT_WORDS]
    words = {SPLIT_WORDS[folder.name.lower()] for folder in splits}
    # "train" alone among others is a vehicle; beside "test" or "val" it is a split.
    if "train" not in words or (len(words) == 1 and len(folders) > 1):
        return {ALL: root}
    if len(splits) < len(folders):
        others = first_few([folder.name for folder in folders if folder not in splits], 20, ", ")
        raise DataError(f"{root} has train/val/test folders and others beside them ({others}): move those away")
    if len(words) < len(splits):
        raise DataError(f"{root} has several folders for one split ({', '.join(f.name for f in splits)}): keep one")
    return {SPLIT_WORDS[folder.name.lower()]: folder for folder in splits}


def _class_folders(folder: Path) -> list[Path]:
    folders = _visible_folders(folder)
    if not folders:
        raise DataError(f"{folder} holds no class folders: expected one folder of images per class")
    return folders


def _visible_folders(folder: Path) -> list[Path]:
    names = natural_sorted(path.name for path in folder.iterdir() if path.is_dir())
    return [folder / name for name in names if not name.startswith(".")]


def _images_below(folder: Path, root: Path) -> tuple[list[Path], list[Skipped]]:
    images: list[Path] = []
    skipped: list[Skipped] = []
    for path in candidates_below(folder):
        reason = _refusal(path, root)
        if reason is None:
            images.append(path)
        else:
            skipped.append(Skipped(path, reason))
    return images, skipped


def _refusal(path: Path, root: Path) -> str | None:
    if path.is_dir():
        return "a link to a folder, which is not followed"
    if not Path(os.path.realpath(path)).is_relative_to(root):  # `root` is resolved already
        return f"a link to a file outside {root}"
    return None if path.is_file() else "a broken link, or not a regular file"


def candidates_below(folder: Path) -> Iterator[Path]:
    """Files named like images and links to folders, at any depth, in natural order, without hidden ones."""

    def refuse(error: OSError) -> None:
        raise DataError(f"cannot list the folder {error.filename}: {error.strerror}") from error

    for here, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = natural_sorted(name for name in folders if not name.startswith("."))
        links = [name for name in folders if os.path.islink(os.path.join(here, name))]
        images = [name for name in files if not name.startswith(".") and Path(name).suffix.lower() in IMAGE_SUFFIXES]
        yield from (Path(here, name) for name in natural_sorted([*images, *links]))
