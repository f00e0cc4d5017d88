from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import TINY, Trained, refused, torchsnow
from PIL import Image

from sample_photos import make_photos
from torchsnow.cli.evaluate import _show
from torchsnow.train.evaluate import metrics_of


def test_the_test_split_of_the_run_gives_what_train_printed(pristine: Trained) -> None:
    words = ("evaluate", pristine.photos, "--hub", pristine.hub, "--task", "colours", "--json")
    outcome = torchsnow(*words, "--splits", pristine.run / "splits.json", "--split", "test")
    assert (outcome.code, outcome.err) == (0, "")
    document = outcome.document
    assert document["accuracy"] == pristine.printed["test_accuracy"]
    assert (document["split"], document["num_images"], document["task"]) == ("test", 6, "colours")
    assert torchsnow(*words, "--splits", pristine.run / "splits.json").document == document


@pytest.mark.parametrize(("split", "num_images"), [("all", 30), ("train", 18), ("val", 6)])
def test_the_other_splits(pristine: Trained, split: str, num_images: int) -> None:
    words = ("--splits", pristine.run / "splits.json", "--split", split, "--json")
    outcome = torchsnow("evaluate", pristine.photos, "--hub", pristine.hub, "--task", "colours", *words)
    assert outcome.document["num_images"] == num_images


def test_a_person_gets_tables_and_the_accuracy_on_stdout(pristine: Trained) -> None:
    outcome = torchsnow("evaluate", pristine.photos, "--hub", pristine.hub, "--task", "colours")
    assert (outcome.code, outcome.err) == (0, "")
    lines = outcome.out.splitlines()
    assert lines[0].split() == ["class", "images", "precision", "recall", "F1"]
    assert [line.split()[:2] for line in lines[1:4]] == [["blue", "10"], ["green", "10"], ["red", "10"]]
    assert lines[4].split() == ["true", "\\", "taken", "for", "blue", "green", "red"]
    assert lines[-1].startswith("accuracy ")
    assert lines[-1].endswith("on 30 images")


def test_a_table_has_a_row_per_image(pristine: Trained, tmp_path: Path) -> None:
    words = ("evaluate", pristine.photos, "--hub", pristine.hub, "--task", "colours", "--json")
    document = torchsnow(*words, "--csv", tmp_path / "images.csv").document
    rows = list(csv.DictReader((tmp_path / "images.csv").read_text().splitlines()))
    assert [row["image"] for row in rows[:2]] == ["blue/0.png", "blue/1.png"]
    assert len(rows) == document["num_images"]
    assert sum(row["is_right"] == "True" for row in rows) / len(rows) == pytest.approx(document["accuracy"])
    for row in rows:
        assert (row["class"] == row["taken_for"]) == (row["is_right"] == "True")
        assert 0 <= float(row["probability_of_class"]) <= float(row["probability"]) <= 1
    assert "there is no folder" in refused(*words, "--csv", tmp_path / "none" / "images.csv")


def test_very_many_classes_are_a_few_rows(capsys: pytest.CaptureFixture[str]) -> None:
    labels = torch.arange(300)
    logits = torch.eye(10_000)[torch.where(labels < 290, labels, 0)]  # the last ten are taken for the first
    _show(metrics_of(logits, labels, [f"class-{i}" for i in range(10_000)]))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "the 20 of 10000 classes with the lowest F1; --json has all"
    assert [line.split()[0] for line in lines[2:12]] == [f"class-{i}" for i in range(290, 300)]
    assert lines[22] == "the most frequent mistakes; --json has all"
    assert lines[24].split() == ["class-290", "class-0", "1"]
    assert len(lines) == 1 + 21 + 1 + 11 + 1


def test_classes_are_matched_by_name(pristine: Trained, tmp_path: Path) -> None:
    whole = torchsnow("evaluate", pristine.photos, "--hub", pristine.hub, "--task", "colours", "--json").document
    for name in ("red", "green"):
        shutil.copytree(pristine.photos / name, tmp_path / "two" / name)
    two = torchsnow("evaluate", tmp_path / "two", "--hub", pristine.hub, "--task", "colours", "--json").document
    assert two["confusion"] == [[0, 0, 0], *whole["confusion"][1:]]


def test_a_class_that_the_task_does_not_know_is_refused(pristine: Trained, tmp_path: Path) -> None:
    make_photos(tmp_path / "more")
    (tmp_path / "more" / "red").rename(tmp_path / "more" / "violet")
    sentence = refused("evaluate", tmp_path / "more", "--hub", pristine.hub, "--task", "colours")
    assert "more has the class 'violet', which task 'colours' does not know" in sentence
    assert "blue, green, red" in sentence


def test_one_class_and_a_test_split_alone_can_be_evaluated(pristine: Trained, tmp_path: Path) -> None:
    def measured(data: Path, *more: str) -> dict[str, Any]:
        found: dict[str, Any] = torchsnow(
            "evaluate", data, "--hub", pristine.hub, "--task", "colours", "--json", *more
        ).document
        return found

    shutil.copytree(pristine.photos / "red", tmp_path / "one" / "red")
    one = measured(tmp_path / "one")
    assert [row["num_images"] for row in one["per_class"]] == [0, 0, one["num_images"]]
    shutil.copytree(pristine.photos / "red", tmp_path / "split" / "test" / "red")
    assert measured(tmp_path / "split", "--split", "test")["num_images"] == one["num_images"]
    images = sorted((tmp_path / "one" / "red").iterdir())
    table = tmp_path / "one" / "t.csv"
    table.write_text("file,class,set\n" + "".join(f"red/{path.name},red,test\n" for path in images))
    columns = ("--path-column", "file", "--label-column", "class")
    assert measured(table, *columns)["num_images"] == one["num_images"]


def test_a_class_that_is_spelled_otherwise_is_a_question(pristine: Trained, tmp_path: Path) -> None:
    shutil.copytree(pristine.photos / "red", tmp_path / "one" / "Red")
    sentence = refused("evaluate", tmp_path / "one", "--hub", pristine.hub, "--task", "colours")
    assert "the class 'Red', which task 'colours' does not know (is it 'red'? Then rename it)" in sentence


def test_what_cannot_be_evaluated(pristine: Trained, tmp_path: Path) -> None:
    def words(*more: str | Path, task: str = "colours") -> tuple[str | Path, ...]:
        return "evaluate", pristine.photos, "--hub", pristine.hub, "--task", task, *more

    assert "did you mean colours?" in refused(*words(task="colour"))
    assert "is not a hub" in refused("evaluate", pristine.photos, "--hub", tmp_path, "--task", "colours")
    assert "photos has no split 'test'; it has: all" in refused(*words("--split", "test"))
    assert "has no split 'exam'; it has: all, train, val, test" in refused(
        *words("--split", "exam", "--splits", pristine.run / "splits.json")
    )
    assert "there is no splits file gone.json" in refused(*words("--splits", Path("gone.json")))
    assert "device is 'tpu'; expected one of auto, cpu, cuda" in refused(*words("--device", "tpu"))
    assert "'nowhere' does not exist" in refused("evaluate", "nowhere", "--hub", pristine.hub, "--task", "colours")


def test_data_that_has_changed_since_the_run_is_refused(pristine: Trained, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    shutil.copytree(pristine.photos, photos)
    (photos / "red" / "3.png").unlink()
    words = ("--hub", pristine.hub, "--task", "colours", "--splits", pristine.run / "splits.json")
    sentence = refused("evaluate", photos, *words)
    assert "photos changed since" in sentence
    assert "red/3.png" in sentence


def test_only_a_training_without_a_range_of_greys_is_advised_to_give_one(tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos", num_images=8)
    for file in photos.glob("*/*.png"):
        with Image.open(file) as image:
            Image.fromarray(np.asarray(image)[..., 0].astype(np.uint16) * 16).save(file)
    words = ("--task", "grey", "--hub", tmp_path / "hub")
    trained = torchsnow("train", photos, *words, *TINY, "--epochs", "1", "--grey-range", "0", "4095")
    evaluated = torchsnow("evaluate", photos, *words)
    assert (trained.code, evaluated.code) == (0, 0)
    assert "--grey-range" not in trained.err + evaluated.err
    other = torchsnow("train", photos, "--task", "other", "--hub", tmp_path / "hub", *TINY, "--epochs", "1")
    assert "24 grey images of 16 bits" in other.err
    assert "(--grey-range" in other.err
