from __future__ import annotations

import pytest
import timm.layers
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from torchsnow.delta.resize import group_count, resized_copy, resized_layer


@given(per_group=st.integers(1, 16), groups=st.integers(1, 64), divisor=st.integers(1, 16))
def test_groups_divide_both_widths_and_keep_up_to_four_channels(per_group: int, groups: int, divisor: int) -> None:
    chs = max(1, round(per_group * groups / divisor))
    count = group_count(groups, per_group, chs, chs)
    assert chs % count == 0
    assert count == 1 or chs // count >= min(per_group, 4)


@pytest.mark.parametrize(("source", "expected"), [((32, 4, 16, 16), 4), ((32, 1, 4, 4), 4), ((8, 16, 128, 64), 8)])
def test_group_counts(source: tuple[int, int, int, int], expected: int) -> None:
    assert group_count(*source) == expected


def test_full_width_keeps_the_groups() -> None:
    assert group_count(32, 4, 128, 128) == 32
    assert group_count(2, 8, 16, 16) == 2


@pytest.mark.parametrize(
    ("layer", "in_chs", "out_chs", "shape"),
    [
        (nn.Conv2d(64, 128, 3, stride=2, padding=1, bias=False), 8, 16, (16, 8, 3, 3)),
        (nn.Conv2d(64, 64, 7, groups=64), 8, 8, (8, 1, 7, 7)),
        (nn.Conv2d(128, 128, 3, groups=32), 16, 16, (16, 4, 3, 3)),
        (nn.Conv2d(32, 64, 3, groups=32), 4, 8, (8, 1, 3, 3)),
        (nn.Conv1d(1, 1, 5, padding=2), 1, 1, (1, 1, 5)),
        (nn.Linear(64, 256), 8, 32, (32, 8)),
        (timm.layers.Conv2dSame(64, 32, 5, stride=2), 8, 4, (4, 8, 5, 5)),
    ],
)
def test_a_layer_is_made_again_at_another_width(
    layer: nn.Conv2d | nn.Linear, in_chs: int, out_chs: int, shape: tuple[int, ...]
) -> None:
    layer.requires_grad_(False)
    new = resized_layer(layer, in_chs, out_chs)
    assert type(new) is type(layer)
    assert new.weight.shape == shape
    assert all(p.requires_grad for p in new.parameters())
    assert (new.bias is None) == (layer.bias is None)
    for name in ("kernel_size", "stride", "padding", "dilation"):
        assert getattr(new, name, None) == getattr(layer, name, None)
    image = (2, in_chs) if isinstance(new, nn.Linear) else (2, in_chs, *(9,) * (len(shape) - 2))
    assert new(torch.randn(image)).shape[1] == out_chs


def test_the_source_layer_is_left_alone() -> None:
    layer = nn.Conv2d(64, 64, 3)
    before = layer.weight.clone()
    resized_layer(layer, 8, 8)
    assert layer.in_channels == 64
    assert torch.equal(layer.weight, before)


def test_fresh_weights_have_the_variance_of_he() -> None:
    torch.manual_seed(0)
    weight = resized_layer(nn.Conv2d(512, 1024, 3), 64, 128).weight
    assert isinstance(weight, nn.Parameter)
    assert float(weight.detach().std()) == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.05)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.BatchNorm2d(64), (2, 8, 5, 5)),
        (timm.layers.BatchNormAct2d(64), (2, 8, 5, 5)),
        (nn.GroupNorm(16, 64), (2, 8, 5, 5)),
        (timm.layers.LayerNorm2d(64), (2, 8, 5, 5)),
        (timm.layers.LayerNorm(64), (2, 5, 5, 8)),
        (timm.layers.LayerScale(64), (2, 5, 5, 8)),
        (timm.layers.BlurPool2d(64), (2, 8, 6, 6)),
        (nn.Sequential(nn.BatchNorm2d(64), nn.ReLU()), (2, 8, 5, 5)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_a_resized_copy_works_at_another_width(layer: nn.Module, shape: tuple[int, ...]) -> None:
    new = resized_copy(layer, 64, 8)
    y = new(torch.randn(shape))
    assert 8 in y.shape
    assert all(parameter.requires_grad for parameter in new.parameters())
    assert 64 in [size for tensor in layer.state_dict().values() for size in tensor.shape] or not layer.state_dict()
    assert all(64 not in tensor.shape for tensor in new.state_dict().values())


def test_a_resized_copy_is_initialised_again() -> None:
    norm = nn.BatchNorm2d(64)
    for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
        assert tensor is not None
        nn.init.uniform_(tensor, 5, 6)
    new = resized_copy(norm, 64, 8).state_dict()
    assert new["weight"].tolist() == new["running_var"].tolist() == [1.0] * 8
    assert new["bias"].tolist() == new["running_mean"].tolist() == [0.0] * 8
    assert norm.running_mean is not None
    assert float(norm.running_mean.min()) >= 5  # the source's own are left alone


def test_fixed_filters_are_the_sources() -> None:
    blur = timm.layers.BlurPool2d(64)
    new = resized_copy(blur, 64, 8)
    assert isinstance(new, timm.layers.BlurPool2d)
    assert torch.equal(new.filt, blur.filt[:8])
