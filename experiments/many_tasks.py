"""Write the tables of the 45 tasks of many-tasks.yaml: makers of cars, families of birds, groups of plankton.

python experiments/many_tasks.py DATA

DATA holds the class folders cars196, birds200 and plankton121, each with train/ and test/. Beside them it gets a CSV
file for every maker, family and group with at least four classes; run the comparison there.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable, Iterator
from pathlib import Path

LEAST_CLASSES = 4
GROUPS: dict[str, Callable[[str], str]] = {  # how a class's name says its group
    "cars196": lambda name: name.split("_")[1],  # 003_Audi_TT_Coupe_2012
    "birds200": lambda name: name.split("_")[-1],  # 133.White_throated_Sparrow
    "plankton121": lambda name: name.split("_")[0],  # copepod_calanoid_eggs
}


def groups(data: Path, name: str) -> dict[str, list[str]]:
    """The classes of every group of a data set that has enough of them."""
    found: dict[str, list[str]] = {}
    for folder in sorted((data / name / "train").iterdir()):
        found.setdefault(GROUPS[name](folder.name), []).append(folder.name)
    return {group: classes for group, classes in found.items() if len(classes) >= LEAST_CLASSES}


def rows(data: Path, name: str, classes: list[str]) -> Iterator[tuple[Path, str, str]]:
    """Path, label and split of every image of some classes."""
    for split in ("train", "test"):
        for label in classes:
            for image in sorted((data / name / split / label).iterdir()):
                yield image.relative_to(data), label, split


def write_tables(data: Path) -> list[Path]:
    """Write the tables, and return their paths."""
    written = []
    for name in GROUPS:
        for group, classes in groups(data, name).items():
            written.append(data / f"{name}-{group.lower()}.csv")
            with written[-1].open("w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows([("path", "label", "split"), *rows(data, name, classes)])
    return written


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    for path in write_tables(parser.parse_args().data):
        print(path)


if __name__ == "__main__":
    main()
