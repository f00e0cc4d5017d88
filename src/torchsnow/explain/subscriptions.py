"""What trained tasks subscribe to, tap by tap, how strongly, and how much of it they have in common."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
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
    it is the sum), `strength` (M,) is |w| times the norm of all the weights that read the scaled channel: its gain,
    before the size of the channel itself. For a grid body, whose w is one
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


class TaskSubscription(NamedTuple):
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
    """The subscription of a frozen delta."""
    layers = [
        _tap_subscription(name, tap.num_chs, _frozen(delta.pools[key_of(name)]), _column_norms(delta, tap.consumers))
        for name, tap in delta.taps.items()
    ]
    if (pool := delta.grid_pool) is not None:
        layers = list(_grid_subscriptions(source, pool, delta.body))
    head = tuple(_head_subscriptions(source, delta.head)) if isinstance(delta.head, Head) else ()
    return TaskSubscription(task, tuple(layers), head)


def _frozen(pool: Any) -> Subscription:
    assert isinstance(pool, Subscription)
    return pool


def _tap_subscription(name: str, num_chs: int, pool: Subscription, norms: Tensor) -> TapSubscription:
    order = pool.index.argsort()
    index, weight = pool.index[order].cpu(), pool.weight.detach()[order].float().cpu()
    return TapSubscription(name, num_chs, index, weight, weight.abs() * norms[order].cpu())


def _column_norms(delta: Delta, consumers: tuple[str, ...]) -> Tensor:
    """Norms over everything that reads a chosen channel, (M,)."""
    squares = []
    assert delta.body is not None
    for consumer in consumers:
        layer = delta.body.get_submodule(consumer)
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
    weight = _frozen(head.pool).weight.detach().float().cpu()
    norms = head.scale * head.fc.columns.detach().float().norm(dim=0).cpu()
    for name, num_chs, index, at in split_by_tap(source, head):
        channels, weights, strength = by_channel(index, weight[at], weight[at].abs() * norms[at])
        yield TapSubscription(name, num_chs, channels, weights, strength)


class Overlap(NamedTuple):
    """Jaccard indices of tasks: channels that both subscribe to over channels that either does.

    `observed` and `by_chance` are (tasks, tasks) over all (tap, channel) pairs; `tap_observed` and `tap_by_chance`
    (taps,) are means over all pairs of tasks, NaN where fewer than two tasks read a tap. By chance means: every task
    draws as many channels of each tap as it has, at random. The diagonals of chance are NaN.
    """

    tasks: tuple[str, ...]
    taps: tuple[str, ...]
    observed: np.ndarray
    by_chance: np.ndarray
    tap_observed: np.ndarray
    tap_by_chance: np.ndarray

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; null for NaN."""
        names = ("observed", "by_chance", "tap_observed", "tap_by_chance")
        numbers = {name: _plain(getattr(self, name)) for name in names}
        return {"tasks": list(self.tasks), "taps": list(self.taps), **numbers}


def overlap_of(subscriptions: Mapping[str, Sequence[TapSubscription]], order: Sequence[str]) -> Overlap:
    """The overlap between two tasks or more, by name; `order` has all names of taps, in the order of the pass."""
    sizes = {part.tap: part.num_chs for parts in subscriptions.values() for part in parts}
    taps = tuple(tap for tap in order if tap in sizes)
    shared, counts = _counted(list(subscriptions.values()), taps, sizes)
    total = np.array([sizes[tap] for tap in taps])
    expected = counts[:, :, None] * counts[:, None, :] / total[:, None, None]
    by_chance = _jaccard(expected.sum(0), counts.sum(0))
    np.fill_diagonal(by_chance, np.nan)
    return Overlap(
        tasks=tuple(subscriptions),
        taps=taps,
        observed=_jaccard(shared.sum(0), counts.sum(0)),
        by_chance=by_chance,
        tap_observed=_mean_of_pairs(_jaccard(shared, counts), counts),
        tap_by_chance=_mean_of_pairs(_jaccard(expected, counts), counts),
    )


def _counted(
    tasks: Sequence[Sequence[TapSubscription]], taps: Sequence[str], sizes: dict[str, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of channels that pairs of tasks share, (taps, tasks, tasks), and that each has, (taps, tasks)."""
    shared = np.zeros((len(taps), len(tasks), len(tasks)))
    for at, tap in enumerate(taps):
        member = np.zeros((len(tasks), sizes[tap]))
        for task, parts in enumerate(tasks):
            for part in parts:
                if part.tap == tap:
                    member[task, part.index.numpy()] = 1
        shared[at] = member @ member.T
    return shared, shared.diagonal(axis1=1, axis2=2)


def _jaccard(shared: np.ndarray, counts: np.ndarray) -> np.ndarray:
    either = counts[..., :, None] + counts[..., None, :] - shared
    index: np.ndarray = np.divide(shared, either, out=np.zeros_like(shared), where=either > 0)
    return index


def _mean_of_pairs(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """(taps, tasks, tasks) -> (taps,), over pairs of tasks that both read the tap."""
    both = (counts[:, :, None] > 0) & (counts[:, None, :] > 0) & ~np.eye(counts.shape[1], dtype=bool)
    pairs = both.sum((1, 2))
    sums = (values * both).sum((1, 2))
    means: np.ndarray = np.divide(sums, pairs, out=np.full(len(values), np.nan), where=pairs > 0)
    return means


def _plain(values: np.ndarray) -> list[Any]:
    return [
        _plain(value) if isinstance(value, np.ndarray) else None if np.isnan(value) else float(value)
        for value in values
    ]
