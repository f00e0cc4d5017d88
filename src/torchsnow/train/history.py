"""What a run has done so far, epoch by epoch, and what follows from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Epoch:
    """One finished epoch, counted from 1; epoch 0 is the start, where nothing but the validation was measured.

    Losses are in nats, accuracies shares from 0 to 1; `lr` is the learning rate of the last step, `images_per_s` the
    speed of training alone, and `seconds` the time of training and validation. What belongs to training is None in
    epoch 0. `body_val_accuracy` is that of a delta's body alone, where the method tells it.
    """

    epoch: int
    train_loss: float | None
    train_accuracy: float | None
    val_loss: float
    val_accuracy: float
    lr: float | None
    images_per_s: float | None
    seconds: float
    body_val_accuracy: float | None = None


def epochs_done(history: Sequence[Epoch]) -> int:
    """How often the training images were gone through; the start is no epoch of training."""
    return history[-1].epoch if history else 0


def best_epoch(history: Sequence[Epoch], num_images: int) -> Epoch:
    """The last epoch whose validation accuracy, over so many images, is within one standard error of the highest
    (Breiman et al., "Classification and Regression Trees", 1984, section 3.4.3), and which is not worse than the start
    in both accuracy and loss.

    The highest of many is mostly luck, and while the learning rate falls a later epoch generalises better than an
    earlier one of the same accuracy. An accuracy that is lower by a few images says less than a lower loss.
    """
    highest = max(row.val_accuracy for row in history)
    least = highest - (highest * (1 - highest) / num_images) ** 0.5
    start = history[0]
    return next(
        row
        for row in reversed(history)
        if row.val_accuracy >= least and (row.val_accuracy >= start.val_accuracy or row.val_loss < start.val_loss)
    )


def highest_epoch(history: Sequence[Epoch]) -> Epoch:
    """The epoch with the highest validation accuracy; of equal ones that with the lowest loss, then the first."""
    return min(history, key=lambda row: (-row.val_accuracy, row.val_loss, row.epoch))


def is_finished(history: Sequence[Epoch], epochs: int, patience: int | None) -> bool:
    """Whether all `epochs` are done, or the last `patience` of them brought nothing better than those before.

    The start does not count: warming up may cost a good start some accuracy before training adds to it.
    """
    done, trained = epochs_done(history), [row for row in history if row.epoch > 0]
    if not trained or done >= epochs:
        return done >= epochs
    return patience is not None and done - highest_epoch(trained).epoch >= patience
