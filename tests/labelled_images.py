"""Pictures with any number of labels, and tables that say which."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

LABELS = ("blue", "red", "striped")


def labelled_images(folder: Path) -> Path:
    """A new folder with 90 pictures that are red, blue, striped, any two of these, all or none; and two tables of them:
    names.csv, which is returned, with one column of names, and flags.csv with a column per label."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    rows = [(f"{number}.png", label_sets()[number % 8]) for number in range(90)]
    for name, labels in rows:
        pixels = generator.integers(0, 40, (40, 40, 3))
        pixels[:, :, 0] += 180 * ("red" in labels)
        pixels[:, :, 2] += 180 * ("blue" in labels)
        if "striped" in labels:
            pixels[::4] = pixels[1::4] = 0
            pixels[::4, :, 1] = 200
        Image.fromarray(pixels.astype(np.uint8)).save(folder / name)
    flags = [[name, *(int(label in own) for label in LABELS)] for name, own in rows]
    write(folder / "flags.csv", [["path", *LABELS], *flags])
    return write(folder / "names.csv", [["path", "label"], *([name, " | ".join(own)] for name, own in rows)])


def label_sets() -> list[tuple[str, ...]]:
    """All sets of labels; the picture of number n has the one of number n modulo 8."""
    return [tuple(label for bit, label in enumerate(LABELS) if number >> bit & 1) for number in range(8)]


def write(file: Path, rows: Iterable[Sequence[Any]]) -> Path:
    """A table of these rows."""
    with file.open("w", newline="") as opened:
        csv.writer(opened).writerows(rows)
    return file
