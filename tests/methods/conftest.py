"""A tiny source and a few images that a linear layer can tell apart."""

from __future__ import annotations

import pytest
import timm
import torch
from method_training import Batches
from torch import nn

from torchsnow.source import Source, make_source


@pytest.fixture(scope="session")
def source() -> Source:
    """Every branch lives: timm starts the last batch norm of each residual branch at zero."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = timm.create_model("test_resnet", num_classes=0)
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.ones_(part.weight)
    return make_source(model, "test_resnet", "random")


@pytest.fixture(scope="session")
def batches() -> Batches:
    """30 images of three classes that differ in the strength of one colour, in batches of 12, 12 and 6."""
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.randn(30, 3, 64, 64, generator=generator), torch.arange(30) % 3
    images[torch.arange(30), labels] += 1.0
    return list(zip(images.split(12), labels.split(12), strict=True))
