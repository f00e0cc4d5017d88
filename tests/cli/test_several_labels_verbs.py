"""The verbs on a task of which an image has any number of labels."""

from __future__ import annotations

import csv
from pathlib import Path

from command_line import TINY, torchsnow

from labelled_images import LABELS, labelled_images


def test_a_task_of_several_labels_from_training_to_pictures(tmp_path: Path) -> None:
    table, run = labelled_images(tmp_path / "photos"), tmp_path / "run"
    words = ("--task", "looks", "--hub", tmp_path / "hub")
    trained = torchsnow("train", table, "--multi-label", *words, "--out", run, *TINY, "--epochs", "1")
    assert trained.code == 0, trained.err
    assert "usable now: a mean average precision of" in trained.err
    assert "mean average precision" in trained.out
    splits = run / "splits.json"
    shown = torchsnow("evaluate", table, *words, "--splits", splits, "--csv", tmp_path / "images.csv")
    assert shown.code == 0
    assert "mean average precision" in shown.out
    with (tmp_path / "images.csv").open() as file:
        assert any("|" in row["class"] for row in csv.DictReader(file))
    answers = torchsnow("predict", table.with_name("7.png"), *words, "--csv", tmp_path / "answers.csv")
    assert answers.code == 0
    with (tmp_path / "answers.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert set(row["labels"].split("|")) == set(LABELS)
    shown = torchsnow("predict", table.with_name("7.png"), *words, "--explain", tmp_path / "heat")
    assert "labels" in shown.out
    assert f"1 heat map is in {tmp_path / 'heat'}" in shown.err
    assert [file.name for file in (tmp_path / "heat").iterdir()] == ["0001-7.looks.png"]
    refused = torchsnow("review", table, *words, "--out", tmp_path / "review")
    assert (refused.code, "images of the task 'looks' have any number of labels" in refused.err) == (2, True)
    suggested = torchsnow("suggest", table.parent, *words, "--count", "3", "--json")
    assert len(suggested.document["suggestions"]) == 3
    shown = torchsnow("visualize", *words, "--out", tmp_path / "seen", "--image", table.with_name("7.png"))
    assert shown.code == 0, shown.err
