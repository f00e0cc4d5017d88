"""Fewer examples of a split, drawn openly and in the classes' own proportions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from torchsnow.data.loading import Example, by_class
from torchsnow.data.splits import Splits
from torchsnow.errors import DataError


def reduced(
    splits: Splits,
    *,
    train_images: int | None = None,
    train_share: float | None = None,
    shots: int | None = None,
    val_images: int | None = None,
    test_images: int | None = None,
) -> Splits:
    """The same splits with fewer examples; what is None stays as it is.

    Of the training split a number of images, a share of it (0 to 1), or `shots` images of every class; of the others
    a number. Every class keeps its proportion, and at least one training image. The draw follows from the splits'
    seed, and a smaller draw is part of a larger one. Raises DataError for contradictory or impossible wishes.
    """
    if sum(wish is not None for wish in (train_images, train_share, shots)) > 1:
        raise DataError("train_images, train_share and shots contradict each other: give one of them")
    if train_share is not None:
        if not 0 < train_share <= 1:
            raise DataError(f"train_share is {train_share}; expected a share above 0, up to 1")
        train_images = max(1, round(train_share * len(splits.train)))
    for name, wish in (("train_images", train_images), ("val_images", val_images), ("test_images", test_images)):
        if wish is not None and wish < 1:
            raise DataError(f"{name} is {wish}; expected 1 or more")
    train = _of_each(splits, shots) if shots is not None else _some(splits, splits.train, train_images, at_least=1)
    return replace(
        splits,
        train=train,
        val=_some(splits, splits.val, val_images),
        test=_some(splits, splits.test, test_images),
    )


def _of_each(splits: Splits, shots: int) -> tuple[Example, ...]:
    if shots < 1:
        raise DataError(f"shots is {shots}; expected 1 or more images of every class")
    by_class = _shuffled_by_class(splits, splits.train)
    short = [splits.classes[label] for label, members in enumerate(by_class) if len(members) < shots]
    if short:
        raise DataError(f"the class {short[0]!r} has fewer than {shots} images to train on")
    return tuple(example for members in by_class for example in members[:shots])


def _some(splits: Splits, examples: Sequence[Example], count: int | None, at_least: int = 0) -> tuple[Example, ...]:
    """About `count` of the examples: each class in proportion, rounded, with at least `at_least`."""
    if count is None or count >= len(examples):
        return tuple(examples)
    share = count / len(examples)
    chosen = []
    for members in _shuffled_by_class(splits, examples):
        chosen += members[: min(len(members), max(at_least, round(share * len(members))))]
    return tuple(chosen)


def _shuffled_by_class(splits: Splits, examples: Sequence[Example]) -> list[list[Example]]:
    generator = np.random.default_rng([splits.seed, len(examples)])
    result = []
    for members in by_class(examples, len(splits.classes)):
        members.sort(key=lambda example: example.path.as_posix())
        result.append([members[i] for i in generator.permutation(len(members))])
    return result
