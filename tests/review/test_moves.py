from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from sample_photos import make_photos
from torchsnow.errors import DataError
from torchsnow.review import Move, move_files, plan_moves, plan_undo, record_next_to, write_record


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return make_photos(tmp_path / "photos", num_images=3)


def table(folder: Path, *rows: tuple[str, str, str]) -> Path:
    path = folder / "moves.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("path", "class", "move_to"), *rows])
    return path


def names(root: Path) -> set[str]:
    return {path.relative_to(root).as_posix() for path in root.rglob("*.png")}


def apply(root: Path, moves: list[Move], record: Path) -> None:
    write_record(record, moves)
    move_files(root, moves, lambda done, total: None)


def test_rows_with_a_class_move_and_the_others_stay(photos: Path, tmp_path: Path) -> None:
    moves = plan_moves(
        photos,
        table(tmp_path, ("red/0.png", "red", "blue"), ("red/1.png", "red", ""), ("green/2.png", "green", " green ")),
    )
    assert moves == [Move("red/0.png", "blue/0-2.png")]  # blue has a 0.png
    before = {name: (photos / name).read_bytes() for name in names(photos)}
    record = record_next_to(tmp_path / "moves.csv")
    apply(photos, moves, record)
    assert names(photos) == before.keys() - {"red/0.png"} | {"blue/0-2.png"}
    assert (photos / "blue/0-2.png").read_bytes() == before["red/0.png"]
    assert record.name == "moves.undo-1.json"
    assert record_next_to(tmp_path / "moves.csv").name == "moves.undo-2.json"
    back = plan_undo(photos, record)
    assert back == [Move("blue/0-2.png", "red/0.png")]
    move_files(photos, back, lambda done, total: None)
    assert {name: (photos / name).read_bytes() for name in names(photos)} == before
    assert plan_undo(photos, record) == []  # nothing is left to undo


def test_images_stay_in_their_split_and_below_their_folder(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    for split in ("train", "valid"):
        make_photos(photos / split, num_images=1)
    (photos / "valid" / "red" / "deep").mkdir()
    (photos / "valid" / "red" / "0.png").rename(photos / "valid" / "red" / "deep" / "x.png")
    (photos / "valid" / "blue" / "0.png").unlink()
    (photos / "valid" / "blue").rmdir()
    moves = plan_moves(photos, table(tmp_path, ("valid/red/deep/x.png", "red", "blue")))
    assert moves == [Move("valid/red/deep/x.png", "valid/blue/deep/x.png")]
    move_files(photos, moves, lambda done, total: None)
    assert (photos / "valid/blue/deep/x.png").is_file()


def test_an_undo_after_a_stop_half_way_moves_back_what_was_moved(photos: Path, tmp_path: Path) -> None:
    moves = plan_moves(photos, table(tmp_path, ("red/0.png", "red", "blue"), ("red/1.png", "red", "blue")))
    write_record(tmp_path / "record.json", moves)
    move_files(photos, moves[:1], lambda done, total: None)
    assert plan_undo(photos, tmp_path / "record.json") == [Move("blue/0-2.png", "red/0.png")]


def test_two_images_of_one_name_do_not_meet(photos: Path, tmp_path: Path) -> None:
    moves = plan_moves(photos, table(tmp_path, ("red/0.png", "red", "blue"), ("green/0.png", "green", "blue")))
    assert [move.new for move in moves] == ["blue/0-2.png", "blue/0-3.png"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (("red/9.png", "red", "blue"), "row 2: there is no image 'red/9.png'"),
        (("red/0.png", "green", "blue"), "is of the class 'red', not 'green', by now"),
        (("red/0.png", "red", "bleu"), "has no class 'bleu'; did you mean 'blue'"),
        (("red/0.png", "red", "../out"), "has no class '../out'"),
        (("../photos/red/0.png", "red", "blue"), "there is no image"),
    ],
)
def test_rows_that_cannot_be_followed(photos: Path, tmp_path: Path, row: tuple[str, str, str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        plan_moves(photos, table(tmp_path, row))


def test_what_is_no_table_or_no_folder(photos: Path, tmp_path: Path) -> None:
    two = table(tmp_path, ("red/0.png", "red", "blue"), ("red/0.png", "red", "green"))
    with pytest.raises(DataError, match="is to move to two classes"):
        plan_moves(photos, two)
    with pytest.raises(DataError, match="is a file: labels of a table are changed in the table"):
        plan_moves(two, two)
    with pytest.raises(DataError, match="is not there"):
        plan_moves(tmp_path / "gone", two)
    two.write_text("path,class\nred/0.png,red\n")
    with pytest.raises(DataError, match="has no column move_to"):
        plan_moves(photos, two)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[", "is no record of moves"),
        ({"schema": 2, "moves": []}, "its schema is 2"),
        ({"schema": 1, "moves": [["../a", "b"]]}, "leaves the folder"),
        ({"schema": 1, "moves": [["red/0.png", "red/1.png"]]}, "is in both places"),
        ({"schema": 1, "moves": [["red/8.png", "red/9.png"]]}, "is in neither place"),
        ({"schema": 1, "moves": [["red/0.png"]]}, "is no record of moves"),
    ],
)
def test_records_that_cannot_be_undone(photos: Path, tmp_path: Path, content: object, message: str) -> None:
    record = tmp_path / "record.json"
    record.write_text(content if isinstance(content, str) else json.dumps(content))
    before = names(photos)
    with pytest.raises(DataError, match=message):
        plan_undo(photos, record)
    assert names(photos) == before
