from __future__ import annotations

import csv
from pathlib import Path

import pytest
import yaml

from torchsnow.errors import TrainingError
from torchsnow.train import RunFolder, TrainSettings
from torchsnow.train.history import Epoch


def test_tables(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "deep" / "run")
    run.create({"method": {"name": "snow"}, "classes": ["Köln"]})
    assert yaml.safe_load(run.args.read_text(encoding="utf-8")) == {"method": {"name": "snow"}, "classes": ["Köln"]}
    run.write_tables([], [])
    rows = [Epoch(epoch, 0.1, 0.2, 0.3, 1 / 3, 1e-3, 10.0, 1.0) for epoch in (1, 2)]
    run.write_tables(rows, [])
    assert not run.selection.exists()
    with run.results.open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["epoch"] for row in table] == ["1", "2"]
    assert float(table[0]["val_accuracy"]) == 1 / 3


def test_log_has_one_line_each(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.log("first")
    run.log("second")
    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert [line.split(" ", 2)[2] for line in lines] == ["first", "second"]


def test_run_is_never_overwritten(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.last.touch()
    with pytest.raises(TrainingError, match="holds a run already: resume it, or choose another folder"):
        run.create({})


def test_a_run_has_one_owner(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    run.validate_unowned()
    with run.owned(), run.owned():
        run.validate_unowned()
        for attempt in (RunFolder(run.path).owned().__enter__, RunFolder(run.path).validate_unowned):
            with pytest.raises(TrainingError, match=r"run is in use by process \d+ on .*; wait until that is done"):
                attempt()
    RunFolder(run.path).validate_unowned()


def test_a_cleared_run_is_still_owned(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    with run.owned():
        run.last.touch()
        (run.path / "more").mkdir()
        (run.path / "more" / "file").touch()
        run.clear()
        assert {path.name for path in run.path.iterdir()} == {".lock", ".owner.json"}
        with pytest.raises(TrainingError, match="is in use"):
            RunFolder(run.path).validate_unowned()


def test_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(TrainingError, match="cannot create the run folder"):
        RunFolder(tmp_path / "file" / "run").create({})


def test_settings_are_read_as_they_were_written(tmp_path: Path) -> None:
    run, settings = RunFolder(tmp_path), TrainSettings(epochs=7, lr=1e-3)
    with pytest.raises(TrainingError, match="there is no run to resume in"):
        run.read_settings()
    run.create({"training": settings.to_dict()})
    assert run.read_settings() == (settings, {})
    run.create({"training": settings.to_dict(), "chosen": {"lr": "because"}})
    assert run.read_settings() == (settings, {"lr": "because"})


@pytest.mark.parametrize("text", ["", "a: [", "training: 3", "training: {lr: 1}", "- 1", "\udcff"])
def test_damaged_settings_are_one_sentence(tmp_path: Path, text: str) -> None:
    run = RunFolder(tmp_path)
    run.args.write_text(text, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(TrainingError, match=r"args\.yaml is damaged|settings differ"):
        run.read_settings()


def test_a_log_takes_names_that_are_not_utf_8(tmp_path: Path) -> None:
    RunFolder(tmp_path).log("caf\udce9.png")
    assert (tmp_path / "log.txt").read_text(encoding="utf-8").endswith(" caf\\udce9.png\n")
