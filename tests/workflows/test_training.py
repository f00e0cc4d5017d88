from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sample_photos import make_photos
from sample_tasks import sample_task
from torchsnow.data import LoadedData, load_data
from torchsnow.errors import HubError, SourceError, TaskFileError, TrainingError
from torchsnow.hub import Hub
from torchsnow.source import Source, load_source
from torchsnow.train import RunFolder, TrainSettings
from torchsnow.workflows.place import Place
from torchsnow.workflows.recipe import Recipe
from torchsnow.workflows.training import (
    TrainedTask,
    train_task,
    validate_run,
)


@pytest.fixture(scope="module")
def source() -> Source:
    return load_source("test_resnet", weights="random")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> LoadedData:
    return load_data(make_photos(tmp_path_factory.mktemp("data") / "photos"))


@pytest.fixture
def hub(tmp_path: Path, source: Source) -> Hub:
    """A hub with the task "a" and the classes cat, dog and Überhund."""
    hub = Hub.create(tmp_path / "hub", source)
    hub.add(sample_task(source, "a"))
    return hub


def trained(
    data: LoadedData, hub: Path, run: Path, source: Source, *, resume: bool = False, replace: bool = False
) -> TrainedTask:
    recipe = Recipe(TrainSettings(epochs=1, batch_size=8, image_size=32, device="cpu"))
    place = Place(hub, source, replace=replace)
    return train_task(data, "colours", RunFolder(run), recipe, source, place, resume=resume)


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchsnow.plots.draw_run", lambda run, metrics: [])


# places


def test_free_places_are_fine(hub: Hub, tmp_path: Path) -> None:
    validate_run("b", hub.folder.path, RunFolder(tmp_path / "run"))
    validate_run("b", tmp_path / "new" / "hub", RunFolder(tmp_path / "new" / "run"))
    validate_run("a", hub.folder.path, RunFolder(tmp_path / "run"), replace=True)
    assert {path.name for path in tmp_path.iterdir()} == {"hub"}


def test_taken_places_are_refused(hub: Hub, tmp_path: Path) -> None:
    path, run = hub.folder.path, RunFolder(tmp_path / "run")
    with pytest.raises(HubError, match=r"has a task 'a' already; choose another name, or replace it"):
        validate_run("a", path, run)
    with pytest.raises(TaskFileError, match="cannot be a task's name"):
        validate_run("../a", path, run)
    with pytest.raises(HubError, match="lies inside the hub"):
        validate_run("b", path, RunFolder(tmp_path / "run" / ".." / "hub" / "x"))
    run.make()
    run.last.touch()
    with pytest.raises(TrainingError, match="holds a run already"):
        validate_run("b", path, run)
    validate_run("b", path, run, resume=True)
    with pytest.raises(HubError, match=r"run is not empty \(it holds 'last.safetensors'\)"):
        validate_run("b", run.path, RunFolder(tmp_path / "other"))


# training


def test_a_transformer_is_trained_at_its_own_size_and_no_other(data: LoadedData, tmp_path: Path) -> None:
    source = load_source("test_vit", "random")
    settings = TrainSettings(epochs=1, batch_size=8, device="cpu")
    place = Place(tmp_path / "hub", source)
    run = RunFolder(tmp_path / "run")
    result = train_task(data, "colours", run, Recipe(settings, auto=["image_size"]), source, place)
    assert Hub.open(tmp_path / "hub", source).info("colours").image_size == 160
    assert result.fit.metrics.num_images == 6
    with pytest.raises(SourceError, match="test_vit takes images of 160 x 160 pixels alone, not 224 x 224"):
        train_task(data, "again", RunFolder(tmp_path / "again"), Recipe(settings), source, place)
    assert not (tmp_path / "again").exists()


def test_a_trained_task_is_in_the_hub_and_tells_its_figures(data: LoadedData, tmp_path: Path, source: Source) -> None:
    result = trained(data, tmp_path / "hub", tmp_path / "run", source)
    hub = Hub.open(tmp_path / "hub", source)
    info = hub.info("colours")
    assert hub.verify() == []
    assert info.classes == data.classes
    assert info.image_size == 32
    assert (info.training["lr"], info.training["preset"], info.training["data"]) == (5e-3, "default", "photos")
    assert result.test is not None
    summary = result.summary()
    assert info.metrics["val"]["accuracy"] == summary["val_accuracy"] == result.fit.metrics.accuracy
    assert info.metrics["test"]["accuracy"] == summary["test_accuracy"] == result.test.accuracy
    probe = {"val_accuracy": summary["probe_val_accuracy"]}
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["probe"] == probe
    assert (summary["test_images"], summary["size_bytes"]) == (6, hub.infos()["colours"].size_bytes)


@pytest.mark.parametrize("resume", [False, True])
def test_a_run_that_another_process_is_at_work_on_is_left_alone(
    data: LoadedData, tmp_path: Path, source: Source, monkeypatch: pytest.MonkeyPatch, resume: bool
) -> None:
    """Also if the other one came in between."""
    with RunFolder(tmp_path / "run").owned():
        before = {path.name for path in (tmp_path / "run").iterdir()}
        for _ in range(2):
            with pytest.raises(TrainingError, match="run is in use by process"):
                trained(data, tmp_path / "hub", tmp_path / "run", source, resume=resume)
            monkeypatch.setattr(RunFolder, "validate_unowned", lambda run: None)
        assert {path.name for path in (tmp_path / "run").iterdir()} == before
    assert not (tmp_path / "hub").exists()


def test_data_without_a_test_split_has_no_test_metrics(data: LoadedData, tmp_path: Path, source: Source) -> None:
    for split in ("train", "val"):
        shutil.copytree(data.root, tmp_path / "data" / split)
    result = trained(load_data(tmp_path / "data"), tmp_path / "hub", tmp_path / "run", source)
    assert result.test is None
    assert result.summary()["test_accuracy"] is None
    assert Hub.open(tmp_path / "hub").info("colours").metrics["test"] is None


def test_what_no_file_could_hold_is_refused_before_the_training(
    data: LoadedData, tmp_path: Path, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torchsnow.task_file.task.MAX_SIZE_BYTES", 2**20)
    with pytest.raises(TaskFileError, match=r"a task of 3 classes may take .* bytes with these settings"):
        trained(data, tmp_path / "hub", tmp_path / "run", source)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_task_of_very_many_classes_is_trained_and_loaded_again(tmp_path: Path, source: Source) -> None:
    """Two confusion matrices of 1,800 classes are more than the reader lets a header have."""
    rng = np.random.default_rng(0)
    for name in range(1800):
        (tmp_path / "data" / f"{name}").mkdir(parents=True)
        for number in range(3):
            pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / f"{name}" / f"{number}.png")
    trained(load_data(tmp_path / "data"), tmp_path / "hub", tmp_path / "run", source)
    hub = Hub.open(tmp_path / "hub", source)
    assert hub.verify() == []
    assert len(hub.task("colours").classes) == 1800
    assert set(hub.info("colours").metrics["test"]) >= {"accuracy", "loss", "top5"}
    stored = json.loads((tmp_path / "run" / "metrics.json").read_text())["test"]
    assert (stored["confusion"], len(stored["per_class"])) == (None, 1800)
    assert sum(mistake["num_images"] for mistake in stored["mistakes"]) == round(1800 * (1 - stored["accuracy"]))


def test_a_hub_that_fails_in_the_end_costs_no_training(
    data: LoadedData, tmp_path: Path, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    def busy(*_: object, **__: object) -> None:
        raise HubError("another process has been changing the hub")

    with monkeypatch.context() as patched:
        patched.setattr(Hub, "add", busy)
        with pytest.raises(HubError, match=r"has been changing the hub. The training is not lost: resume the run"):
            trained(data, tmp_path / "hub", tmp_path / "run", source)
    trained(data, tmp_path / "hub", tmp_path / "run", source, resume=True)
    assert Hub.open(tmp_path / "hub").names() == ["colours"]


def test_a_drawing_that_fails_costs_nothing(
    data: LoadedData, tmp_path: Path, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no such glyph")

    monkeypatch.setattr("torchsnow.plots.draw_run", fail)
    task = trained(data, tmp_path / "hub", tmp_path / "run", source)
    assert Hub.open(tmp_path / "hub", source).names() == ["colours"]
    assert task.test is not None
    assert (
        "warning: the run could not be drawn (no such glyph); the results are stored"
        in (tmp_path / "run" / "log.txt").read_text()
    )


def test_a_task_that_cannot_be_written_into_the_hub_is_known_before(hub: Hub, tmp_path: Path) -> None:
    (hub.folder.path / "tasks" / "b").write_text("in the way")
    with pytest.raises(HubError, match=r"cannot write into .*/b: a part of this path is a file"):
        validate_run("b", hub.folder.path, RunFolder(tmp_path / "run"))
    (hub.folder.path / ".lock").unlink()
    (hub.folder.path / ".lock").mkdir()
    with pytest.raises(HubError, match=r"cannot lock .*/\.lock: "):
        validate_run("c", hub.folder.path, RunFolder(tmp_path / "run"))


@pytest.mark.parametrize("which", ["hub", "run"])
def test_a_folder_that_cannot_be_written_into_is_known_before(
    tmp_path: Path, which: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(folder: Path, error: type[Exception]) -> None:
        if folder.name == which:
            raise error(f"cannot write into {folder}: the disk is full")

    monkeypatch.setattr("torchsnow.workflows.training.validate_writable_folder", full)
    with pytest.raises(HubError if which == "hub" else TrainingError, match=rf"cannot write into .*{which}: the disk"):
        validate_run("colours", tmp_path / "hub", RunFolder(tmp_path / "run"))
    assert list(tmp_path.iterdir()) == []
