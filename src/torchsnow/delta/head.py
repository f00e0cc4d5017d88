"""The head of a delta: from its own pooled features and what it subscribes to of the source's, to logits."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchsnow.delta.layers import Slots, SubscribedLinear
from torchsnow.pooling import ChannelPooling, Subscription
from torchsnow.source import Source
from torchsnow.source.features import FeatureMaps

LAST = "last features"
"""Beside tap names: the source's pooled features at its end, which a head may read."""


class Head(nn.Module):
    """A linear layer over the delta's features (B, own_chs), where it has any, and some values of the source.

    The `num_values` values are the averages of `taps` and, if `last`, the source's last features, of which it reads
    `num_read`: those with the largest pooling weights. They are standardised by `center` and `spread` (num_values,),
    which training sets from the training images, and divided by the root of the number that it reads, so that a step
    of the optimiser moves the logits alike whatever that number is.

    `share` scales what the delta's own features add to the logits. With `train_apart` the rest of the head is fixed,
    and the logits in training are those of the delta's own features alone.
    """

    share: Tensor
    num_read: Tensor
    center: Tensor
    spread: Tensor

    def __init__(
        self,
        own_chs: int,
        taps: tuple[str, ...],
        last: bool,
        num_values: int,
        num_read: int,
        num_classes: int,
        slots: Slots,
        fixed: bool,
    ) -> None:
        super().__init__()
        self.taps, self.last = taps, last
        pooling = Subscription if fixed else ChannelPooling
        columns = num_read if fixed or slots == "rank" else num_values
        self.pool: ChannelPooling | Subscription = pooling(num_values, num_read)
        self.fc = SubscribedLinear(_linear(own_chs, num_classes), columns, num_read, slots)
        nn.init.zeros_(self.fc.columns)
        nn.init.zeros_(self.fc.local.bias)
        self.scale = num_read**-0.5
        size = num_read if fixed else num_values
        self.register_buffer("center", torch.zeros(size))
        self.register_buffer("spread", torch.ones(size))
        self.apart = False
        if not fixed:
            self.register_buffer("share", torch.ones(()))
            self.register_buffer("num_read", torch.tensor(num_read))

    def read_fewer(self, num_read: int) -> None:
        """Read another number of values, at most as many as there are columns. Only while the choice is open."""
        self.num_read.fill_(num_read)
        self.pool.num_pooled, self.scale = num_read, num_read**-0.5

    def train_apart(self) -> None:
        """Train the layer over the delta's own features alone; their share is 0 until it is set."""
        self.apart = True
        self.share.zero_()
        for parameter in (self.pool.weight, self.fc.columns, self.fc.local.bias):
            assert isinstance(parameter, nn.Parameter)
            parameter.requires_grad_(False)

    @property
    def reads_source(self) -> bool:
        """Whether the logits of the present mode depend on the source's values."""
        return not (self.training and self.apart)

    def read(self, features: FeatureMaps) -> tuple[Tensor, Tensor]:
        """The values that the pool chooses now, standardised, (B, num_read), and which they are (num_read,)."""
        idx = self.pool.choose()
        x = features.vector(self.taps, self.last).index_select(1, idx)
        of_read = idx if isinstance(self.pool, ChannelPooling) else slice(None)
        return (x - self.center[of_read]) / self.spread[of_read], idx

    def forward(self, own: Tensor | None, features: FeatureMaps) -> Tensor:
        """(B, own_chs), or None for a delta without a body, and one source pass -> logits (B, num_classes)."""
        if own is not None and not self.reads_source:
            return F.linear(own, self.fc.local.weight)
        x, idx = self.read(features)
        own = own * self.share if own is not None and isinstance(self.pool, ChannelPooling) else own
        logits: Tensor = self.fc(own, self.pool.take(self.scale * x, idx))
        return logits


def _linear(own_chs: int, num_classes: int) -> nn.Linear:
    linear = nn.Linear(max(1, own_chs), num_classes)
    if own_chs == 0:  # made in two steps, because PyTorch warns of weights without any number
        linear.in_features, linear.weight = 0, nn.Parameter(torch.empty(num_classes, 0))
    return linear


def split_by_tap(source: Source, head: Head) -> Iterator[tuple[str, int, Tensor, Tensor]]:
    """What a settled head reads, part by part: (tap or LAST, its number of channels, which of them the head reads,
    where these stand among the values that the head reads). Parts that it reads nothing of are left out."""
    assert isinstance(head.pool, Subscription)
    index = head.pool.index.cpu()
    sizes = {name: source.taps[name].num_chs for name in head.taps} | ({LAST: source.num_features} if head.last else {})
    first = 0
    for name, num_chs in sizes.items():
        at = ((index >= first) & (index < first + num_chs)).nonzero().flatten()
        at = at[index[at].argsort()]
        if len(at):
            yield name, num_chs, index[at] - first, at
        first += num_chs
