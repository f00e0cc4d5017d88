"""A tiny data set and an experiment on it that takes seconds."""

from __future__ import annotations

from pathlib import Path

import pytest

from sample_photos import make_photos
from torchsnow.experiments.plan import Experiment


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten images of each of three classes; not to be changed."""
    return make_photos(tmp_path_factory.mktemp("data") / "photos")


@pytest.fixture
def experiment(photos: Path) -> Experiment:
    return Experiment(
        "tiny",
        data=(str(photos),),
        methods=("head", "snow"),
        sources=("test_resnet",),
        weights="random",
        seeds=(0, 1),
        epochs=1,
        image_size=32,
        batch_size=8,
        lr_tries=2,
        device="cpu",
    )
