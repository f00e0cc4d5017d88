"""What all tests share."""

from __future__ import annotations

import importlib.util
import zlib
from collections.abc import Iterator

import pytest
import torch

from local_ray import Ray, local_ray

torch.set_num_threads(1)  # tiny networks are many times slower on two threads of a busy machine


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Random weights and values of a test, and of its fixtures, are the same in every run."""
    torch.manual_seed(zlib.crc32(item.nodeid.encode()))


@pytest.fixture(scope="session")
def ray() -> Iterator[Ray]:
    """Started for the tests, and ended with them."""
    if importlib.util.find_spec("ray") is None:
        pytest.skip("Ray is not installed")
    with local_ray() as started:
        yield started
