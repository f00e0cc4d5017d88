"""Deltas without layers of their own: what ships where the body adds nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from torchsnow.delta import Delta, DeltaSpec
from torchsnow.delta.cost import delta_cost, source_cost
from torchsnow.delta.fold import fold
from torchsnow.errors import DeltaError
from torchsnow.hub import Hub
from torchsnow.methods.snow import make_snow
from torchsnow.model import SnowModel
from torchsnow.pooling import num_pooled
from torchsnow.source import Framing, Source, load_source
from torchsnow.task_file import load_task, make_task, save_task

IMAGES = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def source() -> Source:
    return load_source("test_resnet", weights="random")


@pytest.fixture
def trained(source: Source) -> Delta:
    """An open delta with a probe in its head, whose body counts nothing."""
    delta = make_snow(source, 3, changes={"head_divisor": 4}).delta
    torch.nn.init.normal_(delta.head.fc.columns, std=0.1)
    return delta.eval()


def assert_alike(source: Source, frozen: Delta, trained: Delta) -> None:
    """Within what is lost where matrices are rounded to a byte per number."""
    given, expected = (SnowModel(source, delta)(IMAGES).detach() for delta in (frozen, trained))
    torch.testing.assert_close(given, expected, rtol=0, atol=3e-2 * expected.abs().max().item())


def test_a_body_that_counts_nothing_is_left_out(source: Source, trained: Delta) -> None:
    frozen = trained.freeze(source)
    assert frozen.body is None
    assert (frozen.spec.width_divisor, frozen.spec.grid_width) == (None, None)
    assert not frozen.taps
    assert_alike(source, frozen, trained)
    assert delta_cost(source, frozen.spec).multiply_adds < 1e-3 * source_cost(source).multiply_adds


def test_a_body_that_counts_is_kept(source: Source, trained: Delta) -> None:
    trained.head.share.fill_(0.25)
    frozen = trained.freeze(source)
    assert frozen.body is not None
    assert frozen.spec == trained.spec
    assert_alike(source, frozen, trained)


def test_a_delta_that_was_never_trained_apart_keeps_its_body(source: Source) -> None:
    delta = Delta(source, DeltaSpec(3))
    delta.head.share.zero_()
    assert delta.freeze(source).body is not None


def test_a_head_alone_is_stored_and_served(source: Source, trained: Delta, tmp_path: Path) -> None:
    task = make_task(source, trained.freeze(source), "alone", ("a", "b", "c"), Framing(64))
    save_task(task, tmp_path / "alone.safetensors")
    again = load_task(tmp_path / "alone.safetensors", source)
    assert again.spec == task.spec
    expected = SnowModel(source, task.delta)(IMAGES)
    assert torch.equal(SnowModel(source, again.delta)(IMAGES), expected)
    torch.testing.assert_close(SnowModel(source, fold(again.delta))(IMAGES), expected)
    hub = Hub.create(tmp_path / "hub", source)
    hub.add(task)
    torch.testing.assert_close(hub.predict(IMAGES)["alone"], expected)


def test_a_delta_that_would_read_nothing_is_refused(source: Source) -> None:
    with pytest.raises(DeltaError, match="leaves no layers, and the head reads nothing"):
        Delta(source, DeltaSpec(3, width_divisor=None, head_taps=(), head_last=False))


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_head_that_reads_fewer_values_ships_with_those(source: Source, trained: Delta, share: float) -> None:
    trained.head.share.fill_(share)
    torch.nn.init.uniform_(trained.head.pool.weight)
    few = num_pooled(trained.head.pool.num_chs, 8 * trained.spec.head_divisor)
    trained.head.select_k(few)
    frozen = trained.freeze(source)
    assert frozen.spec.head_divisor == 8 * trained.spec.head_divisor
    assert frozen.head.fc.columns.shape == (3, few)
    assert_alike(source, frozen, trained)
