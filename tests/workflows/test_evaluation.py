from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from PIL import Image

from sample_photos import make_photos
from sample_tasks import sample_task
from torchsnow.data import LoadedData, Splits, load_data, make_splits
from torchsnow.errors import DataError
from torchsnow.hub import Hub
from torchsnow.source import Source, load_source
from torchsnow.train import RunFolder, TrainSettings
from torchsnow.workflows.evaluation import evaluate_task, examples_of
from torchsnow.workflows.place import Place
from torchsnow.workflows.recipe import Recipe
from torchsnow.workflows.training import train_task


@pytest.fixture(scope="module")
def source() -> Source:
    return load_source("test_resnet", weights="random")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> LoadedData:
    return load_data(make_photos(tmp_path_factory.mktemp("data") / "photos"))


def test_a_task_alone_is_as_good_as_in_its_training(
    data: LoadedData, tmp_path: Path, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torchsnow.workflows.training.draw_run", lambda run, metrics: [])
    settings, run = TrainSettings(epochs=1, batch_size=8, image_size=32, device="cpu"), RunFolder(tmp_path / "run")
    result = train_task(data, "colours", run, Recipe(settings), source, Place(tmp_path / "hub", source))
    hub = Hub.open(tmp_path / "hub", source)
    test = examples_of(data, "test", tmp_path / "run" / "splits.json")
    assert evaluate_task(hub, "colours", data, test).metrics.confusion == result.test.confusion


def test_the_examples_of_a_split(data: LoadedData, tmp_path: Path) -> None:
    splits = make_splits(data)
    splits.save(tmp_path / "splits.json")
    assert tuple(examples_of(data, "val", tmp_path / "splits.json")) == splits.val
    assert list(examples_of(data, "all", tmp_path / "splits.json")) == data.examples
    assert list(examples_of(data, "all", None)) == data.examples
    with pytest.raises(DataError, match=r"photos has no split 'val'; it has: all\. A run's own are in its splits"):
        examples_of(data, "val", None)


def test_the_examples_of_a_split_that_the_data_defines(data: LoadedData, tmp_path: Path) -> None:
    for split in ("train", "test"):
        shutil.copytree(data.root, tmp_path / "data" / split)
    defined = load_data(tmp_path / "data")
    assert list(examples_of(defined, "test", None)) == defined.splits["test"]
    assert len(examples_of(defined, "all", None)) == 60
    with pytest.raises(DataError, match="it has: all, test, train"):
        examples_of(defined, "val", None)


def test_a_run_without_a_test_split_has_none_to_evaluate_on(data: LoadedData, tmp_path: Path) -> None:
    make_splits(data, test_share=0).save(tmp_path / "splits.json")
    assert Splits.load(tmp_path / "splits.json", data).test == ()
    with pytest.raises(DataError, match="has no split 'test'; it has: all, train, val"):
        examples_of(data, "test", tmp_path / "splits.json")


def test_classes_in_another_order_are_matched_by_name(tmp_path: Path, source: Source) -> None:
    """The task knows cat, dog and Überhund; "Überhund" comes first when it is written otherwise, "dog" not at all."""
    hub = Hub.create(tmp_path / "hub", source)
    hub.add(sample_task(source, "pets"))
    for name, colour in {"Überhund": "red", "cat": "blue"}.items():
        (tmp_path / "pets" / name).mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (40, 40), colour).save(tmp_path / "pets" / name / f"{number}.png")
    data = load_data(tmp_path / "pets")
    metrics = evaluate_task(hub, "pets", data, data.examples).metrics
    assert [row.num_images for row in metrics.per_class] == [3, 0, 3]
    (tmp_path / "pets" / "cat").rename(tmp_path / "pets" / "cow")
    data = load_data(tmp_path / "pets")
    with pytest.raises(DataError, match="pets has the class 'cow', which task 'pets' does not know"):
        evaluate_task(hub, "pets", data, data.examples)
