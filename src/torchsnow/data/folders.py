"""Images in folders: of classes, and without labels."""

from __future__ import annotations

import glob
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torchsnow.data.formats import PREFIX_BYTES, format_of
from torchsnow.data.listing import Entry, Listing, Skipped
from torchsnow.data.names import (
    ALL,
    as_text,
    counted,
    first_few,
    is_junk,
    natural_sorted,
    splits_named,
    validate_distinct,
)
from torchsnow.errors import DataError

# What claims to be a picture and cannot be read is named as damaged; every other file is judged by its content.
IMAGE_SUFFIXES = frozenset({
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".pjpeg", ".pjp", ".png", ".apng", ".webp", ".bmp", ".dib", ".tif", ".tiff"),
    *(".gif", ".avif", ".heic", ".heif", ".hif", ".jp2", ".j2k", ".jpx", ".jpf"),
})  # fmt: skip

# Folders of data whose labels are outlines or boxes, without blanks, numbers and the end of a plural.
_PICTURES = frozenset(("image", "img", "jpegimage", "rgb", "input"))
_DRAWN = frozenset({
    *("mask", "label", "annotation", "annot", "segmentation", "segmentationclas", "segmentationobject", "seg"),
    *("bbox", "bboxe", "groundtruth", "gt", "xml", "json"),
})  # fmt: skip
_NO_FILE = "a broken link, or not a regular file"


@dataclass
class _Found:
    """What was found below the class folders; `left_out` are files that are no images, `junk` what systems put there,
    and `loose` images that lie in no class folder."""

    skipped: list[Skipped] = field(default_factory=list)
    left_out: list[Path] = field(default_factory=list)
    junk: list[Path] = field(default_factory=list)
    loose: list[Path] = field(default_factory=list)

    def notes(self) -> list[str]:
        """A sentence for each kind of file that is not used."""
        kinds = Counter(path.suffix.lower() or "without suffix" for path in self.left_out)
        of_kind = first_few([f"{count} x {kind}" for kind, count in kinds.most_common()], 5, ", ")
        junk = list(dict.fromkeys(self.junk))
        sentences = (
            (self.loose, f"{counted(len(self.loose), 'image')} in no class folder"),
            (self.left_out, f"{counted(len(self.left_out), 'file')} without an image that can be read, {of_kind}"),
            (junk, f"{counted(len(junk), 'file or folder', 'files or folders')}, hidden or put there by a system"),
        )
        return [f"not used: {what} ({_first(paths)})" for paths, what in sentences if paths]


def list_folder(
    root: Path, *, follow_links: bool = False, distinct_names: bool = False, for_training: bool = True
) -> Listing:
    """Class folders, or folders of them for train, val and test, by these words or others that mean them.

    Links that leave the folder are skipped, unless `follow_links`. Not `for_training`, any of the splits may be
    missing. Names that look like one class are refused unless they are `distinct_names`.
    """
    root = root.resolve()
    entries: list[Entry] = []
    found = _Found()
    written: dict[str, set[str]] = {}  # names of class folders by split, as they stand on the disk
    for split, split_folder in _split_folders(root, for_training, found).items():
        folders = _class_folders(split_folder, found)
        if for_training and split == "train" and len(folders) == 1 and _has_folders(folders[0]):
            raise DataError(
                f"{split_folder} holds one folder, with folders inside: if these are the classes, move them up, as in "
                f"{split_folder}/CLASS"
            )
        written[split] = {folder.name for folder in folders}
        for folder in folders:
            images = _images_below(folder, root, follow_links, found)
            entries += [Entry(path, as_text(folder.name), split) for path in images]
    for split, names in written.items():
        validate_distinct(names, f"the folder {root if split == ALL else root / split}", distinct_names)
    validate_distinct(
        {as_text(name) for names in written.values() for name in names}, f"the folder {root}", distinct_names
    )
    trained = written.get(ALL) or written.get("train") or set().union(*written.values())
    classes = natural_sorted({as_text(name) for name in trained})
    return Listing(as_text(root.name), root, tuple(classes), tuple(entries), tuple(found.skipped), tuple(found.notes()))


def find_images(words: Iterable[str], on_bad: Callable[[Path, str], None]) -> list[Path]:
    """The files that the words name, each once, in the order of the words.

    A word is a file, a folder (its images at any depth, in natural order, without hidden ones and what is no
    image) or a pattern (`*`, `?`, `[...]`, `**` for folders at any depth). What exists under a word is what it
    names, even if the word looks like a pattern. A folder without images or that cannot be listed, and a pattern that
    nothing fits, are passed to `on_bad` with the reason; whether a file can be read is not looked at.
    """
    files: list[Path] = []
    for word in words:
        path = Path(word)
        fitting = [path]
        if not word:  # which would be the folder where it runs
            on_bad(path, "the name of an image is empty")
            continue
        if glob.has_magic(word) and not os.path.exists(word):
            fitting = [Path(name) for name in natural_sorted(glob.glob(word, recursive=True))]
            if not fitting:
                on_bad(path, f"no file fits the pattern {word}")
        for found in fitting:
            files += _images_of(found, on_bad) if os.path.isdir(found) else [found]
    return list(dict.fromkeys(files))


def _images_of(folder: Path, on_bad: Callable[[Path, str], None]) -> list[Path]:
    found = _Found()
    closed: list[Path] = []

    def pass_on(error: OSError) -> None:
        closed.append(Path(error.filename))
        on_bad(closed[-1], f"cannot list the folder {error.filename}: {error.strerror}")

    paths = _candidates_below(folder, False, found, pass_on)
    images = [path for path in paths if _may_be_file(path) and _is_image(path, found)]
    if not images and not closed:
        on_bad(folder, f"the folder {folder} holds no images")
    return images


def _may_be_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # whoever opens it tells why it cannot be read
        return True


def _split_folders(root: Path, for_training: bool, found: _Found) -> dict[str, Path]:
    """{split: its folder}; {"all": root} when the folders in `root` are the classes."""
    folders = _visible_folders(root, found)
    _validate_kinds(root, folders)
    splits = splits_named([folder.name for folder in folders])
    words = set(splits.values())
    others = [folder.name for folder in folders if folder.name not in splits]
    # "train" alone among others is a vehicle; next to "test" or "val" it is a split.
    is_split = "train" in words and (len(words) > 1 or len(folders) == 1)
    if is_split and others:
        is_split = any(_has_folders(folder) for folder in folders if folder.name in splits)
    if not for_training and folders and not others:
        is_split = is_split or all(_has_folders(folder) for folder in folders)
    if not is_split:
        if for_training and len(folders) == 1 and _has_folders(folders[0]):
            raise DataError(
                f"{root} holds one folder, with folders inside: if these are the classes, give {folders[0]}"
            )
        _validate_split_names(root, folders)
        return {ALL: root}
    if others:
        names = first_few(others, 20, ", ")
        raise DataError(f"{root} has train/val/test folders and others next to them ({names}): move those away")
    if len(words) < len(splits):
        raise DataError(f"{root} has several folders for one split ({', '.join(splits)}): keep one of each")
    found.loose += [path for path in _files_in(root, found) if _is_image(path, found)]
    return {splits[folder.name]: folder for folder in folders}


def _validate_split_names(root: Path, folders: Sequence[Path]) -> None:
    """Raise DataError when the folders look like splits with the same classes in each, or like classes with splits."""
    found = [{as_text(one.name) for one in _visible_folders(folder, _Found())} for folder in folders]
    inside = [names for names in found if names]  # one without, among others, may be what has no labels
    if len(inside) < 2 or 2 * len(inside) <= len(found):
        return
    common, together = set.intersection(*inside), set.union(*inside)
    split_inside = bool(splits_named(sorted(common)))
    if split_inside or (len(together) > 1 and 2 * len(common) >= len(together)):
        outer = first_few([as_text(one.name) for one, names in zip(folders, found, strict=True) if names], 3, ", ")
        inner = first_few(natural_sorted(common), 3, ", ")
        raise DataError(
            f"each of the folders {outer} in {root} holds the folders {inner}: the classes must be the inner ones, in "
            "folders train, val and test (or words like them); if the outer ones are the classes, "
            + ("put the splits above them: train/CLASS, test/CLASS" if split_inside else "take the inner ones out")
        )


def _has_folders(folder: Path) -> bool:
    return bool(_visible_folders(folder, _Found()))


def _class_folders(folder: Path, found: _Found) -> list[Path]:
    folders = _visible_folders(folder, found)
    _validate_kinds(folder, folders)
    loose = [path for path in _files_in(folder, found) if _is_image(path, found)]
    if not folders:
        has = f"{counted(len(loose), 'image')}, but " if loose else ""
        raise DataError(f"{folder} holds {has}no class folders: expected one folder of images per class")
    found.loose += loose
    return folders


def _validate_kinds(folder: Path, folders: Sequence[Path]) -> None:
    """Raise DataError when the folders are kinds of files, as data for outlining or detecting things has them."""
    words = {re.sub(r"[\W\d_]+", "", one.name.casefold()).removesuffix("s") for one in folders}
    if words & _PICTURES and words & _DRAWN and words <= _PICTURES | _DRAWN:
        raise DataError(
            f"{folder} holds {', '.join(one.name for one in folders)}: pictures and what is drawn on them, as for "
            "outlining or detecting things; expected a folder of images per class (rename one if these are classes)"
        )


def _visible_folders(folder: Path, found: _Found) -> list[Path]:
    names = natural_sorted(path.name for path in folder.iterdir() if path.is_dir())
    found.junk += [folder / name for name in names if is_junk(name)]
    return [folder / name for name in names if not is_junk(name)]


def _files_in(folder: Path, found: _Found) -> list[Path]:
    """The files in a folder. What is neither file nor folder is skipped, as is a link to a class that is not there."""
    names = natural_sorted(path.name for path in folder.iterdir() if not path.is_dir())
    found.junk += [folder / name for name in names if is_junk(name)]
    paths = [folder / name for name in names if not is_junk(name)]
    found.skipped += [Skipped(path, _NO_FILE) for path in paths if not path.is_file()]
    return [path for path in paths if path.is_file()]


def _images_below(folder: Path, root: Path, follow_links: bool, found: _Found) -> list[Path]:
    """The images of a class. Raises DataError when there are none at all, not even any that are skipped."""
    images: list[Path] = []
    unused = len(found.skipped)
    for path in _candidates_below(folder, follow_links, found):
        reason = _skip_reason(path, root, follow_links)
        if reason is not None:
            found.skipped.append(Skipped(path, reason))
        elif _is_image(path, found):
            images.append(path)
    if not images and len(found.skipped) == unused:
        raise DataError(f"the class folder {folder} holds no images: put some in, or remove it")
    return images


def _skip_reason(path: Path, root: Path, follow_links: bool) -> str | None:
    if path.is_dir():
        return "a link to a folder, which is not followed (--follow-links does)"
    if not follow_links and not Path(os.path.realpath(path)).is_relative_to(root):  # `root` is resolved already
        return f"a link to a file outside {root} (--follow-links follows it)"
    return None if path.is_file() else _NO_FILE


def _is_image(path: Path, found: _Found) -> bool:
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return True
    try:
        with path.open("rb") as file:
            is_image = format_of(file.read(PREFIX_BYTES)) is not None
    except OSError:
        is_image = False
    if not is_image:
        found.left_out.append(path)
    return is_image


def _raise_closed(error: OSError) -> None:
    raise DataError(f"cannot list the folder {error.filename}: {error.strerror}") from error


def _candidates_below(
    folder: Path, follow_links: bool, found: _Found, on_closed: Callable[[OSError], None] = _raise_closed
) -> Iterator[Path]:
    """Files and links to folders, at any depth, in natural order, without those of systems. `on_closed` hears of
    folders that cannot be listed."""
    seen = {os.path.realpath(folder)}
    for here, folders, files in os.walk(folder, onerror=on_closed, followlinks=follow_links):
        if follow_links:  # which may lead in a circle
            folders[:] = [name for name in folders if os.path.realpath(os.path.join(here, name)) not in seen]
            seen.update(os.path.realpath(os.path.join(here, name)) for name in folders)
        found.junk += [Path(here, name) for name in natural_sorted([*folders, *files]) if is_junk(name)]
        folders[:] = natural_sorted(name for name in folders if not is_junk(name))
        links = [] if follow_links else [name for name in folders if os.path.islink(os.path.join(here, name))]
        names = [name for name in files if not is_junk(name)]
        yield from (Path(here, name) for name in natural_sorted([*names, *links]))


def _first(paths: Sequence[Path]) -> str:
    return first_few([str(path) for path in paths])
