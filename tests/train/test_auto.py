from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from torchsnow.data import Example, Splits
from torchsnow.train import TrainSettings
from torchsnow.train.auto import auto_batch_size, auto_epochs, auto_image_size, auto_sizes


def images(folder: Path, *sizes: tuple[int, int]) -> list[Example]:
    """Pictures of these widths and heights."""
    for number, size in enumerate(sizes):
        Image.new("RGB", size).save(folder / f"{number}.png")
    return [Example(folder / f"{number}.png", 0) for number in range(len(sizes))]


@pytest.mark.parametrize(
    ("side", "chosen"), [(8, 64), (64, 64), (79, 64), (80, 96), (112, 128), (150, 160), (300, 224), (4000, 224)]
)
def test_image_size_is_that_of_the_images_in_steps_of_32(tmp_path: Path, side: int, chosen: int) -> None:
    size, why = auto_image_size(images(tmp_path, (side, side + 10)), 224)
    assert size == chosen
    assert f"are {side} pixels (median)" in why


def test_image_size_is_by_the_median_of_shorter_sides(tmp_path: Path) -> None:
    examples = images(tmp_path, (96, 500), (400, 96), (96, 96), (1000, 1000), (900, 8))
    assert auto_image_size(examples, 224)[0] == 96


def test_of_many_images_few_are_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Path] = []
    monkeypatch.setattr("torchsnow.train.auto.shorter_side", lambda path: opened.append(path) or 96)
    auto_image_size([Example(Path(str(number)), 0) for number in range(1999)], 224)
    assert len(opened) == len(set(opened)) == 200
    assert int(opened[-1].name) > 1900


@pytest.mark.parametrize(("num_images", "chosen"), [(9, 8), (127, 8), (128, 16), (255, 16), (256, 32), (10**6, 32)])
def test_batches_leave_an_epoch_some_steps(num_images: int, chosen: int) -> None:
    assert auto_batch_size(num_images)[0] == chosen


@pytest.mark.parametrize(("num_images", "chosen"), [(100, 40), (1600, 40), (3200, 20), (6400, 10), (10**6, 5)])
def test_epochs_make_a_certain_number_of_steps(num_images: int, chosen: int) -> None:
    epochs, why = auto_epochs(num_images, 32)
    assert epochs == chosen
    assert why.startswith(f"{epochs * -(-num_images // 32)} steps")


@pytest.mark.parametrize(("num_images", "chosen"), [(100, 60), (4000, 60), (6400, 40), (10**6, 20)])
def test_epochs_from_stored_features_are_more(num_images: int, chosen: int) -> None:
    assert auto_epochs(num_images, 32, stored=True)[0] == chosen


def test_only_what_is_asked_for_is_chosen_and_later_choices_see_earlier_ones(
    splits: Splits, settings: TrainSettings
) -> None:
    assert auto_sizes(settings, ["lr"], splits, 224) == (settings, {})
    chosen, why = auto_sizes(settings, ["image_size", "epochs"], splits, 224)
    assert chosen == replace(settings, image_size=64, epochs=40)
    assert list(why) == ["image_size", "epochs"]
    chosen, _ = auto_sizes(replace(settings, batch_size=2), ["batch_size", "epochs"], splits, 224)
    assert (chosen.batch_size, chosen.image_size) == (8, 32)
