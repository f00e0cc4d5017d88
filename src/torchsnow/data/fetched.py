"""Data sets that torchvision reads, and downloads where that is still possible."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torchvision import datasets

from torchsnow.data.listing import Entry, Listing
from torchsnow.data.prepared import Picture


def open_dataset(class_name: str, folder: Path, **arguments: Any) -> Any:
    """torchvision's data set in `folder`, downloaded if it is not there.

    Raises whatever torchvision, its download and its unpacking raise.
    """
    dataset_class = getattr(datasets, class_name)
    try:
        return dataset_class(folder, **arguments)
    except RuntimeError:  # torchvision's word for "not there"
        return dataset_class(folder, download=True, **arguments)


def list_files(class_name: str, splits: Mapping[str, Sequence[str]], folder: Path) -> Listing:
    """A data set that torchvision keeps as image files: `splits` are torchvision's own splits for each of ours."""
    entries: list[Entry] = []
    for split, parts in splits.items():
        for part in parts:
            arguments = {"split": part} if part else {}
            # Path as the loader gives an image's path in place of its pixels.
            dataset = open_dataset(class_name, folder, loader=Path, **arguments)
            items = (dataset[index] for index in range(len(dataset)))
            entries += [Entry(path, dataset.classes[label], split) for path, label in items]
    return Listing(class_name, folder, tuple(dataset.classes), tuple(entries))


def list_pets(folder: Path) -> Listing:
    """The one without a loader argument, so its lists are read here: lines such as `Abyssinian_100 1 1 1`."""
    entries: list[Entry] = []
    here = folder / "oxford-iiit-pet"
    for split, part in (("train", "trainval"), ("test", "test")):
        classes = open_dataset("OxfordIIITPet", folder, split=part).classes
        for line in (here / "annotations" / f"{part}.txt").read_text(encoding="utf-8").splitlines():
            image, number, *_ = line.split()
            entries.append(Entry(here / "images" / f"{image}.jpg", classes[int(number) - 1], split))
    return Listing("OxfordIIITPet", folder, tuple(classes), tuple(entries))


def torchvision_pictures(class_name: str, folder: Path) -> Iterator[Picture]:
    """The images of a data set that torchvision keeps as arrays."""
    parts = {split: open_dataset(class_name, folder, train=split == "train") for split in ("train", "test")}
    return (
        Picture(split, dataset.classes[label], png_bytes(image))
        for split, dataset in parts.items()
        for image, label in (dataset[index] for index in range(len(dataset)))
    )


def png_bytes(image: Image.Image) -> bytes:
    """An image as the content of a PNG file."""
    content = io.BytesIO()
    image.save(content, "PNG")
    return content.getvalue()
