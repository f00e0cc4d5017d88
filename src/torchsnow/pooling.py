"""Channel pooling: the operator of SNOW (Yoo, Kang, Cho, ICLR 2020, section 3).

Of a tap's N channels it keeps the M with the largest weight and scales each by its weight. While training, noise on
the weights lets other channels be tried; the noise chooses, it does not scale.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from torchsnow.errors import DeltaError


def num_pooled(num_chs: int, divisor: int) -> int:
    """The width rule: max(1, round(N / divisor)).

    Raises DeltaError for a divisor below 1.
    """
    if divisor < 1:
        raise DeltaError(f"a divisor of {divisor} was given; expected a whole number of 1 or more")
    return max(1, round(num_chs / divisor))


class Picked(NamedTuple):
    """Chosen channels, not yet scaled: the layer that reads them folds `weight` into its own weights.

    `x` holds the M channels, `weight` (M,) their scales and `idx` (M,) where they stood among the tap's N
    channels; `idx` is None once the choice is frozen.
    """

    x: Tensor
    weight: Tensor
    idx: Tensor | None


def scale_channels(x: Tensor, weight: Tensor, dim: int) -> Tensor:
    """Multiply the channels of `x`, which stand in dimension `dim`, by `weight`."""
    shape = [1] * x.ndim
    shape[dim] = -1
    return x * weight.to(x.dtype).view(shape)


class ChannelPooling(nn.Module):
    """Chooses M of N channels by a learned weight and scales them by it.

    With w the N weights and n ~ Normal(0, sigma) redrawn at every training forward:
    training, `idx` = the M largest of w + n; evaluation, `idx` = the M largest of w; output `x[:, idx] * w[idx]`.
    Equal weights are taken in channel order. They come the strongest first, or by their number if `ascending`.
    `sigma` is set by whoever trains; 0 means no exploration.
    `times_chosen` (N,) counts the training forwards in which each channel was chosen.
    """

    weight: nn.Parameter
    times_chosen: Tensor

    def __init__(self, num_chs: int, num_pooled: int, dim: int = 1) -> None:
        super().__init__()
        if not 1 <= num_pooled <= num_chs:
            raise DeltaError(f"cannot pool {num_pooled} of {num_chs} channels; expected 1 to {num_chs}")
        self.num_chs, self.num_pooled, self.dim = num_chs, num_pooled, dim
        self.sigma, self.ascending = 0.0, False
        self.weight = nn.Parameter(torch.ones(num_chs))
        self.register_buffer("times_chosen", torch.zeros(num_chs, dtype=torch.long))

    def choose(self) -> Tensor:
        """The M chosen channels, (M,) int64."""
        scores = self.weight.detach()
        if self.training and self.sigma > 0:
            scores = scores + self.sigma * torch.randn_like(scores)
        index = scores.argsort(descending=True, stable=True)[: self.num_pooled]
        if self.training:
            self.times_chosen[index] += 1
        return index.sort().values if self.ascending else index

    def take(self, x: Tensor, idx: Tensor) -> Picked:
        """The channels `idx` of a tap, `x` (B, M, ...), as chosen by `choose`, for a layer that scales them."""
        return Picked(x, self.weight[idx], idx)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, H, W) -> (B, M, H, W), chosen and scaled."""
        idx = self.choose()
        return scale_channels(x.index_select(self.dim, idx), self.weight[idx], self.dim)

    def extra_repr(self) -> str:
        return f"{self.num_pooled} of {self.num_chs}, sigma={self.sigma:g}"


class Subscription(nn.Module):
    """Channel pooling whose choice is frozen: what a trained task ships.

    `index` (M,) int64 are the chosen channels and `weight` (M,) their scales.
    """

    index: Tensor
    weight: nn.Parameter

    def __init__(self, num_chs: int, num_pooled: int, dim: int = 1) -> None:
        super().__init__()
        self.num_chs, self.num_pooled, self.dim = num_chs, num_pooled, dim
        self.register_buffer("index", torch.arange(num_pooled))
        self.weight = nn.Parameter(torch.ones(num_pooled))

    def choose(self) -> Tensor:
        """The M subscribed channels, (M,) int64."""
        return self.index

    def take(self, x: Tensor, idx: Tensor) -> Picked:
        """The subscribed channels of a tap, `x` (B, M, ...), for a layer that scales them."""
        del idx
        return Picked(x, self.weight, None)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, H, W) -> (B, M, H, W), chosen and scaled."""
        return scale_channels(x.index_select(self.dim, self.index), self.weight, self.dim)

    def extra_repr(self) -> str:
        return f"{self.num_pooled} of {self.num_chs}"
