"""What is worth looking at in a labelled data set, by a task and by the source's features."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path

import torch
from torch import Tensor

from torchsnow.data import Example, LoadedData, Splits
from torchsnow.errors import DataError
from torchsnow.hub import Hub
from torchsnow.review.confident import FOLDS, held_out_probabilities, likely_wrong, principal_components
from torchsnow.source import Source
from torchsnow.task_file import Task, TaskInfo
from torchsnow.workflows.evaluation import matched_labels, raise_bad_image
from torchsnow.workflows.near_duplicates import duplicate_groups, of_several, standardised
from torchsnow.workflows.predictions import run_tasks

_DOUBTFUL, _MOST_DOUBTFUL = 0.2, 48
"""The share of all images, and the number of them, that are worth a look as the most doubtful."""
_RARE = 0.2
"""A class with less than this share of the mean number of images is rare, and so is one with fewer than `FOLDS`."""


@dataclass(frozen=True)
class Image:
    """One image: its file, its path below the data's root, its class, split and group of near-duplicates; the class
    that the task takes it for, how likely that is, and how far the next class is behind (0 to 1)."""

    file: Path
    path: str
    label: str
    split: str
    taken_for: str
    probability: float
    margin: float


@dataclass(frozen=True)
class Suspect:
    """An image whose label is likely wrong, and the class that is likelier."""

    image: Image
    likelier: str

    @property
    def is_sure(self) -> bool:
        """Whether the task names the same class."""
        return self.image.taken_for == self.likelier


@dataclass(frozen=True)
class Review:
    """What was found in `num_images` images: each list with the worst first.

    - `images`: all of them, by the task's margin between its two likeliest classes;
    - `wrong`: the images that the task takes for another class, the surest first;
    - `mislabelled`: those whose label is likely wrong, by cross-validation on the source's features;
    - `duplicates`: groups of near-duplicates, those that lie in several splits or classes first;
    - `counts`: images by class and split, and `rare`: the classes that have few.
    """

    data: str
    task: str
    num_images: int
    images: tuple[Image, ...]
    wrong: tuple[Image, ...]
    mislabelled: tuple[Suspect, ...]
    duplicates: tuple[tuple[Image, ...], ...]
    counts: Mapping[str, Mapping[str, int]]
    rare: tuple[str, ...]

    @property
    def doubtful(self) -> tuple[Image, ...]:
        """The most doubtful images: a fifth of all, 48 at most."""
        return self.images[: min(_MOST_DOUBTFUL, ceil(_DOUBTFUL * len(self.images)))]


def validate_reviewable(info: TaskInfo) -> None:
    """Raise DataError for a task of which an image has any number of labels."""
    if info.thresholds is not None:
        raise DataError(
            f"images of the task {info.name!r} have any number of labels, and a review is of images with one class "
            "each; `torchsnow evaluate --csv FILE` lists what it says of every image"
        )


def review_data(
    hub: Hub,
    name: str,
    data: LoadedData,
    splits_file: Path | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Review:
    """Look at all images of a data set with a task of a hub, in one source pass.

    `splits_file` is the splits.json of the task's run; without it, the splits are those that the data defines.
    Raises DataError for a class that the task does not know, and for an image that cannot be used any more.
    """
    task = hub.task(name)
    validate_reviewable(task)
    by_split = _by_split(data, splits_file)
    examples = [example for own in by_split.values() for example in own]
    of_task = torch.tensor([example.label for example in matched_labels(task, data, examples)])
    probabilities, features = _run(hub.source, task, examples, progress)
    images = _images(data, by_split, task.classes, probabilities)
    groups = duplicate_groups(standardised(features[:, -hub.source.num_features :]))
    labels = torch.tensor([example.label for example in examples])
    wrong = [image for image, is_wrong in zip(images, probabilities.argmax(1) != of_task, strict=True) if is_wrong]
    counts = _counts(images, data.classes)
    return Review(
        data=data.name,
        task=name,
        num_images=len(images),
        images=tuple(sorted(images, key=lambda image: image.margin)),
        wrong=tuple(sorted(wrong, key=lambda image: -image.probability)),
        mislabelled=_mislabelled(images, features, labels, groups, data.classes),
        duplicates=_duplicates(images, groups),
        counts=counts,
        rare=_rare(counts),
    )


def _run(
    source: Source, task: Task, examples: Sequence[Example], progress: Callable[[int, int], None]
) -> tuple[Tensor, Tensor]:
    """The task's probabilities (N, num_classes) and the source's averages and last features (N, F)."""
    files = [example.path for example in examples]
    batches = list(run_tasks(source, {task.name: task}, files, raise_bad_image, features=True, progress=progress))
    logits = torch.cat([batch.logits[task.name] for batch in batches])
    return logits.softmax(1), torch.cat([batch.features[task.framing] for batch in batches])


def _images(
    data: LoadedData, by_split: Mapping[str, Sequence[Example]], classes: Sequence[str], probabilities: Tensor
) -> list[Image]:
    values, places = (found.tolist() for found in probabilities.topk(2))
    in_order = ((split, example) for split, own in by_split.items() for example in own)
    return [
        Image(
            file=example.path,
            path=data.relative_path(example),
            label=data.classes[example.label],
            split=split,
            taken_for=classes[first],
            probability=likeliest,
            margin=likeliest - next_one,
        )
        for (split, example), (likeliest, next_one), (first, _) in zip(in_order, values, places, strict=True)
    ]


def _by_split(data: LoadedData, splits_file: Path | None) -> dict[str, Sequence[Example]]:
    if splits_file is None:
        return dict(data.splits)
    splits = Splits.load(splits_file, data)
    return {"train": splits.train, "val": splits.val, "test": splits.test}


def _mislabelled(
    images: Sequence[Image], features: Tensor, labels: Tensor, groups: Tensor, classes: Sequence[str]
) -> tuple[Suspect, ...]:
    if int(labels.bincount().max()) < FOLDS:
        return ()
    values = principal_components(standardised(features))
    probabilities = held_out_probabilities(values, labels, groups, len(classes))
    rows, likelier = likely_wrong(probabilities, labels)
    return tuple(
        Suspect(images[row], classes[place]) for row, place in zip(rows.tolist(), likelier.tolist(), strict=True)
    )


def _duplicates(images: Sequence[Image], groups: Tensor) -> tuple[tuple[Image, ...], ...]:
    found = [tuple(images[row] for row in rows) for rows in of_several(groups)]
    return tuple(sorted(found, key=lambda group: (-num_splits(group), -num_classes(group), -len(group))))


def num_splits(group: Sequence[Image]) -> int:
    """In how many splits a group of near-duplicates lies."""
    return len({image.split for image in group})


def num_classes(group: Sequence[Image]) -> int:
    """How many labels a group of near-duplicates has."""
    return len({image.label for image in group})


def _counts(images: Sequence[Image], classes: Sequence[str]) -> dict[str, Counter[str]]:
    return {label: Counter(image.split for image in images if image.label == label) for label in classes}


def _rare(counts: Mapping[str, Mapping[str, int]]) -> tuple[str, ...]:
    totals = {label: sum(of_class.values()) for label, of_class in counts.items()}
    few = max(FOLDS, _RARE * sum(totals.values()) / len(totals))
    return tuple(sorted((label for label, total in totals.items() if total < few), key=totals.__getitem__))
