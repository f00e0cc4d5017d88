from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from torchsnow.data import load_data, make_splits
from torchsnow.experiments import lifelong_probe
from torchsnow.experiments.lifelong_probe import probe_accuracy
from torchsnow.source import Framing, load_source
from torchsnow.train.batches import plain_images

CPU = torch.device("cpu")


class Colours(nn.Module):
    """The mean of every colour: what tells the photos apart."""

    def forward(self, images: Tensor) -> Tensor:
        assert not self.training
        return images.mean((2, 3))


class Nothing(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return torch.ones(len(images), 4)


def test_features_are_worth_what_they_tell(photos: Path) -> None:
    splits = make_splits(load_data(photos))
    images = plain_images(load_source("test_resnet", "random").input_config, Framing(32))
    train, test = (images.with_examples(part, splits.classes) for part in (splits.train, splits.test))
    assert probe_accuracy(Colours(), train, test, 8, CPU) == 1
    assert abs(probe_accuracy(Nothing(), train, test, 8, CPU) - 1 / 3) < 1e-6


def test_a_subsample_has_all_classes(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Splits are in the order of their classes."""
    monkeypatch.setattr(lifelong_probe, "MAX_IMAGES", 15)
    splits = make_splits(load_data(photos))
    images = plain_images(load_source("test_resnet", "random").input_config, Framing(32))
    train, test = (images.with_examples(part, splits.classes) for part in (splits.train, splits.test))
    assert probe_accuracy(Colours(), train, test, 8, CPU) == 1
