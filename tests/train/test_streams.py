from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from torchsnow.data import Splits
from torchsnow.errors import TrainingError
from torchsnow.methods.snow import make_snow
from torchsnow.source import Source
from torchsnow.train import RunFolder, TrainSettings
from torchsnow.train.streams import NO_LABEL, SharedTask, Stream, rows_with_labels


def task(name: str, source: Source, splits: Splits, settings: TrainSettings) -> SharedTask:
    return SharedTask(name, make_snow(source, 2), splits, settings, RunFolder(Path("nowhere") / name))


def test_the_union_has_the_order_of_the_task_with_most_images(
    source: Source, splits: Splits, settings: TrainSettings
) -> None:
    some = replace(splits, train=splits.train[20:5:-1], val=splits.val[:5])
    stream = Stream([task("some", source, some, settings), task("all", source, splits, settings)])
    assert [example.path for example in stream.train.examples] == [example.path for example in splits.train]
    assert stream.train.labels.tolist() == list(range(25))
    assert stream.train_labels["all"].tolist() == [example.label for example in splits.train]
    known = (stream.train_labels["some"] != NO_LABEL).nonzero().flatten()
    assert known.tolist() == list(range(6, 21))
    assert stream.val_labels["some"].tolist()[5:] == [NO_LABEL] * (len(splits.val) - 5)


def test_rows_with_labels() -> None:
    assert rows_with_labels(torch.tensor([0, 1, 0])) is None
    rows = rows_with_labels(torch.tensor([NO_LABEL, 1, NO_LABEL, 0]))
    assert rows is not None
    assert rows.tolist() == [1, 3]
    assert torch.equal(rows_with_labels(torch.tensor([NO_LABEL])), torch.empty(0, dtype=torch.int64))  # type: ignore[arg-type]


def test_settings_may_differ_in_the_learning_rate_alone(
    source: Source, splits: Splits, settings: TrainSettings
) -> None:
    first = task("a", source, splits, settings)
    Stream([first, task("b", source, splits, replace(settings, lr=1.0))])
    with pytest.raises(TrainingError, match=r"'a' and 'b' share their images.*learning rate alone"):
        Stream([first, task("b", source, splits, replace(settings, batch_size=4))])


def test_an_image_in_two_splits_is_refused(source: Source, splits: Splits, settings: TrainSettings) -> None:
    other = replace(splits, train=(*splits.train[1:], splits.val[0]), val=splits.val[1:])
    with pytest.raises(TrainingError, match="1 images are trained on for one task and chosen by for another"):
        Stream([task("a", source, splits, settings), task("b", source, other, settings)])


def test_a_task_with_few_labels_is_refused(source: Source, splits: Splits, settings: TrainSettings) -> None:
    few = replace(splits, train=splits.train[:5])
    with pytest.raises(TrainingError, match=r"'few' has labels for 20.0% .* batch size of 20 or more"):
        Stream([task("all", source, splits, settings), task("few", source, few, settings)])
    enough = replace(settings, batch_size=20)
    Stream([task("all", source, splits, enough), task("few", source, few, enough)])
