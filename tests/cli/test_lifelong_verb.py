from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from command_line import SIZES, refused, snapshot, torchsnow

from sample_photos import make_photos
from torchsnow.errors import ExperimentError
from torchsnow.experiments import lifelong_learners
from torchsnow.io.lock import FolderLock

TINY = (*SIZES, "--epochs", "1")


def test_a_sequence_is_shown_stored_and_not_done_again(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = make_photos(tmp_path / "other", classes=("blue", "red"))
    out = tmp_path / "out"
    outcome = torchsnow("lifelong", photos, other, "--out", out, *TINY)
    assert outcome.code == 0, outcome
    assert "task 2 of 2: 02-other" in outcome.err
    assert "average accuracy at the end" in outcome.out
    assert "2 tasks are in the hub" in outcome.out
    assert {path.name for path in out.iterdir()} == {
        *("hub", "runs", "steps", "settings.yaml", "results.json", "report.html", "lifelong.png"),
        *("matrix-snow.csv", "matrix-sequential.csv", ".lock"),
    }
    assert torchsnow("hub", "verify", "--hub", out / "hub").code == 0

    def trained(*args: Any, **options: Any) -> None:
        raise AssertionError("a finished task was trained again")

    monkeypatch.setattr(lifelong_learners, "fit", trained)
    again = torchsnow("lifelong", photos, other, "--out", out, *TINY, "--json")
    assert (again.code, again.err) == (0, "")
    assert [task["name"] for task in again.document["tasks"]] == ["01-photos", "02-other"]
    assert again.document["learners"]["snow"]["forgetting"] == 0


def test_a_folder_of_another_process_is_refused(photos: Path, tmp_path: Path) -> None:
    with FolderLock(tmp_path / "out", ExperimentError).held():
        before = snapshot(tmp_path / "out")
        sentence = refused("lifelong", photos, "--out", tmp_path / "out", *TINY)
        assert snapshot(tmp_path / "out") == before
    assert f"out is in use by process {os.getpid()} on" in sentence


def test_a_stop_says_how_to_go_on(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*args: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(lifelong_learners, "fit", stop)
    outcome = torchsnow("lifelong", photos, "--out", tmp_path / "out", *TINY)
    assert outcome.code == 130
    assert "finished tasks are kept, and the same command goes on" in outcome.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nosuch"], "the data 'nosuch' does not exist"),
        (["elpv", "elpv"], "data lists something twice"),
        (["elpv", "--classes-per-task", "1"], "classes_per_task is 1; expected 2 or more"),
        (["elpv", "--epochs", "0"], "epochs is 0"),
        (["elpv", "--device", "gpu"], "device is 'gpu'"),
        (["elpv", "--train-images", "1"], "train_images is 1"),
    ],
)
def test_bad_input_is_one_sentence(words: list[str], message: str, tmp_path: Path) -> None:
    assert message in refused("lifelong", *words, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_unknown_source_is_one_sentence(photos: Path, tmp_path: Path) -> None:
    assert "resnet5o" in refused("lifelong", photos, "--out", tmp_path / "out", "--source", "resnet5o")
