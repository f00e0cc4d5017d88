"""The pictures of a comparison: accuracy over cost, by method, over epochs, and over what was swept."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from torchsnow.report.panels import accuracy_axis, panels, whole_numbers
from torchsnow.report.results import Results
from torchsnow.report.styles import line_look, look, methods_legend
from torchsnow.report.summary import Summary, summarise
from torchsnow.report.sweeps import sweep_figure

_LEAST = 1e-3  # the share of the source's multiply-adds below which a cost is drawn as ~0, which is at:
_NEARLY_NOTHING = 2e-4
_STEP = 0.1  # decades between methods of the same cost, so that their intervals do not hide each other
_INTERVAL: Mapping[str, Any] = {"linestyle": "none", "elinewidth": 1.2, "capsize": 3}


@dataclass(frozen=True)
class Drawing:
    """A picture that is drawn when asked for: a name for its file, what it shows in words, and what to read off it."""

    name: str
    text: str
    caption: str
    draw: Callable[[], Figure]


def drawings(results: Results) -> list[Drawing]:
    """All pictures that there is something to show in, source by source."""
    rows = summarise(results)
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
            axes.plot([cell.test.accuracy for cell in row.cells], [level + 0.3] * estimate.count, ".", color="#8a96a3")
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
