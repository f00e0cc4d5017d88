from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from sample_tasks import sample_task
from torchsnow.delta import Delta, DeltaSpec
from torchsnow.delta.derive import key_of
from torchsnow.explain.attribution import attribute
from torchsnow.explain.subscriptions import read_subscription
from torchsnow.source import FeatureMaps, InputConfig, Source
from torchsnow.task_file import Task


class Linear(nn.Module):
    """Nothing but convolutions without biases: every delta of it is linear in what it reads."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.middle = nn.Conv2d(16, 24, 3, padding=1, bias=False)
        self.tail = nn.Conv2d(24, 32, 1, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        return self.tail(self.middle(self.stem(images))).mean((2, 3))


@pytest.fixture(scope="module")
def linear() -> Source:
    torch.manual_seed(0)
    return Source(Linear(), "linear", InputConfig((3, 16, 16), (0.5,) * 3, (0.5,) * 3, "bilinear", 1.0), "random")


@pytest.fixture(params=["channel", "rank"])
def delta(linear: Source, request: pytest.FixtureRequest) -> Delta:
    torch.manual_seed(1)
    made = Delta(linear, DeltaSpec(3, 4, 4, head_taps=(), head_last=False, slots=request.param))
    for pool in made.named_pools().values():
        nn.init.normal_(pool.weight)
    return made.freeze(linear).eval()


def features_for(source: Source, delta: Delta, image: Tensor) -> FeatureMaps:
    """A source pass with what the delta reads."""
    features: FeatureMaps = source(image, delta.request(delta.choose()))
    return features


def logits(source: Source, delta: Delta, image: Tensor) -> Tensor:
    with torch.no_grad():
        return delta(features_for(source, delta, image))[0]


def test_shares_of_a_linear_delta_add_up_at_every_depth(linear: Source, delta: Delta) -> None:
    image = torch.randn(1, 3, 16, 16)
    found = attribute(linear, delta, image)
    middle, tail = found.taps
    assert found.logit == pytest.approx(float(logits(linear, delta, image).max()), rel=1e-5)
    own = float(found.head.own.sum())
    assert own + found.head.bias == pytest.approx(found.logit, rel=1e-4)
    assert float(tail.local.sum() + tail.source.sum()) == pytest.approx(own, rel=1e-4)
    assert float(middle.local.sum() + middle.source.sum()) == pytest.approx(float(tail.local.sum()), rel=1e-4)


def test_a_share_of_a_linear_delta_is_what_goes_with_its_channel(linear: Source, delta: Delta) -> None:
    image = torch.randn(1, 3, 16, 16)
    found = attribute(linear, delta, image)
    for share in found.taps:
        for index, value in zip(share.index.tolist(), share.source.tolist(), strict=True):
            without = copy.deepcopy(delta)
            pool = without.pools[key_of(share.tap)]
            pool.weight.data[pool.index == index] = 0
            lost = found.logit - float(logits(linear, without, image)[found.label])
            assert lost == pytest.approx(value, rel=1e-3, abs=1e-5)


def test_shares_of_the_source_are_the_slope_of_the_logit_in_w(source: Source, task: Task, image: Tensor) -> None:
    """Scaling w of a channel by 1 + e adds e times its share: that is what first order means."""
    found = attribute(source, task.delta, image)
    value = task.delta(features_for(source, task.delta, image))[0, found.label]
    assert [share.tap for share in found.taps] == list(source.taps)
    for share in found.taps:
        pool = task.delta.pools[key_of(share.tap)]
        (slope,) = torch.autograd.grad(value, pool.weight, retain_graph=True)
        expected = (slope * pool.weight).detach()[pool.index.argsort()]
        torch.testing.assert_close(share.source, expected, rtol=1e-3, atol=1e-5)
        assert torch.equal(share.index, pool.index.sort().values)


def test_an_entry_has_a_share_of_what_its_tap_gives(source: Source, image: Tensor) -> None:
    """It has no input of its own; the slope of the logit in w counts it with the other layers that read the tap."""
    task = sample_task(source, entry_reduction=8)
    found = attribute(source, task.delta, image)
    assert [share.tap for share in found.taps] == list(task.delta.taps)
    entry, pool = found.taps[0], task.delta.pools[key_of(found.taps[0].tap)]
    value = task.delta(features_for(source, task.delta, image))[0, found.label]
    (slope,) = torch.autograd.grad(value, pool.weight)
    expected = (slope * pool.weight).detach()[pool.index.argsort()]
    torch.testing.assert_close(entry.source, expected, rtol=1e-3, atol=1e-5)
    assert len(read_subscription(source, task.name, task.delta).layers) == len(task.delta.taps)


def test_shares_of_a_grid_are_the_slope_of_the_logit_in_w(source: Source, grid_task: Task, image: Tensor) -> None:
    delta, pool = grid_task.delta, grid_task.delta.grid_pool
    assert pool is not None
    pool.weight.requires_grad_(True)
    found = attribute(source, delta, image)
    value = delta(features_for(source, delta, image))[0, found.label]
    (slope,) = torch.autograd.grad(value, pool.weight)
    by_channel = dict(zip(pool.index.tolist(), (slope * pool.weight).detach(), strict=True))
    assert len(found.taps) > 1
    for share in found.taps:
        first = int(source.channels_of([share.tap])[0])
        expected = torch.stack([by_channel.pop(first + channel) for channel in share.index.tolist()])
        torch.testing.assert_close(share.source, expected, rtol=1e-3, atol=1e-5)
        assert share.local.numel() == 0
    assert not by_channel


@pytest.mark.parametrize("kind", ["task", "grid_task"])
def test_parts_of_the_head_add_up_exactly(
    source: Source, image: Tensor, kind: str, request: pytest.FixtureRequest
) -> None:
    task = request.getfixturevalue(kind)
    found = attribute(source, task.delta, image)
    parts = found.head.parts
    assert {name: index.tolist() for name, (index, _) in parts.items()} == {
        part.tap: part.index.tolist() for part in read_subscription(source, task.name, task.delta).head
    }
    total = float(found.head.own.sum()) + sum(float(values.sum()) for _, values in parts.values()) + found.head.bias
    assert total == pytest.approx(found.logit, rel=1e-4, abs=1e-5)
    expected = logits(source, task.delta, image)
    assert found.label == int(expected.argmax())
    assert found.probability == pytest.approx(float(expected.softmax(0).max()), rel=1e-4)


@pytest.mark.parametrize("kind", ["task", "grid_task"])
def test_nothing_is_left_behind(source: Source, image: Tensor, kind: str, request: pytest.FixtureRequest) -> None:
    task = request.getfixturevalue(kind)
    before = logits(source, task.delta, image)
    first, second = attribute(source, task.delta, image), attribute(source, task.delta, image)
    assert first.to_dict() == second.to_dict()
    assert torch.equal(logits(source, task.delta, image), before)
    assert all(parameter.grad is None for parameter in task.delta.parameters())
    assert not any(module._forward_pre_hooks for module in task.delta.modules())


def test_a_task_that_subscribes_to_nothing(source: Source, image: Tensor) -> None:
    task = sample_task(source, taps=(), head_taps=(), head_last=False)
    found = attribute(source, task.delta, image)
    assert (found.taps, found.head.parts) == ((), {})
    assert float(found.head.own.sum()) + found.head.bias == pytest.approx(found.logit, rel=1e-4)
