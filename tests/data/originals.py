"""A few tiny pictures in the layouts of the original archives; a picture's grey level is 100 times its class."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat


def picture(path: Path, label: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (8, 8), 100 * label).save(path)


def lines(path: Path, *texts: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{text}\n" for text in texts))


def food101(folder: Path) -> None:
    base = folder / "food-101"
    for split, count in (("train", 2), ("test", 1)):
        names = {name: [f"{name}/{split}{i}" for i in range(count)] for name in ("apple_pie", "waffles")}
        lines(base / "meta" / f"{split}.json", json.dumps(names))
        for label, paths in enumerate(names.values()):
            for path in paths:
                picture(base / "images" / f"{path}.jpg", label)


def cars(folder: Path) -> None:
    base = folder / "stanford_cars"
    (base / "devkit").mkdir(parents=True)
    savemat(base / "devkit" / "cars_meta.mat", {"class_names": np.array(["Audi R8", "Ram C/V"], dtype=object)})
    kind = [("class", "u1"), ("fname", object)]
    for split, table in (("train", "devkit/cars_train_annos"), ("test", "cars_test_annos_withlabels")):
        names = [f"{i:05}.jpg" for i in range(4 if split == "train" else 2)]
        rows = [(1 + i % 2, name) for i, name in enumerate(names)]
        savemat(base / f"{table}.mat", {"annotations": np.array(rows, dtype=kind)})
        for i, name in enumerate(names):
            picture(base / f"cars_{split}" / name, i % 2)


def cub200(folder: Path) -> None:
    base = folder / "CUB_200_2011"
    names = ["001.Albatross", "002.Wren"]
    images = [f"{names[i % 2]}/bird{i}.jpg" for i in range(6)]
    lines(base / "images.txt", *(f"{i} {name}" for i, name in enumerate(images, 1)))
    lines(base / "image_class_labels.txt", *(f"{i + 1} {1 + i % 2}" for i in range(6)))
    lines(base / "classes.txt", *(f"{i} {name}" for i, name in enumerate(names, 1)))
    lines(base / "train_test_split.txt", *(f"{i + 1} {int(i < 4)}" for i in range(6)))
    for i, name in enumerate(images):
        picture(base / "images" / name, i % 2)


def action40(folder: Path) -> None:
    for label, name in enumerate(("blowing_bubbles", "cooking")):
        files = [f"{name}_{i:03}.jpg" for i in range(3)]
        lines(folder / "ImageSplits" / f"{name}_train.txt", *files[:2])
        lines(folder / "ImageSplits" / f"{name}_test.txt", *files[2:])
        for file in files:
            picture(folder / "JPEGImages" / file, label)
    lines(folder / "ImageSplits" / "actions.txt", "action_name\tnumber_of_images")
    lines(folder / "ImageSplits" / "train.txt", "blowing_bubbles_000.jpg")


def dtd(folder: Path) -> None:
    base = folder / "dtd" / "dtd"
    for split in ("train", "val", "test"):
        lines(base / "labels" / f"{split}1.txt", f"banded/{split}.jpg", f"woven/{split}.jpg")
        for label, name in enumerate(("banded", "woven")):
            picture(base / "images" / name / f"{split}.jpg", label)


def flowers102(folder: Path) -> None:
    base = folder / "flowers-102"
    for i in range(6):
        picture(base / "jpg" / f"image_{i + 1:05}.jpg", i % 2)
    savemat(base / "imagelabels.mat", {"labels": [1, 2] * 3})
    savemat(base / "setid.mat", {"trnid": [1, 2], "valid": [3, 4], "tstid": [5, 6]})


def pets(folder: Path) -> None:
    base = folder / "oxford-iiit-pet"
    for split, numbers in (("trainval", (1, 2)), ("test", (3,))):
        names = [(f"{name}_{i}", label) for i in numbers for label, name in enumerate(("Bengal", "shiba_inu"))]
        lines(base / "annotations" / f"{split}.txt", *(f"{name} {label + 1} 1 1" for name, label in names))
        for name, label in names:
            picture(base / "images" / f"{name}.jpg", label)


def aircraft(folder: Path) -> None:
    base = folder / "fgvc-aircraft-2013b" / "data"
    lines(base / "variants.txt", "737-700", "A340-300")
    for split, numbers in (("trainval", range(4)), ("test", range(4, 6))):
        names = [f"{i} {('737-700', 'A340-300')[i % 2]}" for i in numbers]
        lines(base / f"images_variant_{split}.txt", *names)
        for i in numbers:
            picture(base / "images" / f"{i}.jpg", i % 2)


def eurosat(folder: Path) -> None:
    for label, name in enumerate(("Forest", "River")):
        for i in range(3):
            picture(folder / "eurosat" / "2750" / name / f"{name}_{i}.jpg", label)


def cifar(folder: Path, base: str, train: list[str], test: str, meta: tuple[str, str], labels: str) -> None:
    batches = {**{name: [0, 1] for name in train}, test: [1, 0]}
    (folder / base).mkdir(parents=True)
    for name, targets in batches.items():
        data = np.repeat(np.array(targets, np.uint8)[:, None] * 100, 3 * 32 * 32, axis=1)
        (folder / base / name).write_bytes(pickle.dumps({"data": data, labels: targets}))
    (folder / base / meta[0]).write_bytes(pickle.dumps({meta[1]: ["airplane", "bird"]}))


def cifar10(folder: Path) -> None:
    names = [f"data_batch_{i}" for i in range(1, 6)]
    cifar(folder, "cifar-10-batches-py", names, "test_batch", ("batches.meta", "label_names"), "labels")


def cifar100(folder: Path) -> None:
    cifar(folder, "cifar-100-python", ["train"], "test", ("meta", "fine_label_names"), "fine_labels")


def idx(array: list[int] | np.ndarray) -> bytes:
    pixels = np.asarray(array, np.uint8)
    return bytes([0, 0, 8, pixels.ndim]) + np.array(pixels.shape, ">i4").tobytes() + pixels.tobytes()


def mnist(folder: Path) -> None:
    base = folder / "MNIST" / "raw"
    base.mkdir(parents=True)
    for split, labels in (("train", [0, 1, 1, 0]), ("t10k", [1, 0])):
        images = np.repeat(np.array(labels)[:, None] * 100, 28 * 28, axis=1).reshape(-1, 28, 28)
        (base / f"{split}-images-idx3-ubyte").write_bytes(idx(images))
        (base / f"{split}-labels-idx1-ubyte").write_bytes(idx(labels))


Original = Callable[[Path], None]
