"""What a trained task subscribes to, tap by tap, and how strongly."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from torchsnow.delta import Delta
from torchsnow.delta.derive import key_of
from torchsnow.delta.grid import GridBody
from torchsnow.delta.head import LAST, Head, by_channel, split_by_tap
from torchsnow.delta.layers import Columns
from torchsnow.pooling import Subscription
from torchsnow.source import Source


@dataclass(frozen=True, eq=False)
class TapSubscription:
    """The chosen channels of one tap: `index` (M,) of its `num_chs`, in ascending order, on the CPU.

    `weight` (M,) are their pooling weights w (a head that reads a channel's average and its deviation has two, of which
    it is the sum), `strength` (M,) is |w| times the norm of all the weights that read the
    scaled channel: how far a layer can hear it, before the size of the channel itself. For a grid body, whose w is one
    over the channel's standard deviation, it is that norm alone.
    """

    tap: str
    num_chs: int
    index: Tensor
    weight: Tensor
    strength: Tensor

    @property
    def total(self) -> float:
        """The strength of the tap: the sum over its channels."""
        return float(self.strength.sum())

    def strongest(self, number: int) -> list[Channel]:
        """At most `number` channels, the strongest first."""
        order = self.strength.argsort(descending=True, stable=True)[:number].tolist()
        return [Channel(self.tap, int(self.index[i]), float(self.weight[i]), float(self.strength[i])) for i in order]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        numbers = {name: getattr(self, name).tolist() for name in ("index", "weight", "strength")}
        return {"tap": self.tap, "channels": self.num_chs, "total_strength": self.total, **numbers}


@dataclass(frozen=True)
class Channel:
    """One subscribed channel."""

    tap: str
    index: int
    weight: float
    strength: float

    def __str__(self) -> str:
        return f"{self.tap}, channel {self.index}" if self.tap != LAST else f"last feature {self.index}"


@dataclass(frozen=True)
class TaskSubscription:
    """What one task reads: by its layers, and by its head (averages by tap, then the last features).

    Taps are in the order of the pass; either part may be empty.
    """

    task: str
    layers: tuple[TapSubscription, ...]
    head: tuple[TapSubscription, ...]

    def __bool__(self) -> bool:
        return bool(self.layers or self.head)

    @property
    def main(self) -> tuple[TapSubscription, ...]:
        """What the layers read, or the head alone if they read nothing."""
        return self.layers or self.head

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"layers": [part.to_dict() for part in self.layers], "head": [part.to_dict() for part in self.head]}


def places(source: Source) -> tuple[str, ...]:
    """All names that a subscription may have, in the order of the pass."""
    return (*source.taps, LAST)


def read_subscription(source: Source, task: str, delta: Delta) -> TaskSubscription:
    """The subscription of a settled delta."""
    layers = [
        _tap_subscription(name, tap.num_chs, _settled(delta.pools[key_of(name)]), _column_norms(delta, tap.readers))
        for name, tap in delta.taps.items()
    ]
    if (pool := delta.grid_pool) is not None:
        layers = list(_grid_subscriptions(source, pool, delta.body))
    head = tuple(_head_subscriptions(source, delta.head)) if isinstance(delta.head, Head) else ()
    return TaskSubscription(task, tuple(layers), head)


def _settled(pool: Any) -> Subscription:
    assert isinstance(pool, Subscription)
    return pool


def _tap_subscription(name: str, num_chs: int, pool: Subscription, norms: Tensor) -> TapSubscription:
    order = pool.index.argsort()
    index, weight = pool.index[order].cpu(), pool.weight.detach()[order].float().cpu()
    return TapSubscription(name, num_chs, index, weight, weight.abs() * norms[order].cpu())


def _column_norms(delta: Delta, readers: tuple[str, ...]) -> Tensor:
    """Norms over everything that reads a chosen channel, (M,)."""
    squares = []
    assert delta.body is not None
    for reader in readers:
        layer = delta.body.get_submodule(reader)
        assert isinstance(layer, Columns)
        squares.append(layer.columns.detach().float().transpose(0, 1).flatten(1).square().sum(1))
    return torch.stack(squares).sum(0).sqrt()


def grid_by_tap(source: Source, pool: Subscription) -> dict[str, tuple[Tensor, Tensor]]:
    """What a grid body reads, by tap in the order of the pass: which of the tap's channels, and where these stand among
    those of the pool, (n,) each, on the CPU."""
    found: dict[str, list[tuple[int, int]]] = {}
    for place, number in sorted(enumerate(pool.index.tolist()), key=lambda pair: pair[1]):
        tap, channel = source.tap_of(number)
        found.setdefault(tap, []).append((channel, place))
    return {tap: (pairs[:, 0], pairs[:, 1]) for tap, pairs in ((tap, torch.tensor(own)) for tap, own in found.items())}


def _grid_subscriptions(source: Source, pool: Subscription, body: nn.Module | None) -> Iterator[TapSubscription]:
    assert isinstance(body, GridBody)
    stem = body.stem[0]
    assert isinstance(stem, nn.Linear)
    weight, norms = pool.weight.detach().cpu(), stem.weight.detach().norm(dim=0).cpu()
    for tap, (index, at) in grid_by_tap(source, pool).items():
        yield TapSubscription(tap, source.taps[tap].num_chs, index, weight[at], norms[at])


def _head_subscriptions(source: Source, head: Head) -> Iterator[TapSubscription]:
    weight = _settled(head.pool).weight.detach().float().cpu()
    norms = head.scale * head.fc.columns.detach().float().norm(dim=0).cpu()
    for name, num_chs, index, at in split_by_tap(source, head):
        channels, weights, strength = by_channel(index, weight[at], weight[at].abs() * norms[at])
        yield TapSubscription(name, num_chs, channels, weights, strength)
