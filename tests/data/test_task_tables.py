from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from sample_photos import make_photos
from torchsnow.data import load_task_table, split_table
from torchsnow.errors import DataError

COLOURS = ("red", "green", "blue")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return make_photos(tmp_path / "photos", num_images=6)


def write(photos: Path, rows: Sequence[Sequence[str]], header: str = "path,colour,parity") -> Path:
    table = photos / "labels.csv"
    table.write_text("\n".join([header, *(",".join(row) for row in rows)]) + "\n")
    return table


def rows() -> list[list[str]]:
    """Both labels for every image, but no parity for the first of each colour."""
    return [[f"{colour}/{n}.png", colour, ("even", "odd")[n % 2] if n else ""] for colour in COLOURS for n in range(6)]


def test_every_column_is_a_task_and_an_empty_cell_no_label(photos: Path) -> None:
    table = load_task_table(write(photos, rows()))
    assert table.tasks["colour"].classes == ("blue", "green", "red")
    assert table.tasks["parity"].classes == ("even", "odd")
    assert [len(data.examples) for data in table.tasks.values()] == [18, 15]
    assert [path.relative_to(photos).as_posix() for path in table.split_of] == [row[0] for row in rows()]
    assert set(table.split_of.values()) == {"all"}
    parity = {example.path.name: example.label for example in table.tasks["parity"].examples}
    assert parity == {"1.png": 1, "2.png": 0, "3.png": 1, "4.png": 0, "5.png": 1}


def test_images_without_any_label_are_left_out(photos: Path) -> None:
    table = load_task_table(write(photos, [*rows()[:-1], ["blue/5.png", "", " "]]))
    assert len(table.split_of) == 17


def test_a_split_is_the_same_for_all_tasks_and_fair_to_their_classes(photos: Path) -> None:
    table = load_task_table(write(photos, rows()))
    splits = split_table(table, 1 / 6, 1 / 6, seed=1)
    places = {}
    for one in splits.values():
        for name in ("train", "val", "test"):
            for example in getattr(one, name):
                assert places.setdefault(example.path, name) == name
    assert Counter(places.values()) == {"train": 12, "val": 3, "test": 3}
    assert set(Counter(example.label for example in splits["colour"].train).values()) == {4}
    order = sorted(path for path in table.split_of if places[path] == "train")
    assert [example.path for example in splits["colour"].train] == order
    assert split_table(table, 1 / 6, 1 / 6, seed=1) == splits
    assert split_table(table, 1 / 6, 1 / 6, seed=2) != splits


@pytest.mark.parametrize(
    ("words", "counts"),
    [
        (("train", "val", "test"), (6, 6, 6)),
        (("train", "val", "train"), (12, 6, 0)),
        (("train", "test", "train"), (11, 1, 6)),
    ],
)
def test_a_split_that_the_table_defines_is_kept(photos: Path, words: tuple[str, ...], counts: tuple[int, ...]) -> None:
    labelled = [[*row[:2], words[n % 3]] for n, row in enumerate(rows())]
    table = load_task_table(write(photos, labelled, "path,colour,split"))
    splits = split_table(table)["colour"]
    assert (len(splits.train), len(splits.val), len(splits.test)) == counts
    assert bool(splits.note) == (words == ("train", "val", "train"))


def refusal(table: Path) -> str:
    with pytest.raises(DataError) as error:
        split_table(load_task_table(table))
    return str(error.value)


def test_a_task_of_one_class(photos: Path) -> None:
    table = write(photos, [[row[0], row[1], "even" if row[2] else ""] for row in rows()])
    assert refusal(table) == "labels:parity has only the class 'even': a task needs at least two"


def test_a_task_without_any_label(photos: Path) -> None:
    assert "labels:parity has no images to train on" in refusal(write(photos, [[*row[:2], ""] for row in rows()]))


def test_a_task_without_labels_in_validation(photos: Path) -> None:
    split = [[row[0], row[1], row[2] if n % 3 else "", "train" if n % 3 else "val"] for n, row in enumerate(rows())]
    sentence = refusal(write(photos, split, "path,colour,parity,split"))
    assert sentence.startswith("the task 'parity' has no labels in the validation split; add labels, or say")


def test_a_class_that_the_draw_leaves_out(photos: Path) -> None:
    few = [[row[0], row[1], ("a", "b")[n] if n < 2 else ""] for n, row in enumerate(rows())]
    assert "the task 'parity' has no" in refusal(write(photos, few))


@pytest.mark.parametrize(
    ("header", "sentence"),
    [
        ("file,colour,parity", "the first line must be the header path,TASK,... with a column per task"),
        ("path,colour,colour", "has two columns 'colour'"),
        ("path,colour,", "has a column without a name"),
    ],
)
def test_a_header_that_is_none(photos: Path, header: str, sentence: str) -> None:
    assert sentence in refusal(write(photos, rows(), header))


def test_no_task_at_all(photos: Path) -> None:
    assert "has no column for a task" in refusal(write(photos, [["red/0.png"]], "path"))


def test_an_image_listed_twice(photos: Path) -> None:
    assert "are one file listed twice" in refusal(write(photos, [*rows(), rows()[0]]))


def test_files_that_do_not_exist(photos: Path) -> None:
    assert "names 1 files that do not exist: row 20" in refusal(write(photos, [*rows(), ["no.png", "red", "odd"]]))


def test_a_path_that_leaves_the_folder(photos: Path) -> None:
    assert "row 20: the path '../out.png' leaves the folder" in refusal(
        write(photos, [*rows(), ["../out.png", "red", "odd"]])
    )


def test_an_unreadable_image_is_skipped_for_all_its_tasks(photos: Path) -> None:
    (photos / "red" / "1.png").write_bytes(b"no image")
    table = load_task_table(write(photos, rows()))
    assert [len(data.skipped) for data in table.tasks.values()] == [1, 1]
    assert len(table.split_of) == 17
    (photos / "red" / "2.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"2 of 18 files in labels:colour cannot be used, more than 10%"):
        load_task_table(photos / "labels.csv")
