"""The head of a delta: from its own pooled features and what it subscribes to of the source's, to logits."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchsnow.delta.layers import SubscribedLinear
from torchsnow.delta.spec import DeltaSpec
from torchsnow.pooling import ChannelPooling, Subscription
from torchsnow.source import Source
from torchsnow.source.features import FeatureMaps, Request

LAST = "last features"
"""Beside tap names: the source's pooled features at its end, which a head may read."""


class Head(nn.Module):
    """A linear layer over the delta's features (B, own_chs), where it has any, and some values of the source.

    The values are the averages of the source's channels `channels` (see `Source.channels_of`), with a `std_reduction`
    then their standard deviations over the cells of a grid, and, if `last`, its last features. The head reads
    `num_read` of them: those with the largest pooling weights. They are standardised by `center` and `spread`, which
    training sets from the training images, and divided by the root of the number that it reads, so that a step of the
    optimiser moves the logits alike whatever that number is.

    `share` and `read_share` weigh what the delta's own features and the source's values add to the logits; they are
    part of the weights once the choice is frozen. With `freeze_probe` the rest of the head is fixed, and the logits in
    training are those of the delta's own features alone.
    """

    channels: Tensor
    share: Tensor
    read_share: Tensor
    num_read: Tensor
    center: Tensor
    spread: Tensor

    def __init__(
        self,
        own_chs: int,
        channels: Tensor,
        num_last: int,
        num_read: int,
        spec: DeltaSpec,
        frozen: bool,
    ) -> None:
        super().__init__()
        self.register_buffer("channels", channels, persistent=False)
        self.last = num_last > 0
        self.std_reduction = spec.grid_reduction if spec.head_std else None
        num_values = self.num_moments * len(channels) + num_last
        pooling = Subscription if frozen else ChannelPooling
        columns = num_read if frozen or spec.slots != "channel" else num_values
        self.pool: ChannelPooling | Subscription = pooling(num_values, num_read)
        self.fc = SubscribedLinear(_linear(own_chs, spec.num_classes), columns, num_read, spec.slots)
        nn.init.zeros_(self.fc.columns)
        nn.init.zeros_(self.fc.local.bias)
        self.scale = num_read**-0.5
        size = num_read if frozen else num_values
        self.register_buffer("center", torch.zeros(size))
        self.register_buffer("spread", torch.ones(size))
        self.probe_frozen = False
        if not frozen:
            self.register_buffer("share", torch.ones(()))
            self.register_buffer("read_share", torch.ones(()))
            self.register_buffer("num_read", torch.tensor(num_read))

    @property
    def num_moments(self) -> int:
        """How many numbers of a channel there are to read: its average, and perhaps its deviation."""
        return 1 if self.std_reduction is None else 2

    def select_k(self, num_read: int) -> None:
        """Read another number of values, at most as many as there are columns. Only while the choice is open."""
        self.num_read.fill_(num_read)
        self.pool.num_pooled, self.scale = num_read, num_read**-0.5

    def mix(self, read_share: float, share: float) -> None:
        """Set how much the source's values and the delta's own features count. Only while the choice is open."""
        self.read_share.fill_(read_share)
        self.share.fill_(share)

    def freeze_probe(self) -> None:
        """Train the layer over the delta's own features alone; their mixing weight is 0 until it is set."""
        self.probe_frozen = True
        self.share.zero_()
        for parameter in (self.pool.weight, self.fc.columns, self.fc.local.bias):
            assert isinstance(parameter, nn.Parameter)
            parameter.requires_grad_(False)

    @property
    def reads_source(self) -> bool:
        """Whether the logits of the present mode depend on the source's values."""
        return not (self.training and self.probe_frozen)

    def request(self, reduction: int) -> Request:
        """What a source pass must return for this head. Averages alone are taken from a grid of this reduction."""
        if not self.reads_source:
            return Request()
        return _request(self.averaged(), self.std_reduction, reduction, self.last)

    def averaged(self) -> Tensor:
        """The channels whose averages or deviations are read, ascending; in training all that may be."""
        if self._may_change:
            return self.channels
        channels: Tensor = self.channels[self._read_channels(self.pool.choose())]
        return channels

    def _read_channels(self, idx: Tensor) -> Tensor:
        """Which of `channels` the values `idx` (n,) are of, ascending and once each."""
        count = len(self.channels)
        channels: Tensor = torch.unique(idx[idx < self.num_moments * count] % max(1, count))
        return channels

    @property
    def _may_change(self) -> bool:
        """Whether the values are chosen only when they are there."""
        return self.training and isinstance(self.pool, ChannelPooling)

    def read(self, features: FeatureMaps) -> tuple[Tensor, Tensor]:
        """The values that the pool chooses now, standardised, (B, num_read), and which they are (num_read,)."""
        values = features.values(self.averaged(), self.last, self.std_reduction)
        idx = self.pool.choose()
        x = values.index_select(1, self.places(idx))
        of_read = idx if isinstance(self.pool, ChannelPooling) else slice(None)
        return (x - self.center[of_read]) / self.spread[of_read], idx

    def distance(self, features: FeatureMaps) -> Tensor:
        """How far images lie from the training images, by one source pass: the root mean square of the standardised
        values, (B,); about 1 for images like those."""
        return self.read(features)[0].square().mean(1).sqrt()

    def places(self, idx: Tensor) -> Tensor:
        """Where the values `idx` (n,) stand among those that a pass was asked for, (n,)."""
        if self._may_change:
            return idx
        channels, count = self._read_channels(idx), max(1, len(self.channels))
        first_last = self.num_moments * len(self.channels)
        of_channel = torch.searchsorted(channels, idx % count) + idx // count * len(channels)
        return torch.where(idx < first_last, of_channel, idx - first_last + self.num_moments * len(channels))

    def forward(self, own: Tensor | None, features: FeatureMaps) -> Tensor:
        """(B, own_chs), or None for a delta without a body, and one source pass -> logits (B, num_classes)."""
        if own is not None and not self.reads_source:
            return self.own_logits(own)
        return self.logits(own, *self.read(features))

    def own_logits(self, own: Tensor) -> Tensor:
        """What the delta's own features (B, own_chs) alone say, (B, num_classes)."""
        local = self.fc.local
        assert isinstance(local, nn.Linear)
        return F.linear(own, local.weight)

    def logits(self, own: Tensor | None, x: Tensor, idx: Tensor) -> Tensor:
        """The same with what `read` gives."""
        picked = self.pool.take(self.scale * x, idx)
        if isinstance(self.pool, Subscription):
            logits: Tensor = self.fc(own, picked)
            return logits
        read = self.read_share * F.linear(picked.x, self.fc.pooled_weight(picked), self.fc.local.bias)
        return read if own is None else read + self.share * self.own_logits(own)


class FoldedHead(nn.Module):
    """A frozen head in two plain linear layers: standardisation and pooling weights are folded into the weights.

    The layer `read` is over the source's values `places` of those that a pass gives, `own` over the delta's features.
    """

    places: Tensor
    channels: Tensor

    def __init__(self, head: Head) -> None:
        super().__init__()
        pool, local = head.pool, head.fc.local
        assert isinstance(pool, Subscription)
        assert isinstance(local, nn.Linear)
        weight = (head.fc.columns * pool.weight * head.scale / head.spread).detach()
        self.read = linear_of(weight, (local.bias - weight @ head.center).detach())
        self.own = linear_of(local.weight.detach()) if local.in_features else None
        self.last, self.std_reduction = head.last, head.std_reduction
        self.register_buffer("places", head.places(pool.index))
        self.register_buffer("channels", head.averaged())

    def request(self, reduction: int) -> Request:
        """What a source pass must return for this head. Averages alone are taken from a grid of this reduction."""
        return _request(self.channels, self.std_reduction, reduction, self.last)

    def forward(self, own: Tensor | None, features: FeatureMaps) -> Tensor:
        """(B, own_chs), or None for a delta without a body, and one source pass -> logits (B, num_classes)."""
        values = features.values(self.channels, self.last, self.std_reduction)
        logits: Tensor = self.read(values.index_select(1, self.places))
        return logits if own is None or self.own is None else logits + self.own(own)


def _request(channels: Tensor, std_reduction: int | None, reduction: int, last: bool) -> Request:
    if not len(channels):
        return Request(last=last)
    stds = frozenset[int]() if std_reduction is None else frozenset({std_reduction})
    return Request(grids={std_reduction or reduction: channels}, stds=stds, last=last)


def linear_of(weight: Tensor, bias: Tensor | None = None) -> nn.Linear:
    """A linear layer with these weights (out, in) and biases (out,)."""
    linear = nn.Linear(1, 1, bias=bias is not None)
    linear.out_features, linear.in_features = weight.shape
    linear.weight = nn.Parameter(weight)
    if bias is not None:
        linear.bias = nn.Parameter(bias)
    return linear


def _linear(own_chs: int, num_classes: int) -> nn.Linear:
    linear = nn.Linear(max(1, own_chs), num_classes)
    if own_chs == 0:  # made in two steps, because PyTorch warns of weights without any number
        linear.in_features, linear.weight = 0, nn.Parameter(torch.empty(num_classes, 0))
    return linear


def split_by_tap(source: Source, head: Head) -> Iterator[tuple[str, int, Tensor, Tensor]]:
    """What a frozen head reads, part by part: (tap or LAST, its number of channels, which of them the head reads,
    where these stand among the values that the head reads). A channel whose average and deviation are read is there
    twice. Parts that it reads nothing of are left out."""
    assert isinstance(head.pool, Subscription)
    index, channels = head.pool.index.cpu(), head.channels.cpu()
    first_last = head.num_moments * len(channels)
    averaged, is_average = torch.full_like(index, -1), index < first_last
    averaged[is_average] = channels[index[is_average] % max(1, len(channels))]
    for name, tap in source.taps.items():
        first = int(source.channels_of([name])[0])
        at = ((averaged >= first) & (averaged < first + tap.num_chs)).nonzero().flatten()
        at = at[averaged[at].argsort(stable=True)]
        if len(at):
            yield name, tap.num_chs, averaged[at] - first, at
    at = (averaged < 0).nonzero().flatten()
    at = at[index[at].argsort()]
    if len(at):
        yield LAST, source.num_features, index[at] - first_last, at


def by_channel(index: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
    """The channels of a part of `split_by_tap` (n,) once each, and sums of their values (n,)."""
    channels, at = torch.unique(index, return_inverse=True)
    return channels, *(torch.zeros(len(channels)).index_add(0, at, one.float()) for one in values)
