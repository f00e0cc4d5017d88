"""A sequence of tasks: each data set is one, or is cut into several by its classes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torchsnow.data import Example, LoadedData, Splits, make_splits
from torchsnow.data.sampling import reduced
from torchsnow.errors import ExperimentError

_NAME_LENGTH = 40  # characters of the data set's name


@dataclass(frozen=True)
class SequenceTask:
    """One task of a sequence; its name says its place, from 1, and its data set."""

    name: str
    data: str
    splits: Splits

    def to_dict(self) -> dict[str, Any]:
        """What it consists of, as plain JSON values."""
        sizes = {f"{part}_images": len(getattr(self.splits, part)) for part in ("train", "val", "test")}
        fingerprint = {"fingerprint": self.splits.fingerprint}
        return {"name": self.name, "data": self.data, "classes": list(self.splits.classes), **sizes, **fingerprint}


def make_tasks(
    names: Sequence[str],
    load: Callable[[str], LoadedData],
    classes_per_task: int | None,
    seed: int,
    train_images: int | None,
    val_images: int | None,
    test_images: int | None,
) -> list[SequenceTask]:
    """The tasks of a sequence, in order. The numbers of images are for every task; None takes all.

    Raises DataError for data that cannot be used, ExperimentError for data without test images.
    """
    found: list[SequenceTask] = []
    for data in names:
        splits = make_splits(load(data), seed=seed)
        if not splits.test:
            raise ExperimentError(f"{data} has no test images, and a task is judged by them; add a test split")
        for group in class_groups(len(splits.classes), classes_per_task):
            part = reduced(
                of_classes(splits, group), train_images=train_images, val_images=val_images, test_images=test_images
            )
            found.append(SequenceTask(_task_name(len(found) + 1, data), data, part))
    return found


def class_groups(num_classes: int, classes_per_task: int | None) -> Iterator[range]:
    """The labels of each task, in order; a rest of one class joins the group before, since one is no task."""
    step = classes_per_task or num_classes
    starts = list(range(0, num_classes, step))
    if len(starts) > 1 and num_classes - starts[-1] == 1:
        starts.pop()
    yield from (range(first, end) for first, end in zip(starts, [*starts[1:], num_classes], strict=True))


def of_classes(splits: Splits, labels: Sequence[int]) -> Splits:
    """The examples of some classes, labelled from 0."""
    place = {label: number for number, label in enumerate(labels)}

    def some(examples: Sequence[Example]) -> tuple[Example, ...]:
        return tuple(Example(one.path, place[one.label]) for one in examples if one.label in place)

    return replace(
        splits,
        train=some(splits.train),
        val=some(splits.val),
        test=some(splits.test),
        classes=tuple(splits.classes[label] for label in labels),
    )


def _task_name(number: int, data: str) -> str:
    """A name that a hub takes: "03-digits", or the last part of a path or an address."""
    last = data.rstrip("/").rpartition("/")[2].lower()
    short = re.sub(r"[^a-z0-9]+", "-", last)[:_NAME_LENGTH].strip("-")
    return f"{number:02d}-{short}".rstrip("-")
