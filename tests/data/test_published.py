from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from originals import idx
from PIL import Image
from sklearn.datasets import load_digits

from conftest import Expect
from torchsnow.data import load_data, published, read_image
from torchsnow.errors import DataError


def write_debian(folder: Path, count: int = 4) -> None:
    folder.mkdir(parents=True)
    for name, number in (("train", count), ("t10k", count // 2)):
        labels = [9 * (i % 2) for i in range(number)]  # T-shirt/top and Ankle boot
        images = np.repeat(np.array(labels)[:, None] * 10, 28 * 28, axis=1).reshape(-1, 28, 28)
        (folder / f"{name}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images)))
        (folder / f"{name}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(labels)))


def test_digits_are_those_of_scikit_learn(data_folder: Path) -> None:
    data = load_data("digits")
    assert data.classes == tuple("0123456789")
    assert {name: len(split) for name, split in data.splits.items()} == {"all": 1797}
    digits = load_digits()
    for example in data.examples[::100]:
        number = int(example.path.stem)
        assert digits.target[number] == example.label
        grey = np.asarray(read_image(example.path))[..., 0]
        assert np.abs(grey / 255 - digits.images[number] / 16).max() < 1 / 255


def test_digits_with_lost_files_are_refused(data_folder: Path) -> None:
    first = load_data("digits").examples[0].path
    first.unlink()
    with pytest.raises(DataError, match=r"digits has 1797 images in all, 10 classes, but .* holds 1796 images"):
        load_data("digits")


@pytest.mark.skipif(not published.DEBIAN_FOLDER.is_dir(), reason="Debian's dataset-fashion-mnist is not installed")
def test_debians_fashion_mnist() -> None:
    pictures = list(zip(range(3), published.fashion_pictures(Path("nowhere")), strict=False))
    assert [picture.class_name for _, picture in pictures] == ["Ankle boot", "T-shirt/top", "T-shirt/top"]
    images = published._read_idx(published.DEBIAN_FOLDER / "train-images-idx3-ubyte.gz")
    labels = published._read_idx(published.DEBIAN_FOLDER / "train-labels-idx1-ubyte.gz")
    assert images.shape == (60000, 28, 28)
    assert np.bincount(labels).tolist() == [6000] * 10


def test_fashion_mnist_from_a_package_like_debians(
    tmp_path: Path, data_folder: Path, expect: Expect, monkeypatch: pytest.MonkeyPatch
) -> None:
    expect("fashion-mnist", classes=2, train=4, test=2)
    write_debian(tmp_path / "debian")
    monkeypatch.setattr(published, "DEBIAN_FOLDER", tmp_path / "debian")
    data = load_data("torchvision:FashionMNIST")
    assert (data.name, data.classes) == ("fashion-mnist", ("Ankle boot", "T-shirt/top"))
    assert {name: len(split) for name, split in data.splits.items()} == {"test": 2, "train": 4}
    for example in data.examples:
        with Image.open(example.path) as image:
            assert (image.mode, image.size) == ("L", (28, 28))
            assert image.getpixel((3, 3)) == (90 if data.classes[example.label] == "Ankle boot" else 0)


@pytest.mark.parametrize("harm", ["lost", "cut", "other"])
def test_a_damaged_package(harm: str, tmp_path: Path, data_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_debian(tmp_path / "debian")
    monkeypatch.setattr(published, "DEBIAN_FOLDER", tmp_path / "debian")
    victim = tmp_path / "debian" / "t10k-images-idx3-ubyte.gz"
    content = victim.read_bytes()
    victim.unlink()
    if harm != "lost":
        victim.write_bytes(content[:40] if harm == "cut" else gzip.compress(b"no idx"))
    with pytest.raises(DataError, match="fashion-mnist is missing or incomplete"):
        load_data("fashion-mnist")
    assert not (data_folder / "fashion-mnist" / "prepared").exists()


def test_fashion_mnist_without_the_package_is_torchvisions(
    tmp_path: Path, data_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(published, "DEBIAN_FOLDER", tmp_path / "none")
    with pytest.raises(DataError, match=r"could not be fetched \(RuntimeError: Error downloading train-images"):
        load_data("fashion-mnist")
