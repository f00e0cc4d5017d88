from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest
from PIL import Image

from conftest import Folder
from torchsnow.data import load_data
from torchsnow.errors import DataError


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, data_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder where `org/name` can lie in place of the Hub, with a cache of its own."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)


def encoded(colour: str, kind: str = "PNG") -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(content, kind)
    return content.getvalue()


PNG, JPEG = encoded("red"), encoded("blue", "JPEG")


def write_parquet(split: str, images: list[bytes | None], labels: list[int | None]) -> None:
    from datasets import ClassLabel, Dataset, Features
    from datasets import Image as Picture

    features = Features({"image": Picture(), "label": ClassLabel(names=["ant/bee", "fly"])})
    rows = {"image": [{"bytes": image, "path": None} if image else None for image in images], "label": labels}
    folder = Path("org/bugs/data")
    folder.mkdir(parents=True, exist_ok=True)
    Dataset.from_dict(rows, features=features).to_parquet(folder / f"{split}-00000-of-00001.parquet")


def test_original_bytes_under_the_suffix_of_their_format(data_folder: Path) -> None:
    write_parquet("train", [PNG, JPEG, PNG, JPEG], [0, 1, 0, 1])
    write_parquet("validation", [JPEG], [0])
    write_parquet("test", [JPEG, PNG], [0, 1])
    data = load_data("hf:org/bugs")
    assert (data.name, data.root) == ("org--bugs", data_folder / "hf--org--bugs" / "prepared")
    assert data.classes == ("ant/bee", "fly")
    assert {name: [e.label for e in split] for name, split in data.splits.items()} == {
        "test": [0, 1],
        "train": [0, 0, 1, 1],
        "val": [0],
    }
    assert [e.path.read_bytes() for e in data.splits["train"]] == [PNG, PNG, JPEG, JPEG]
    assert [e.path.suffix for e in data.splits["train"]] == [".png", ".png", ".jpg", ".jpg"]


def test_the_second_time_needs_no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    write_parquet("train", [PNG, JPEG], [0, 1])
    first = load_data("hf:org/bugs")
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert load_data("hf:org/bugs") == first


def test_one_split_is_no_split() -> None:
    write_parquet("train", [PNG, JPEG], [0, 1])
    assert list(load_data("hf:org/bugs").splits) == ["all"]


def test_rows_without_an_image_or_a_class_are_left_out() -> None:
    write_parquet("train", [PNG, JPEG, None, PNG], [0, 1, 1, None])
    write_parquet("test", [PNG, PNG], [-1, -1])
    data = load_data("hf:org/bugs")
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 2}


def test_a_damaged_image_is_skipped_and_named() -> None:
    write_parquet("train", [PNG, JPEG, b"no image"], [0, 1, 1])
    data = load_data("hf:org/bugs", max_bad_share=0.5)
    assert [skipped.reason.split(" in ")[0] for skipped in data.skipped] == ["not an image"]


def test_a_folder_of_images(image_folder: Folder, tmp_path: Path) -> None:
    (tmp_path / "org").mkdir()
    image_folder({"train/cat": 2, "train/dog": 2, "test/cat": 1, "test/dog": 1}).rename(tmp_path / "org" / "pets")
    data = load_data("hf:org/pets")
    assert data.classes == ("cat", "dog")
    assert {name: len(split) for name, split in data.splits.items()} == {"test": 2, "train": 4}


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"text": "Value", "fine": "ClassLabel"},
            r"no columns of the type Image; .* text \(Value\), fine \(ClassLabel\)",
        ),
        (
            {"text": "Value", "image": "Image"},
            "no columns of the type ClassLabel; expected one, or one with .* 'label'",
        ),
        ({"left": "Image", "right": "Image", "fine": "ClassLabel"}, "has 2 columns of the type Image"),
        ({"image": "Image", "fine": "ClassLabel", "coarse": "ClassLabel"}, "has 2 columns of the type ClassLabel"),
    ],
)
def test_columns_that_are_missing_or_unclear(columns: dict[str, str], message: str) -> None:
    write_columns(columns)
    with pytest.raises(DataError, match=f"hf:org/name has {message.removeprefix('has ')}"):
        load_data("hf:org/name")


def test_of_several_columns_the_one_with_the_usual_name_is_read() -> None:
    write_columns({"mask": "Image", "image": "Image", "coarse": "ClassLabel", "label": "ClassLabel"})
    data = load_data("hf:org/name")
    assert data.classes == ("label-0", "label-1")
    assert data.examples[0].path.read_bytes() == PNG


def write_columns(columns: dict[str, str]) -> None:
    """A data set with these columns, {name: type}; the column `image` has other pictures than the rest."""
    from datasets import ClassLabel, Dataset, Features, Value
    from datasets import Image as Picture

    made = {
        name: {"Image": Picture(), "Value": Value("string"), "ClassLabel": ClassLabel(names=[f"{name}-0", f"{name}-1"])}
        for name in columns
    }
    features = Features({name: made[name][kind] for name, kind in columns.items()})
    pictures = {name: {"bytes": PNG if name == "image" else JPEG, "path": None} for name in columns}
    cells = {name: {"Image": [pictures[name]] * 2, "Value": ["x", "y"], "ClassLabel": [0, 1]} for name in columns}
    rows = {name: cells[name][kind] for name, kind in columns.items()}
    Path("org/name").mkdir(parents=True)
    Dataset.from_dict(rows, features=features).to_parquet("org/name/train.parquet")


def test_no_usable_row(data_folder: Path) -> None:
    write_parquet("train", [None], [0])
    with pytest.raises(DataError, match="hf--org--bugs has no image with a class"):
        load_data("hf:org/bugs")
    assert list((data_folder / "hf--org--bugs").iterdir()) == []


def test_without_internet(data_folder: Path) -> None:
    with pytest.raises(DataError, match=r"cannot load hf:org/none \(.*\): check its name and the connection") as caught:
        load_data("hf:org/none")
    assert str(data_folder / "hf--org--none") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_put_there_by_hand(image_folder: Folder, data_folder: Path) -> None:
    data_folder.mkdir()
    image_folder({"train/a": 2, "train/b": 2}).rename(data_folder / "hf--none")
    assert load_data("hf:none").name == "none"


def test_the_library_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"hf:org/name needs the library datasets: pip install 'torchsnow\[hf\]'"):
        load_data("hf:org/name")


@pytest.mark.parametrize("name", ["", "a/b/c", "../x", "/etc", "a b", "org/", "~"])
def test_what_is_no_name(name: str) -> None:
    with pytest.raises(DataError, match="cannot be a data set's name: expected hf:ORGANISATION/NAME"):
        load_data(f"hf:{name}")
