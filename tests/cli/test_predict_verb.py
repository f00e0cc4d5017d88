from __future__ import annotations

import csv
import io
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from command_line import TINY, Trained, refused, torchsnow

from torchsnow.hub import Hub
from torchsnow.source import load_source


@pytest.fixture(scope="module")
def hub(pristine: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tasks: "colours" reads 32 pixels, "large" 48."""
    root = tmp_path_factory.mktemp("two")
    hub = Path(shutil.copytree(pristine.hub, root / "hub"))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("torchsnow.plots.draw_run", lambda run, metrics: [])
        words = ("--task", "large", "--hub", hub, "--out", root / "run", *TINY, "--epochs", "1", "--image-size", "48")
        assert torchsnow("train", pristine.photos, *words).code == 0
    return hub


@pytest.fixture
def images(pristine: Trained) -> Iterator[list[Path]]:
    return [pristine.photos / "red" / "1.png", pristine.photos / "blue" / "2.png"]


def test_every_task_says_something_of_every_image(hub: Path, images: list[Path]) -> None:
    outcome = torchsnow("predict", *images, "--hub", hub, "--json")
    assert (outcome.code, outcome.err) == (0, "")
    predictions = outcome.document["predictions"]
    assert outcome.document["errors"] == []
    assert [(p["image"], p["task"]) for p in predictions] == [
        (str(image), task) for image in images for task in ("colours", "large")
    ]
    for prediction in predictions:
        probabilities = prediction["probabilities"]
        assert set(probabilities) == {"red", "green", "blue"}
        assert sum(probabilities.values()) == pytest.approx(1, abs=1e-5)
        assert list(probabilities.values()) == sorted(probabilities.values(), reverse=True)
        assert prediction["label"] == next(iter(probabilities))


def test_only_the_named_tasks_answer_and_alone_as_together(hub: Path, images: list[Path]) -> None:
    everything = torchsnow("predict", images[0], "--hub", hub, "--json").document["predictions"]
    one = torchsnow("predict", images[0], "--hub", hub, "--task", "large", "--json").document["predictions"]
    assert one == everything[1:]
    both = torchsnow("predict", images[0], "--hub", hub, "--task", "large", "--task", "colours", "--json").document
    assert sorted(p["task"] for p in both["predictions"]) == ["colours", "large"]


def test_a_person_gets_a_table(hub: Path, images: list[Path]) -> None:
    outcome = torchsnow("predict", *images, "--hub", hub)
    assert (outcome.code, outcome.err) == (0, "")
    head, *rows = outcome.out.splitlines()
    assert head.split() == ["image", "task", "class", "probability"]  # the unknown scores are not known here
    assert [row.split()[:2] for row in rows] == [[str(i), task] for i in images for task in ("colours", "large")]
    assert all(row.split()[3].endswith("%") for row in rows)


@pytest.mark.parametrize("words", [[], ["--json"]], ids=["text", "json"])
def test_bad_images_are_named_and_the_good_ones_answered(
    hub: Path, images: list[Path], tmp_path: Path, words: list[str]
) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "bare").mkdir()
    bad = [tmp_path / "bare", tmp_path / "empty.png", tmp_path / "gone.png"]
    outcome = torchsnow("predict", bad[0], images[0], *bad[1:], images[1], "--hub", hub, *words)
    assert outcome.code == 2
    folder, empty, gone = outcome.err.splitlines()
    assert folder == f"torchsnow: the folder {bad[0]} holds no images"
    assert empty == f"torchsnow: cannot read the image {bad[1]}: the file is empty"
    assert gone == f"torchsnow: cannot read the image {bad[2]}: there is no such file"
    if words:
        assert [p["image"] for p in outcome.document["predictions"]] == [str(i) for i in images for _ in range(2)]
        assert [error["image"] for error in outcome.document["errors"]] == [str(path) for path in bad]
    else:
        assert len(outcome.out.splitlines()) == 5


def test_only_bad_images(hub: Path) -> None:
    outcome = torchsnow("predict", "gone.png", "--hub", hub)
    assert (outcome.code, outcome.out) == (2, "")


def test_odd_file_names_are_shown_as_they_are(hub: Path, images: list[Path]) -> None:
    names = ["[red]x.png", ":smile:.png", os.fsdecode(b"\xff.png"), "--json.png"]
    for name in names:
        shutil.copy(images[0], name)
    outcome = torchsnow("predict", "--hub", hub, "--task", "colours", "--", *names)
    assert outcome.code == 0
    assert [row.split()[0] for row in outcome.out.splitlines()[1:]] == [*names[:2], "\\udcff.png", names[3]]
    document = torchsnow("predict", "--hub", hub, "--task", "colours", "--json", "--", *names).document
    assert [p["image"] for p in document["predictions"]] == names


def test_a_list_that_ends_within_a_letter_is_refused(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\xff\xfea")))
    assert "stdin begins as UTF-16" in refused("predict", "-", "--hub", hub)


def test_a_place_for_heat_maps_is_tried_before_the_work(hub: Path, images: list[Path]) -> None:
    outcome = torchsnow("predict", *images, "--hub", hub, "--explain", images[0] / "heat")
    assert (outcome.code, outcome.out) == (2, "")
    assert "a part of this path is a file" in outcome.err


def test_what_cannot_be_predicted(hub: Path, images: list[Path], tmp_path: Path) -> None:
    assert "has no task 'larg'; did you mean large?" in refused("predict", *images, "--hub", hub, "--task", "larg")
    assert "is not a hub" in refused("predict", *images, "--hub", tmp_path)
    assert "hub is not a hub" in refused("predict", *images)
    Hub.create(tmp_path / "bare", load_source("test_resnet", weights="random"))
    assert "bare has no tasks yet" in refused("predict", *images, "--hub", tmp_path / "bare", "--json")
    assert "bare has no task 'a'; it has no tasks yet" in refused(
        "predict", *images, "--hub", tmp_path / "bare", "--task", "a"
    )


def test_a_damaged_task_is_named_and_the_others_answer(hub: Path, images: list[Path], tmp_path: Path) -> None:
    damaged = Path(shutil.copytree(hub, tmp_path / "hub"))
    for file in (damaged / "tasks" / "large").iterdir():
        file.unlink()
    outcome = torchsnow("predict", images[0], "--hub", damaged, "--json")
    assert outcome.code == 2
    assert [prediction["task"] for prediction in outcome.document["predictions"]] == ["colours"]
    assert "large" in outcome.err
    assert torchsnow("predict", images[0], "--hub", damaged, "--task", "large").code == 2


def labels_of(document: dict[str, Any]) -> dict[str, str]:
    return {prediction["image"]: prediction["label"] for prediction in document["predictions"]}


def test_a_folder_a_pattern_and_a_list_name_the_same_images(
    hub: Path, pristine: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("--hub", hub, "--task", "colours", "--json")
    of_folder = torchsnow("predict", pristine.photos, *words).document
    assert [Path(one["image"]).name for one in of_folder["predictions"][:3]] == ["0.png", "1.png", "2.png"]
    assert len(of_folder["predictions"]) == 30
    of_pattern = torchsnow("predict", f"{pristine.photos}/*/[0-9].png", *words).document
    assert labels_of(of_pattern) == labels_of(of_folder)
    lines = "\r\n".join(labels_of(of_folder)) + "\r\n\n"
    zeros = "\0".join(labels_of(of_folder)) + "\0"
    for content in (lines.encode(), lines.encode("utf-8-sig"), lines.encode("utf-16"), zeros.encode()):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))
        assert torchsnow("predict", "-", *words).document == of_folder


def test_a_list_of_nothing_is_said(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO()))
    outcome = torchsnow("predict", "-", "--hub", hub)
    assert (outcome.code, outcome.out, outcome.err) == (0, "", "torchsnow: no images were named on stdin\n")


def test_an_image_that_is_named_twice_is_answered_once(hub: Path, images: list[Path]) -> None:
    document = torchsnow("predict", images[0], images[0].parent, "--hub", hub, "--task", "large", "--json").document
    assert len(document["predictions"]) == 10


def test_nothing_fits_a_pattern(hub: Path) -> None:
    outcome = torchsnow("predict", "*.jpg", "--hub", hub)
    assert (outcome.code, outcome.out, outcome.err) == (2, "", "torchsnow: no file fits the pattern *.jpg\n")


def test_tables_and_lines_of_json_are_written(hub: Path, images: list[Path], tmp_path: Path) -> None:
    table, lines = tmp_path / "out.csv", tmp_path / "out.jsonl"
    words = ("predict", *images, "gone.png", "--hub", hub, "--csv", table, "--jsonl", lines, "--top", "2")
    outcome = torchsnow(*words)
    assert (outcome.code, outcome.out) == (2, f"4 answers are in {table} and {lines}\n")
    assert "gone.png" in outcome.err
    rows = list(csv.DictReader(table.read_text().splitlines()))
    documents = [json.loads(line) for line in lines.read_text().splitlines()]
    assert list(rows[0]) == [
        "image",
        "task",
        "class",
        "probability",
        "class_2",
        "probability_2",
        "unknown_score",
        "labels",
    ]
    assert len(rows) == len(documents) == 4
    for row, document in zip(rows, documents, strict=True):
        assert (row["image"], row["task"], row["class"]) == (document["image"], document["task"], document["label"])
        assert [row["class"], row["class_2"]] == list(document["probabilities"])
        assert float(row["probability_2"]) == pytest.approx(document["probabilities"][row["class_2"]], abs=1e-6)


def test_more_classes_than_a_task_has(hub: Path, images: list[Path]) -> None:
    outcome = torchsnow("predict", images[0], "--hub", hub, "--task", "large", "--top", "5")
    assert outcome.code == 0
    assert outcome.out.splitlines()[0].split()[-2:] == ["class_5", "probability_5"]


def test_a_folder_for_heat_maps_that_will_not_do_is_refused_first(
    hub: Path, images: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    below_a_file = tmp_path / "file" / "heat"
    assert "cannot write into" in refused("predict", *images, "--hub", hub, "--explain", below_a_file)
    inside = images[0].parent / "heat"  # which the next look at the folder would take for images
    told = refused("predict", images[0].parent, "--hub", hub, "--explain", inside)
    assert told.endswith("taken for data next time: choose another --explain")
    assert not inside.exists()


def test_a_table_that_cannot_be_written_is_refused_first(hub: Path, images: list[Path], tmp_path: Path) -> None:
    assert "it is a folder" in refused("predict", *images, "--hub", hub, "--csv", tmp_path)
    assert "are both" in refused("predict", *images, "--hub", hub, "--csv", tmp_path / "a", "--jsonl", tmp_path / "a")
    assert "there is no folder" in refused("predict", *images, "--hub", hub, "--jsonl", tmp_path / "no" / "x.jsonl")
    os.mkfifo(tmp_path / "pipe")
    assert "a device or a pipe; name a file" in refused("predict", *images, "--hub", hub, "--csv", tmp_path / "pipe")
