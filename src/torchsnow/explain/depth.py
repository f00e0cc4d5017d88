"""The subscription of one task over the depth of the source."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from torchsnow.explain.subscriptions import TapSubscription, TaskSubscription
from torchsnow.plots import new_figure

COLUMNS = 100  # of the strip of weights
_LAYERS, _HEAD = "#c8501e", "#3f6fa3"


def depth_figure(subscription: TaskSubscription, order: Sequence[str]) -> Figure:
    """One row for each tap, from the image down. `order` has all names of taps, in the order of the pass.

    For the layers: the pooling weights of the subscribed channels, the strongest first, and the tap's strength. For
    the head: the share of the tap's averages that it reads, and their strength. What is not read is left out.
    """
    parts = {part.tap for part in (*subscription.layers, *subscription.head)}
    rows = [name for name in order if name in parts]
    layers = {part.tap: part for part in subscription.layers}
    head = {part.tap: part for part in subscription.head}
    figure = new_figure(10, 1.9 + 0.19 * max(4, len(rows)))
    figure.suptitle(f"What task {subscription.task!r} subscribes to, from the image (top) to the end", fontsize=11)
    ratios = [2.2, 1.3] * bool(layers) + [1.1, 1.1] * bool(head)
    panels = list(figure.subplots(1, len(ratios), sharey=True, width_ratios=ratios, squeeze=False)[0])
    if layers:
        _strip(figure, panels[0], rows, layers)
        _bars(panels[1], rows, {name: part.total for name, part in layers.items()}, "layers: strength", _LAYERS)
        panels[1].set_xlabel("sum of |w| · norm", fontsize=8)
    if head:
        shares = {name: len(part.index) / part.num_chs for name, part in head.items()}
        _bars(panels[-2], rows, shares, "head: share read", _HEAD)
        panels[-2].xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        panels[-2].set_xlabel("of the tap's averages", fontsize=8)
        _bars(panels[-1], rows, {name: part.total for name, part in head.items()}, "head: strength", _HEAD)
        panels[-1].set_xlabel("logits per std. deviation", fontsize=8)
    panels[0].set_yticks(range(len(rows)), [_label(name, layers) for name in rows], fontsize=8)
    panels[0].set_ylim(len(rows) - 0.5, -0.5)
    return figure


def strip(part: TapSubscription) -> np.ndarray:
    """The weights of a tap's channels, sorted, the largest first, stretched to COLUMNS values."""
    ranked = part.weight.sort(descending=True).values.numpy()
    return np.asarray(ranked[np.arange(COLUMNS) * len(ranked) // COLUMNS])


def _label(name: str, layers: dict[str, TapSubscription]) -> str:
    part = layers.get(name)
    return name if part is None else f"{name}  ({len(part.index)} of {part.num_chs})"


def _strip(figure: Figure, axes: Axes, rows: Sequence[str], layers: dict[str, TapSubscription]) -> None:
    empty = np.full(COLUMNS, np.nan)
    grid = np.stack([strip(layers[name]) if name in layers else empty for name in rows])
    extent = (0, 1, len(rows) - 0.5, -0.5)
    image = axes.imshow(grid, cmap="viridis", aspect="auto", extent=extent, interpolation="none")
    axes.set_title("layers: weight w of the subscribed channels", fontsize=9)
    axes.set_xlabel("channels of the tap, strongest first", fontsize=8)
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.tick_params(axis="x", labelsize=8)
    bar = figure.colorbar(image, ax=axes, location="bottom", pad=0.01, aspect=40)
    bar.set_label("w", fontsize=8)
    bar.ax.tick_params(labelsize=8)


def _bars(axes: Axes, rows: Sequence[str], values: dict[str, float], title: str, colour: str) -> None:
    axes.barh(range(len(rows)), [values.get(name, 0.0) for name in rows], color=colour, height=0.75)
    axes.set_title(title, fontsize=9)
    axes.tick_params(axis="x", labelsize=8)
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
