"""The data sets that are known by name: what each must hold, how it is read, and what can be put there by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType

from torchsnow.data.archives import list_cub, list_stanford40
from torchsnow.data.arrays import digit_pictures, fashion_pictures
from torchsnow.data.fetched import list_files, list_pets, torchvision_pictures
from torchsnow.data.listing import Listing
from torchsnow.data.names import ALL
from torchsnow.data.prepared import Picture, prepare

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
