"""How good tasks are on labelled images, besides what they were, and from where on images are unlike those."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from torchsnow.data import Example, ImageSet, LoadedData, Splits
from torchsnow.data.datasets import targets_of
from torchsnow.data.names import as_text, first_few, likeness
from torchsnow.data.tables import BETWEEN
from torchsnow.delta.fold import fold
from torchsnow.errors import DataError
from torchsnow.hub import Hub
from torchsnow.model import SnowModel
from torchsnow.source import Source
from torchsnow.task_file import Task
from torchsnow.task_file.info import Limits
from torchsnow.task_file.labels import Thresholds, names_of, probabilities
from torchsnow.train import Metrics, TrainSettings
from torchsnow.train.evaluate import compute_metrics
from torchsnow.train.targets import are_right, best_thresholds
from torchsnow.workflows.predictions import run_tasks

UNKNOWN_RATE = 0.05
"""How many images of the task's own kind are taken for unknown, at most, on average."""
_MOST_IMAGES = 1_000  # more hardly say it any better


@dataclass(frozen=True)
class Evaluation:
    """What a task says of N labelled examples: `logits` (N, num_classes), on the CPU, and how good they are."""

    metrics: Metrics
    examples: Sequence[Example]
    logits: Tensor
    thresholds: Thresholds

    def rows(self, data: LoadedData) -> Iterator[tuple[Any, ...]]:
        """For every image its path below the data's root, its class, the one that it is taken for, whether that is
        right, and the probabilities of the one that it is taken for and of its own; of several labels all with `|`
        between, and no probabilities."""
        shares, classes = probabilities(self.logits, self.thresholds).tolist(), self.metrics.classes
        orders = self.logits.argsort(dim=1, descending=True, stable=True).tolist()
        for example, of_image, order in zip(self.examples, shares, orders, strict=True):
            said = sorted(names_of(of_image, order, self.thresholds))
            own = example.all_labels
            numbers = [round(of_image[places[0]], 6) if len(places) == 1 else "" for places in (said, own)]
            texts = (BETWEEN.join(classes[place] for place in places) for places in (own, said))
            yield data.relative_path(example), *texts, tuple(said) == own, *numbers


@dataclass(frozen=True)
class Change:
    """A new version of a task next to the former one, on the same images: of `num_images` the former has `former_right`
    right, the new one has `gained` right that the former has not, and the former has `lost` right that the new one has
    not. With `only_unseen` these are images that the former one has not learned from; otherwise that is not known."""

    num_images: int
    former_right: int
    gained: int
    lost: int
    only_unseen: bool

    @property
    def p_value(self) -> float:
        """How likely a difference of this size, or a larger one, would be between equally good versions (McNemar's
        test, Psychometrika 12, 1947, in its exact form)."""
        from scipy.stats import binomtest  # here, because it takes a second to load

        return float(binomtest(self.gained, self.gained + self.lost).pvalue) if self.gained + self.lost else 1.0


def change_since(
    former: Task,
    source: Source,
    splits: Splits,
    logits: Tensor,
    thresholds: Thresholds = None,
    parts: Mapping[str, str] | None = None,
) -> Change | None:
    """What a new version, which gives `logits` (N, num_classes) for the test images, changed since the former one.

    `parts` say in which split images were for that one, see `torchsnow.data.splits.parts_in`: those that it has learned
    from are left out, if there are others. None where it knew other classes, or only one of them several labels of an
    image. Raises DataError when an image cannot be read any more.
    """
    if set(former.classes) != set(splits.classes) or (former.thresholds is None) != (thresholds is None):
        return None
    digests = [splits.digests.get(example.path, "") for example in splits.test]
    unseen = [place for place, digest in enumerate(digests) if (parts or {}).get(digest, "test") == "test"]
    only_unseen = bool(parts and unseen)
    rows = unseen if only_unseen else list(range(len(digests)))
    files = [splits.test[row].path for row in rows]
    labels = targets_of([splits.test[row] for row in rows], len(splits.classes))
    of_former = torch.cat(
        [batch.logits[former.name] for batch in run_tasks(source, {former.name: former}, files, raise_bad_image)]
    )
    places = [former.classes.index(name) for name in splits.classes]
    limits = None if former.thresholds is None else tuple(former.thresholds[place] for place in places)
    before, now = are_right(of_former[:, places], labels, limits), are_right(logits[rows], labels, thresholds)
    gained, lost = int((now & ~before).sum()), int((before & ~now).sum())
    return Change(len(labels), int(before.sum()), gained, lost, only_unseen)


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
    batches = run_tasks(hub.source, {name: task}, files, raise_bad_image, progress=progress)
    logits = torch.cat([torch.empty(0, len(task.classes)), *(batch.logits[name] for batch in batches)])
    targets = targets_of(relabelled, len(task.classes))
    metrics = compute_metrics(logits, targets, task.classes, task.thresholds)
    return Evaluation(metrics, relabelled, logits, task.thresholds)


def raise_bad_image(file: Path, why: str) -> None:
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
    return [_matched(example, [places[name] for name in data.classes]) for example in examples]


def _matched(example: Example, places: Sequence[int]) -> Example:
    own = None if example.labels is None else tuple(sorted(places[label] for label in example.labels))
    return Example(example.path, places[example.label], own)


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


def limits_of(model: SnowModel, val: ImageSet, settings: TrainSettings) -> Limits:
    """From where on an image is unknown and, where images have several labels, from where on they are named, by
    validation images.

    Of images like those, at most `UNKNOWN_RATE` are above the distance (see `FoldedHead`), whatever their distribution
    (split conformal prediction, Vovk et al., "Algorithmic Learning in a Random World", 2005). It is None for fewer than
    19 images, which cannot say, and for a task whose head reads nothing of the source.
    """
    images, delta = val.subset(range(0, len(val), math.ceil(len(val) / _MOST_IMAGES))), fold(model.delta)
    targets, request = images.labels, delta.request(delta.choose())
    all_logits: list[Tensor] = []
    all_distances: list[Tensor] = []
    with torch.no_grad():
        for pixels, _ in DataLoader(images, settings.batch_size):
            logits, distances = delta.with_distance(model.source(pixels.to(settings.torch_device()), request))
            all_logits.append(logits.float().cpu())
            all_distances += [] if distances is None else [distances.float().cpu()]
    thresholds = best_thresholds(torch.cat(all_logits), targets) if targets.ndim == 2 else None
    rank = math.ceil((len(images) + 1) * (1 - UNKNOWN_RATE))
    if rank > len(images) or not all_distances:
        return Limits(None, thresholds)
    limit = float(torch.cat(all_distances).kthvalue(rank).values)
    return Limits(limit if 0 < limit < math.inf else None, thresholds)
