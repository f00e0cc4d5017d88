from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
from timm.layers import Conv2dSame, ScaledStdConv2d
from torch import Tensor, nn
from torch.nn import functional as F

from torchsnow.delta.layers import Slots, SubscribedConv2d, SubscribedLinear
from torchsnow.pooling import ChannelPooling, Picked

OWN, TAP, POOLED, OUT = 5, 24, 7, 6
SLOTS: list[Slots] = ["channel", "rank"]
# Sums of some hundred products in float64, in another order: far below a wrong index or a lost scale.
TOLERANCE = {"rtol": 1e-10, "atol": 1e-10}

CONVS: dict[str, Callable[[], nn.Conv2d]] = {
    "1x1": lambda: nn.Conv2d(OWN, OUT, 1),
    "3x3": lambda: nn.Conv2d(OWN, OUT, 3, padding=1, bias=False),
    "strided": lambda: nn.Conv2d(OWN, OUT, 3, stride=2, padding=1),
    "dilated": lambda: nn.Conv2d(OWN, OUT, 3, padding=2, dilation=2),
    "uneven": lambda: nn.Conv2d(OWN, OUT, (1, 5), stride=(1, 2), padding=(0, 2)),
    "same padding": lambda: Conv2dSame(OWN, OUT, 3, stride=2),
    "same padding, 5x5": lambda: Conv2dSame(OWN, OUT, 5, stride=3, bias=False),
}


@pytest.fixture
def pool() -> ChannelPooling:
    torch.manual_seed(0)
    pool = ChannelPooling(TAP, POOLED).double()
    pool.sigma = 0.5
    nn.init.normal_(pool.weight, mean=1.0)
    return pool


def pick(pool: ChannelPooling, tap: Tensor) -> Picked:
    idx = pool.choose()
    return pool.take(tap.index_select(pool.dim, idx), idx)


def num_columns(slots: Slots) -> int:
    return TAP if slots == "channel" else POOLED


def columns_of_the_chosen(layer: SubscribedConv2d | SubscribedLinear, index: Tensor) -> Tensor:
    """By the definition of the slots: a channel's own column, or the column of its rank."""
    ranks = range(POOLED)
    return torch.stack([layer.columns[:, index[rank] if layer.slots == "channel" else rank] for rank in ranks], 1)


def padded_as_tensorflow(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """Zeros so that an output has ceil(size / stride) positions, the odd one at the far end."""
    pads = []
    for size, kernel, stride in zip(x.shape[2:], conv.kernel_size, conv.stride, strict=True):
        missing = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
        pads.append((missing // 2, missing - missing // 2))
    return F.pad(x, (*pads[1], *pads[0]))


@pytest.mark.parametrize("slots", SLOTS)
@pytest.mark.parametrize("kind", CONVS)
@pytest.mark.parametrize("training", [True, False])
def test_a_convolution_is_the_convolution_of_the_concatenation(
    pool: ChannelPooling, kind: str, slots: Slots, training: bool
) -> None:
    layer = SubscribedConv2d(CONVS[kind](), num_columns(slots), POOLED, slots).double()
    pool.train(training)
    reference_pool = copy.deepcopy(pool)
    x = torch.randn(2, OWN, 9, 10, dtype=torch.float64, requires_grad=True)
    tap = torch.randn(2, TAP, 9, 10, dtype=torch.float64)

    torch.manual_seed(1)
    y = layer(x, pick(pool, tap))
    torch.manual_seed(1)
    index = copy.deepcopy(pool).choose()
    torch.manual_seed(1)
    both = torch.cat([x, reference_pool(tap)], dim=1)
    conv = layer.local
    weight = torch.cat([conv.weight, columns_of_the_chosen(layer, index)], dim=1)
    if isinstance(conv, Conv2dSame):
        expected = F.conv2d(padded_as_tensorflow(both, conv), weight, conv.bias, conv.stride)
    else:
        expected = F.conv2d(both, weight, conv.bias, conv.stride, conv.padding, conv.dilation)

    torch.testing.assert_close(y, expected, **TOLERANCE)
    upstream = torch.randn_like(y)
    leaves = [x, *layer.parameters()]
    grads = torch.autograd.grad(y, [*leaves, pool.weight], upstream)
    expected_grads = torch.autograd.grad(expected, [*leaves, reference_pool.weight], upstream)
    torch.testing.assert_close(grads, expected_grads, **TOLERANCE)


@pytest.mark.parametrize("slots", SLOTS)
@pytest.mark.parametrize("shape", [(3,), (3, 4, 5)], ids=["vectors", "positions"])
def test_a_linear_layer_is_the_linear_layer_of_the_concatenation(
    pool: ChannelPooling, slots: Slots, shape: tuple[int, ...]
) -> None:
    layer = SubscribedLinear(nn.Linear(OWN, OUT), num_columns(slots), POOLED, slots).double()
    pool.dim = len(shape)
    reference_pool = copy.deepcopy(pool)
    x = torch.randn(*shape, OWN, dtype=torch.float64, requires_grad=True)
    tap = torch.randn(*shape, TAP, dtype=torch.float64)

    torch.manual_seed(1)
    picked = pick(pool, tap)
    assert picked.idx is not None
    y = layer(x, picked)
    torch.manual_seed(1)
    both = torch.cat([x, reference_pool(tap)], dim=-1)
    weight = torch.cat([layer.local.weight, columns_of_the_chosen(layer, picked.idx)], dim=1)
    expected = F.linear(both, weight, layer.local.bias)

    torch.testing.assert_close(y, expected, **TOLERANCE)
    upstream = torch.randn_like(y)
    leaves = [x, *layer.parameters()]
    grads = torch.autograd.grad(y, [*leaves, pool.weight], upstream)
    expected_grads = torch.autograd.grad(expected, [*leaves, reference_pool.weight], upstream)
    torch.testing.assert_close(grads, expected_grads, **TOLERANCE)


def test_a_channel_keeps_its_weights_whatever_its_rank() -> None:
    x, tap = torch.zeros(1, OWN, 4, 4), torch.randn(1, TAP, 4, 4)
    outputs: dict[Slots, list[Tensor]] = {}
    for slots in SLOTS:
        layer = SubscribedConv2d(nn.Conv2d(OWN, OUT, 3, padding=1, bias=False), num_columns(slots), POOLED, slots)
        for index in (torch.arange(POOLED), torch.arange(POOLED).flip(0)):
            picked = Picked(tap[:, index], torch.ones(POOLED), index)
            outputs.setdefault(slots, []).append(layer(x, picked))
    torch.testing.assert_close(*outputs["channel"])
    assert not torch.allclose(*outputs["rank"], atol=1e-3)


def test_ascending_columns_meet_the_chosen_channels_by_their_numbers() -> None:
    pool = ChannelPooling(TAP, POOLED)
    with torch.no_grad():
        pool.weight.copy_(torch.arange(TAP).flip(0))
    assert pool.choose().tolist() == list(range(POOLED))
    with torch.no_grad():
        pool.weight.copy_(torch.arange(TAP))
    assert pool.choose().tolist() == list(reversed(range(TAP - POOLED, TAP)))
    pool.ascending = True
    assert pool.choose().tolist() == list(range(TAP - POOLED, TAP))


def test_a_fixed_choice_meets_the_columns_as_they_stand() -> None:
    layer = SubscribedConv2d(nn.Conv2d(OWN, OUT, 1), POOLED, POOLED, "channel")
    x, pooled, weight = torch.randn(2, OWN, 4, 4), torch.randn(2, POOLED, 4, 4), torch.rand(POOLED)
    expected = layer.local(x) + F.conv2d(pooled * weight.view(1, -1, 1, 1), layer.columns)
    torch.testing.assert_close(layer(x, Picked(pooled, weight, None)), expected)


def test_a_tap_in_bfloat16_is_read_by_a_delta_in_float32() -> None:
    layer = SubscribedConv2d(nn.Conv2d(OWN, OUT, 1), POOLED, POOLED, "rank")
    x, pooled = torch.randn(2, OWN, 4, 4), torch.randn(2, POOLED, 4, 4).bfloat16()
    weight = torch.ones(POOLED)
    y = layer(x, Picked(pooled, weight, None))
    assert y.dtype == torch.float32
    assert torch.equal(y, layer(x, Picked(pooled.float(), weight, None)))


def test_a_weight_standardised_convolution_keeps_its_own_path() -> None:
    layer = SubscribedConv2d(ScaledStdConv2d(OWN, OUT, 3, padding=1), POOLED, POOLED, "channel")
    x, pooled = torch.randn(2, OWN, 6, 6), torch.randn(2, POOLED, 6, 6)
    expected = layer.local(x) + F.conv2d(pooled, layer.columns, padding=1)
    torch.testing.assert_close(layer(x, Picked(pooled, torch.ones(POOLED), None)), expected)


def test_weights_start_as_those_of_the_concatenation() -> None:
    torch.manual_seed(0)
    layer = SubscribedConv2d(nn.Conv2d(16, 64, 3), 512, 48, "channel")
    expected = math.sqrt(2 / ((16 + 48) * 9))
    assert float(layer.local.weight.detach().std()) == pytest.approx(expected, rel=0.05)
    assert float(layer.columns.detach().std()) == pytest.approx(expected, rel=0.05)
