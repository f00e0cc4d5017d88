"""Images that several tasks learn from: one order, one augmentation, and a column of labels for every task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from torchsnow.data import Example, ImageSet, Splits, train_transform
from torchsnow.delta.delta import Delta
from torchsnow.errors import TrainingError
from torchsnow.source.features import FeatureMaps, Request
from torchsnow.source.source import Source
from torchsnow.train.batches import Loader, num_batches, plain_images, plain_loader, train_loader
from torchsnow.train.contract import Method
from torchsnow.train.run_folder import RunFolder
from torchsnow.train.settings import TrainSettings

NO_LABEL = -1
LEAST_ROWS = 2  # batch norm cannot train on one
_LEAST_EXPECTED = 4.0  # rows of a batch on average: with fewer, many batches would have less than two


class Statistics(Protocol):
    """What a method wants to be shown of all training images before it starts."""

    @property
    def request(self) -> Request: ...

    def add(self, features: FeatureMaps, labels: Tensor) -> None: ...


class SharedMethod(Method, Protocol):
    """A method that trains a delta on a source, so that several of them can share the source's pass.

    `statistics` and `init_from_stats` are its `start` without the pass. One that `trains_alone` does not read the
    source in every step, so there is no pass to share.
    """

    source: Source
    delta: Delta

    @property
    def trains_alone(self) -> bool: ...

    def statistics(self, device: torch.device) -> Any: ...

    def init_from_stats(self, stats: Any) -> None: ...


@dataclass(frozen=True)
class SharedTask:
    """One task of a shared run: what `torchsnow.train.fit` is given for a task alone."""

    name: str
    method: SharedMethod
    splits: Splits
    settings: TrainSettings
    run: RunFolder
    chosen: dict[str, str] = field(default_factory=dict)


class Stream:
    """The images of tasks that are trained on the same ones; an image may lack labels for some of them.

    The order and the augmentation of the training images are those of a task trained alone, if its labels cover all
    of them. `labels` (n,) are by task name, for `train` and for `val`, and `NO_LABEL` where an image has none.

    Raises TrainingError when the tasks' settings differ in more than the learning rate, when an image is to be
    trained on for one task and not for another, and when a task has labels for so few images that its share of a
    batch would be too small.
    """

    def __init__(self, tasks: Sequence[SharedTask], pool: ImageSet | None = None) -> None:
        _refuse_unlike(tasks)
        self.tasks, self.settings = tuple(tasks), tasks[0].settings
        config, framing = tasks[0].method.input_config, self.settings.framing
        train, val = (_union([getattr(task.splits, split) for task in tasks]) for split in ("train", "val"))
        self.pool = plain_images(config, framing) if pool is None else pool
        self.plain, self.val = (self.pool.with_examples(_numbered(paths), ()) for paths in (train, val))
        self.train = self.plain.with_transform(train_transform(config, framing, self.settings.augmentation))
        self.train_labels = {task.name: _labels(train, task.splits.train) for task in tasks}
        self.val_labels = {task.name: _labels(val, task.splits.val) for task in tasks}
        self.steps = num_batches(len(train), self.settings.batch_size)
        self._refuse_leaks(set(train) & set(val))
        self._refuse_few_labels()

    def train_loader(self, epoch: int, device: torch.device) -> Loader:
        """Batches of images, as `fit` would see them in this epoch, and their numbers (B,)."""
        return train_loader(self.train, self.settings, epoch, device)

    def plain_loader(self, images: ImageSet) -> Loader:
        """Batches of `plain` or `val`, in their own order, and their numbers (B,)."""
        return plain_loader(images, self.settings)

    def _refuse_leaks(self, both: set[Path]) -> None:
        if both:
            raise TrainingError(
                f"{len(both)} images are trained on for one task and chosen by for another, {min(both)} among them; "
                "tasks that share images must share their split"
            )

    def _refuse_few_labels(self) -> None:
        size = self.settings.batch_size
        for name, labels in self.train_labels.items():
            share = float((labels != NO_LABEL).double().mean())
            if share * size < _LEAST_EXPECTED and share < 1:
                raise TrainingError(
                    f"the task {name!r} has labels for {share:.1%} of the images that are trained on together, "
                    f"{share * size:.1f} of a batch of {size} and too few for batch normalisation; "
                    f"use a batch size of {-int(-_LEAST_EXPECTED // share)} or more, or train it by itself"
                )


def rows_with_labels(labels: Tensor) -> Tensor | None:
    """Which of a batch's images have labels (B,) of a task: (n,) int64, or None for all of them."""
    known = labels != NO_LABEL
    return None if bool(known.all()) else known.nonzero().flatten()


def _refuse_unlike(tasks: Sequence[SharedTask]) -> None:
    first = tasks[0].settings
    for task in tasks[1:]:
        if replace(task.settings, lr=first.lr) != first:
            raise TrainingError(
                f"the tasks {tasks[0].name!r} and {task.name!r} share their images, so their settings may differ in "
                "the learning rate alone"
            )


def _union(splits: Sequence[Sequence[Example]]) -> list[Path]:
    """The images of all tasks: first those of the task that has most, in its order."""
    longest_first = sorted(splits, key=len, reverse=True)
    return list(dict.fromkeys(example.path for examples in longest_first for example in examples))


def _numbered(paths: Sequence[Path]) -> list[Example]:
    return [Example(path, number) for number, path in enumerate(paths)]


def _labels(paths: Sequence[Path], examples: Sequence[Example]) -> Tensor:
    known = {example.path: example.label for example in examples}
    return torch.tensor([known.get(path, NO_LABEL) for path in paths], dtype=torch.int64)
