"""Data sets that are arrays of pixels and need no download: Debian's Fashion-MNIST and scikit-learn's digits."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torchvision.datasets import FashionMNIST

from torchsnow.data.fetched import png_bytes, torchvision_pictures
from torchsnow.data.names import ALL
from torchsnow.data.prepared import Picture

DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")  # of Debian's package dataset-fashion-mnist
DEBIAN_NAMES = {"train": "train", "test": "t10k"}


def fashion_pictures(folder: Path) -> Iterator[Picture]:
    """Fashion-MNIST from Debian's package if that is installed, else as torchvision has it in `folder`."""
    if not DEBIAN_FOLDER.is_dir():
        return torchvision_pictures("FashionMNIST", folder)
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
