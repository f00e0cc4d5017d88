"""Image files without labels: named one by one, by folder or by pattern."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from torchsnow.data.folders import images_below
from torchsnow.data.names import natural_sorted


def find_images(words: Iterable[str], on_bad: Callable[[Path, str], None]) -> list[Path]:
    """The files that the words name, each once, in the order of the words.

    A word is a file, a folder (its images at any depth, in natural order, without hidden ones and what is no
    image) or a pattern (`*`, `?`, `[...]`, `**` for folders at any depth). What exists under a word is what it
    names, even if the word looks like a pattern. A folder without images, and a pattern that nothing fits, are passed
    to `on_bad` with the reason; whether a file can be read is not looked at. Raises DataError for a folder that
    cannot be listed.
    """
    files: list[Path] = []
    for word in words:
        path = Path(word)
        fitting = [path]
        if glob.has_magic(word) and not os.path.exists(word):
            fitting = [Path(name) for name in natural_sorted(glob.glob(word, recursive=True))]
            if not fitting:
                on_bad(path, f"no file fits the pattern {word}")
        for found in fitting:
            files += _images_below(found, on_bad) if os.path.isdir(found) else [found]
    return list(dict.fromkeys(files))


def _images_below(folder: Path, on_bad: Callable[[Path, str], None]) -> list[Path]:
    images = images_below(folder)
    if not images:
        on_bad(folder, f"the folder {folder} holds no images")
    return images
