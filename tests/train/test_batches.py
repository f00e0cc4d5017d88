from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from torchsnow.data import Splits
from torchsnow.errors import TrainingError
from torchsnow.source import Source
from torchsnow.train import TrainSettings
from torchsnow.train.batches import (
    balanced_weights,
    data_config,
    epoch_seed,
    num_batches,
    run_images,
    shuffled_batches,
    train_loader,
)

CPU = torch.device("cpu")


@pytest.mark.parametrize("num_images", [2, 3, 7, 8, 9, 10, 16, 17, 25])
def test_every_image_once_and_no_batch_of_one(num_images: int) -> None:
    batches = shuffled_batches(num_images, 8, torch.Generator().manual_seed(0))
    assert sorted(index for batch in batches for index in batch) == list(range(num_images))
    assert min(map(len, batches)) > 1
    assert len(batches) == num_batches(num_images, 8)


def test_order_depends_on_seed_and_epoch() -> None:
    seeds = {epoch_seed(seed, epoch) for seed in range(5) for epoch in range(5)}
    assert len(seeds) == 25
    assert epoch_seed(1, 2) == epoch_seed(1, 2)


def test_epoch_is_repeatable(source: Source, splits: Splits, settings: TrainSettings) -> None:
    images = run_images(splits, source.input_config, settings).train

    def labels(epoch: int) -> list[int]:
        return [label for _, batch in train_loader(images, settings, epoch, CPU) for label in batch.tolist()]

    assert labels(1) == labels(1)
    assert labels(1) != labels(2)


def test_images_are_those_of_the_splits(source: Source, splits: Splits, settings: TrainSettings) -> None:
    images = run_images(splits, source.input_config, settings)
    assert images.train.examples == images.plain.examples == splits.train
    assert images.val.examples == splits.val
    assert torch.equal(images.plain[0][0], images.plain[0][0])
    assert images.val[0][0].shape == (3, 32, 32)


def test_too_few_images(source: Source, splits: Splits, settings: TrainSettings) -> None:
    with pytest.raises(TrainingError, match="has 1 images; expected 2 or more"):
        run_images(replace(splits, train=splits.train[:1]), source.input_config, settings)
    with pytest.raises(TrainingError, match="validation split is empty"):
        run_images(replace(splits, val=()), source.input_config, settings)


def test_balanced_weights(source: Source, splits: Splits, settings: TrainSettings) -> None:
    images = run_images(splits, source.input_config, settings).train
    weights, counts = balanced_weights(images), images.labels.bincount()
    assert counts[0] != counts[1]
    torch.testing.assert_close(weights * counts, torch.full((2,), len(images) / 2))


def test_data_config_sees_an_image_move(splits: Splits) -> None:
    moved = replace(splits, train=splits.train[1:], val=(*splits.val, splits.train[0]))
    assert data_config(splits) == data_config(replace(splits, test=()))
    assert data_config(splits)["split_digest"] != data_config(moved)["split_digest"]
