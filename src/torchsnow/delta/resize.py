"""A source's layer at another width, with fresh parameters."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn

_SIZE_ATTRIBUTES = ("num_features", "num_channels", "normalized_shape", "channels", "num_chs")
_GROUP_ATTRIBUTES = ("num_groups", "groups")
_SMALLEST_GROUP = 4  # channels a group keeps where the source's groups are wider


def group_count(groups: int, source_group_chs: int, in_chs: int, out_chs: int) -> int:
    """Groups of a grouped convolution at a smaller width: as many as the source's, or fewer where that would leave
    less than four channels a group (or less than the source's own groups have). Depthwise stays depthwise."""
    fewest_chs = min(source_group_chs, _SMALLEST_GROUP)
    common = math.gcd(in_chs, out_chs)
    return max(
        d
        for d in range(1, min(groups if source_group_chs > 1 else common, common) + 1)
        if common % d == 0 and (in_chs // d >= fewest_chs or d == 1)
    )


def resized_layer(module: nn.Module, in_chs: int, out_chs: int) -> nn.Module:
    """A convolution or linear layer of the same class and geometry for `in_chs` and `out_chs`, initialised again."""
    layer = copy.deepcopy(module)
    if isinstance(layer, nn.Linear):
        layer.in_features, layer.out_features = in_chs, out_chs
        weight_shape: tuple[int, ...] = (out_chs, in_chs)
    else:
        assert isinstance(layer, nn.modules.conv._ConvNd)
        groups = group_count(layer.groups, layer.in_channels // layer.groups, in_chs, out_chs)
        groups = 1 if layer.groups == 1 else groups
        layer.in_channels, layer.out_channels, layer.groups = in_chs, out_chs, groups
        weight_shape = (out_chs, in_chs // groups, *layer.kernel_size)
    layer.weight = nn.Parameter(torch.empty(weight_shape))
    init_weight(layer.weight, math.prod(weight_shape[1:]))
    for name, parameter in list(layer.named_parameters()):
        if name != "weight":
            fresh = torch.zeros if name == "bias" else torch.ones
            setattr(layer, name, nn.Parameter(fresh(out_chs, *parameter.shape[1:])))
    return layer


def init_weight(weight: Tensor, fan_in: int) -> None:
    """He et al. (2015): normal with variance 2 / fan_in, for layers before a rectifier."""
    if not weight.is_meta:  # there only the shape matters, and drawing nothing takes half the time of loading a task
        nn.init.normal_(weight, std=math.sqrt(2 / fan_in))


def resized_copy(module: nn.Module, source_chs: int, chs: int) -> nn.Module:
    """A layer that keeps the channels it reads (norm, activation, pooling, scaling) at a new width.

    Weights start at one and biases at zero, running statistics at theirs, fixed filters as the source's first `chs`.
    Raises DeltaError when a layer has a size that is not its number of channels.
    """
    layer = copy.deepcopy(module)
    for part in layer.modules():
        for name in _GROUP_ATTRIBUTES:
            groups = getattr(part, name, None)
            if isinstance(groups, int) and groups > 1:
                setattr(part, name, group_count(groups, source_chs // groups, chs, chs))
        for name in _SIZE_ATTRIBUTES:
            if hasattr(part, name):
                setattr(part, name, _resized_attribute(getattr(part, name), source_chs, chs))
        for name, parameter in list(part._parameters.items()):
            if parameter is not None:
                shape = [chs if size == source_chs else size for size in parameter.shape]
                fresh = torch.zeros if name in ("bias", "beta") else torch.ones
                setattr(part, name, nn.Parameter(fresh(shape)))
        for name, buffer in list(part._buffers.items()):
            if buffer is not None and buffer.ndim and buffer.shape[0] == source_chs:
                part._buffers[name] = torch.zeros(chs, *buffer.shape[1:]) if buffer.is_meta else buffer[:chs].clone()
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.reset_running_stats()
    return layer


def _resized_attribute(value: object, source_chs: int, chs: int) -> object:
    if isinstance(value, tuple):
        return tuple(_resized_attribute(item, source_chs, chs) for item in value)
    return chs if value == source_chs else value
