"""What a run has done so far, epoch by epoch, and what follows from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Epoch:
    """One finished epoch, counted from 1.

    Losses are in nats, accuracies shares from 0 to 1; `lr` is the learning rate of the last step, `images_per_s` the
    speed of training alone, and `seconds` the time of training and validation.
    """

    epoch: int
    train_loss: float
    train_accuracy: float
    val_loss: float
    val_accuracy: float
    lr: float
    images_per_s: float
    seconds: float


def best_epoch(history: Sequence[Epoch]) -> Epoch:
    """The epoch with the highest validation accuracy; of equal ones that with the lowest loss, then the first."""
    return min(history, key=lambda row: (-row.val_accuracy, row.val_loss, row.epoch))


def is_finished(history: Sequence[Epoch], epochs: int, patience: int | None) -> bool:
    """Whether all `epochs` are done, or the last `patience` of them brought no better model."""
    if not history or len(history) >= epochs:
        return len(history) >= epochs
    return patience is not None and len(history) - best_epoch(history).epoch >= patience
