from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sample_photos import make_photos
from sample_tasks import sample_task
from torchsnow.data import load_data
from torchsnow.hub import Hub
from torchsnow.model import SnowModel
from torchsnow.source import Source, load_source
from torchsnow.train import RunFolder, TrainSettings
from torchsnow.train.batches import plain_images
from torchsnow.workflows.place import Place
from torchsnow.workflows.predictions import predict_images
from torchsnow.workflows.recipe import Recipe
from torchsnow.workflows.training import train_task
from torchsnow.workflows.unknown import unknown_above

SETTINGS = TrainSettings(epochs=1, batch_size=32, image_size=32, device="cpu")


@pytest.fixture(scope="module")
def source() -> Source:
    return load_source("test_resnet", weights="random")


def refuse(path: Path, why: str) -> None:
    raise AssertionError(why)


@pytest.mark.parametrize(("num_images", "num_above"), [(18, None), (19, 0), (39, 1), (59, 2)])
def test_at_most_one_in_twenty_of_the_images_given_is_above(
    source: Source, tmp_path: Path, num_images: int, num_above: int | None
) -> None:
    data = load_data(make_photos(tmp_path / "photos", 20))
    images = plain_images(source.input_config, SETTINGS.framing).with_examples(data.examples, data.classes)
    task = sample_task(source)
    limit = unknown_above(SnowModel(source, task.delta), images.subset(range(num_images)), SETTINGS)
    if num_above is None:
        assert limit is None
        return
    hub = Hub.create(tmp_path / "hub", source)
    hub.add(replace(task, unknown_above=limit, image_size=32))
    files = [example.path for example in data.examples[:num_images]]
    scores = [one.unknown_score for one in predict_images(hub, files, None, refuse)]
    assert sum(score is not None and score > 1.00001 for score in scores) == num_above
    assert sum(score is not None and score > 0.99999 for score in scores) == num_above + 1


def test_images_of_another_kind_are_unknown_to_a_trained_task(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torchsnow.plots.draw_run", lambda run, metrics: [])
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
