"""Tiny tasks to look at."""

from __future__ import annotations

import pytest
import torch

from sample_tasks import sample_task
from torchsnow.source import Source, load_source
from torchsnow.task_file import Task


@pytest.fixture(scope="session", params=["test_resnet", "test_convnext"])
def source(request: pytest.FixtureRequest) -> Source:
    """One network with convolutions, and one with linear layers over positions; not to be changed."""
    return load_source(request.param, "random")


@pytest.fixture
def task(source: Source) -> Task:
    """A task whose head reads a quarter of all averages."""
    return sample_task(source, head_divisor=4)


@pytest.fixture
def grid_task(source: Source) -> Task:
    """A task with a grid body, which reads every fifth of all channels."""
    task = sample_task(source, head_divisor=4, width_divisor=None, grid_width=16, pool_divisor=5)
    pool = task.delta.grid_pool
    assert pool is not None
    pool.index.copy_(torch.arange(len(pool.index)) * (source.num_chs - 1) // len(pool.index))
    return task


@pytest.fixture
def image() -> torch.Tensor:
    return torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(2))
