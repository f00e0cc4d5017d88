"""Write docs/recipe.md, and its picture, from what is stored in experiments/recipe.

python experiments/write_recipe_page.py
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from matplotlib.figure import Figure

from torchsnow.plots import new_figure, png_bytes
from torchsnow.report import Results

HERE = Path(__file__).parent / "recipe"
PAGE = HERE.parent.parent / "docs" / "recipe.md"
PICTURES = PAGE.parent / "images" / "recipe"
ORDER = ("start", "head", "reads", "slots", "learned")
WORDS = {
    "start": {
        "probe": "**the default preset**",
        "anova": "channels ranked by analysis of variance",
        "random": "pooling weights drawn at random",
        "equal": "pooling weights equal (channels in their order)",
    },
    "head": {"together": "body and head trained by one loss"},
    "head_divisor": {"1": "the head reads all averages", "8": "the head reads an eighth (default: a quarter)"},
    "slots": {"rank": "weight columns by rank, as published"},
    "learned": {"False": "the choice stays as it starts"},
}
PANELS = {
    "gradient": "norm of the gradient of w",
    "ever_chosen": "ever chosen, of all channels",
    "still_changing": "still changing, of the chosen",
    "sigma": "noise, over the spread of w",
}
INTRODUCTION = (HERE / "introduction.md").read_text(encoding="utf-8")

Row = tuple[str, dict[str, list[float]]]  # what differs from the default; test accuracies by data set, in %


def stored() -> list[Results]:
    """The ablations, in the order of the page."""
    return [Results.load(HERE / f"recipe-{name}.json") for name in ORDER]


def rows(results_list: Sequence[Results]) -> list[Row]:
    """A row per variant, the default preset first."""
    found: dict[str, dict[str, list[float]]] = {}
    for results in results_list:
        for cell in results.cells:
            words = ", ".join(WORDS[setting][str(value)] for setting, value in cell.variant.items())
            by_data = found.setdefault(words, {})
            by_data.setdefault(cell.data, []).append(100 * cell.test.accuracy)
    return list(found.items())


def ablation_table(table: Sequence[Row]) -> str:
    """Means and standard deviations over the seeds, and the mean difference from the default preset."""
    default = dict(table)[WORDS["start"]["probe"]]
    lines = [["", *default, "mean", "beside the default"]]
    for words, by_data in table:
        overall = mean(mean(values) for values in by_data.values())
        difference = overall - mean(mean(values) for values in default.values())
        figures = [f"{mean(values):.1f} ± {stdev(values):.1f}" for values in by_data.values()]
        lines.append([words, *figures, f"{overall:.1f}", "" if by_data is default else f"{difference:+.1f}"])
    return markdown_table(lines)


def body_rows(body: dict[str, Any]) -> dict[str, list[list[float] | None]]:
    """Per variant and data set: accuracy of the probe, of the body alone, and of both, means over the seeds; None for
    what was not run."""
    found: dict[str, list[list[float] | None]] = {}
    for name, cells in body["rows"].items():
        by_data = [[cell[1:] for cell in cells if cell[0] == data] for data in body["data"]]
        found[name] = [[mean(values) for values in zip(*own, strict=True)] if own else None for own in by_data]
    return found


def body_table(body: dict[str, Any]) -> str:
    """The body alone, and with its probe, by variant and data set."""
    lines = [["", "multiply-adds, %", *body["data"].values(), "mean"]]
    for name, cells in body_rows(body).items():
        known = [cell for cell in cells if cell is not None]
        overall = [mean(values) for values in zip(*known, strict=True)] if len(known) == len(cells) else None
        cost = body["multiply_adds"].get(name, body["multiply_adds"]["default"])
        figures = ["" if cell is None else f"{cell[1]:.1f} / {cell[2]:.1f}" for cell in (*cells, overall)]
        lines.append([body["words"][name], f"{cost:.2f}", *figures])
    return markdown_table(lines)


def body_probes(body: dict[str, Any]) -> str:
    """What the probe alone reaches on each data set, in words."""
    cells = body_rows(body)["default"]
    return ", ".join(f"{cell[0]:.1f} ({data})" for cell, data in zip(cells, body["data"].values(), strict=True) if cell)


def limits_table(body: dict[str, Any]) -> str:
    """The default preset by the number of images."""
    lines = [["", "images", "a class", "probe", "body alone", "both", "the body ships in, % of halvings"]]
    for data, images, classes, *figures, ships in body["limits"]:
        lines.append(
            [data, f"{images:,}", f"{images / classes:.0f}", *(f"{v:.1f}" for v in figures), f"{100 * ships:.0f}"]
        )
    return markdown_table(lines)


def frontier_figure(body: dict[str, Any]) -> Figure:
    """What a body of each size reaches alone and with its probe, beside the probe, by data set."""
    found = body_rows(body)
    sizes = sorted((body["multiply_adds"][name], name) for name in body["sizes"])
    figure = new_figure(13, 3.2)
    panels = figure.subplots(1, len(body["data"]))
    for place, (axes, data) in enumerate(zip(panels, body["data"].values(), strict=True)):
        costs = [cost for cost, _ in sizes]
        for part, (words, color) in enumerate((("body alone", "#7a8a99"), ("with its probe", "#c8501e")), start=1):
            reached = [cell[part] for _, name in sizes if (cell := found[name][place])]
            axes.plot(costs, reached, "o-", color=color, label=words)
        default = found["default"][place]
        axes.axhline(default[0] if default else 0, color="#333333", linestyle=":", label="the probe: 0%")
        axes.set_xscale("log")
        axes.set_title(data, fontsize=10)
        axes.set_xlabel("multiply-adds, % of the source's")
        axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    return figure


def longer_table(results: Results) -> str:
    """Test accuracy of every method, mean and standard deviation over the seeds."""
    found: dict[str, dict[str, list[float]]] = {}
    for cell in results.cells:
        found.setdefault(cell.method, {}).setdefault(cell.data, []).append(100 * cell.test.accuracy)
    lines = [["", *next(iter(found.values())), "mean"]]
    for method, by_data in found.items():
        figures = [f"{mean(values):.1f} ± {stdev(values):.1f}" for values in by_data.values()]
        lines.append([f"`{method}`", *figures, f"{mean(mean(values) for values in by_data.values()):.1f}"])
    return markdown_table(lines)


def explored_tables(explored: dict[str, Any]) -> str:
    """The exploration by question."""
    parts = [explored["about"]]
    for table in explored["tables"]:
        lines = [["", *table["columns"]], *([words, *map(str, values)] for words, values in table["rows"].items())]
        parts.append(f"**{table['question']}**\n\n{markdown_table(lines)}")
    return "\n\n".join(parts)


def markdown_table(lines: Sequence[Sequence[str]]) -> str:
    """The first line is the heading."""
    head, *body = [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join([head, "|" + "---|" * len(lines[0]), *body])


def choosing_figure() -> Figure:
    """How the choice of channels moves in one run: every tap a line, the mean over them thick."""
    with (HERE / "choosing.csv").open(encoding="utf-8", newline="") as file:
        records = [row for row in csv.DictReader(file) if row["tap"] != "head"]
    over = {"ever_chosen": "channels", "still_changing": "chosen", "sigma": "weight_spread"}
    figure = new_figure(13, 3.2)
    for axes, (name, title) in zip(figure.subplots(1, len(PANELS)), PANELS.items(), strict=True):
        lines: dict[str, list[float]] = {}
        for row in records:
            lines.setdefault(row["tap"], []).append(float(row[name]) / (float(row[over[name]]) if name in over else 1))
        for line in lines.values():
            axes.plot(range(1, len(line) + 1), line, color="#7a8a99", alpha=0.35, linewidth=0.8)
        middle = [mean(values) for values in zip(*lines.values(), strict=True)]
        axes.plot(range(1, len(middle) + 1), middle, color="#c8501e", linewidth=2)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("epoch")
        axes.set_ylim(bottom=0)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def stored_body() -> dict[str, Any]:
    """The study of the body."""
    found: dict[str, Any] = json.loads((HERE / "body.json").read_text(encoding="utf-8"))
    return found


def page_text() -> str:
    """The whole page."""
    body = stored_body()
    explored = json.loads((HERE / "explored.json").read_text(encoding="utf-8"))
    return INTRODUCTION.format(
        ablations=ablation_table(rows(stored())),
        body=body_table(body),
        probes=body_probes(body),
        seeds=body["seeds"],
        limits=limits_table(body),
        longer=longer_table(Results.load(HERE / "recipe-more.json")),
        explored=explored_tables(explored),
    )


if __name__ == "__main__":
    PICTURES.mkdir(parents=True, exist_ok=True)
    for name, figure in (("choosing", choosing_figure()), ("frontier", frontier_figure(stored_body()))):
        (PICTURES / f"{name}.png").write_bytes(png_bytes(figure))
    PAGE.write_text(page_text(), encoding="utf-8")
