"""The images of a run, batch by batch, in an order that depends on the seed and the epoch alone."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from torchsnow.data import ImageSet, Splits, eval_transform, prepare, train_transform
from torchsnow.data.datasets import CACHE_BYTES
from torchsnow.errors import TrainingError
from torchsnow.source.config import Framing, InputConfig
from torchsnow.train.loader import Batches
from torchsnow.train.ranks import ALONE, Ranks
from torchsnow.train.settings import TrainSettings
from torchsnow.train.store import FeatureStore
from torchsnow.train.targets import members

Loader = DataLoader[tuple[Tensor, Any]]  # it collates images and labels into a tensor each


@dataclass(frozen=True)
class RunImages:
    """What a run may see: the training images, augmented and `plain` (as at evaluation), and the validation images."""

    train: ImageSet
    plain: ImageSet
    val: ImageSet


def run_images(splits: Splits, config: InputConfig, settings: TrainSettings, pool: ImageSet | None = None) -> RunImages:
    """The training and validation images of `splits`. The test split is not touched.

    `pool` is a set made by `plain_images` for the same source and size; what it has decoded is not decoded again.

    Raises TrainingError when there are too few to train on, or none to choose the best model by.
    """
    if len(splits.train) < 2:
        raise TrainingError(f"the training split has {len(splits.train)} images; expected 2 or more")
    if not splits.val:
        raise TrainingError("the validation split is empty, and the best model is chosen by it; give it a share")
    # one set, so that training and validation share one cache
    plain = (plain_images(config, settings.framing) if pool is None else pool).with_examples(
        (*splits.train, *splits.val), splits.classes
    )
    train = plain.subset(range(len(splits.train)))
    return RunImages(
        train=train.with_transform(train_transform(config, settings.framing, settings.augmentation)),
        plain=train,
        val=plain.subset(range(len(splits.train), len(plain))),
    )


def plain_images(config: InputConfig, framing: Framing, cache_bytes: int = CACHE_BYTES) -> ImageSet:
    """An empty set that shows images as at evaluation, for `ImageSet.with_examples`."""
    return ImageSet((), (), eval_transform(config, framing), prepare(config, framing), cache_bytes)


def balanced_weights(images: ImageSet) -> Tensor:
    """Weights of the classes, (num_classes,), under which every class counts alike and an image counts 1 on average; of
    labels those under which images with a label count like those without."""
    targets = images.labels
    counts = members(targets, len(images.classes)).sum(0)
    if targets.ndim == 2:
        return (len(images) - counts) / counts.clamp_min(1)
    return len(images) / (len(counts) * counts.clamp_min(1))


def data_config(splits: Splits) -> dict[str, Any]:
    """What a run was trained on, in JSON values; the split's digest covers which image is where."""
    places = [
        [
            (
                example.path.relative_to(splits.root).as_posix(),
                example.label if example.labels is None else example.labels,
            )
            for example in split
        ]
        for split in (splits.train, splits.val)
    ]
    return {
        "fingerprint": splits.fingerprint,
        "classes": list(splits.classes),
        "train_images": len(splits.train),
        "val_images": len(splits.val),
        "split_digest": hashlib.sha256(repr(places).encode("utf-8", "surrogateescape")).hexdigest(),
    }


def epoch_seed(seed: int, epoch: int) -> int:
    """The seed of one epoch's order and augmentation; epoch 0 is what comes before training."""
    return int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0])


def train_loader(
    images: ImageSet | FeatureStore,
    settings: TrainSettings,
    epoch: int,
    device: torch.device,
    ranks: Ranks = ALONE,
) -> Loader:
    """One epoch in its own order; of several processes, each gets its share of every batch."""
    generator = torch.Generator().manual_seed(epoch_seed(settings.seed, epoch))
    whole = shuffled_batches(len(images), settings.batch_size, generator, ranks.least_batch)
    batches = [list(ranks.share(batch)) for batch in whole]
    torch.rand(ranks.rank, generator=generator)  # so that the workers of each process augment in their own way
    if isinstance(images, FeatureStore):  # nothing is left to be done by workers
        return DataLoader(images, batch_sampler=batches, generator=generator, collate_fn=images.collate)
    return Batches(
        images,
        batch_sampler=batches,
        generator=generator,
        num_workers=settings.num_workers,
        pin_memory=device.type == "cuda",
    )


def plain_loader(images: ImageSet | FeatureStore, settings: TrainSettings) -> Loader:
    """The images in their own order. Without workers, so that they fill the cache that later epochs read."""
    if isinstance(images, FeatureStore):
        return DataLoader(images, settings.batch_size, collate_fn=images.collate)
    return DataLoader(images, settings.batch_size)


def shuffled_batches(num_images: int, batch_size: int, generator: torch.Generator, least: int = 2) -> list[list[int]]:
    """All indices in random order. A last batch of fewer than `least` joins the batch before: batch norm cannot train
    on one."""
    order: list[int] = torch.randperm(num_images, generator=generator).tolist()
    batches = [order[first : first + batch_size] for first in range(0, num_images, batch_size)]
    if len(batches) > 1 and len(batches[-1]) < least:
        rest = batches.pop()
        batches[-1] += rest
    return batches


def num_batches(num_images: int, batch_size: int, least: int = 2) -> int:
    """How many `shuffled_batches` there are."""
    full, rest = divmod(num_images, batch_size)
    return max(1, full + (rest >= least))
