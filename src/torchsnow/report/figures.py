"""The pictures of a comparison: accuracy over cost, by method, over epochs, and over what was swept.

Every picture has a panel per data set. A method has one colour and marker in all of them, a preset its own filling.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from statistics import fmean
from typing import Any, NamedTuple

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from torchsnow.methods import METHODS
from torchsnow.plots import new_figure
from torchsnow.report.formatting import shortened, value_label, variant_label
from torchsnow.report.results import Results
from torchsnow.report.summary import Summary, summarise
from torchsnow.report.tables import has_many

_LEAST = 1e-3  # the share of the source's multiply-adds below which a cost is drawn as ~0, which is at:
_NEARLY_NOTHING = 2e-4
_STEP = 0.1  # decades between methods of the same cost, so that their intervals do not hide each other
_INTERVAL: Mapping[str, Any] = {"linestyle": "none", "elinewidth": 1.2, "capsize": 3}
# Told apart with any kind of colour vision: the palettes of Okabe and Ito, and of Paul Tol; markers differ as well.
_LOOKS = {
    "snow": ("#d55e00", "o"),
    "full": ("#000000", "s"),
    "features": ("#0072b2", "D"),
    "head": ("#56b4e9", "v"),
    "scratch": ("#888888", "X"),
    "random": ("#cc79a7", "^"),
    "lora": ("#009e73", "P"),
    "taps": ("#e69f00", "<"),
    "side": ("#882255", ">"),
    "bn": ("#332288", "h"),
}
_UNKNOWN = ("#666633", "*")
_FILLINGS = ("full", "none", "left", "top")
_LINES = ("-", "--", ":", "-.")
_OFFSET = 0.04  # of the distance between two swept values: between lines, to keep intervals apart
_FACTORS = {
    "width_divisor": "K: the delta's layers have 1/K of the source's channels",
    "pool_divisor": "M: a layer reads 1/M of the source's channels",
    "sigma": "sigma of the pooling noise",
    "train_share": "share of the training images",
    "shots": "training images per class",
    "image_size": "image size (pixels)",
    "epochs": "epochs",
}


class Drawing(NamedTuple):
    """A picture that is drawn when asked for: a name for its file, what it shows in words, and what to read off it."""

    name: str
    text: str
    caption: str
    draw: Callable[[], Figure]


def drawings(results: Results) -> list[Drawing]:
    """All pictures that there is something to show in, source by source; none of more data sets than fit on one."""
    rows = summarise(results)
    if has_many(row.data for row in rows):
        return []
    found: list[Drawing] = []
    for source in dict.fromkeys(row.source for row in rows):
        here = [row for row in rows if row.source == source]
        found += _of_plain_rows(source, here)
        found += [_sweep(source, factor, here) for factor in dict.fromkeys(f for row in here for f in row.variant)]
    return found


def _of_plain_rows(source: str, rows: Sequence[Summary]) -> list[Drawing]:
    plain = [row for row in rows if not row.variant]
    if {row.method for row in plain} != {row.method for row in rows}:
        return []  # where methods were only run with a swept setting, the sweep is the picture
    cost = Drawing(
        f"cost-{source}",
        f"Test accuracy over the cost of a further task, one panel per data set, source {source}",
        "Up is better, left is cheaper: multiply-adds that a further task, as shipped, adds once the source has run, "
        "as a share of the source's; ~0 is less than 0.1%. Methods of the same cost are set side by side. Bars are 95% "
        "t-intervals over the seeds.",
        partial(cost_figure, source, plain),
    )
    methods = Drawing(
        f"accuracy-{source}",
        f"Test accuracy of every method, one panel per data set, source {source}",
        "Large markers are means over the seeds, with their 95% t-intervals; small dots below are single seeds.",
        partial(accuracy_figure, source, plain),
    )
    curves = Drawing(
        f"curves-{source}",
        f"Validation accuracy over the epochs, one panel per data set, source {source}",
        "Means over the seeds, as far as all seeds of a method were trained. Thin lines are a delta's body alone.",
        partial(curves_figure, source, plain),
    )
    return [cost, methods, curves]


def _sweep(source: str, factor: str, rows: Sequence[Summary]) -> Drawing:
    return Drawing(
        f"sweep-{factor}-{source}",
        f"Test accuracy over {factor}, one panel per data set, source {source}",
        f"Means over the seeds with 95% t-intervals; the values of {factor} are set in even steps. Dotted level "
        "lines are methods that do not have this setting.",
        partial(sweep_figure, source, factor, rows),
    )


def cost_figure(source: str, rows: Sequence[Summary]) -> Figure:
    """Test accuracy over the multiply-adds of a further task, of the source's."""
    data, methods = _names(rows)
    figure, grid = panels("Test accuracy over the cost of a further task", source, data)
    for axes, name in zip(grid, data, strict=True):
        shares = {row.method: row.added_share for row in _of(rows, name)}
        places = _side_by_side({m: share if share >= _LEAST else _NEARLY_NOTHING for m, share in shares.items()})
        for row in _of(rows, name):
            _point(axes, places[row.method], row)
        _cost_axis(axes)
        accuracy_axis(axes, "test accuracy")
    methods_legend(figure, methods, joined=False)
    return figure


def accuracy_figure(source: str, rows: Sequence[Summary]) -> Figure:
    """Test accuracy by method, the first on top."""
    data, methods = _names(rows)
    figure, grid = panels("Test accuracy by method", source, data, 1.1 + 0.27 * len(methods))
    for axes, name in zip(grid, data, strict=True):
        for row in _of(rows, name):
            level, estimate = methods.index(row.method), row.accuracy
            axes.plot(
                [cell.test.accuracy for cell in row.cells], [level + 0.3] * estimate.num_seeds, ".", color="#8a96a3"
            )
            axes.errorbar(estimate.mean, level, xerr=estimate.half_width, **_INTERVAL, **look(row.method))
        axes.set_yticks(range(len(methods)), methods, parse_math=False)
        axes.set_ylim(len(methods) - 0.5, -0.5)
        accuracy_axis(axes, "test accuracy", "x")
    return figure


def curves_figure(source: str, rows: Sequence[Summary]) -> Figure:
    """Validation accuracy over the epochs."""
    data, methods = _names(rows)
    figure, grid = panels("Validation accuracy while training", source, data)
    for axes, name in zip(grid, data, strict=True):
        for row in _of(rows, name):
            curve = [fmean(epoch.val_accuracy for epoch in epochs) for epochs in _common_epochs(row)]
            numbers = [epochs[0].epoch for epochs in _common_epochs(row)]
            style = {**line_look(row.method), "markersize": 4}
            axes.plot(numbers, curve, **style)
            axes.plot(*_body_curve(row), **{**style, "marker": "", "linewidth": 0.8})
        whole_numbers(axes, "epoch")
        accuracy_axis(axes, "validation accuracy")
    methods_legend(figure, methods, joined=True)
    return figure


def _names(rows: Sequence[Summary]) -> tuple[list[str], list[str]]:
    """Data sets and methods, each once."""
    return list(dict.fromkeys(row.data for row in rows)), list(dict.fromkeys(row.method for row in rows))


def _of(rows: Sequence[Summary], data: str) -> list[Summary]:
    return [row for row in rows if row.data == data]


def _point(axes: Axes, x: float, row: Summary) -> None:
    axes.errorbar(x, row.accuracy.mean, yerr=row.accuracy.half_width, **_INTERVAL, **look(row.method))


def _side_by_side(shares: dict[str, float]) -> dict[str, float]:
    """Positions on a logarithmic axis: methods whose costs are nearly the same are spread around their middle."""
    groups: list[list[str]] = []
    for method in sorted(shares, key=shares.__getitem__):
        near = groups and math.log10(shares[method] / shares[groups[-1][-1]]) < _STEP
        groups[-1].append(method) if near else groups.append([method])
    places: dict[str, float] = {}
    for group in groups:
        middle = fmean(math.log10(shares[method]) for method in group)
        for i, method in enumerate(group):
            places[method] = 10 ** (middle + _STEP * (i - (len(group) - 1) / 2))
    return places


def _cost_axis(axes: Axes) -> None:
    """Logarithmic, from ~0 over parts of the source to several times the source."""
    ticks = {_NEARLY_NOTHING: "~0", 1e-3: "0.1%", 1e-2: "1%", 1e-1: "10%", 1.0: "100%"}
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(list(ticks)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda share, _: ticks.get(share, "")))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlim(_NEARLY_NOTHING / 2.5, max(4.0, axes.get_xlim()[1]))
    axes.set_xlabel("multiply-adds of a further task, of the source's", fontsize=9)


def _body_curve(row: Summary) -> tuple[list[int], list[float]]:
    """Epochs, and the mean accuracy of the body alone in each, where all seeds tell it."""
    known = [
        (epochs[0].epoch, [epoch.body_val_accuracy for epoch in epochs])
        for epochs in _common_epochs(row)
        if all(epoch.body_val_accuracy is not None for epoch in epochs)
    ]
    return [number for number, _ in known], [fmean(values) for _, values in known]


def _common_epochs(row: Summary) -> Iterable[tuple[Any, ...]]:
    """Epoch by epoch what every seed measured: no mean changes because a seed ended early."""
    return zip(*(cell.history for cell in row.cells), strict=False)


def sweep_figure(source: str, factor: str, rows: Sequence[Summary]) -> Figure:
    """Test accuracy over the values of a swept setting, one line per method and value of the other settings."""
    data = list(dict.fromkeys(row.data for row in rows if factor in row.variant))
    values = _sorted_values(row.variant[factor] for row in rows if factor in row.variant)
    figure, grid = panels(f"Test accuracy over {shortened(factor)}", source, data)
    handles: dict[str, Artist] = {}
    for axes, name in zip(grid, data, strict=True):
        lines = _lines([row for row in rows if row.data == name], factor)
        for i, (label, style, line) in enumerate(lines):
            _draw_line(axes, factor, values, line, style, _OFFSET * (i - (len(lines) - 1) / 2))
            handles[label] = Line2D([], [], **style)
        axes.set_xticks(range(len(values)), [shortened(value_label(value), 12) for value in values], parse_math=False)
        axes.set_xlim(-0.4, len(values) - 0.6)
        axes.set_xlabel(_FACTORS.get(factor, shortened(factor)), parse_math=False, fontsize=9)
        accuracy_axis(axes, "test accuracy")
    legend_outside(figure, handles)
    return figure


def _sorted_values(values: Iterable[Any]) -> list[Any]:
    """Each once, numbers by size, other values behind them as they come."""
    return sorted(dict.fromkeys(values), key=lambda v: v if isinstance(v, int | float) else math.inf)


def _lines(rows: Sequence[Summary], factor: str) -> list[tuple[str, dict[str, Any], list[Summary]]]:
    """Label, style and rows of every line: one per method and value of the other settings."""
    lines: dict[tuple[str, str, bool], list[Summary]] = {}
    for row in rows:
        rest = variant_label({name: value for name, value in row.variant.items() if name != factor})
        lines.setdefault((row.method, rest, factor in row.variant), []).append(row)
    found = []
    for (method, rest, swept), line in lines.items():
        number = [key for key in lines if key[0] == method].index((method, rest, swept))
        style = line_look(method, number) if swept else _level_style(method)
        found.append((", ".join(filter(None, (method, rest))), style, line))
    return found


def _level_style(method: str) -> dict[str, Any]:
    return {"color": look(method)["color"], "linestyle": ":", "linewidth": 1.5}


def _draw_line(
    axes: Axes, factor: str, values: list[Any], line: list[Summary], style: dict[str, Any], offset: float
) -> None:
    if factor not in line[0].variant:
        axes.axhline(line[0].accuracy.mean, **style)
        return
    line = sorted(line, key=lambda row: values.index(row.variant[factor]))
    places = [values.index(row.variant[factor]) + offset for row in line]
    bars = [row.accuracy.half_width or 0.0 for row in line]
    axes.errorbar(places, [row.accuracy.mean for row in line], yerr=bars, elinewidth=1, capsize=3, **style)


def look(method: str) -> dict[str, Any]:
    """Properties of a line of markers for "METHOD" or "METHOD:PRESET"."""
    name, _, preset = method.partition(":")
    colour, marker = _LOOKS.get(name, _UNKNOWN)
    presets = METHODS[name].presets if name in METHODS else ()
    filling = _FILLINGS[presets.index(preset) % len(_FILLINGS) if preset in presets else 0]
    return {"color": colour, "marker": marker, "fillstyle": filling, "markersize": 7, "markeredgewidth": 1.4}


def line_look(method: str, number: int = 0) -> dict[str, Any]:
    """The same, joined: presets have lines of their own, and so has each of several lines of one method."""
    properties = look(method)
    preset = _FILLINGS.index(properties["fillstyle"])
    return {**properties, "linestyle": _LINES[(preset + number) % len(_LINES)]}


def legend_outside(figure: Figure, handles: dict[str, Artist]) -> None:
    """A legend to the right of all panels, one entry per name."""
    legend = figure.legend(
        list(handles.values()),
        [shortened(name) for name in handles],
        loc="outside right upper",
        frameon=False,
        handlelength=3,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)


def methods_legend(figure: Figure, methods: list[str], joined: bool) -> None:
    """A legend of methods by their looks, joined by a line or not."""
    looks = {method: line_look(method) if joined else {"linestyle": "none", **look(method)} for method in methods}
    legend_outside(figure, {method: Line2D([], [], **properties) for method, properties in looks.items()})


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
