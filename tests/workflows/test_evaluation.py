from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sample_photos import make_photos
from sample_tasks import sample_task
from torchsnow.data import LoadedData, Splits, load_data, make_splits
from torchsnow.errors import DataError
from torchsnow.hub import Hub
from torchsnow.model import SnowModel
from torchsnow.source import Source, load_source
from torchsnow.train import RunFolder, TrainSettings
from torchsnow.train.batches import plain_images
from torchsnow.workflows.evaluation import Change, evaluate_task, examples_of, limits_of
from torchsnow.workflows.place import Place
from torchsnow.workflows.predictions import predict_images
from torchsnow.workflows.recipe import Recipe
from torchsnow.workflows.training import train_task

SETTINGS = TrainSettings(epochs=1, batch_size=32, image_size=32, device="cpu")


@pytest.fixture(scope="module")
def source() -> Source:
    return load_source("test_resnet", weights="random")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> LoadedData:
    return load_data(make_photos(tmp_path_factory.mktemp("data") / "photos"))


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchsnow.plots.draw_run", lambda run, metrics: [])


def test_a_task_alone_is_as_good_as_in_its_training(data: LoadedData, tmp_path: Path, source: Source) -> None:
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


def test_two_versions_are_compared_image_by_image(data: LoadedData, source: Source, tmp_path: Path) -> None:
    hub, results = tmp_path / "hub", []
    for seed in (0, 1):
        recipe = Recipe(TrainSettings(epochs=1, image_size=32 + 32 * seed, seed=seed, device="cpu"))
        place, run = Place(hub, source, replace=True), RunFolder(tmp_path / f"run-{seed}")
        results.append(train_task(data, "colours", run, recipe, source, place))
    assert results[0].change is None
    change, opened = results[1].change, Hub.open(hub, source)
    assert change is not None
    test = Splits.load(tmp_path / "run-1" / "splits.json", data).test
    now = evaluate_task(opened, "colours", data, test)
    opened.rollback("colours")
    before = evaluate_task(opened, "colours", data, test)
    right = [[row[3] for row in one.rows(data)] for one in (before, now)]
    pairs = list(zip(*right, strict=True))
    assert (change.num_images, change.former_right) == (len(test), sum(right[0]))
    assert (change.gained, change.lost) == (pairs.count((False, True)), pairs.count((True, False)))


def test_a_new_version_is_tested_on_what_no_version_has_learned_from(
    data: LoadedData, source: Source, tmp_path: Path
) -> None:
    """Runs next to each other, or one in the place of the other; more images and another seed change no split."""
    shutil.copytree(data.root, tmp_path / "photos")
    recipe = Recipe(TrainSettings(epochs=1, image_size=32, device="cpu"))
    held_out: list[set[str]] = []

    def trained(folder: str, seed: int, **how: bool) -> Change | None:
        settings = replace(recipe.settings, seed=seed)
        place, run = Place(tmp_path / "hub", source, replace=True), RunFolder(tmp_path / "runs" / folder)
        now = load_data(tmp_path / "photos")
        change = train_task(now, "colours", run, replace(recipe, settings=settings), source, place, **how).change
        test = Splits.load(run.splits, now).test
        held_out.append({one.path.relative_to(now.root).as_posix() for one in test})
        return change

    assert trained("a", 0) is None
    for number in range(9):
        image = Image.effect_noise((40, 40), 20.0 + number).convert("RGB")
        image.save(tmp_path / "photos" / data.classes[0] / f"new-{number}.png")
    for change in (trained("b", 1), trained("b", 2, overwrite=True)):
        assert change is not None
        assert change.only_unseen
        assert change.num_images == len(held_out[1])
    assert held_out[0] < held_out[1] == held_out[2]
    shutil.rmtree(tmp_path / "runs" / "b")
    unknown = trained("c", 0)
    assert unknown is not None
    assert not unknown.only_unseen


def test_mcnemars_test() -> None:
    assert Change(20, 10, gained=5, lost=0, only_unseen=True).p_value == pytest.approx(2 / 2**5)
    assert Change(20, 10, gained=1, lost=3, only_unseen=True).p_value == pytest.approx(2 * (1 + 4) / 2**4)
    assert Change(20, 10, gained=0, lost=0, only_unseen=True).p_value == 1


def refuse(path: Path, why: str) -> None:
    raise AssertionError(why)


@pytest.mark.parametrize(("num_images", "num_above"), [(18, None), (19, 0), (39, 1), (59, 2)])
def test_at_most_one_in_twenty_of_the_images_given_is_above(
    source: Source, tmp_path: Path, num_images: int, num_above: int | None
) -> None:
    data = load_data(make_photos(tmp_path / "photos", 20))
    images = plain_images(source.input_config, SETTINGS.framing).with_examples(data.examples, data.classes)
    task = sample_task(source)
    limit = limits_of(SnowModel(source, task.delta), images.subset(range(num_images)), SETTINGS).unknown_above
    if num_above is None:
        assert limit is None
        return
    hub = Hub.create(tmp_path / "hub", source)
    hub.add(replace(task, unknown_above=limit, image_size=32))
    files = [example.path for example in data.examples[:num_images]]
    scores = [one.unknown_score for one in predict_images(hub, files, None, refuse)]
    assert sum(score is not None and score > 1.00001 for score in scores) == num_above
    assert sum(score is not None and score > 0.99999 for score in scores) == num_above + 1


def test_images_of_another_kind_are_unknown_to_a_trained_task(source: Source, tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos" / "train", 17)
    for file in photos.rglob("?.png"):  # 30; 21 are left to train on
        place = tmp_path / "photos" / "val" / file.relative_to(photos)
        place.parent.mkdir(parents=True, exist_ok=True)
        file.rename(place)
    data = load_data(photos.parent)
    hub = tmp_path / "hub"
    train_task(data, "colours", RunFolder(tmp_path / "run"), Recipe(SETTINGS), source, Place(hub, source))
    grating = np.where(np.arange(40) % 8 < 4, 255, 0).astype(np.uint8)
    Image.fromarray(np.tile(grating, (40, 1))).save(tmp_path / "grating.png")
    files = [tmp_path / "grating.png", *(example.path for example in data.examples)]
    unlike, *known = (one.unknown_score for one in predict_images(Hub.open(hub, source), files, None, refuse))
    assert unlike is not None
    assert unlike > 1
    assert sum(score is not None and score < 1 for score in known) >= 0.9 * len(known)
