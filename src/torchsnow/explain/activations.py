"""The images that a task's strongest channels answer to most."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor
from torch.utils.data import DataLoader

from torchsnow.data import ImageSet
from torchsnow.delta.head import LAST
from torchsnow.explain.subscriptions import Channel, TapSubscription
from torchsnow.plots import new_figure
from torchsnow.source import FeatureMaps, InputConfig, Request, Source
from torchsnow.source.features import unique
from torchsnow.source.grid import ONE_CELL

Progress = Callable[[int, int], None]
NUM_IMAGES = 8  # top images of a channel
_BATCH_SIZE = 32
_NAME_LENGTH = 16  # characters of a class name under an image


@dataclass(frozen=True)
class TopImage:
    """An image by its place in the data set, and the channel's average on it."""

    place: int
    value: float


def spread_channels(parts: Sequence[TapSubscription], number: int) -> list[Channel]:
    """At most `number` channels, spread over depth: taps are put into that many groups of neighbours, and each gives
    its strongest channel; with fewer taps than channels, taps give several."""
    groups = np.array_split(np.arange(len(parts)), min(number, len(parts)))
    chosen = []
    for at, group in enumerate(groups):
        wanted = number // len(groups) + (at < number % len(groups))
        candidates = [channel for i in group for channel in parts[i].strongest(wanted)]
        best = sorted(candidates, key=lambda channel: -channel.strength)[:wanted]
        chosen += sorted(best, key=lambda channel: [part.tap for part in parts].index(channel.tap))
    return chosen


class Averages:
    """The spatial averages of given channels: what to ask a source for, and how to read them from the answer."""

    def __init__(self, source: Source, channels: Sequence[Channel]) -> None:
        self.channels = tuple(channels)
        taps = unique(channel.tap for channel in channels)
        first = {tap: int(source.channels_of([tap])[0]) for tap in taps if tap != LAST}
        self._numbers = [None if one.tap == LAST else first[one.tap] + one.index for one in self.channels]
        known = sorted({number for number in self._numbers if number is not None})
        self._index = torch.tensor(known, dtype=torch.int64, device=next(source.parameters()).device)
        self.request = Request(grids={ONE_CELL: self._index} if known else {}, last=LAST in taps)

    def read(self, features: FeatureMaps) -> Tensor:
        """(B, number of channels)."""
        averages = features.averages(self._index) if len(self._index) else None
        known = self._index.tolist()
        columns = []
        for channel, number in zip(self.channels, self._numbers, strict=True):
            values, at = (features.last, channel.index) if number is None else (averages, known.index(number))
            assert values is not None
            columns.append(values[:, at])
        return torch.stack(columns, dim=1)


def top_images(
    source: Source, images: ImageSet, channels: Sequence[Channel], device: torch.device, progress: Progress
) -> list[list[TopImage]]:
    """For each channel the images on which it is largest on average, at most NUM_IMAGES, the largest first."""
    averages = Averages(source, channels)
    values: list[Tensor] = []
    for batch, _ in DataLoader(images, _BATCH_SIZE):
        values.append(averages.read(source(batch.to(device), averages.request)).cpu())
        progress(min(len(values) * _BATCH_SIZE, len(images)), len(images))
    best = torch.cat(values).sort(dim=0, descending=True, stable=True)
    pairs = zip(best.indices[:NUM_IMAGES].T.tolist(), best.values[:NUM_IMAGES].T.tolist(), strict=True)
    return [[TopImage(place, value) for place, value in zip(*pair, strict=True)] for pair in pairs]


def channels_figure(
    task: str,
    channels: Sequence[Channel],
    pictures: Tensor,
    tops: Sequence[Sequence[TopImage]],
    images: ImageSet,
    config: InputConfig,
) -> Figure:
    """One row for each channel: the picture made for it, of `pictures` (channels, 3, S, S) in 0..1, and its images."""
    columns = 1 + max(len(top) for top in tops)
    figure = new_figure(10, 0.5 + 1.6 * len(channels))
    figure.suptitle(f"What the strongest channels of task {task!r} answer to", fontsize=11)
    for band, channel, picture, top in zip(
        figure.subfigures(len(channels), 1, squeeze=False)[:, 0], channels, pictures, tops, strict=True
    ):
        title = f"{channel}  (w = {channel.weight:.2f}, strength {channel.strength:.2g})"
        band.suptitle(title, fontsize=9, x=0.01, ha="left", fontweight="bold")
        panels = band.subplots(1, columns)
        _show(panels[0], picture, "made for it")
        for axes, shown in zip(panels[1:], top, strict=False):
            pixels, label = images[shown.place]
            name = images.classes[label][:_NAME_LENGTH]
            _show(axes, visible(pixels, config), f"{shown.value:.3g}\n{name}")
        for axes in panels[1 + len(top) :]:
            axes.set_axis_off()
    return figure


def visible(pixels: Tensor, config: InputConfig) -> Tensor:
    """A normalised image (3, H, W) as it looks, in 0..1."""
    mean, std = torch.tensor(config.mean)[:, None, None], torch.tensor(config.std)[:, None, None]
    return (pixels.cpu() * std + mean).clamp(0, 1)


def _show(axes: Axes, pixels: Tensor, text: str) -> None:
    axes.imshow(pixels.permute(1, 2, 0).numpy())
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_xlabel(text, fontsize=8, parse_math=False)


def to_dicts(
    channels: Sequence[Channel], tops: Sequence[Sequence[TopImage]], paths: Callable[[int], str]
) -> list[dict[str, Any]]:
    """Plain JSON values; `paths` names an image by its place."""
    return [
        {
            "tap": channel.tap,
            "channel": channel.index,
            "weight": channel.weight,
            "strength": channel.strength,
            "top_images": [{"image": paths(top.place), "average": top.value} for top in best],
        }
        for channel, best in zip(channels, tops, strict=True)
    ]
