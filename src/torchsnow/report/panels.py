"""The frame of a report's pictures: one panel per data set, axes in percent, nothing that overlaps."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from torchsnow.plots import new_figure
from torchsnow.report.words import shortened


def panels(title: str, source: str, data: Sequence[str], height_inches: float = 3.4) -> tuple[Figure, list[Axes]]:
    """A figure with room for a legend on its right, and one panel per data set."""
    columns = len(data) if len(data) < 4 else 2 if len(data) == 4 else 3
    rows = -(-len(data) // columns)
    figure = new_figure(3.9 * columns + 2.2, height_inches * rows + 0.5)
    figure.suptitle(
        textwrap.fill(f"{title}, source {shortened(source)}", 40 * columns), x=0.01, ha="left", parse_math=False
    )
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid[len(data) :]:
        axes.remove()
    for axes, name in zip(grid, data, strict=False):
        axes.set_title(shortened(name), fontsize=11, parse_math=False)
        axes.grid(alpha=0.3)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    return figure, list(grid[: len(data)])


def accuracy_axis(axes: Axes, name: str, which: str = "y") -> None:
    """Name an axis of accuracies and show them in percent, never beyond what an accuracy can be."""
    axis = getattr(axes, f"{which}axis")
    axis.set_major_formatter(FuncFormatter(lambda share, _: f"{round(100 * share, 6):g}%"))
    axis.set_major_locator(MaxNLocator(6))
    low, high = getattr(axes, f"get_{which}lim")()
    getattr(axes, f"set_{which}lim")(max(low, -0.02), min(high, 1.02))
    axis.set_label_text(name)


def whole_numbers(axes: Axes, name: str) -> None:
    """Name a horizontal axis that counts."""
    axes.set_xlabel(name)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
