from __future__ import annotations

import csv
import os
import re
from pathlib import Path
from typing import Any

import pytest
from command_line import refused, snapshot, torchsnow

from torchsnow.errors import ExperimentError
from torchsnow.experiments import compare as compare_module
from torchsnow.io.lock import FolderLock


@pytest.fixture(autouse=True)
def _no_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    """Costs are measured in processes of their own, which takes long."""
    monkeypatch.setattr(compare_module, "measure_costs", lambda *args: [])


@pytest.fixture
def experiment(tmp_path: Path, photos: Path) -> Path:
    file = tmp_path / "tiny.yaml"
    file.write_text(
        f"data: [{photos}]\nmethods: [head, snow]\nsources: [test_resnet]\nweights: random\nseeds: [0, 1]\n"
        "epochs: 1\nimage_size: 32\nbatch_size: 8\nlr_tries: 1\ndevice: cpu\n"
    )
    return file


def test_a_comparison_is_shown_and_stored(experiment: Path, tmp_path: Path) -> None:
    outcome = torchsnow("compare", "--experiment", experiment, "--out", tmp_path / "out")
    assert outcome.code == 0, outcome
    assert "±" in outcome.out
    assert "4 cells are in" in outcome.out
    assert "4 cells to do (2 methods, 1 data sets, 1 sources, 2 seeds) in 4 trainings" in outcome.err
    with (tmp_path / "out" / "results.csv").open(newline="") as file:
        assert [row["method"] for row in csv.DictReader(file)] == ["head", "snow", "head", "snow"]
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "cells").iterdir()}
    again = torchsnow("compare", "--experiment", experiment, "--out", tmp_path / "out", "--json")
    assert (again.code, again.err) == (0, "")
    assert len(again.document["cells"]) == 4
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.parametrize("retry", [(), ("--retry-failed",)])
def test_a_folder_of_another_process_is_refused(experiment: Path, tmp_path: Path, retry: tuple[str, ...]) -> None:
    with FolderLock(tmp_path / "out", ExperimentError).held():
        before = snapshot(tmp_path / "out")
        sentence = refused("compare", "--experiment", experiment, "--out", tmp_path / "out", *retry)
        assert snapshot(tmp_path / "out") == before
    assert f"out is in use by process {os.getpid()} on" in sentence


def test_data_and_options_describe_an_experiment(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(compare_module.Comparison, "run", lambda self, *rest: seen.append(self.experiment))
    monkeypatch.setattr(compare_module.Comparison, "finish", lambda self, say: (_ for _ in ()).throw(SystemExit(0)))
    options = ["--seeds", "2", "--epochs", "4", "--image-size", "32", "--lr-tries", "1", "--train-images", "9"]
    torchsnow("compare", photos, "elpv", "--methods", "full, snow:paper", *options, "--out", tmp_path / "out")
    (experiment,) = seen
    assert experiment.data == (str(photos), "elpv")
    assert experiment.methods == ("full", "snow:paper")
    assert experiment.seeds == (0, 1)
    assert (experiment.epochs, experiment.image_size, experiment.lr_tries) == (4, 32, 1)
    assert (experiment.train_images, experiment.test_images) == (9, None)


def test_the_paper_may_be_trimmed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(compare_module.Comparison, "run", lambda self, *rest: seen.append(self.experiment))
    monkeypatch.setattr(compare_module.Comparison, "finish", lambda self, say: (_ for _ in ()).throw(SystemExit(0)))
    options = ["--seeds", "1", "--epochs", "2", "--methods", "full:probe,snow", "--num-workers", "3", "--amp"]
    torchsnow("compare", "dtd", "--paper", *options, "--image-cache-mb", "5", "--out", tmp_path / "out", "--json")
    (experiment,) = seen
    assert (experiment.data, experiment.seeds, experiment.epochs) == (("dtd",), (0,), 2)
    assert (experiment.methods, experiment.sources) == (("full:probe", "snow"), ("resnet50.tv_in1k",))
    assert (experiment.num_workers, experiment.image_cache_bytes, experiment.amp) == (3, 5_000_000, True)
    settings = experiment.settings("dtd", 1.0, 0)
    assert (settings.num_workers, settings.amp, settings.optimizer) == (3, True, "adamw")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "name at least one data set, or --experiment FILE, --paper or --smoke"),
        (["--paper", "--smoke"], "--paper and --smoke contradict each other"),
        (["--smoke", "--epochs", "0"], "epochs is 0; expected a whole number of 1 or more"),
        (["--paper", "--optimizer", "adam"], "optimizer is 'adam'; expected one of adamw, sgd"),
        (["elpv", "--image-cache-mb", "-1"], "image_cache_bytes is -1000000; expected a whole number of 0 or more"),
        (["elpv", "--precision", "fp8"], "precision is 'fp8'; expected one of fp32, bf16"),
        (["elpv", "--shard", "3/2"], "the shard is 3/2; expected I/N with I from 1 to N"),
        (["elpv", "--shard", "1"], "--shard is '1'; expected I/N, such as 1/4"),
        (["elpv", "--shard", "1/2", "--merge"], "--shard and --merge contradict each other"),
        (["--experiment", "missing.yaml"], "cannot read the experiment missing.yaml: no such file"),
        (["elpv", "--methods", "rain:x"], "there is no method 'rain'"),
        (["elpv", "--methods", "snow:wet"], "'snow' has no preset 'wet'"),
        (["elpv", "--methods", ","], "methods is empty"),
        (["elpv", "--seeds", "0"], "seeds is empty"),
        (["elpv", "elpv"], "data lists something twice"),
        (["elpv", "--device", "gpu"], "device is 'gpu'"),
        (["nosuch", "--methods", "head"], "no finished training.*the data 'nosuch' does not exist"),
        (["elpv", "--methods", "head", "--source", "resnet5o"], "no finished training.*timm has no model 'resnet5o'"),
    ],
)
def test_bad_input_is_one_sentence(words: list[str], message: str) -> None:
    outcome = torchsnow("compare", *words, "--json")
    assert outcome.code == 2, outcome
    last = outcome.err.strip().splitlines()[-1]
    assert last.startswith("torchsnow: ")
    assert re.search(message, last), last


def test_nothing_is_written_among_the_images(tmp_path: Path) -> None:
    assert "lies inside the data" in refused("compare", tmp_path, "--out", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_results_of_another_budget_are_left_aside(experiment: Path, tmp_path: Path) -> None:
    assert torchsnow("compare", "--experiment", experiment, "--out", tmp_path / "out").code == 0
    experiment.write_text(experiment.read_text().replace("epochs: 1", "epochs: 2"))
    outcome = torchsnow("compare", "--experiment", experiment, "--out", tmp_path / "out", "--json")
    assert outcome.code == 0, outcome
    assert "4 other cells in" in outcome.err
    assert {cell["history"][-1]["epoch"] for cell in outcome.document["cells"]} == {2}


def test_shards_are_merged(experiment: Path, tmp_path: Path) -> None:
    words = ["compare", "--experiment", experiment, "--out", tmp_path / "out"]
    first = torchsnow(*words, "--shard", "1/2")
    assert "2 cells of shard 1/2 are done" in first.out
    half = torchsnow(*words, "--merge")
    assert half.code == 2
    assert "2 of 4 cells are missing, such as snow on" in half.err
    assert torchsnow(*words, "--shard", "2/2").code == 0
    whole = torchsnow(*words, "--merge", "--json")
    assert whole.code == 0, whole
    assert len(whole.document["cells"]) == 4


def test_half_written_cells_are_named(experiment: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert torchsnow("compare", "--experiment", experiment, "--out", out).code == 0
    damaged = sorted((out / "cells").iterdir())[0]
    damaged.write_text("{")
    outcome = torchsnow("compare", "--experiment", experiment, "--out", out)
    assert outcome.code == 2
    assert damaged.name in outcome.err
    damaged.unlink()
    assert torchsnow("compare", "--experiment", experiment, "--out", out).code == 0


def test_a_stop_says_how_to_go_on(experiment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(compare_module, "run_cell", stop)
    outcome = torchsnow("compare", "--experiment", experiment, "--out", tmp_path / "out")
    assert outcome.code == 130
    assert "0 of 4 cells are kept; the same command continues" in outcome.err


@pytest.mark.slow
def test_the_smoke_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    outcome = torchsnow("compare", "--smoke", "--out", tmp_path / "smoke", "--json")
    assert outcome.code == 0, outcome
    assert len(outcome.document["cells"]) == 10
    assert len(outcome.document["costs"]) == 5
    assert not outcome.document["failed"]
