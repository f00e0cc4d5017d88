from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

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
        patched.setattr("torchsnow.jobs.draw_run", lambda run, metrics: [])
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
    assert head.split() == ["image", "task", "class", "probability"]
    assert [row.split()[:2] for row in rows] == [[str(i), task] for i in images for task in ("colours", "large")]
    assert all(row.split()[3].endswith("%") for row in rows)


@pytest.mark.parametrize("words", [[], ["--json"]], ids=["text", "json"])
def test_bad_images_are_named_and_the_good_ones_answered(
    hub: Path, images: list[Path], tmp_path: Path, words: list[str]
) -> None:
    (tmp_path / "empty.png").touch()
    bad = [tmp_path / "empty.png", tmp_path / "gone.png", tmp_path]
    outcome = torchsnow("predict", bad[0], images[0], *bad[1:], images[1], "--hub", hub, *words)
    assert outcome.code == 2
    empty, gone, folder = outcome.err.splitlines()
    assert empty == f"torchsnow: cannot read the image {bad[0]}: the file is empty"
    assert gone == f"torchsnow: cannot read the image {bad[1]}: there is no such file"
    assert folder == f"torchsnow: cannot read the image {tmp_path}: it is a folder"
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


def test_what_cannot_be_predicted(hub: Path, images: list[Path], tmp_path: Path) -> None:
    assert "has no task 'larg'; did you mean large?" in refused("predict", *images, "--hub", hub, "--task", "larg")
    assert "is not a hub" in refused("predict", *images, "--hub", tmp_path)
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
