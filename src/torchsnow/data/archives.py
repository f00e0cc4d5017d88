"""Data sets in the layout of their original archives: fetched by hand, or packaged."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from torchsnow.data.listing import Entry, Listing
from torchsnow.data.names import ALL, natural_sorted
from torchsnow.errors import DataError

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
