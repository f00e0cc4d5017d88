"""The data sets that are known by name: what each must hold, how it is read or fetched, and what can be put there by
hand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from types import MappingProxyType

from torchsnow.data.listing import Listing
from torchsnow.data.names import ALL, first_few
from torchsnow.data.prepared import CHECKED, Picture, data_folder, list_given, prepare
from torchsnow.data.published import (
    digit_pictures,
    fashion_pictures,
    list_cub,
    list_files,
    list_pets,
    list_stanford40,
    torchvision_pictures,
)
from torchsnow.errors import DataError
from torchsnow.io.files import validate_writable_folder

TRAIN_TEST = {"train": ("train",), "test": ("test",)}
TRAINVAL_TEST = {"train": ("trainval",), "test": ("test",)}
TRAIN_VAL_TEST = {"train": ("train", "val"), "test": ("test",)}
UNSPLIT = {ALL: ("",)}


@dataclass(frozen=True)
class NamedData:
    """A data set that `load_data` knows by name.

    `counts` are images by split: train (with val, where its authors have one) and test, or all. `torchvision` is the
    name of torchvision's class, empty where there is none. `by_hand` says which original files can be put into the
    data set's folder by hand.
    """

    name: str
    num_classes: int
    counts: Mapping[str, int]
    read: Callable[[Path], Listing]
    torchvision: str = ""
    by_hand: str = ""


def _files(
    name: str,
    torchvision: str,
    num_classes: int,
    counts: Mapping[str, int],
    splits: Mapping[str, Sequence[str]],
    by_hand: str,
) -> NamedData:
    return NamedData(name, num_classes, counts, partial(list_files, torchvision, splits), torchvision, by_hand)


def _arrays(name: str, torchvision: str, num_classes: int, counts: Mapping[str, int], by_hand: str) -> NamedData:
    read = _prepared(partial(torchvision_pictures, torchvision))
    return NamedData(name, num_classes, counts, read, torchvision, by_hand)


def _prepared(pictures: Callable[[Path], Iterable[Picture]]) -> Callable[[Path], Listing]:
    return lambda folder: prepare(folder, pictures(folder))


def _mnist_files(torchvision: str) -> str:
    return f"{torchvision}/raw with its four files *-ubyte.gz"


def _counts(train: int, test: int) -> Mapping[str, int]:
    return {"train": train, "test": test}


_TABLE = (
    _files("food101", "Food101", 101, _counts(75750, 25250), TRAIN_TEST, "food-101.tar.gz"),
    _files(
        "cars",
        "StanfordCars",
        196,
        _counts(8144, 8041),
        TRAIN_TEST,
        "stanford_cars with devkit, cars_train, cars_test and cars_test_annos_withlabels.mat",
    ),
    NamedData(
        "cub200",
        200,
        _counts(5994, 5794),
        list_cub,
        by_hand="the folder CUB_200_2011 of the original archive",
    ),
    _files("dtd", "DTD", 47, _counts(3760, 1880), TRAIN_VAL_TEST, "dtd/dtd-r1.0.1.tar.gz"),
    NamedData(
        "action40",
        40,
        _counts(4000, 5532),
        list_stanford40,
        by_hand="the folders JPEGImages and ImageSplits of the original archives",
    ),
    _files(
        "flowers102",
        "Flowers102",
        102,
        _counts(2040, 6149),
        TRAIN_VAL_TEST,
        "flowers-102 with 102flowers.tgz, imagelabels.mat and setid.mat",
    ),
    NamedData(
        "pets",
        37,
        _counts(3680, 3669),
        list_pets,
        "OxfordIIITPet",
        "oxford-iiit-pet with images.tar.gz and annotations.tar.gz",
    ),
    _files("aircraft", "FGVCAircraft", 100, _counts(6667, 3333), TRAINVAL_TEST, "fgvc-aircraft-2013b.tar.gz"),
    _arrays("cifar10", "CIFAR10", 10, _counts(50000, 10000), "cifar-10-python.tar.gz"),
    _arrays("cifar100", "CIFAR100", 100, _counts(50000, 10000), "cifar-100-python.tar.gz"),
    _files("eurosat", "EuroSAT", 10, {ALL: 27000}, UNSPLIT, "eurosat/EuroSAT.zip"),
    NamedData(
        "fashion-mnist",
        10,
        _counts(60000, 10000),
        _prepared(fashion_pictures),
        "FashionMNIST",
        _mnist_files("FashionMNIST"),
    ),
    _arrays("mnist", "MNIST", 10, _counts(60000, 10000), _mnist_files("MNIST")),
    NamedData("digits", 10, {ALL: 1797}, _prepared(digit_pictures)),
)
DATASETS: Mapping[str, NamedData] = MappingProxyType({data.name: data for data in _TABLE})


def list_named(data: NamedData) -> Listing:
    """The data set in its folder of the data folder, fetched or written there first if it is missing.

    Raises DataError when that fails, or when classes, counts or files are not those that its authors published.
    """
    folder = data_folder() / data.name
    try:
        listing = list_given(folder)
        if listing is None and not folder.exists():  # what lies there by hand can be read from a read-only disk
            validate_writable_folder(folder, DataError)
        listing = listing or data.read(folder)
    except DataError:
        raise
    # Downloads, archives and parsers fail with nearly every exception there is.
    except Exception as error:
        raise DataError(_not_there(data, folder, error)) from error
    _validate_counts(data, listing, folder)
    _validate_files(data, listing, folder)
    return replace(listing, name=data.name, checked=folder / CHECKED)


def find_torchvision(name: str) -> NamedData:
    """The data set with this name, ours or torchvision's, in capital or small letters. Raises DataError."""
    ours = [data for data in DATASETS.values() if data.torchvision]
    known = {word.lower(): data for data in ours for word in (data.torchvision, data.name)}
    if name.lower() in known:
        return known[name.lower()]
    near = get_close_matches(name.lower(), known, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    have = ", ".join(data.name for data in ours)
    raise DataError(f"torchvision:{name} is not known: expected one of {have}, or torchvision's names of these{hint}")


def _validate_counts(data: NamedData, listing: Listing, folder: Path) -> None:
    splits = Counter(entry.split for entry in listing.entries)
    found = {"train": splits["train"] + splits["val"], "test": splits["test"]}
    if ALL in splits or ALL in data.counts:
        found = {ALL: splits.total()}
    if found != data.counts or len(listing.classes) != data.num_classes:
        raise DataError(
            f"{data.name} has {_counted(data.counts, data.num_classes)}, but {listing.root} holds "
            f"{_counted(found, len(listing.classes))}: delete {folder} and load or fetch it again"
        )


def _counted(counts: Mapping[str, int], num_classes: int) -> str:
    return " and ".join(f"{count} images in {split}" for split, count in counts.items()) + f", {num_classes} classes"


def _validate_files(data: NamedData, listing: Listing, folder: Path) -> None:
    paths = [entry.path for entry in listing.entries]
    outside = [str(path) for path in paths if not path.is_relative_to(listing.root)]
    if outside:
        raise DataError(f"{data.name} names files outside {listing.root}: {first_few(outside)}")
    missing = [str(path) for path in paths if not path.is_file()]
    if missing:
        raise DataError(
            f"{len(missing)} files of {data.name} are missing: {first_few(missing)}: delete {folder} and load or fetch "
            "it again"
        )


def _not_there(data: NamedData, folder: Path, error: Exception) -> str:
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    if isinstance(error, FileNotFoundError) and error.filename:
        reason = f"there is no {error.filename}"
    files = f"{data.by_hand}, or " if data.by_hand else ""
    return (
        f"{data.name} is missing or incomplete in {folder}, and could not be fetched ({reason}): put {files}folders "
        "train/CLASS and test/CLASS of images there; digits and elpv need no download, nor does fashion-mnist with "
        "Debian's package dataset-fashion-mnist"
    )
