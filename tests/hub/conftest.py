"""Hubs on one tiny source."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sample_tasks import sample_task
from torchsnow.hub import Hub
from torchsnow.source import Source, load_source


@pytest.fixture(scope="session")
def source() -> Source:
    return load_source("test_resnet", weights="random")


@pytest.fixture
def hub(tmp_path: Path, source: Source) -> Hub:
    """A hub with the tasks "a" and "b"."""
    hub = Hub.create(tmp_path / "hub", source)
    hub.add(sample_task(source, "a", seed=1))
    hub.add(sample_task(source, "b", seed=2, num_classes=4))
    return hub


@pytest.fixture(scope="session")
def past(tmp_path_factory: pytest.TempPathFactory, source: Source) -> Path:
    """A hub with a past, to be copied: "a" was replaced twice, "b" never, and "c" was removed."""
    hub = Hub.create(tmp_path_factory.mktemp("past") / "hub", source)
    for seed in (1, 2, 3):
        hub.add(sample_task(source, "a", seed=seed), replace=True)
    hub.add(sample_task(source, "b"))
    hub.add(sample_task(source, "c"))
    hub.remove("c")
    return hub.folder.path


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
