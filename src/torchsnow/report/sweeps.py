"""The picture of a sweep: accuracy over the values of one setting."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from torchsnow.report.panels import accuracy_axis, panels
from torchsnow.report.styles import legend_beside, line_look, look
from torchsnow.report.summary import Summary
from torchsnow.report.words import shortened, value_words, variant_words

_BESIDE = 0.04  # of the distance between two swept values: between lines, to keep intervals apart
_FACTORS = {
    "width_divisor": "K: the delta's layers have 1/K of the source's channels",
    "pool_divisor": "M: a layer reads 1/M of the source's channels",
    "sigma": "sigma of the pooling noise",
    "train_share": "share of the training images",
    "shots": "training images per class",
    "image_size": "image size (pixels)",
    "epochs": "epochs",
}


def sweep_figure(source: str, factor: str, rows: Sequence[Summary]) -> Figure:
    """Test accuracy over the values of a swept setting, one line per method and value of the other settings."""
    data = list(dict.fromkeys(row.data for row in rows if factor in row.variant))
    values = _sorted_values(row.variant[factor] for row in rows if factor in row.variant)
    figure, grid = panels(f"Test accuracy over {shortened(factor)}", source, data)
    handles: dict[str, Artist] = {}
    for axes, name in zip(grid, data, strict=True):
        lines = _lines([row for row in rows if row.data == name], factor)
        for i, (label, style, line) in enumerate(lines):
            _draw_line(axes, factor, values, line, style, _BESIDE * (i - (len(lines) - 1) / 2))
            handles[label] = Line2D([], [], **style)
        axes.set_xticks(range(len(values)), [shortened(value_words(value), 12) for value in values], parse_math=False)
        axes.set_xlim(-0.4, len(values) - 0.6)
        axes.set_xlabel(_FACTORS.get(factor, shortened(factor)), parse_math=False, fontsize=9)
        accuracy_axis(axes, "test accuracy")
    legend_beside(figure, handles)
    return figure


def _sorted_values(values: Iterable[Any]) -> list[Any]:
    """Each once, numbers by size, other values behind them as they come."""
    return sorted(dict.fromkeys(values), key=lambda v: v if isinstance(v, int | float) else math.inf)


def _lines(rows: Sequence[Summary], factor: str) -> list[tuple[str, dict[str, Any], list[Summary]]]:
    """Label, style and rows of every line: one per method and value of the other settings."""
    lines: dict[tuple[str, str, bool], list[Summary]] = {}
    for row in rows:
        rest = variant_words({name: value for name, value in row.variant.items() if name != factor})
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
    axes: Axes, factor: str, values: list[Any], line: list[Summary], style: dict[str, Any], beside: float
) -> None:
    if factor not in line[0].variant:
        axes.axhline(line[0].accuracy.mean, **style)
        return
    line = sorted(line, key=lambda row: values.index(row.variant[factor]))
    places = [values.index(row.variant[factor]) + beside for row in line]
    bars = [row.accuracy.half_width or 0.0 for row in line]
    axes.errorbar(places, [row.accuracy.mean for row in line], yerr=bars, elinewidth=1, capsize=3, **style)
