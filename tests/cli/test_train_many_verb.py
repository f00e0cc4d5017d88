from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import torch
from command_line import TINY, Outcome, Trained, refused, snapshot, torchsnow
from safetensors.torch import load_file

from torchsnow.errors import TrainingError
from torchsnow.hub import Hub
from torchsnow.io.lock import FolderLock
from torchsnow.train.loop import Loop
from torchsnow.train.progress import TrainingBar

COLOURS = ("red", "green", "blue")
SPLITS = ("train", "train", "val", "train", "test", "train", "train", "val", "train", "train")


def write(table: Path, photos: Path, columns: tuple[str, ...], split: bool = True) -> Path:
    """A table of the photos: `colour` by their folder, `parity` by their number, `some` for three of four images."""
    lines = [",".join(("path", *columns, *(["split"] if split else [])))]
    for colour in COLOURS:
        for n in range(10):
            labels = {"colour": colour, "parity": str(n % 2), "some": "" if n % 4 == 0 else str(n // 5)}
            labels["label"] = labels["colour"]
            cells = [f"photos/{colour}/{n}.png", *(labels[name] for name in columns)]
            lines.append(",".join([*cells, *([SPLITS[n]] if split else [])]))
    if not (table.parent / "photos").exists():
        (table.parent / "photos").mkdir()
        for file, content in snapshot(photos).items():
            place = table.parent / "photos" / file.relative_to(photos)
            place.parent.mkdir(exist_ok=True)
            place.write_bytes(content)
    table.write_text("\n".join(lines) + "\n")
    return table


@pytest.fixture
def table(tmp_path: Path, photos: Path) -> Path:
    return write(tmp_path / "labels.csv", photos, ("colour", "parity", "some"))


def many(*words: str | Path) -> Outcome:
    return torchsnow("train-many", *words, "--hub", "hub", *TINY, "--epochs", "2")


def tensors(hub: str, name: str) -> dict[str, torch.Tensor]:
    (file,) = (Path(hub) / "tasks" / name).glob("*.safetensors")
    return load_file(file)


def equal(some: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> bool:
    return some.keys() == others.keys() and all(torch.equal(some[key], others[key]) for key in some)


@pytest.mark.parametrize("resume", [(), ("--resume",)])
@pytest.mark.parametrize("folder", [".", "parity"])
def test_a_folder_of_another_process_is_refused(table: Path, folder: str, resume: tuple[str, ...]) -> None:
    with FolderLock(Path("runs") / folder, TrainingError).held():
        before = snapshot(Path("runs"))
        sentence = refused("train-many", table, "--hub", "hub", *TINY, "--epochs", "2", *resume)
        assert snapshot(Path("runs")) == before
    assert f"is in use by process {os.getpid()} on" in sentence
    assert not Path("hub").exists()


def test_tasks_of_a_table_come_out_as_if_trained_alone(table: Path, photos: Path) -> None:
    outcome = many(table, "--json")
    assert (outcome.code, outcome.err) == (0, ""), outcome
    assert [one["task"] for one in outcome.document] == ["colour", "parity", "some"]
    assert [one["test_images"] for one in outcome.document] == [3, 3, 0]
    assert Hub.open("hub").names() == ["colour", "parity", "some"]
    assert Hub.open("hub").verify() == []
    alone = write(table.with_name("alone.csv"), photos, ("label",))
    words = ("--task", "colour", "--hub", "other", "--out", "alone", *TINY, "--epochs", "2", "--json")
    single = torchsnow("train", alone, *words)
    assert single.code == 0, single
    assert equal(tensors("hub", "colour"), tensors("other", "colour"))
    together = outcome.document[0]
    for key in ("best_epoch", "val_accuracy", "test_accuracy", "probe_val_accuracy"):
        assert together[key] == single.document[key]
    names = {path.name for path in Path("alone").iterdir()}
    assert all({path.name for path in Path("runs", name).iterdir()} == names for name in ("colour", "parity", "some"))


def test_tasks_on_images_of_their_own(table: Path, photos: Path) -> None:
    outcome = many(f"first={photos}", f"second={photos}", table)
    assert outcome.code == 0, outcome
    assert "5 tasks are in the hub" in outcome.out
    assert Hub.open("hub").names() == ["colour", "first", "parity", "second", "some"]
    assert equal(tensors("hub", "first"), tensors("hub", "second"))


def test_what_is_not_given_is_chosen_as_for_a_task_alone(table: Path, photos: Path) -> None:
    size = ("--source", "test_resnet", "--weights", "random", "--image-size", "32", "--epochs", "1")
    outcome = torchsnow("train-many", f"colours={photos}", "--hub", "hub", *size)
    assert outcome.code == 0, outcome
    single = torchsnow("train", photos, "--task", "colours", "--hub", "other", "--out", "alone", *size)
    assert single.code == 0, single
    assert equal(tensors("hub", "colours"), tensors("other", "colours"))
    chosen = [line for line in single.err.splitlines() if line.startswith(("lr ", "batch_size "))]
    assert chosen
    assert [f"colours: {line}" for line in chosen] == [
        line for line in outcome.err.splitlines() if line.startswith(("colours: lr ", "colours: batch_size "))
    ]


@pytest.mark.parametrize("preset", ["default", pytest.param("paper", marks=pytest.mark.slow)])
def test_ctrl_c_and_resume(table: Path, monkeypatch: pytest.MonkeyPatch, preset: str) -> None:
    words = (*TINY, "--epochs", "2", "--preset", preset)
    whole = torchsnow("train-many", table, "--hub", "whole", "--out", "whole-runs", *words)
    assert whole.code == 0, whole
    run_epoch, calls = Loop.run_epoch, []

    def pressed(self: Loop, bar: TrainingBar) -> None:
        calls.append(1)
        if len(calls) == 4:  # the second epoch of the second task
            raise KeyboardInterrupt
        run_epoch(self, bar)

    with monkeypatch.context() as patched:
        patched.setattr(Loop, "run_epoch", pressed)
        stopped = many(table, "--preset", preset)
    assert stopped.code == 130
    for name, done in (("colour", 2), ("parity", 1), ("some", 0)):
        assert re.search(rf"{name}: {done} of 2 epochs are safe in \S*{name}", stopped.err)
    assert stopped.err.rstrip().endswith("--resume")
    resumed = many(table, "--preset", preset, "--resume")
    assert resumed.code == 0, resumed
    for name in ("colour", "parity", "some"):
        assert equal(tensors("hub", name), tensors("whole", name))


def test_a_task_that_diverges_is_named_and_the_others_are_kept(
    table: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome = torchsnow(
        *("train-many", table, "--hub", "hub", *TINY, "--epochs", "1", "--lr", "1e30", "--method", "scratch")
    )
    assert outcome.code == 2
    assert "colour was given up: the loss is no longer a finite number" in outcome.err


def test_a_name_that_the_hub_has(trained: Trained, table: Path) -> None:
    table.write_text(table.read_text().replace("parity", "colours", 1))
    before = snapshot(trained.hub)
    sentence = refused("train-many", table, "--hub", trained.hub, "--image-size", "32")
    assert "has a task 'colours' already" in sentence
    assert snapshot(trained.hub) == before
    assert not Path("runs").exists()


def refused_many(*words: str | Path) -> str:
    sentence = refused("train-many", *words, "--hub", "hub", *TINY, "--epochs", "1")
    assert not Path("runs").exists()
    assert not Path("hub").exists()
    return sentence


def test_bad_input_is_one_sentence_before_anything_is_trained(table: Path, photos: Path) -> None:
    def changed(old: str, new: str) -> Path:
        other = table.with_name("changed.csv")
        other.write_text(table.read_text().replace(old, new))
        return other

    assert "the first line must be the header path" in refused_many(changed("path,", "file,"))
    assert "'Big One' cannot be a task's name" in refused_many(changed("parity", "Big One"))
    assert "files that do not exist" in refused_many(changed("red/0.png", "red/none.png"))
    assert "one file listed twice" in refused_many(changed("red/0.png", "red/1.png"))
    assert "unknown split 'later'" in refused_many(changed(",val", ",later"))
    assert "no file: expected a CSV" in refused_many("missing.csv")
    assert "does not exist" in refused_many("screws=missing")
    assert "cannot be a task's name" in refused_many(f"={photos}")
    assert "'a' is given twice" in refused_many(f"a={photos}", f"a={photos}")
    assert "'some' is given twice" in refused_many(f"some={photos}", table)
    assert "does not train a delta" in refused_many(table, "--method", "full")


@pytest.mark.parametrize("option", ["--out", "--hub"])
def test_nothing_is_written_among_the_images(option: str, table: Path, photos: Path) -> None:
    words = ("train-many", table, f"colours={photos}", "--hub", "hub", *TINY, option, photos / "red" / "new")
    sentence = refused(*words)
    assert sentence.startswith(f"{photos / 'red' / 'new'} lies inside the data {photos}")
    assert f"choose another {option}" in sentence


def test_a_task_without_enough_labels(table: Path) -> None:
    text = table.read_text().splitlines()
    one_class = [line.replace(",1,", ",0,") for line in text]
    table.write_text("\n".join(one_class) + "\n")
    assert "has only the class '0': a task needs at least two" in refused_many(table)
    no_val = [line if ",val" not in line else ",".join([*line.split(",")[:3], "", "val"]) for line in text]
    table.write_text("\n".join(no_val) + "\n")
    assert "the task 'some' has no labels in the validation split" in refused_many(table)
