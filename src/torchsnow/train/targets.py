"""Targets of images: a class each, (n,) int64, or any number of labels, (n, num_classes) float of 0 and 1.

What learns and measures asks here, and need not know which of both it is."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from torchsnow.task_file.labels import Thresholds

_FEWEST = 5  # images of a label: fewer cannot say where its threshold should be


def members(targets: Tensor, num_classes: int) -> Tensor:
    """Which image has which class or label: (n, num_classes), of 0 and 1."""
    return F.one_hot(targets, num_classes) if targets.ndim == 1 else targets


def losses(logits: Tensor, targets: Tensor, weights: Tensor | None = None, label_smoothing: float = 0.0) -> Tensor:
    """The loss of every image in nats, (n,), for logits (n, num_classes): cross-entropy, or the sum of the labels'
    binary ones. `weights` (num_classes,) are of classes, or of images that have a label over those that have not."""
    if targets.ndim == 1:
        return F.cross_entropy(logits, targets, weights, reduction="none", label_smoothing=label_smoothing)
    smooth = targets * (1 - label_smoothing) + label_smoothing / 2
    return F.binary_cross_entropy_with_logits(logits, smooth, pos_weight=weights, reduction="none").sum(1)


def named(logits: Tensor, thresholds: Thresholds) -> Tensor:
    """Which labels are said of which image, (n, num_classes), bool; without thresholds those more likely than not."""
    limits = torch.full((logits.shape[1],), 0.5) if thresholds is None else torch.tensor(thresholds)
    return logits.sigmoid() >= limits.to(logits)


def are_right(logits: Tensor, targets: Tensor, thresholds: Thresholds = None) -> Tensor:
    """Whether an image is told right, (n,), bool: its class, or all of its labels and no other."""
    if targets.ndim == 1:
        return logits.argmax(1) == targets
    return (named(logits, thresholds) == targets.bool()).all(1)


def best_thresholds(logits: Tensor, targets: Tensor) -> tuple[float, ...]:
    """For every label the probability from which on to name it, with the highest F1 on these images: logits and
    targets (n, num_classes). Labels of fewer than 5 images get 0.5."""
    shares, order = logits.double().sigmoid().sort(0, descending=True)
    hits, count = targets.gather(0, order).cumsum(0), targets.sum(0)
    num_named = torch.arange(1, len(logits) + 1)[:, None]
    last = (2 * hits / (num_named + count)).argmax(0, keepdim=True)
    following = torch.cat([shares, torch.zeros_like(shares[:1])]).gather(0, last + 1)
    halfway = ((shares.gather(0, last) + following) / 2)[0]
    return tuple(torch.where(count < _FEWEST, 0.5, halfway.clamp(1e-6, 1 - 1e-6)).tolist())


def mean_average_precision(logits: Tensor, targets: Tensor) -> float:
    """The mean over the labels that occur of the average precision: of logits and targets (n, num_classes)."""
    from sklearn.metrics import average_precision_score  # here, because it takes a second to load

    occurs = targets.sum(0) > 0
    if not bool(occurs.any()):
        return 0.0
    return float(average_precision_score(targets[:, occurs].numpy(), logits[:, occurs].numpy(), average="macro"))
