"""The pictures of a visualization, drawn from what the other files of this room have computed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from torch import Tensor

from torchsnow.data import ImageSet
from torchsnow.explain.attribution import Attribution
from torchsnow.explain.channels import MOST_MAPS, TapMaps, TopImage
from torchsnow.explain.subscriptions import Channel, Overlap, TapSubscription, TaskSubscription
from torchsnow.heat import visible
from torchsnow.plots import new_figure
from torchsnow.source import InputConfig

COLUMNS = 100  # of the strip of weights
OWN = "the delta's own features"
_LAYERS, _HEAD = "#c8501e", "#3f6fa3"
_OBSERVED, _CHANCE = "#c8501e", "#7a8a99"  # in a picture of overlaps
_SOURCE, _LOCAL = "#c8501e", "#7a8a99"  # in a picture of an attribution
_NAME_LENGTH, _TITLE_LENGTH = 16, 40  # characters of a class name, under an image and in a title
_MOST_NUMBERS = 12  # tasks up to which the cells of a matrix show their numbers
_MOST_NAMES = 40  # tasks up to which each is named


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
        _tap_bars(panels[1], rows, {name: part.total for name, part in layers.items()}, "layers: strength", _LAYERS)
        panels[1].set_xlabel("sum of |w| · norm", fontsize=8)
    if head:
        shares = {name: len(part.index) / part.num_chs for name, part in head.items()}
        _tap_bars(panels[-2], rows, shares, "head: share read", _HEAD)
        panels[-2].xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        panels[-2].set_xlabel("of the tap's averages", fontsize=8)
        _tap_bars(panels[-1], rows, {name: part.total for name, part in head.items()}, "head: strength", _HEAD)
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


def _tap_bars(axes: Axes, rows: Sequence[str], values: dict[str, float], title: str, colour: str) -> None:
    axes.barh(range(len(rows)), [values.get(name, 0.0) for name in rows], color=colour, height=0.75)
    axes.set_title(title, fontsize=9)
    axes.tick_params(axis="x", labelsize=8)
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


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


def _show(axes: Axes, pixels: Tensor, text: str) -> None:
    axes.imshow(pixels.permute(1, 2, 0).numpy())
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_xlabel(text, fontsize=8, parse_math=False)


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


def _short(name: str) -> str:
    return name if len(name) <= _TITLE_LENGTH else name[: _TITLE_LENGTH - 3] + "..."


def overlap_figure(overlap: Overlap, what: str) -> Figure:
    """The matrix as it is, as it would be by chance, and the mean over pairs for each tap, with depth to the right."""
    figure = new_figure(10, 6.6)
    above, below = figure.subfigures(2, 1, height_ratios=(1.5, 1), squeeze=False)[:, 0]
    figure.suptitle(f"Overlap of what {what} of tasks read (Jaccard index, 1 = the same channels)", fontsize=11)
    top = max(0.01, float(np.nanmax([_off_diagonal(overlap.observed), _off_diagonal(overlap.by_chance)])))
    matrices = {"as it is": overlap.observed, "expected by chance": overlap.by_chance}
    panels = above.subplots(1, 2, sharey=True)
    for axes, (title, matrix) in zip(panels, matrices.items(), strict=True):
        image = _matrix(axes, matrix, overlap.tasks, top)
        axes.set_title(title, fontsize=10)
    above.colorbar(image, ax=panels, shrink=0.8, label="Jaccard index")
    _by_tap(below.subplots(), overlap)
    return figure


def _off_diagonal(matrix: np.ndarray) -> np.ndarray:
    return matrix[~np.eye(len(matrix), dtype=bool)]


def _matrix(axes: Axes, matrix: np.ndarray, tasks: Sequence[str], top: float) -> Any:
    shown = matrix.copy()
    np.fill_diagonal(shown, np.nan)  # a task with itself says nothing, and would set the scale
    image = axes.imshow(shown, cmap="Oranges", vmin=0, vmax=top)
    named = range(len(tasks)) if len(tasks) <= _MOST_NAMES else []
    axes.set_xticks(named, [tasks[i] for i in named], rotation=45, ha="right", fontsize=8)
    axes.set_yticks(named, [tasks[i] for i in named], fontsize=8)
    if len(tasks) <= _MOST_NUMBERS:
        for (row, column), value in np.ndenumerate(shown):
            if not np.isnan(value):
                colour = "white" if value > 0.6 * top else "black"
                axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=9, color=colour)
    return image


def _by_tap(axes: Axes, overlap: Overlap) -> None:
    places = range(1, len(overlap.taps) + 1)
    axes.plot(places, overlap.tap_observed, color=_OBSERVED, marker="o", markersize=4, label="as it is")
    axes.plot(places, overlap.tap_by_chance, color=_CHANCE, marker=".", linestyle="--", label="expected by chance")
    axes.set_title("tap by tap, mean over pairs of tasks", fontsize=10)
    axes.set_xlabel("tap, counted from the image on")
    axes.set_ylabel("Jaccard index")
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, ncols=2, loc="lower right", bbox_to_anchor=(1, 1), fontsize=9)
