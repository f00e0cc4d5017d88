"""Data sets as their authors publish them: in archives, in packages, as arrays, and what torchvision downloads."""

from __future__ import annotations

import gzip
import io
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from torchsnow.data.listing import Entry, Listing
from torchsnow.data.names import ALL, natural_sorted
from torchsnow.data.prepared import Picture
from torchsnow.errors import DataError

DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")  # of Debian's package dataset-fashion-mnist
DEBIAN_NAMES = {"train": "train", "test": "t10k"}
ELPV_CLASSES = {0.0: "defect-0.00", 1 / 3: "defect-0.33", 2 / 3: "defect-0.67", 1.0: "defect-1.00"}


def list_cub(folder: Path) -> Listing:
    """CUB-200-2011: text tables whose lines are an image's number and its path, its class, or 1 for training."""
    root = _inner(folder, "CUB_200_2011")
    paths, labels, classes, training = (
        _read_table(root / f"{name}.txt") for name in ("images", "image_class_labels", "classes", "train_test_split")
    )
    entries = [
        Entry(root / "images" / path, classes[labels[number]], "train" if training[number] == "1" else "test")
        for number, path in paths.items()
    ]
    return Listing("CUB_200_2011", root, tuple(classes.values()), tuple(entries))


def list_stanford40(folder: Path) -> Listing:
    """Stanford 40 Actions: for each class, ImageSplits has a list of the files for training and one for the test."""
    root = _inner(folder, "Stanford40")
    lists = root / "ImageSplits"
    classes = natural_sorted(path.name.removesuffix("_train.txt") for path in lists.glob("*_train.txt"))
    if not classes:
        raise FileNotFoundError(f"there is no {lists}/CLASS_train.txt")
    entries = [
        Entry(root / "JPEGImages" / name, class_name, split)
        for class_name in classes
        for split in ("train", "test")
        for name in (lists / f"{class_name}_{split}.txt").read_text(encoding="utf-8").split()
    ]
    return Listing("Stanford40", root, tuple(classes), tuple(entries))


def list_elpv(binary: bool) -> Listing:
    """Solar cells by probability of a defect (four classes), or functional (below 0.5) against defective."""
    try:
        table = Path(str(resources.files("elpv_dataset"))) / "data" / "labels.csv"
    except ModuleNotFoundError as error:
        raise DataError("the data set elpv is not installed: pip install 'torchsnow[demo]'") from error
    rows = [line.split() for line in table.read_text(encoding="utf-8").splitlines()]
    classes = ("functional", "defective") if binary else tuple(ELPV_CLASSES.values())
    entries = [Entry(table.parent / path, _elpv_class(float(share), binary), ALL) for path, share, _ in rows]
    return Listing("elpv-binary" if binary else "elpv", table.parent, classes, tuple(entries))


def _elpv_class(probability: float, binary: bool) -> str:
    if binary:
        return "functional" if probability < 0.5 else "defective"
    return ELPV_CLASSES[probability]


def _inner(folder: Path, name: str) -> Path:
    """An archive may have been unpacked with its outer folder or without."""
    return folder / name if (folder / name).is_dir() else folder


def _read_table(path: Path) -> dict[str, str]:
    """{first word of a line: the rest of it}."""
    lines = path.read_text(encoding="utf-8").splitlines()
    rows = (line.strip().partition(" ") for line in lines if line.strip())
    return {number: rest for number, _, rest in rows}


def open_dataset(class_name: str, folder: Path, **arguments: Any) -> Any:
    """torchvision's data set in `folder`, downloaded if it is not there.

    Raises whatever torchvision, its download and its unpacking raise.
    """
    from torchvision import datasets  # here: a second to load

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


def fashion_pictures(folder: Path) -> Iterator[Picture]:
    """Fashion-MNIST from Debian's package if that is installed, else as torchvision has it in `folder`."""
    if not DEBIAN_FOLDER.is_dir():
        return torchvision_pictures("FashionMNIST", folder)
    from torchvision.datasets import FashionMNIST

    arrays = {
        split: (
            _read_idx(DEBIAN_FOLDER / f"{name}-images-idx3-ubyte.gz"),
            _read_idx(DEBIAN_FOLDER / f"{name}-labels-idx1-ubyte.gz"),
        )
        for split, name in DEBIAN_NAMES.items()
    }
    return (
        Picture(split, FashionMNIST.classes[label], png_bytes(Image.fromarray(image)))
        for split, (images, labels) in arrays.items()
        for image, label in zip(images, labels, strict=True)
    )


def digit_pictures(folder: Path) -> Iterator[Picture]:
    """scikit-learn's 8 x 8 digits, their 17 levels of grey spread over 0 to 255; nothing in `folder` is needed."""
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)
    return (
        Picture(ALL, str(label), png_bytes(Image.fromarray(image)))
        for image, label in zip(images, digits.target, strict=True)
    )


def _read_idx(path: Path) -> NDArray[np.uint8]:
    """A compressed IDX file: three bytes of type, the number of dimensions, the dimensions, then the bytes."""
    content = gzip.decompress(path.read_bytes())
    shape = np.frombuffer(content, ">i4", count=content[3], offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * len(shape)).reshape(shape)
