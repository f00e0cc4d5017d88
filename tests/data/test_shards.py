from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from torchsnow.data import load_data
from torchsnow.errors import DataError

pytestmark = pytest.mark.usefixtures("data_folder")


def picture(grey: int, kind: str = "PNG") -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (8, 8), (grey, grey, 0)).save(content, kind)
    return content.getvalue()


def write_tar(path: Path, members: dict[str, bytes], mode: str = "w") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def samples(first: int, labels: list[str]) -> dict[str, bytes]:
    """Members of as many samples, each image of its own."""
    members = {}
    for number, label in enumerate(labels, start=first):
        members[f"{number:04d}.png"] = picture(number)
        members[f"{number:04d}.cls"] = label.encode()
    return members


def test_splits_and_classes_by_name_from_a_folder_of_shards(tmp_path: Path, data_folder: Path) -> None:
    shards = tmp_path / "bugs"
    write_tar(shards / "train-0000.tar", samples(0, ["ant", "fly", "ant"]))
    write_tar(shards / "train-0001.tar", samples(10, ["fly"]))
    write_tar(shards / "test-0000.tar", samples(20, ["ant", "fly"]))
    data = load_data(f"wds:{shards}")
    assert (data.name, data.classes) == ("bugs", ("ant", "fly"))
    assert {name: [e.label for e in split] for name, split in data.splits.items()} == {
        "train": [0, 0, 1, 1],
        "test": [0, 1],
    }
    assert data.root.is_relative_to(data_folder)
    assert {e.path.read_bytes() for e in data.splits["train"]} == {picture(grey) for grey in (0, 1, 2, 10)}


def test_a_pattern_of_one_split_and_numbers_with_names(tmp_path: Path) -> None:
    members = {
        "a/one.jpg": picture(1, "JPEG"),
        "a/one.json": json.dumps({"label": 0, "caption": "an ant"}).encode(),
        "a/one.seg.png": picture(99),
        "a/two.txt": b"words",
        "a/two.JPG": picture(2, "JPEG"),
        "a/two.cls": b"1\n",
        "a/two.json": b'{"label": 0}',
        "b/one.png": picture(3),
        "b/one.cls": b"-1",
        "b/three.png": picture(4),
        "b/four.cls": b"0",
    }
    write_tar(tmp_path / "data-train.tar", members, "w:gz")
    (tmp_path / "classnames.txt").write_text("ant\nfly/bee\n")
    data = load_data(f"wds:{tmp_path}/*-train.tar")
    assert data.classes == ("ant", "fly/bee")
    assert [(e.label, e.path.read_bytes()) for e in data.splits["all"]] == [
        (0, picture(1, "JPEG")),
        (1, picture(2, "JPEG")),
    ]


def test_shards_of_a_store_and_of_numbers_without_names(tmp_path: Path) -> None:
    import fsspec

    write_tar(tmp_path / "x.tar", samples(0, ["10", "9", "-1"]))
    with fsspec.open("memory://shards/x.tar", "wb") as stored:
        stored.write((tmp_path / "x.tar").read_bytes())
    data = load_data("wds:memory://shards/*.tar")
    assert data.classes == ("9", "10")


def test_names_that_look_like_numbers_are_names(tmp_path: Path) -> None:
    write_tar(tmp_path / "x.tar", samples(0, ["--5", "1_0", "9" * 20]))
    assert set(load_data(f"wds:{tmp_path}").classes) == {"--5", "1_0", "9" * 20}


def test_shards_that_change_are_read_again(tmp_path: Path) -> None:
    write_tar(tmp_path / "x.tar", samples(0, ["ant", "fly"]))
    first = load_data(f"wds:{tmp_path}")
    assert load_data(f"wds:{tmp_path}").root == first.root
    write_tar(tmp_path / "x.tar", samples(0, ["ant", "fly", "fly"]))
    assert len(load_data(f"wds:{tmp_path}").splits["all"]) == 3


@pytest.mark.parametrize(
    ("name", "members", "classes", "sentence"),
    [
        ("x.tar", {"a.png": picture(0)}, None, "has no image with a class"),
        ("x.tar", samples(0, ["2", "0"]), "ant\nfly\n", "is of class 2, and classnames.txt has 2 lines, from 0 on"),
        ("x.tar", {"a.png": picture(0), "a.json": b"{"}, None, "the class of /a in .*x.tar cannot be read"),
        ("x.tar", {"a.png": picture(0), "a.cls": b"\xff"}, None, "the class of /a in .*x.tar cannot be read"),
        ("x.zip", {}, None, "there are no tar files at"),
    ],
)
def test_what_cannot_be_used_is_said(
    tmp_path: Path, name: str, members: dict[str, bytes], classes: str | None, sentence: str
) -> None:
    write_tar(tmp_path / "shards" / name, members)
    if classes is not None:
        (tmp_path / "shards" / "classnames.txt").write_text(classes)
    with pytest.raises(DataError, match=sentence):
        load_data(f"wds:{tmp_path / 'shards'}")


def test_a_damaged_shard_leaves_nothing_behind(tmp_path: Path, data_folder: Path) -> None:
    large = bytes(range(256)) * 16
    write_tar(tmp_path / "x.tar", {**samples(0, ["ant", "fly"] * 20), "z.png": large, "z.cls": b"fly"})
    content = (tmp_path / "x.tar").read_bytes()
    (tmp_path / "x.tar").write_bytes(content[: content.index(large) + 1000])
    with pytest.raises(DataError, match=r"cannot read the tar file .*x\.tar"):
        load_data(f"wds:{tmp_path}")
    assert not list(data_folder.rglob("*.png"))
    (tmp_path / "x.tar").write_bytes(b"no tar at all" * 100)
    with pytest.raises(DataError, match=r"cannot read the tar file .*x\.tar"):
        load_data(f"wds:{tmp_path}")


def test_a_member_that_claims_to_be_huge_is_refused(tmp_path: Path) -> None:
    member = tarfile.TarInfo("a.png")
    member.size = 2**40
    (tmp_path / "x.tar").write_bytes(member.tobuf() + picture(0))
    with pytest.raises(DataError, match="1099511627776 bytes; expected at most"):
        load_data(f"wds:{tmp_path}")


def test_shards_of_which_some_name_a_split_are_refused(tmp_path: Path) -> None:
    for name in ("train-0.tar", "test-0.tar", "more.tar"):
        write_tar(tmp_path / name, samples(0, ["ant", "fly"]))
    with pytest.raises(DataError, match=r"more\.tar is not: expected names as train-0001\.tar"):
        load_data(f"wds:{tmp_path}")


@pytest.mark.parametrize(("place", "sentence"), [("missing/x.tar", "no tar files"), ("rain://x", "cannot look for")])
def test_places_that_are_none(place: str, sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        load_data(f"wds:{place}")
