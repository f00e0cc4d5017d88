"""How good the tasks of a hub are on labelled images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from torchsnow.data import Example, LoadedData, Splits
from torchsnow.data.names import as_text, first_few, likeness
from torchsnow.errors import DataError
from torchsnow.hub import Hub
from torchsnow.task_file import Task
from torchsnow.train import Metrics
from torchsnow.train.evaluate import judge
from torchsnow.workflows.predictions import run_tasks


@dataclass(frozen=True)
class Evaluation:
    """What a task says of N labelled examples: `logits` (N, num_classes), on the CPU, and how good they are."""

    metrics: Metrics
    examples: Sequence[Example]
    logits: Tensor

    def rows(self, data: LoadedData) -> Iterator[tuple[Any, ...]]:
        """For every image its path below the data's root, its class, the one that it is taken for, whether that is
        right, and the probabilities of the one that it is taken for and of its own."""
        probabilities, classes = self.logits.softmax(1), self.metrics.classes
        for example, of_image in zip(self.examples, probabilities, strict=True):
            top, label = int(of_image.argmax()), example.label
            shares = (round(float(of_image[place]), 6) for place in (top, label))
            yield data.relative_path(example), classes[label], classes[top], top == label, *shares


def evaluate_task(
    hub: Hub,
    name: str,
    data: LoadedData,
    examples: Sequence[Example],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluation:
    """How good a hub's task is on labelled examples, whose classes are matched by name; on the source's device.

    `progress` is called with (images done, images in all). Raises DataError when the data has a class that the task
    does not know, or an image that cannot be read any more.
    """
    task = hub.task(name)
    relabelled = matched_labels(task, data, examples)
    files = [example.path for example in relabelled]
    batches = run_tasks(hub.source, {name: task}, files, refuse_bad, progress=progress)
    logits = torch.cat([torch.empty(0, len(task.classes)), *(batch.logits[name] for batch in batches)])
    labels = torch.tensor([example.label for example in relabelled], dtype=torch.int64)
    return Evaluation(judge(logits, labels, task.classes), relabelled, logits)


def refuse_bad(file: Path, why: str) -> None:
    """For `run_tasks` where every image must have an answer: raise DataError."""
    raise DataError(why)


def matched_labels(task: Task, data: LoadedData, examples: Iterable[Example]) -> list[Example]:
    """Examples of some data with the labels of a task, matched by the classes' names.

    Raises DataError when the data has a class that the task does not know.
    """
    places = {as_text(label): place for place, label in enumerate(task.classes)}
    unknown = [label for label in data.classes if label not in places]
    if unknown:
        alike = [label for label in task.classes if likeness(label) == likeness(unknown[0])]
        near = f" (is it {alike[0]!a}? Then rename it)" if alike else ""
        raise DataError(
            f"{data.name} has the class {unknown[0]!r}, which task {task.name!r} does not know{near}; "
            f"its classes are {first_few(task.classes, 20, ', ')}"
        )
    return [Example(example.path, places[data.classes[example.label]]) for example in examples]


def examples_of(data: LoadedData, split: str, splits_file: Path | None) -> Sequence[Example]:
    """The examples of one split ("all" for every image), as a run's splits.json or the data itself defines it.

    Raises DataError for a split that there is not.
    """
    splits: dict[str, Sequence[Example]] = dict(data.splits)
    if splits_file is not None:
        of_run = Splits.load(splits_file, data)
        splits = {"train": of_run.train, "val": of_run.val, "test": of_run.test}
    splits = {"all": data.examples, **splits}
    if not splits.get(split):
        have = ", ".join(name for name, examples in splits.items() if examples)
        raise DataError(f"{data.name} has no split {split!r}; it has: {have}. A run's own are in its splits.json")
    return splits[split]
