"""A tiny task to train on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_method import Tiny

from torchsnow.data import Example, Splits, load_data, make_splits
from torchsnow.source import Source, load_source
from torchsnow.train import TrainSettings

NAMES = ("green", "red")


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny tensors on many threads spend their time waiting for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def source() -> Source:
    return load_source("test_resnet", weights="random")


@pytest.fixture(scope="session")
def splits(tmp_path_factory: pytest.TempPathFactory) -> Splits:
    """25 noisy images to train on, 8 to choose by, and a test split whose files do not exist."""
    root = tmp_path_factory.mktemp("colours")
    generator = np.random.default_rng(0)
    for name, count in zip(NAMES, (16, 17), strict=True):
        (root / name).mkdir()
        for number in range(count):
            pixels = generator.integers(0, 200, (36, 36, 3), dtype=np.uint8)
            pixels[..., ("red", "green").index(name)] += 20
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    made = make_splits(load_data(root), val_share=0.25, test_share=0)
    return replace(made, test=(Example(root / "red" / "unread.png", 1),))


@pytest.fixture
def settings() -> TrainSettings:
    """25 images in batches of 8: the 25th joins the third batch."""
    return TrainSettings(epochs=3, batch_size=8, image_size=32, lr=5e-3, augmentation="light", device="cpu")


@pytest.fixture
def tiny(source: Source) -> Tiny:
    return Tiny(source.input_config)
