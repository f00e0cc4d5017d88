from __future__ import annotations

from pathlib import Path

import pytest

from sample_photos import make_photos
from torchsnow.data import load_data, make_splits
from torchsnow.errors import ExperimentError
from torchsnow.experiments.lifelong_tasks import class_groups, make_tasks, of_classes
from torchsnow.task_file.task import check_task_name

ALL = (None, None, None)  # images


@pytest.mark.parametrize(
    ("num_classes", "step", "expected"),
    [
        (10, 2, [2, 2, 2, 2, 2]),
        (10, 4, [4, 4, 2]),
        (10, 3, [3, 3, 4]),
        (3, 2, [3]),
        (2, 5, [2]),
        (7, None, [7]),
    ],
)
def test_classes_are_cut_in_order_and_no_task_has_one_class(
    num_classes: int, step: int | None, expected: list[int]
) -> None:
    groups = list(class_groups(num_classes, step))
    assert [len(group) for group in groups] == expected
    assert [label for group in groups for label in group] == list(range(num_classes))


def test_a_cut_keeps_every_image_in_its_split_under_its_class(photos: Path) -> None:
    splits = make_splits(load_data(photos))
    part = of_classes(splits, [1, 2])
    assert part.classes == splits.classes[1:]
    for name in ("train", "val", "test"):
        whole = {example.path: splits.classes[example.label] for example in getattr(splits, name)}
        cut = {example.path: part.classes[example.label] for example in getattr(part, name)}
        assert cut == {path: label for path, label in whole.items() if label in part.classes}
        assert cut


def test_data_sets_become_tasks_whose_names_a_hub_takes(photos: Path, tmp_path: Path) -> None:
    second = make_photos(tmp_path / ("x" * 90), classes=("red", "blue"))
    tasks = make_tasks([str(photos), str(second)], load_data, None, 0, *ALL)
    assert [len(task.splits.classes) for task in tasks] == [3, 2]
    assert [task.name for task in tasks] == ["01-photos", "02-" + "x" * 40]
    for task in tasks:
        check_task_name(task.name)


def test_a_name_of_odd_letters_is_made_fit(tmp_path: Path) -> None:
    folders = [make_photos(tmp_path / name) for name in ("Odd & Long", "üß")]
    tasks = make_tasks([f"{folder}/" for folder in folders], load_data, None, 0, *ALL)
    assert [task.name for task in tasks] == ["01-odd-long", "02"]


def test_images_are_counted_per_task(photos: Path) -> None:
    (task,) = make_tasks([str(photos)], load_data, 2, 0, 6, 3, 3)
    parts = [task.to_dict()[f"{name}_images"] for name in ("train", "val", "test")]
    assert parts == [6, 3, 3]


def test_data_without_test_images_is_refused(tmp_path: Path) -> None:
    for part in ("train", "val"):
        make_photos(tmp_path / part)
    with pytest.raises(ExperimentError, match="has no test images"):
        make_tasks([str(tmp_path)], load_data, None, 0, *ALL)
