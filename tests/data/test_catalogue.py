from __future__ import annotations

import tarfile
from collections import Counter
from pathlib import Path

import originals
import pytest
from originals import Original, picture
from torchvision.datasets import Food101, cifar, flowers102

from conftest import Expect
from torchsnow.data import DATASETS, LoadedData, Splits, checking, load_data, make_splits, read_image
from torchsnow.data.catalogue import find_torchvision
from torchsnow.data.images import Examined
from torchsnow.data.prepared import data_folder
from torchsnow.errors import DataError


@pytest.fixture(autouse=True)
def any_checksum(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (cifar, flowers102):
        monkeypatch.setattr(module, "check_integrity", lambda path, md5=None: Path(path).is_file())


def counts(data: LoadedData | Splits) -> dict[str, int]:
    if isinstance(data, Splits):
        return {name: len(getattr(data, name)) for name in ("train", "val", "test")}
    return {name: len(split) for name, split in data.splits.items()}


TRAIN_TEST = {"train": 4, "test": 2}


@pytest.mark.parametrize(
    ("name", "original", "expected", "classes"),
    [
        ("food101", originals.food101, TRAIN_TEST, ("apple_pie", "waffles")),
        ("cars", originals.cars, TRAIN_TEST, ("Audi R8", "Ram C/V")),
        ("cub200", originals.cub200, TRAIN_TEST, ("001.Albatross", "002.Wren")),
        ("dtd", originals.dtd, TRAIN_TEST, ("banded", "woven")),
        ("action40", originals.action40, TRAIN_TEST, ("blowing_bubbles", "cooking")),
        ("pets", originals.pets, TRAIN_TEST, ("Bengal", "Shiba Inu")),
        ("aircraft", originals.aircraft, TRAIN_TEST, ("737-700", "A340-300")),
        ("cifar10", originals.cifar10, {"train": 10, "test": 2}, ("airplane", "bird")),
        ("cifar100", originals.cifar100, {"train": 2, "test": 2}, ("airplane", "bird")),
        ("eurosat", originals.eurosat, {"all": 6}, ("Forest", "River")),
        ("mnist", originals.mnist, TRAIN_TEST, ("0 - zero", "1 - one")),
    ],
)
def test_original_layouts(
    name: str, original: Original, expected: dict[str, int], classes: tuple[str, ...], data_folder: Path, expect: Expect
) -> None:
    expect(name, classes=2, **expected)
    original(data_folder / name)
    data = load_data(name)
    assert (data.name, counts(data), data.classes, data.skipped) == (name, expected, classes, ())
    assert all(read_image(e.path).getpixel((0, 0)) == (100 * e.label,) * 3 for e in data.examples)
    assert all(not Path(data.relative_path(example)).is_absolute() for example in data.examples)
    assert load_data(name) == data


def test_flowers(data_folder: Path, expect: Expect) -> None:
    expect("flowers102", classes=102, **TRAIN_TEST)
    originals.flowers102(data_folder / "flowers102")
    listing = find_torchvision("Flowers102").read(data_folder / "flowers102")
    assert listing.classes[:2] == ("pink primrose", "hard-leaved pocket orchid")
    assert Counter(entry.split for entry in listing.entries) == TRAIN_TEST
    assert [read_image(e.path).getpixel((0, 0))[0] for e in listing.entries] == [0, 100] * 3
    assert [e.class_name for e in listing.entries] == list(listing.classes[:2]) * 3


def test_files_are_read_where_they_lie(data_folder: Path, expect: Expect) -> None:
    expect("food101", classes=2, **TRAIN_TEST)
    originals.food101(data_folder / "food101")
    before = set(data_folder.rglob("*"))
    load_data("food101")
    assert set(data_folder.rglob("*")) - before == {data_folder / "food101" / "checked.json"}


def test_an_archive_put_there_by_hand_is_unpacked(
    tmp_path: Path, data_folder: Path, expect: Expect, monkeypatch: pytest.MonkeyPatch
) -> None:
    expect("food101", classes=2, **TRAIN_TEST)
    originals.food101(tmp_path)
    (data_folder / "food101").mkdir(parents=True)
    with tarfile.open(data_folder / "food101" / "food-101.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "food-101", "food-101")
    monkeypatch.setattr(Food101, "_MD5", None)
    assert counts(load_data("torchvision:food101")) == TRAIN_TEST


def test_validation_comes_out_of_train(data_folder: Path, expect: Expect) -> None:
    expect("dtd", classes=2, **TRAIN_TEST)
    originals.dtd(data_folder / "dtd")
    assert counts(make_splits(load_data("dtd"))) == {"train": 2, "val": 2, "test": 2}


def class_folders(folder: Path, **numbers: int) -> None:
    for split, number in numbers.items():
        for label, name in enumerate(("a", "b")):
            for i in range(number):
                picture(folder / split / name / f"{i}.png", label)


@pytest.mark.parametrize("name", ["cub200", "cars", "mnist", "eurosat"])
def test_any_of_them_as_class_folders(name: str, data_folder: Path, expect: Expect) -> None:
    expect(name, classes=2, **({"all": 6} if name == "eurosat" else TRAIN_TEST))
    class_folders(data_folder / name, train=2, test=1)
    data = load_data(name)
    assert (data.name, counts(data), data.classes) == (name, {"test": 2, "train": 4}, ("a", "b"))


def test_a_val_folder_counts_as_train_and_stays(data_folder: Path, expect: Expect) -> None:
    expect("cub200", classes=2, **TRAIN_TEST)
    class_folders(data_folder / "cub200", train=1, val=1, test=1)
    assert counts(load_data("cub200")) == {"train": 2, "val": 2, "test": 2}


def test_archives_without_their_outer_folder_or_with_it(data_folder: Path, expect: Expect) -> None:
    expect("cub200", classes=2, **TRAIN_TEST)
    expect("action40", classes=2, **TRAIN_TEST)
    originals.cub200(data_folder)
    (data_folder / "CUB_200_2011").rename(data_folder / "cub200")
    originals.action40(data_folder / "action40" / "Stanford40")
    assert counts(load_data("cub200")) == counts(load_data("action40")) == TRAIN_TEST


# What is not there, or not whole


@pytest.mark.parametrize("name", [name for name in DATASETS if name not in ("digits", "fashion-mnist")])
def test_what_cannot_be_fetched_says_where_to_put_it(name: str, data_folder: Path) -> None:
    with pytest.raises(DataError) as caught:
        load_data(name)
    sentence = str(caught.value)
    assert f"{name} is missing or incomplete in {data_folder / name}, and could not be fetched (" in sentence
    assert f"put {DATASETS[name].by_hand}, or folders train/CLASS and test/CLASS" in sentence
    assert DATASETS[name].by_hand
    assert "digits and elpv need no download" in sentence
    assert "\n" not in sentence


@pytest.mark.parametrize(
    ("name", "original", "victim"),
    [
        ("food101", originals.food101, "food-101/meta/train.json"),
        ("cars", originals.cars, "stanford_cars/devkit/cars_meta.mat"),
        ("cub200", originals.cub200, "CUB_200_2011/classes.txt"),
        ("dtd", originals.dtd, "dtd/dtd/labels/val1.txt"),
        ("action40", originals.action40, "ImageSplits/cooking_test.txt"),
        ("pets", originals.pets, "oxford-iiit-pet/annotations/test.txt"),
        ("aircraft", originals.aircraft, "fgvc-aircraft-2013b/data/variants.txt"),
        ("cifar10", originals.cifar10, "cifar-10-batches-py/data_batch_3"),
        ("mnist", originals.mnist, "MNIST/raw/train-images-idx3-ubyte"),
    ],
)
@pytest.mark.parametrize("harm", ["lost", "cut", "noise"])
def test_damaged_tables(
    name: str, original: Original, victim: str, harm: str, data_folder: Path, expect: Expect
) -> None:
    expect(name, classes=2, **({"train": 10, "test": 2} if name == "cifar10" else TRAIN_TEST))
    original(data_folder / name)
    path = data_folder / name / victim
    content = path.read_bytes()
    path.unlink()
    if harm != "lost":
        path.write_bytes(content[: len(content) // 3] if harm == "cut" else b"\xff\xfe noise \x00\n")
    with pytest.raises(DataError, match=rf"{name} (is missing or incomplete|has .* but|are missing)"):
        load_data(name)


def test_wrong_counts(data_folder: Path) -> None:
    originals.cub200(data_folder / "cub200")
    with pytest.raises(DataError) as caught:
        load_data("cub200")
    folder = data_folder / "cub200"
    assert str(caught.value) == (
        "cub200 has 5994 images in train and 5794 images in test, 200 classes, but "
        f"{folder}/CUB_200_2011 holds 4 images in train and 2 images in test, 2 classes: "
        f"delete {folder} and load or fetch it again"
    )


def test_a_missing_class_is_noticed_when_the_images_are_enough(data_folder: Path, expect: Expect) -> None:
    expect("cub200", classes=3, **TRAIN_TEST)
    originals.cub200(data_folder / "cub200")
    with pytest.raises(DataError, match=r"3 classes, but .* 2 classes"):
        load_data("cub200")


def test_a_file_that_is_missing(data_folder: Path, expect: Expect) -> None:
    expect("food101", classes=2, **TRAIN_TEST)
    originals.food101(data_folder / "food101")
    (data_folder / "food101/food-101/images/waffles/test0.jpg").unlink()
    with pytest.raises(DataError, match=r"1 files of food101 are missing: .*waffles/test0\.jpg: delete "):
        load_data("food101")


def test_a_table_that_names_files_elsewhere(data_folder: Path, expect: Expect) -> None:
    expect("cub200", classes=2, **TRAIN_TEST)
    originals.cub200(data_folder / "cub200")
    table = data_folder / "cub200" / "CUB_200_2011" / "images.txt"
    table.write_text(table.read_text().replace("1 001", "1 /etc/001"))
    with pytest.raises(DataError, match="cub200 names files outside"):
        load_data("cub200")


# Names


def test_torchvision_names() -> None:
    assert find_torchvision("fashion-mnist") is find_torchvision("FASHIONmnist") is DATASETS["fashion-mnist"]
    assert find_torchvision("StanfordCars") is DATASETS["cars"]
    for data in DATASETS.values():
        if data.torchvision:
            assert find_torchvision(data.torchvision) is find_torchvision(data.name.upper()) is data


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("CIFAR1O", r"expected one of food101, .*, mnist, or torchvision's .*; did you mean cifar10\?"),
        ("digits", "torchvision:digits is not known: expected one of"),
        ("cub200", "torchvision:cub200 is not known"),
        ("", "torchvision: is not known"),
    ],
)
def test_unknown_torchvision_names(name: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_data(f"torchvision:{name}")


def test_what_is_expected_names_them_all() -> None:
    with pytest.raises(DataError) as caught:
        load_data("nowhere")
    assert all(name in str(caught.value) for name in (*DATASETS, "torchvision:NAME", "hf:ORGANISATION/NAME"))


def test_a_folder_of_that_name_comes_first(tmp_path: Path, data_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class_folders(tmp_path / "mine", cars=2)
    monkeypatch.chdir(tmp_path / "mine")
    assert load_data("cars").classes == ("a", "b")
    with pytest.raises(DataError, match="cars is missing or incomplete"):
        load_data("torchvision:cars")


# Images that were found good once


def decoded(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    paths: list[Path] = []
    check = checking.examine_image

    def counted(path: Path) -> Examined:
        paths.append(path)
        return check(path)

    monkeypatch.setattr(checking, "examine_image", counted)
    return paths


def test_images_are_decoded_until_they_were_all_good_once(
    data_folder: Path, expect: Expect, monkeypatch: pytest.MonkeyPatch
) -> None:
    expect("action40", classes=2, **TRAIN_TEST)
    originals.action40(data_folder / "action40")
    paths = decoded(monkeypatch)
    first = load_data("action40")
    assert len(paths) == 6
    assert load_data("action40") == first
    assert len(paths) == 6


def test_an_image_that_changed_is_decoded_again(
    data_folder: Path, expect: Expect, monkeypatch: pytest.MonkeyPatch
) -> None:
    expect("action40", classes=2, **TRAIN_TEST)
    originals.action40(data_folder / "action40")
    first = load_data("action40")
    one, other = first.examples[0].path, first.examples[1].path
    content = one.read_bytes(), other.read_bytes()
    size = 1 + max(map(len, content))
    for path, whole, padding in zip((one, other), content, (b"\1", b"\2"), strict=True):
        path.write_bytes(whole.ljust(size, padding))
    same_size = load_data("action40")
    swapped = one.with_name("swap")
    one.rename(swapped)
    other.rename(one)
    swapped.rename(other)
    paths = decoded(monkeypatch)
    again = load_data("action40")
    assert sorted(paths) == sorted([one, other])
    assert again.fingerprint != same_size.fingerprint
    (data_folder / "action40" / "checked.json").write_text("damaged")
    assert load_data("action40") == again


def test_a_damaged_image_is_skipped_each_time(
    data_folder: Path, expect: Expect, monkeypatch: pytest.MonkeyPatch
) -> None:
    expect("action40", classes=2, **TRAIN_TEST)
    originals.action40(data_folder / "action40")
    load_data("action40")
    bad = data_folder / "action40" / "JPEGImages" / "cooking_000.jpg"
    bad.write_bytes(bad.read_bytes()[:300])
    for _ in range(2):
        assert [skipped.path for skipped in load_data("action40", max_bad_share=0.5).skipped] == [bad]


def test_a_data_folder_that_cannot_be_written_to(
    data_folder: Path, expect: Expect, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise DataError("read-only")

    expect("action40", classes=2, **TRAIN_TEST)
    originals.action40(data_folder / "action40")
    monkeypatch.setattr(checking, "write_atomically", refuse)
    assert counts(load_data("action40")) == TRAIN_TEST


def test_a_user_without_a_home_is_told_where_data_may_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHSNOW_DATA", raising=False)
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    with pytest.raises(DataError, match="name a folder for data sets in TORCHSNOW_DATA"):
        data_folder()
