from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from PIL import Image

from sample_photos import make_photos
from torchsnow.data import load_data, make_splits
from torchsnow.source import Framing, Source, load_source
from torchsnow.train import RunFolder, TrainSettings
from torchsnow.train.batches import plain_images
from torchsnow.workflows.near_duplicates import (
    FILE,
    duplicate_groups,
    nearest_before,
    of_several,
    standardised,
    warn_of_duplicates,
)
from torchsnow.workflows.recipe import Recipe
from torchsnow.workflows.training import train_task


def values(num: int = 40) -> torch.Tensor:
    return torch.randn(num, 30, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("rows_at_a_time", [7, 1_024])
def test_near_duplicates_are_grouped_and_others_are_not(rows_at_a_time: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchsnow.workflows.near_duplicates._ROWS_AT_A_TIME", rows_at_a_time)
    images = values()
    images[30] = images[2] + 0.05 * images[5]
    images[31] = images[30]
    images[12] = images[11] * 1.01
    groups = duplicate_groups(standardised(images))
    assert groups.shape == (40,)
    assert of_several(groups) == [[2, 30, 31], [11, 12]]


def test_without_duplicates_every_image_is_a_group() -> None:
    assert of_several(duplicate_groups(values())) == []


def test_where_most_images_are_duplicates_they_are_found() -> None:
    images = values(10).repeat(3, 1)
    assert of_several(duplicate_groups(images)) == [[i, i + 10, i + 20] for i in range(10)]


def test_constant_features_count_as_nothing() -> None:
    images = 3 + values()
    images[:, 3] = 5
    assert standardised(images)[:, 3].tolist() == [0] * 40
    torch.testing.assert_close(standardised(images)[:, 4].std(unbiased=False), torch.tensor(1.0))


def test_the_nearest_image_of_an_earlier_part_is_named() -> None:
    images = values()
    images[20] = images[2] + 0.05 * images[5]  # val, like train
    images[21] = images[1] = images[0]  # val, like two of train
    images[31] = images[20]  # test, like val and train
    images[33] = images[32]  # both are test
    parts = torch.tensor([0] * 20 + [1] * 10 + [2] * 10)
    found = nearest_before(images, parts)
    assert {(row, other) for row, other, _ in found} == {(21, 0), (31, 20), (20, 2)}
    assert [similarity for *_, similarity in found] == sorted((one[2] for one in found), reverse=True)


@pytest.fixture(scope="module")
def source() -> Source:
    return load_source("test_resnet", weights="random")


def split_photos(root: Path) -> Path:
    """Three classes in train and test; an image of each training class is in test too, in another format."""
    make_photos(root / "train", 8)
    generator = np.random.default_rng(1)
    for place, name in enumerate(("red", "green", "blue")):
        (root / "test" / name).mkdir(parents=True)
        with Image.open(root / "train" / name / "7.png") as image:
            image.save(root / "test" / name / "copy.bmp")
        for number in range(4):
            pixels = generator.integers(0, 100, (40, 40, 3), dtype=np.uint8)
            pixels[:20, :, place] += 150
            Image.fromarray(pixels).save(root / "test" / name / f"{number}.png")
    return root


def test_a_training_warns_of_images_that_are_in_two_splits(tmp_path: Path, source: Source) -> None:
    data, run, said = load_data(split_photos(tmp_path / "photos")), RunFolder(tmp_path / "run"), list[str]()
    recipe = Recipe(TrainSettings(epochs=1, batch_size=8, image_size=32, device="cpu"), "head")
    with patch("torchsnow.plots.draw_run"):
        train_task(data, "colours", run, recipe, source, None, say=said.append)
    (warning,) = (line for line in said if "earlier split" in line)
    assert warning.startswith("warning: ")
    assert str(run.path / FILE) in warning
    rows = list(csv.DictReader((run.path / FILE).read_text().splitlines()))
    pairs = {row["image"]: row["like"] for row in rows if float(row["similarity"]) > 0.999}
    assert pairs == {f"test/{name}/copy.bmp": f"train/{name}/7.png" for name in ("red", "green", "blue")}
    assert warning.removeprefix("warning: ") in (run.path / "log.txt").read_text()


def test_splits_without_duplicates_and_a_source_of_one_size_say_nothing(tmp_path: Path, source: Source) -> None:
    runs = [RunFolder(tmp_path)]
    pool = plain_images(source.input_config, Framing(32))
    splits = make_splits(load_data(split_photos(tmp_path / "photos")))
    state = torch.get_rng_state()
    assert warn_of_duplicates([splits], runs, source, pool)
    assert torch.equal(state, torch.get_rng_state())
    (tmp_path / FILE).unlink()
    unlike = replace(splits, val=splits.train[:1], train=splits.train[1:2], test=())
    assert warn_of_duplicates([unlike], runs, source, pool) == []
    with patch.object(source, "has_fixed_size", True):
        assert warn_of_duplicates([splits], runs, source, pool) == []
    assert not (tmp_path / FILE).exists()
