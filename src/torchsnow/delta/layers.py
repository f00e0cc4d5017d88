"""Layers of a delta that read their own input and the chosen channels of a tap."""

from __future__ import annotations

import math

import torch
from timm.layers import Conv2dSame, pad_same
from torch import Tensor, nn
from torch.nn import functional as F

from torchsnow.delta.resize import init_weight
from torchsnow.delta.spec import Slots
from torchsnow.pooling import Picked


class Columns(nn.Module):
    """Weights over M pooled channels of a tap, as a layer's `columns`: (out, number of columns) and the kernel's size.

    There is one column per channel of the tap (`slots="channel"`: a channel keeps its own weights whenever it is
    chosen), or M of them: the chosen channel with the j-th number meets the j-th column ("ascending"), or the j-th
    strongest does ("rank"). Once the choice is frozen there is one column per chosen channel.
    """

    def __init__(self, shape: tuple[int, ...], slots: Slots) -> None:
        super().__init__()
        self.slots = slots
        self.columns: nn.Parameter = nn.Parameter(torch.empty(shape))

    def pooled_weight(self, picked: Picked) -> Tensor:
        """The columns of the chosen channels, scaled: (out, M) and the kernel's size."""
        columns: Tensor = self.columns
        if picked.idx is not None and self.slots == "channel":
            columns = columns.index_select(1, picked.idx)
        return columns * picked.weight.view(1, -1, *(1,) * (columns.ndim - 2))


class Entry(Columns):
    """A pooled tap (B, M, H, W) -> (B, out_chs, H, W): a 1x1 convolution, where a body begins that reads no image."""

    def __init__(self, out_chs: int, num_columns: int, num_pooled: int, slots: Slots) -> None:
        super().__init__((out_chs, num_columns, 1, 1), slots)
        init_weight(self.columns, num_pooled)

    def forward(self, picked: Picked) -> Tensor:
        weight = self.pooled_weight(picked)
        return F.conv2d(picked.x.to(weight.dtype), weight)


class SubscribedLayer(Columns):
    """A convolution or linear layer over its own input and M pooled channels of a tap.

    With `local` the layer over its own input x, C the columns and w the pooling weights, it computes
    `local(x) + conv(tap[:, idx], C * w[idx])`, which is the convolution of the concatenation of x and the pooled
    channels. Folding w into the few columns costs nothing and needs no gradient for the tap.
    """

    def __init__(self, local: nn.Module, num_columns: int, num_pooled: int, slots: Slots) -> None:
        weight = local.weight
        assert isinstance(weight, nn.Parameter)
        super().__init__((weight.shape[0], num_columns, *weight.shape[2:]), slots)
        self.local = local
        fan_in = (weight.shape[1] + num_pooled) * math.prod(weight.shape[2:])
        init_weight(weight, fan_in)
        init_weight(self.columns, fan_in)


class SubscribedConv2d(SubscribedLayer):
    """(B, in_chs, H, W) and a pooled tap (B, M, H, W) -> (B, out_chs, H', W')."""

    local: nn.Conv2d

    def forward(self, x: Tensor, picked: Picked) -> Tensor:
        conv = self.local
        weight = self.pooled_weight(picked)
        pooled = picked.x.to(weight.dtype)
        if isinstance(conv, Conv2dSame) or getattr(conv, "same_pad", False):
            kernel, stride, dilation = (list(size) for size in (conv.kernel_size, conv.stride, conv.dilation))
            pooled = pad_same(pooled, kernel, stride, dilation)
        added: Tensor = F.conv2d(pooled, weight, None, conv.stride, conv.padding, conv.dilation)
        own: Tensor = conv(x)
        return own + added


class SubscribedLinear(SubscribedLayer):
    """(..., in_chs), or None without input of its own, and a pooled tap (..., M) -> (..., out_chs)."""

    local: nn.Linear

    def forward(self, x: Tensor | None, picked: Picked) -> Tensor:
        weight = self.pooled_weight(picked)
        own: Tensor = self.local.bias if x is None else self.local(x)
        return own + F.linear(picked.x.to(weight.dtype), weight)
