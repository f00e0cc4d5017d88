"""A small hub, and a server for it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from running_server import TOKEN, Running, make_hub, running

from torchsnow.hub import Hub
from torchsnow.hub.live import LiveHub
from torchsnow.source import Source, load_source


@pytest.fixture(scope="session")
def source() -> Source:
    return load_source("test_resnet", weights="random")


@pytest.fixture
def hub(tmp_path: Path, source: Source) -> Hub:
    """A hub with the tasks "a", "b" and "c"."""
    return make_hub(tmp_path / "hub", source)


@pytest.fixture
def server(hub: Hub) -> Iterator[Running]:
    """A server without a token, for a hub that may be changed."""
    with running(LiveHub(hub), follow_s=0.05) as started:
        yield started


@pytest.fixture
def guarded(hub: Hub) -> Iterator[Running]:
    """A server with a token, and so with admin routes."""
    with running(LiveHub(hub), follow_s=0.05, token=TOKEN) as started:
        yield started


@pytest.fixture(scope="module")
def steady(tmp_path_factory: pytest.TempPathFactory, source: Source) -> Iterator[Running]:
    """A server for a hub that no test changes."""
    hub = make_hub(tmp_path_factory.mktemp("steady") / "hub", source)
    with running(LiveHub(hub), max_pixels=1_000_000, max_body_bytes=2**20, max_images=4, body_timeout_s=1) as started:
        yield started


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory, source: Source) -> Iterator[Running]:
    """A server with a token, for a hub that no test changes."""
    with running(LiveHub(make_hub(tmp_path_factory.mktemp("sealed") / "hub", source)), token=TOKEN) as started:
        yield started
