from __future__ import annotations

import json

import torch
from torch import Tensor, nn

from sample_tasks import sample_task
from torchsnow.delta.head import LAST, Head, split_by_tap
from torchsnow.explain.subscriptions import read_subscription
from torchsnow.methods.snow import chosen_channels
from torchsnow.source import InputConfig, Source, load_source
from torchsnow.task_file import Task


class Shortcut(nn.Module):
    """Two convolutions read the first tap."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block, self.shortcut = (
            nn.Conv2d(3, 16, 1),
            nn.Conv2d(16, 24, 3, padding=1),
            nn.Conv2d(16, 24, 1),
        )
        self.tail = nn.Conv2d(24, 32, 1)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        return self.tail(self.block(x) + self.shortcut(x)).mean((2, 3))


def test_every_tap_with_its_channels_in_order(source: Source, task: Task) -> None:
    subscription = read_subscription(source, task.name, task.delta)
    assert [part.tap for part in subscription.layers] == list(source.taps)
    chosen = task.delta.choose()
    for part in subscription.layers:
        assert part.index.tolist() == sorted(chosen[part.tap].tolist())
        assert part.num_chs == source.taps[part.tap].num_chs
        assert len(part.weight) == len(part.strength) == task.subscription[part.tap]


def test_strength_is_the_size_of_the_scaled_columns_of_all_readers() -> None:
    source = Source(Shortcut(), "toy", InputConfig((3, 16, 16), (0.5,) * 3, (0.5,) * 3, "bilinear", 1.0), "random")
    task = sample_task(source, pool_divisor=4)
    part = read_subscription(source, task.name, task.delta).layers[0]
    consumers = source.taps[part.tap].consumers
    assert len(consumers) == 2
    pool = task.delta.pools[part.tap]
    place = pool.index.tolist().index(int(part.index[1]))
    columns = [task.delta.body.get_submodule(name).columns[:, place] * pool.weight[place] for name in consumers]
    expected = torch.cat([column.flatten() for column in columns]).norm()
    torch.testing.assert_close(part.strength[1], expected.detach())
    assert float(part.weight[1]) == pool.weight[place].item()
    best = part.strongest(3)
    assert [channel.strength for channel in best] == part.strength.sort(descending=True).values[:3].tolist()
    assert part.strength[part.index == best[0].index] == best[0].strength


def test_a_grid_is_split_by_tap_and_as_strong_as_its_columns(source: Source, grid_task: Task) -> None:
    delta, parts = grid_task.delta, read_subscription(source, grid_task.name, grid_task.delta).layers
    pool, columns = delta.grid_pool, delta.body.stem[0].weight.detach()
    read = []
    for part in parts:
        assert part.num_chs == source.taps[part.tap].num_chs
        for index, weight, strength in zip(part.index, part.weight, part.strength, strict=True):
            number = int(source.channels_of([part.tap])[int(index)])
            at = pool.index.tolist().index(number)
            assert weight == pool.weight[at]
            torch.testing.assert_close(strength, columns[:, at].norm())
            read.append(number)
    assert read == pool.index.tolist()
    assert len(parts) > 1


def test_the_head_is_split_by_tap(source: Source, task: Task) -> None:
    head = task.delta.head
    assert isinstance(head, Head)
    parts = read_subscription(source, task.name, task.delta).head
    sizes = [*((name, tap.num_chs) for name, tap in source.taps.items()), (LAST, source.num_features)]
    assert [(part.tap, part.num_chs) for part in parts] == [pair for pair in sizes if pair[0] in {p.tap for p in parts}]
    first, read = 0, []
    for name, num_chs in sizes:
        read += [first + i for part in parts if part.tap == name for i in part.index.tolist()]
        first += num_chs
    assert read == sorted(head.pool.index.tolist())
    values = dict(zip(head.pool.index.tolist(), (head.pool.weight * head.fc.columns.norm(dim=0)).abs(), strict=True))
    assert abs(parts[0].strength[0] - head.scale * values[int(parts[0].index[0])]) < 1e-6


def test_where_the_values_of_the_head_stand(source: Source, task: Task) -> None:
    head = task.delta.head
    assert isinstance(head, Head)
    places = [place for _, _, _, at in split_by_tap(source, head) for place in at.tolist()]
    assert sorted(places) == list(range(len(head.pool.index)))


def test_a_head_that_reads_no_averages_reads_last_features(source: Source) -> None:
    task = sample_task(source, head_taps=(), head_divisor=4)
    (part,) = read_subscription(source, task.name, task.delta).head
    assert (part.tap, part.num_chs) == (LAST, source.num_features)
    assert part.index.tolist() == sorted(task.delta.head.pool.index.tolist())


def test_a_task_that_reads_nothing() -> None:
    source = load_source("test_resnet", "random")
    task = sample_task(source, taps=(), head_taps=(), head_last=False)
    subscription = read_subscription(source, task.name, task.delta)
    assert not subscription
    assert subscription.main == ()
    assert chosen_channels(task.delta) == {}


def test_a_head_alone_is_what_is_looked_at() -> None:
    source = load_source("test_resnet", "random")
    subscription = read_subscription(source, "pets", sample_task(source, taps=()).delta)
    assert subscription.main == subscription.head
    assert json.loads(json.dumps(subscription.to_dict()))["layers"] == []
