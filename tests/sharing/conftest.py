"""A small hub to be pushed."""

from __future__ import annotations

from pathlib import Path

import pytest

from sample_tasks import sample_task
from torchsnow.hub import Hub
from torchsnow.source import Source, load_source


@pytest.fixture(scope="session")
def source() -> Source:
    return load_source("test_resnet", weights="random")


@pytest.fixture
def hub(tmp_path: Path, source: Source) -> Hub:
    hub = Hub.create(tmp_path / "hub", source)
    for name, seed in (("a", 1), ("b", 2)):
        hub.add(sample_task(source, name, seed=seed))
    return hub
