"""How good a classifier is on a set of images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_calibration_error,
    multiclass_confusion_matrix,
    multiclass_f1_score,
    multiclass_precision,
    multiclass_recall,
)

from torchsnow.errors import TrainingError


@dataclass(frozen=True)
class ClassMetrics:
    """One class: `num_images` images have its label. Shares are 0 where there is nothing to divide."""

    name: str
    num_images: int
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class Metrics:
    """Quality on one set of images; accuracies, precision, recall and errors are shares from 0 to 1.

    `loss` is the mean cross-entropy in nats. `top5` is None with 5 classes or fewer. `balanced_accuracy` is the mean
    recall of the classes that occur. `calibration_error` is the expected one over 15 bins. `confusion[i][j]` counts
    the images of class i that were taken for class j.
    """

    num_images: int
    loss: float
    accuracy: float
    top5: float | None
    balanced_accuracy: float
    calibration_error: float
    per_class: tuple[ClassMetrics, ...]
    confusion: tuple[tuple[int, ...], ...]

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names, in label order."""
        return tuple(row.name for row in self.per_class)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def evaluate(
    model: nn.Module,
    dataset: Dataset[tuple[Tensor, int]],
    classes: Sequence[str],
    batch_size: int,
    device: torch.device,
    num_workers: int = 0,
) -> Metrics:
    """Classify all images, in eval mode, and compare with their labels.

    Raises TrainingError for an empty set, for labels outside `classes`, and when the model gives numbers that are
    not finite.
    """
    return judge(*predict(model, dataset, batch_size, device, num_workers), classes)


def judge(logits: Tensor, labels: Tensor, classes: Sequence[str]) -> Metrics:
    """Metrics of logits (N, num_classes) against labels (N,), both on the CPU. Raises what `evaluate` raises."""
    if len(labels) == 0:
        raise TrainingError("there are no images to evaluate on; give this split some, or leave it out")
    if logits.shape[1] != len(classes) or int(labels.max()) >= len(classes):
        raise TrainingError(
            f"the model tells {logits.shape[1]} classes apart and the labels go up to {int(labels.max())}, "
            f"but {len(classes)} class names were given"
        )
    if not bool(logits.isfinite().all()):
        raise TrainingError("the model's logits are not finite numbers; its training must have failed")
    return measure(logits, labels, classes)


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
            for images, labels in DataLoader(dataset, batch_size, num_workers=num_workers, collate_fn=collate):
                all_logits.append(model(images.to(device)).float().cpu())
                all_labels.append(labels)
    finally:
        model.train(training)
    return torch.cat(all_logits[1:] or all_logits), torch.cat(all_labels)


def measure(logits: Tensor, labels: Tensor, classes: Sequence[str]) -> Metrics:
    """Metrics of logits (N, num_classes) against labels (N,)."""
    num_classes = len(classes)
    predicted = logits.argmax(1)
    counts = labels.bincount(minlength=num_classes)
    precision = multiclass_precision(predicted, labels, num_classes, average="none")
    recall = multiclass_recall(predicted, labels, num_classes, average="none")
    f1 = multiclass_f1_score(predicted, labels, num_classes, average="none")
    confusion = multiclass_confusion_matrix(predicted, labels, num_classes)
    rows = zip(classes, counts.tolist(), precision.tolist(), recall.tolist(), f1.tolist(), strict=True)
    return Metrics(
        num_images=len(labels),
        loss=float(F.cross_entropy(logits, labels)),
        accuracy=float(multiclass_accuracy(predicted, labels, num_classes, average="micro")),
        top5=float(multiclass_accuracy(logits, labels, num_classes, "micro", top_k=5)) if num_classes > 5 else None,
        balanced_accuracy=float(recall[counts > 0].mean()),
        calibration_error=float(multiclass_calibration_error(logits.softmax(1), labels, num_classes, n_bins=15)),
        per_class=tuple(ClassMetrics(*row) for row in rows),
        confusion=tuple(tuple(row) for row in confusion.tolist()),
    )
