from __future__ import annotations

import copy
import csv
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from synthetic_results import cell, cost, results, scores, sweep, whole_comparison

from torchsnow.errors import ExperimentError
from torchsnow.report.results import Results
from torchsnow.report.tables import write_cells


def test_saved_results_load_as_they_were(tmp_path: Path) -> None:
    for made in (whole_comparison(), sweep()):
        made.save(tmp_path / "results.json")
        assert Results.load(tmp_path / "results.json") == Results.from_dict(made.to_dict())
        assert Results.load(tmp_path / "results.json").cells == made.cells
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


def test_file_has_the_keys_of_the_schema() -> None:
    values = whole_comparison().to_dict()
    assert set(values) == {
        *("schema", "name", "made", "experiment", "versions", "machine", "cells", "failed", "costs"),
    }
    assert values["schema"] == 2
    assert values["cells"][0]["test"].keys() == {
        *("accuracy", "balanced_accuracy", "calibration_error", "loss", "top5"),
    }
    assert values["cells"][0]["tries"][0].keys() == {"lr", "val_accuracy"}


def changed(path: str, value: Any) -> dict[str, Any]:
    """Values of good results with one of them replaced: "cells.0.lr"."""
    values = copy.deepcopy(results([cell()], costs=(cost(),)).to_dict())
    *way, last = path.split(".")
    inner: Any = values
    for key in way:
        inner = inner[int(key)] if key.isdigit() else inner[key]
    inner[last] = value
    return values


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("schema", 3, "its schema is 3, this torchsnow reads 2"),
        ("schema", 1, "its schema is 1, this torchsnow reads 2"),
        ("schema", None, "does not say its schema"),
        ("cells", {}, r"results\.cells is {}; expected a list"),
        ("cells.0.lr", "fast", r'results\.cells\[0\]\.lr is "fast"; expected a number'),
        ("cells.0.lr", 0, r"results\.cells\[0\]\.lr is 0; expected more than 0"),
        ("cells.0.seed", 1.5, r"results\.cells\[0\]\.seed is 1\.5; expected a whole number"),
        ("cells.0.test.accuracy", 82.1, r"test\.accuracy is 82\.1; expected a share from 0 to 1"),
        ("cells.0.test.top5", "all", r"test\.top5 is \"all\"; expected a number"),
        ("cells.0.stored_bytes", -1, "stored_bytes is -1; expected 0 or more"),
        ("cells.0.variant", {"width_divisor": [4]}, r"variant\.width_divisor is \[4\]"),
        ("cells.0.extra", 1, r"results\.cells\[0\] has an unknown key \"extra\""),
        ("cells.0.shipped.source_multiply_adds", 0, r"shipped\.source_multiply_adds is 0; expected more than 0"),
        ("cells.0.shipped.body_weight", "x", r"shipped\.body_weight is \"x\"; expected a number"),
        ("failed", [{"source": "bundled"}], r"results\.failed\[0\] lacks 'data'"),
    ],
)
def test_wrong_values_are_named(tmp_path: Path, path: str, value: Any, message: str) -> None:
    file = tmp_path / "results.json"
    file.write_text(json.dumps(changed(path, value)))
    with pytest.raises(ExperimentError, match=message) as caught:
        Results.load(file)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("path", ["cells.0.val.loss", "experiment.lr", "costs.0.step_s", "cells.0.variant.sigma"])
def test_numbers_are_finite(tmp_path: Path, path: str, number: float) -> None:
    file = tmp_path / "results.json"
    file.write_text(json.dumps(changed(path, number)))
    with pytest.raises(ExperimentError, match=r"is -?(nan|inf); expected a finite number"):
        Results.load(file)


def test_what_cannot_be_loaded_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(ExperimentError, match=r"results\.cells\[0\]\.test\.loss is nan"):
        results([cell(test=replace(scores(0.8), loss=math.nan))]).save(tmp_path / "results.json")
    assert not list(tmp_path.iterdir())


def test_settings_may_have_any_name() -> None:
    made = results([cell(variant={"accuracy": -3.0})], experiment={"lr": -1, "accuracy": {"a": [2]}})
    assert Results.from_dict(made.to_dict()).cells[0].variant == {"accuracy": -3.0}


def test_measures_of_a_step_may_be_missing() -> None:
    missing = replace(cost(), step_s=None, step_over_full=None, peak_bytes=None, peak_over_full=None)
    assert Results.from_dict(results([cell()], costs=(missing,)).to_dict()).costs == (missing,)


def test_half_a_file_is_one_sentence(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    whole_comparison().save(file)
    content = file.read_bytes()
    for damaged in (b"", content[: len(content) // 2], b"\xff\xfe", b"[" * 100_000):
        file.write_bytes(damaged)
        with pytest.raises(ExperimentError, match="damaged or only half written"):
            Results.load(file)


def test_missing_file_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ExperimentError, match=r"cannot read .*: no such file"):
        Results.load(tmp_path / "results.json")


def test_a_cell_is_there_once() -> None:
    with pytest.raises(ExperimentError, match=r"results\.cells\[2\] is there twice"):
        Results.from_dict(results([cell(), cell(seed=1), cell()]).to_dict())
    Results.from_dict(results([cell(), cell(variant={"sigma": 0.1})]).to_dict())


def test_table_has_a_row_per_cell_and_flat_columns(tmp_path: Path) -> None:
    made = results([cell(accuracy=0.75), cell(seed=1, variant={"train_share": 0.1}, note="one, two\nthree")])
    write_cells(made, tmp_path / "results.csv")
    with (tmp_path / "results.csv").open(newline="") as file:
        first, second = csv.DictReader(file)
    assert (first["method"], first["test.accuracy"], first["variant.train_share"], first["test.top5"]) == (
        *("snow", "0.75", "", ""),
    )
    assert (second["seed"], second["variant.train_share"], second["note"]) == ("1", "0.1", "one, two\nthree")
    assert (first["shipped.body_weight"], first["shipped.probe_weight"]) == ("1.0", "0.0")
    assert "tries" not in first
    assert "history" not in first


def test_table_of_nothing_has_its_columns(tmp_path: Path) -> None:
    write_cells(results(), tmp_path / "results.csv")
    assert (tmp_path / "results.csv").read_text().startswith("source,data,method,seed,")
