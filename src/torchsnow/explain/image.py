"""One image through one task: the feature maps that it subscribes to, and where its logit comes from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from torchsnow.delta.head import LAST
from torchsnow.explain.activations import visible
from torchsnow.explain.attribution import Attribution
from torchsnow.explain.subscriptions import Channel, TapSubscription
from torchsnow.plots import new_figure
from torchsnow.source import InputConfig, Request, Source

MOST_TAPS, MOST_MAPS = 6, 5  # in the picture of feature maps
OWN = "the delta's own features"
_NAME_LENGTH = 40  # characters of a class name
_LOCAL, _SOURCE = "#7a8a99", "#c8501e"


@dataclass(frozen=True, eq=False)
class TapMaps:
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


def maps_figure(task: str, maps: Sequence[TapMaps], image: Tensor, config: InputConfig) -> Figure:
    """One row for each tap, the image at its left. Each map goes from its least value (black) to its largest."""
    figure = new_figure(10, 0.5 + 1.75 * len(maps))
    figure.suptitle(f"Feature maps of one image that task {task!r} subscribes to", fontsize=11)
    for band, shown in zip(figure.subfigures(len(maps), 1, squeeze=False)[:, 0], maps, strict=True):
        height, width = shown.values[0].shape
        band.suptitle(f"{shown.tap}  ({height} x {width})", fontsize=9, x=0.01, ha="left", fontweight="bold")
        panels = band.subplots(1, 1 + MOST_MAPS)
        for axes in panels:
            axes.set_axis_off()
        panels[0].imshow(visible(image[0], config).permute(1, 2, 0).numpy())
        for axes, channel, values in zip(panels[1:], shown.channels, shown.values, strict=False):
            low, high = float(values.min()), float(values.max())
            axes.imshow(values.numpy(), cmap="gray", vmin=min(0.0, low), vmax=max(0.0, high))  # black is 0 or below
            axes.set_title(f"channel {channel.index}: {low:.2g} to {high:.2g}", fontsize=8)
    return figure


def attribution_figure(task: str, class_name: str, attribution: Attribution, order: Sequence[str]) -> Figure:
    """Shares in the logit of the predicted class over depth: of layers on the left, of the head on the right."""
    layers, head = {share.tap: share for share in attribution.taps}, attribution.head
    rows = [*(name for name in order if name in layers or name in head.parts), OWN]
    figure = new_figure(10, 1.9 + 0.21 * max(4, len(rows)))
    figure.suptitle(
        f"Task {task!r}: {_short(class_name)}, logit {attribution.logit:.2f}, "
        f"probability {attribution.probability:.0%}",
        fontsize=11,
        parse_math=False,
    )
    panels = list(figure.subplots(1, 1 + bool(layers), sharey=True, squeeze=False)[0])
    if layers:
        local = [float(layers[name].local.sum()) if name in layers else 0.0 for name in rows]
        shared = [float(layers[name].source.sum()) if name in layers else 0.0 for name in rows]
        _bars(panels[0], local, -0.2, 0.38, _LOCAL, "the layer's own input")
        _bars(panels[0], shared, 0.2, 0.38, _SOURCE, "the source's channels")
        panels[0].set_title("layers: gradient times value (first order)", fontsize=9)
    exact = [float(head.parts[name][1].sum()) if name in head.parts else 0.0 for name in rows[:-1]]
    if head.parts:
        _bars(panels[-1], [*exact, 0.0], 0, 0.7, _SOURCE, "averages of the source")
    _bars(panels[-1], [0.0] * len(exact) + [float(head.own.sum())], 0, 0.7, _LOCAL, "the delta's own features")
    panels[-1].set_title(f"head: exact parts (and the bias, {head.bias:+.2f})", fontsize=9)
    for axes in panels:
        axes.axvline(0, color="black", linewidth=0.6)
        axes.set_xlabel("share in the logit (logits)", fontsize=8)
        axes.tick_params(axis="x", labelsize=8)
        axes.grid(axis="x", alpha=0.3)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_yticks(range(len(rows)), rows, fontsize=8)
    panels[0].set_ylim(len(rows) - 0.5, -0.5)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower left", ncols=2, fontsize=8, frameon=False)
    return figure


def _bars(axes: Axes, values: Sequence[float], shift: float, height: float, colour: str, label: str) -> None:
    axes.barh([place + shift for place in range(len(values))], values, height=height, color=colour, label=label)


def _as_grid(values: Tensor, num_prefix: int) -> Tensor:
    """Values over positions as (H, W); those that a source keeps in one row are of a square image, behind the first."""
    return values if values.ndim == 2 else values[num_prefix:].reshape(math.isqrt(len(values) - num_prefix), -1)


def _short(name: str) -> str:
    return name if len(name) <= _NAME_LENGTH else name[: _NAME_LENGTH - 3] + "..."
