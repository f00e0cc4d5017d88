"""Single channels: the images that they answer to most, their maps of one image, and an image made to drive each.

An image for a channel is made by activation maximisation: it is described by its spectrum, scaled so that all
frequencies are equally easy to change, and by colours that are as correlated as those of photographs, as in "Feature
Visualization" (Olah, Mordvintsev and Schubert, 2017). It is moved, turned and scaled a little at every step, so that
only what survives this can grow. Many channels behind a ReLU are zero on a grey start, with no way up; so in the
first steps a little of the gradient goes through closed ReLUs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.data import DataLoader
from torchvision.transforms import InterpolationMode, v2

from torchsnow.data import ImageSet
from torchsnow.delta.head import LAST
from torchsnow.errors import SourceError
from torchsnow.explain.subscriptions import Channel, TapSubscription
from torchsnow.source import FeatureMaps, Request, Source
from torchsnow.source.features import unique
from torchsnow.source.grid import ONE_CELL

Progress = Callable[[int, int], None]
NUM_IMAGES = 8  # top images of a channel
MOST_TAPS, MOST_MAPS = 6, 5  # of one image's feature maps
_BATCH_SIZE = 32
STEPS = 128
MOST_PX = 128  # of a side: more shows little more and takes longer
_LR = 0.05
_LEAKY_SHARE = 0.25  # of the steps, at their start
_LEAK = 0.1
_START_STD = 0.01
# A square root of the correlation of red, green and blue over the pixels of ImageNet.
_COLOURS = torch.tensor([[0.26, 0.09, 0.02], [0.27, 0.00, -0.05], [0.27, -0.09, 0.03]])
_GREY = 0.5  # what comes into view when the image is moved: torchvision fills with 0; other fills are written in place


class TopImage(NamedTuple):
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


class TapMaps(NamedTuple):
    """The strongest subscribed channels of one tap and their values (H, W) on one image."""

    tap: str
    channels: tuple[Channel, ...]
    values: tuple[Tensor, ...]


def feature_maps(source: Source, parts: Sequence[TapSubscription], image: Tensor) -> list[TapMaps]:
    """The strongest channels of some taps, evenly spread over depth, for a normalised image (1, 3, S, S)."""
    parts = [part for part in parts if part.tap != LAST]
    depths = np.unique(np.linspace(0, len(parts) - 1, min(MOST_TAPS, len(parts))).round().astype(int))
    best = {parts[place].tap: parts[place].strongest(MOST_MAPS) for place in depths}
    wanted = {tap: torch.tensor([c.index for c in channels], device=image.device) for tap, channels in best.items()}
    features = source(image, Request(channels=wanted))
    result = []
    for tap, channels in best.items():
        values = features.channels(tap, wanted[tap]).movedim(source.taps[tap].dim, 1)[0].cpu()
        places = tuple(_as_grid(value, source.taps[tap].num_prefix) for value in values)
        result.append(TapMaps(tap, tuple(channels), places))
    return result


def _as_grid(values: Tensor, num_prefix: int) -> Tensor:
    """Values over positions as (H, W); those that a source keeps in one row are of a square image, behind the first."""
    return values if values.ndim == 2 else values[num_prefix:].reshape(math.isqrt(len(values) - num_prefix), -1)


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


def maximise(
    source: Source,
    channels: Sequence[Channel],
    image_size: int,
    progress: Progress,
    steps: int = STEPS,
) -> Tensor:
    """One image for each channel, (channels, 3, S, S) in 0..1, on the CPU.

    S is `image_size` in pixels, or MOST_PX where that is less and the source takes it. The channel's mean over all
    positions is maximised. Two calls give the same; torch's global generator is left as it was.
    """
    config, averages = source.input_config, Averages(source, channels)
    image_size = _affordable(source, averages, image_size)
    device = next(source.parameters()).device
    mean, std = (torch.tensor(values, device=device)[:, None, None] for values in (config.mean, config.std))
    shake = v2.RandomAffine(5, (1 / 16, 1 / 16), (0.9, 1.1), interpolation=InterpolationMode.BILINEAR, fill=None)
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(0)
        start = torch.view_as_real(torch.fft.rfft2(torch.zeros(len(channels), 3, image_size, image_size)))
        spectrum = (_START_STD * torch.randn(start.shape)).to(device).requires_grad_()
        optimizer = torch.optim.Adam([spectrum], _LR)
        for step in range(steps):
            images = (shake(painted(spectrum, image_size) - _GREY) + _GREY - mean) / std
            with _LeakyGradients() if step < _LEAKY_SHARE * steps else nullcontext():
                values = averages.read(source.differentiable(images, averages.request)).diagonal()
            (spectrum.grad,) = torch.autograd.grad(-values.sum(), spectrum)
            optimizer.step()
            progress(step + 1, steps)
    return painted(spectrum.detach(), image_size).cpu()


class _LeakyGradients(TorchFunctionMode):
    """ReLUs give what they always give, and let some of the gradient through even where they are closed."""

    _OF = frozenset({F.relu, F.relu6, F.hardtanh, torch.relu, Tensor.relu})

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        value = func(*args, **(kwargs or {}))
        return value + _LEAK * (args[0] - args[0].detach()) if func in self._OF else value


def _affordable(source: Source, averages: Averages, image_size: int) -> int:
    if image_size <= MOST_PX:
        return image_size
    try:
        source(torch.zeros(1, 3, MOST_PX, MOST_PX, device=next(source.parameters()).device), averages.request)
    except SourceError:  # some networks take no images smaller than their own
        return image_size
    return MOST_PX


def painted(spectrum: Tensor, image_size: int) -> Tensor:
    """Spectra (B, 3, S, S // 2 + 1, 2) of decorrelated colours -> images (B, 3, S, S) in 0..1."""
    rows = torch.fft.fftfreq(image_size, device=spectrum.device)[:, None]
    columns = torch.fft.rfftfreq(image_size, device=spectrum.device)
    frequency = (rows.square() + columns.square()).sqrt().clamp_min(1 / image_size)
    scaled = torch.view_as_complex(spectrum) / frequency
    pixels = torch.fft.irfft2(scaled, (image_size, image_size), norm="ortho") / 4
    colours = (_COLOURS / _COLOURS.norm(dim=0).max()).to(pixels.device)
    return torch.einsum("rc,bchw->brhw", colours, pixels).sigmoid()
