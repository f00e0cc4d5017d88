"""How good a classifier is on a set of images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from torchsnow.errors import DivergedError, TrainingError
from torchsnow.train.loader import Batches

MATRIX_CLASSES = 1_000
"""With more classes there is no confusion matrix: it has as many entries as there are pairs of classes."""
CALIBRATION_BINS = 15


@dataclass(frozen=True)
class ClassMetrics:
    """One class: `num_images` images have its label. Shares are 0 where there is nothing to divide."""

    name: str
    num_images: int
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class Mistake:
    """`num_images` images of the class `name` were taken for the class `taken_for`."""

    name: str
    taken_for: str
    num_images: int


@dataclass(frozen=True)
class Metrics:
    """Quality on one set of images; accuracies, precision, recall and errors are shares from 0 to 1.

    `loss` is the mean cross-entropy in nats. `top5` is None with 5 classes or fewer. `balanced_accuracy` is the mean
    recall of the classes that occur. `calibration_error` is the expected one over 15 bins. `mistakes` are all that
    were made, the most frequent first. `confusion[i][j]` counts the images of class i that were taken for class j;
    it is None with more than `MATRIX_CLASSES` classes.
    """

    num_images: int
    loss: float
    accuracy: float
    top5: float | None
    balanced_accuracy: float
    calibration_error: float
    per_class: tuple[ClassMetrics, ...]
    mistakes: tuple[Mistake, ...]
    confusion: tuple[tuple[int, ...], ...] | None

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names, in label order."""
        return tuple(row.name for row in self.per_class)

    @property
    def majority_share(self) -> float:
        """The accuracy of always naming the largest class."""
        return max(row.num_images for row in self.per_class) / self.num_images

    @property
    def accuracy_interval(self) -> tuple[float, float]:
        """Where the accuracy on more such images lies with 95% confidence."""
        return accuracy_interval(self.accuracy, self.num_images)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def accuracy_interval(accuracy: float, num_images: int) -> tuple[float, float]:
    """Where an accuracy, measured on so many images, lies with 95% confidence (Wilson, JASA 1927)."""
    from scipy.stats import binomtest  # here, because it takes a second to load

    found = binomtest(round(accuracy * num_images), num_images).proportion_ci(method="wilson")
    return float(found.low), float(found.high)


def evaluate(
    model: nn.Module,
    dataset: Dataset[tuple[Tensor, int]],
    classes: Sequence[str],
    batch_size: int,
    device: torch.device,
    num_workers: int = 0,
) -> Metrics:
    """Classify all images, in eval mode, and compare with their labels.

    Raises TrainingError for an empty set and for labels outside `classes`, and DivergedError when the model gives
    numbers that are not finite.
    """
    return compute_metrics(*predict(model, dataset, batch_size, device, num_workers), classes)


def compute_metrics(logits: Tensor, labels: Tensor, classes: Sequence[str]) -> Metrics:
    """Metrics of logits (N, num_classes) against labels (N,), both on the CPU. Raises what `evaluate` raises."""
    if len(labels) == 0:
        raise TrainingError("there are no images to evaluate on; give this split some, or leave it out")
    if logits.shape[1] != len(classes) or int(labels.max()) >= len(classes):
        raise TrainingError(
            f"the model tells {logits.shape[1]} classes apart and the labels go up to {int(labels.max())}, "
            f"but {len(classes)} class names were given"
        )
    if not bool(logits.isfinite().all()):
        raise DivergedError("the model's logits are not finite numbers; its training must have failed")
    metrics = metrics_of(logits, labels, classes)
    if not math.isfinite(metrics.loss):
        raise DivergedError("the model's logits are too large for a finite loss; its training must have failed")
    return metrics


def predict(
    model: nn.Module,
    dataset: Dataset[tuple[Tensor, int]],
    batch_size: int,
    device: torch.device,
    num_workers: int = 0,
) -> tuple[Tensor, Tensor]:
    """Logits (N, num_classes), float32, and labels (N,) of all images, on the CPU. The model is left in its mode."""
    training = model.training
    model.eval()
    all_logits, all_labels = [torch.empty(0)], [torch.empty(0, dtype=torch.int64)]
    try:
        with torch.no_grad():
            collate = getattr(dataset, "collate", None)
            for images, labels in Batches(dataset, batch_size, num_workers=num_workers, collate_fn=collate):
                all_logits.append(model(images.to(device)).float().cpu())
                all_labels.append(labels)
    finally:
        model.train(training)
    return torch.cat(all_logits[1:] or all_logits), torch.cat(all_labels)


def metrics_of(logits: Tensor, labels: Tensor, classes: Sequence[str]) -> Metrics:
    """Metrics of logits (N, num_classes) against labels (N,)."""
    num_classes = len(classes)
    predicted = logits.argmax(1)
    is_right = predicted == labels
    # by class and not by pair of classes: of those 10,000 classes have 100 million
    counts, taken, right = (found.bincount(minlength=num_classes) for found in (labels, predicted, labels[is_right]))
    precision, recall = (right.double() / total.clamp_min(1) for total in (taken, counts))
    f1 = 2 * right.double() / (taken + counts).clamp_min(1)
    rows = zip(classes, counts.tolist(), precision.tolist(), recall.tolist(), f1.tolist(), strict=True)
    return Metrics(
        num_images=len(labels),
        loss=float(F.cross_entropy(logits, labels)),
        accuracy=float(is_right.double().mean()),
        top5=_top(5, logits, labels) if num_classes > 5 else None,
        balanced_accuracy=float(recall[counts > 0].mean()),
        calibration_error=_calibration_error(logits.softmax(1).amax(1).double(), is_right.double()),
        per_class=tuple(ClassMetrics(*row) for row in rows),
        mistakes=_mistakes(labels[~is_right], predicted[~is_right], classes),
        confusion=_confusion(labels, predicted, num_classes) if num_classes <= MATRIX_CLASSES else None,
    )


def _top(count: int, logits: Tensor, labels: Tensor) -> float:
    """The share of images whose class is among the `count` likeliest ones."""
    return float((logits.topk(count).indices == labels[:, None]).any(1).double().mean())


def _calibration_error(confidence: Tensor, is_right: Tensor) -> float:
    """The expected one (Guo et al., ICML 2017): the mean distance of confidence and accuracy over equally wide bins."""
    bins = (confidence * CALIBRATION_BINS).long().clamp_max(CALIBRATION_BINS - 1)
    gaps = (confidence - is_right).new_zeros(CALIBRATION_BINS).index_add(0, bins, confidence - is_right)
    return float(gaps.abs().sum()) / len(bins)


def _mistakes(labels: Tensor, predicted: Tensor, classes: Sequence[str]) -> tuple[Mistake, ...]:
    """Of images that were all taken for another class; equally frequent ones in the order of the classes."""
    pairs, counts = torch.unique(torch.stack([labels, predicted], 1), dim=0, return_counts=True)
    order = counts.argsort(descending=True, stable=True)
    rows = zip(pairs[order].tolist(), counts[order].tolist(), strict=True)
    return tuple(Mistake(classes[label], classes[other], count) for (label, other), count in rows)


def _confusion(labels: Tensor, predicted: Tensor, num_classes: int) -> tuple[tuple[int, ...], ...]:
    counts = (labels * num_classes + predicted).bincount(minlength=num_classes**2)
    return tuple(map(tuple, counts.view(num_classes, num_classes).tolist()))
