"""The picture of a benchmark: images per second over the number of tasks, and of a training step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

from torchsnow.plots import new_figure
from torchsnow.report.styles import look

Row = Mapping[str, Any]

# In the colours that the same ways have as methods of training.
NAMES = {"separate": "separate networks", "heads": "heads on one source", "snow": "SNOW"}
_LOOKS = {"separate": look("full"), "heads": look("head"), "snow": look("snow")}


def bench_figure(training: Sequence[Row], inference: Sequence[Row]) -> Figure:
    """One panel per part that was measured, from the rows of bench.json."""
    parts = [(_inference, inference), (_training, training)]
    drawn = [(draw, rows) for draw, rows in parts if rows]
    figure = new_figure(6.2 * max(1, len(drawn)), 4.4)
    for axes, (draw, rows) in zip(figure.subplots(1, len(drawn) or 1, squeeze=False)[0], drawn, strict=False):
        draw(axes, rows)
        axes.grid(alpha=0.3)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _inference(axes: Axes, rows: Sequence[Row]) -> None:
    for kind, name in NAMES.items():
        own = [row for row in rows if row["kind"] == kind]
        axes.plot(_column(own, "tasks"), _column(own, "images_per_s"), label=name, **_LOOKS[kind])
    separate = {row["tasks"]: row["images_per_s"] for row in rows if row["kind"] == "separate"}
    snow = [row for row in rows if row["kind"] == "snow"]
    bound = [separate[row["tasks"]] * row["limit"] for row in snow]
    colour = _LOOKS["snow"]["color"]
    axes.plot(
        _column(snow, "tasks"), bound, color=colour, linestyle="--", label="SNOW, if only multiply-adds took time"
    )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.xaxis.set_major_locator(FixedLocator(_column(snow, "tasks")))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda tasks, _: f"{tasks:g}"))
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda speed, _: f"{speed:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("tasks")
    axes.set_ylabel("images per second, every image to all tasks")
    axes.set_title("Inference")
    axes.legend(frameon=False, fontsize=9)


def _training(axes: Axes, rows: Sequence[Row]) -> None:
    levels = range(len(rows))
    colours = [look(row["method"])["color"] for row in rows]
    bars = axes.barh(levels, _column(rows, "images_per_s"), color=colours, height=0.6)
    texts = [
        f"{row['images_per_s']:.3g}" + ("" if row["speedup"] is None else f" ({row['speedup']:.2f} x)") for row in rows
    ]
    axes.bar_label(bars, texts, padding=4, fontsize=9)
    axes.margins(x=0.25)
    axes.set_yticks(levels, [row["method"] for row in rows], parse_math=False)
    axes.invert_yaxis()
    axes.set_xlabel("images per second (times full fine-tuning's)")
    axes.set_title("Training step")


def _column(rows: Sequence[Row], name: str) -> list[float]:
    return [row[name] for row in rows]
