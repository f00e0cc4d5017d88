"""What logits mean: one class of an image, or any number of labels, each with a threshold of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # lists of a hub need none
    from torch import Tensor

Thresholds = tuple[float, ...] | None
"""Of a task's labels: the probabilities from which on an image has them. None where an image has one class."""


def probabilities(logits: Tensor, thresholds: Thresholds) -> Tensor:
    """Of logits (..., num_classes): shares that sum to 1, or with thresholds the probability of every label."""
    return logits.softmax(-1) if thresholds is None else logits.sigmoid()


def names_of(shares: Sequence[float], order: Sequence[int], thresholds: Thresholds) -> list[int]:
    """What an image of these probabilities has, by number, in the given order, the likeliest first: its class, or all
    labels that reach their thresholds, perhaps none."""
    return [order[0]] if thresholds is None else [place for place in order if shares[place] >= thresholds[place]]
