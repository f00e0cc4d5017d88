from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from torchsnow.delta.head import FoldedHead, Head
from torchsnow.delta.spec import DeltaSpec, Slots
from torchsnow.source import FeatureMaps
from torchsnow.source.grid import ONE_CELL, Grid

OWN, CLASSES = 6, 3
VALUES = 4 + 5 + 7  # two taps and the last features
CHANNELS = torch.arange(9)  # of both taps
SPEC = DeltaSpec(CLASSES, grid_reduction=3)


@pytest.fixture
def features() -> FeatureMaps:
    torch.manual_seed(0)
    taps = {"a": torch.randn(2, 4, 3, 3), "b": torch.randn(2, 3, 3, 5)}
    averages = torch.cat([taps["a"].mean((2, 3)), taps["b"].mean((1, 2))], 1)[:, :, None, None]
    cells = torch.cat([taps["a"], taps["b"].movedim(3, 1)], 1)
    grids = {ONE_CELL: Grid.of(CHANNELS, averages), 3: Grid.of(CHANNELS, cells)}
    return FeatureMaps(torch.zeros(2, 3, 9, 9), {"a": 1, "b": 3}, taps=taps, grids=grids, last=torch.randn(2, 7))


def head(num_read: int, slots: Slots = "channel", frozen: bool = False, std: bool = False) -> Head:
    """A head with numbers of its own in every tensor."""
    torch.manual_seed(1)
    made = Head(OWN, CHANNELS, 7, num_read, replace(SPEC, slots=slots, head_std=std), frozen)
    with torch.no_grad():
        for tensor in (*made.parameters(), made.center):
            tensor.normal_()
        made.spread.uniform_(0.5, 2.0)
    return made.eval()


def values_of(features: FeatureMaps, std: bool = False) -> Tensor:
    assert features.last is not None
    a, b = features.taps["a"], features.taps["b"]
    stds = [a.std((2, 3), correction=0), b.std((1, 2), correction=0)] if std else []
    return torch.cat([a.mean((2, 3)), b.mean((1, 2)), *stds, features.last], 1)


@pytest.mark.parametrize("slots", ["channel", "rank"])
@pytest.mark.parametrize("num_read", [1, 5, VALUES])
@pytest.mark.parametrize("std", [False, True])
def test_logits_are_those_of_the_formula(features: FeatureMaps, slots: Slots, num_read: int, std: bool) -> None:
    made, own = head(num_read, slots, std=std), torch.randn(2, OWN)
    values = (values_of(features, std) - made.center) / made.spread
    strongest = sorted(range(values.shape[1]), key=lambda i: -float(made.pool.weight.detach()[i]))[:num_read]
    expected = own @ made.fc.local.weight.T + made.fc.local.bias
    for rank, channel in enumerate(strongest):
        column = made.fc.columns[:, channel if slots == "channel" else rank]
        scaled = values[:, channel] * made.pool.weight[channel] / num_read**0.5
        expected = expected + torch.outer(scaled, column)
    torch.testing.assert_close(made(own, features), expected)


@pytest.mark.parametrize("std", [False, True])
@pytest.mark.parametrize("num_read", [4, 12])
def test_a_fixed_head_reads_its_subscription(features: FeatureMaps, std: bool, num_read: int) -> None:
    opened, own = head(num_read, std=std), torch.randn(2, OWN)
    idx = opened.pool.choose()
    frozen = head(num_read, frozen=True, std=std)
    state = dict(opened.state_dict())
    del state["pool.times_chosen"], state["share"], state["read_share"], state["num_read"]
    state["pool.index"], state["pool.weight"] = idx, state["pool.weight"][idx]
    state["fc.columns"] = state["fc.columns"][:, idx]
    state["center"], state["spread"] = state["center"][idx], state["spread"][idx]
    frozen.load_state_dict(state)
    torch.testing.assert_close(frozen(own, features), opened(own, features))
    torch.testing.assert_close(FoldedHead(frozen)(own, features), opened(own, features))


def test_a_new_head_ignores_the_source_until_it_has_learned(features: FeatureMaps) -> None:
    made, own = Head(OWN, CHANNELS, 7, VALUES, SPEC, False), torch.randn(2, OWN)
    torch.testing.assert_close(made(own, features), own @ made.fc.local.weight.T)
    made(own, features).square().sum().backward()
    assert made.fc.columns.grad is not None
    assert (made.fc.columns.grad != 0).all()


def test_a_head_of_taps_alone_or_of_the_last_features_alone(features: FeatureMaps) -> None:
    own = torch.zeros(2, OWN)
    for channels, num_last, columns in ((CHANNELS[4:], 0, slice(4, 9)), (CHANNELS[:0], 7, slice(9, 16))):
        made = Head(OWN, channels, num_last, 5, SPEC, False)
        with torch.no_grad():
            made.fc.columns.fill_(1.0)
        values = values_of(features)[:, columns][:, :5]
        expected = values.sum(1, keepdim=True).expand(-1, CLASSES) / 5**0.5
        torch.testing.assert_close(made(own, features), expected)
