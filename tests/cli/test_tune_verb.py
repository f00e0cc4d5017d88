from __future__ import annotations

import csv
import importlib.util
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import SIZES, Outcome, Trained, refused, torchsnow

from torchsnow.hub import Hub
from torchsnow.train.loop import Loop

WORDS = (*SIZES, "--epochs", "2", "--trials", "2")


def tune(photos: Path, *words: str | Path) -> Outcome:
    return torchsnow("tune", photos, "--task", "new", *WORDS, *words)


def test_a_person_sees_the_trials_and_what_ships(photos: Path) -> None:
    outcome = tune(photos)
    assert outcome.code == 0, outcome
    head, *trials, verdict, result, probe, test, place = outcome.out.splitlines()[:8]
    assert " ".join(head.split()) == "trial state channels grid width epochs lr best epoch accuracy seconds"
    assert [line.split()[0] for line in trials] == ["0", "1"]
    assert re.fullmatch(r"no trial is better than the default by .*: the default ships|trial 1 is better .*", verdict)
    assert "validation images" in result
    assert "a linear head at the start" in probe
    assert test.startswith("test accuracy")
    assert "task 'new' is in the hub hub" in place
    assert "the run is in runs/new" in place
    assert "usable now: " in outcome.err
    assert "trial 0, the default: " in outcome.err
    with Path("runs/new/trials.csv").open() as file:
        assert [row["trial"] for row in csv.DictReader(file)] == ["0", "1"]
    # a study is a run like any other, and is not overwritten
    assert "holds a study already: resume it" in refused("tune", photos, "--out", "runs/new", *WORDS)
    again = torchsnow("train", photos, "--task", "other", "--out", "runs/new", *SIZES, "--epochs", "2")
    assert "holds a run already" in again.err


def test_a_stopped_study_goes_on(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = Loop._step

    def pressed(self: Loop, images: torch.Tensor, labels: torch.Tensor, number: int) -> torch.Tensor:
        if self.run.path.name == "1":
            raise KeyboardInterrupt
        return step(self, images, labels, number)

    with monkeypatch.context() as patched:
        patched.setattr(Loop, "_step", pressed)
        outcome = tune(photos)
    assert (outcome.code, outcome.out) == (130, "")
    *_, last = outcome.err.splitlines()
    told, _, command = last.partition("; to continue: ")
    assert "0 of 2 epochs are safe in runs/new/trials/1" in told
    assert Hub.open(Path("hub")).names() == ["new"]
    _, *words = shlex.split(command)
    document = torchsnow(*words, "--json").document
    assert [trial["state"] for trial in document["trials"]] == ["finished", "finished"]
    assert document["winner"] in (0, 1)
    assert (document["task"], document["run"], document["skipped_images"]) == ("new", "runs/new", 0)
    assert Hub.open(Path("hub")).info("new").metrics["test"]["accuracy"] == document["test_accuracy"]
    assert torchsnow("tune", photos, "--task", "next", "--hub", "other", *WORDS, "--resume").code == 2


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--method", "head"], "the method 'snow' with the preset default or small or large, not 'head'"),
        (["--preset", "paper"], "not 'snow' with 'paper'"),
        (["--store-mb", "0"], "give --store-mb more than 0"),
        (["--time", "soon"], "expected a time as in 90s, 10m or 1.5h"),
        (["--resume"], "there is no study to resume in runs/new"),
        (["--task", "colours"], "has a task 'colours' already"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_before_any_image(trained: Trained, words: list[str], sentence: str) -> None:
    assert sentence in refused("tune", trained.photos, "--task", "new", "--hub", trained.hub, *WORDS, *words)
    assert not Path("runs").exists()


def test_too_few_trials_are_a_wrong_usage(photos: Path) -> None:
    outcome = tune(photos, "--trials", "0")
    assert outcome.code == 2
    assert "greater than or equal to 1" in outcome.err


def test_who_lacks_optuna_is_told_what_to_install(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec

    def without(name: str, *rest: Any) -> Any:
        return None if name == "optuna" else find(name, *rest)

    monkeypatch.setattr(importlib.util, "find_spec", without)
    assert refused("tune", photos, *WORDS) == "tune needs Optuna: pip install 'torchsnow[tune]'"
