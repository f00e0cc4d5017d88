from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torchsnow.data import prepared
from torchsnow.data.prepared import Picture, data_folder, list_given, prepare, safe_name
from torchsnow.errors import DataError

NAMES = ["T-shirt/top", "Ankle boot", "100%", "50%2F50", "..", ".hidden", "what?", "Grünfink", "a\\b:c*", "end."]


@pytest.mark.parametrize("name", NAMES)
def test_class_names_survive_as_folders(name: str, tmp_path: Path) -> None:
    listing = prepare(tmp_path, [Picture("all", name, b"x"), Picture("all", "other", b"y")])
    assert set(listing.classes) == {name, "other"}
    assert {(entry.class_name, entry.path.read_bytes()) for entry in listing.entries} == {(name, b"x"), ("other", b"y")}
    assert all(entry.path.parent.parent == tmp_path / "prepared" for entry in listing.entries)


def test_ordinary_names_stay_as_they_are() -> None:
    assert safe_name("Ankle boot") == "Ankle boot"
    assert safe_name("T-shirt/top") == "T-shirt%2Ftop"


@settings(deadline=None)
@given(st.text(min_size=1))
def test_folder_names_can_be_turned_back(name: str) -> None:
    safe = safe_name(name)
    assert unquote(safe) == name
    assert not set(safe) & set('/\\:*?"<>|\0\n')
    assert safe not in (".", "..")


def test_splits_are_folders(tmp_path: Path) -> None:
    pictures = [Picture(split, name, b"", ".jpg") for split in ("train", "val", "test") for name in "ab"]
    listing = prepare(tmp_path, pictures)
    assert {entry.split for entry in listing.entries} == {"train", "val", "test"}
    assert (tmp_path / "prepared" / "train" / "a" / "000000.jpg").is_file()
    assert list_given(tmp_path) == listing


@pytest.mark.parametrize("error", [KeyboardInterrupt, DataError])
def test_an_interruption_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    def pictures() -> Iterator[Picture]:
        yield Picture("all", "a", b"")
        raise error

    with pytest.raises(error):
        prepare(tmp_path / "set", pictures())
    assert list((tmp_path / "set").iterdir()) == []
    assert list_given(tmp_path / "set") is None


def test_no_pictures_at_all(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no image with a class"):
        prepare(tmp_path, [])
    assert list(tmp_path.iterdir()) == []


def test_another_process_was_faster(tmp_path: Path) -> None:
    first = prepare(tmp_path, [Picture("all", name, b"") for name in "ab"])
    assert prepare(tmp_path, [Picture("all", name, b"") for name in "ab"]) == first
    assert [path.name for path in tmp_path.iterdir()] == ["prepared"]


def test_a_disk_that_refuses(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot write .*file/set: a part of this path is a file"):
        prepare(tmp_path / "file" / "set", [])


def test_the_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("TORCHSNOW_DATA", raising=False)
    assert data_folder() == tmp_path / ".cache" / "torchsnow" / "data"
    monkeypatch.setenv("TORCHSNOW_DATA", "~/sets")
    assert data_folder() == tmp_path / "sets"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(prepared.DATA_VARIABLE, "here")
    assert data_folder() == Path(os.getcwd()) / "here"


def test_a_home_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHSNOW_DATA", "~nobody-of-this-name/data")
    with pytest.raises(DataError, match="is in no home of this machine; name a folder for data sets in TORCHSNOW_DATA"):
        data_folder()
