"""A whole comparison as one HTML page, or as Markdown in the flavour that GitHub shows."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torchsnow.errors import ExperimentError
from torchsnow.io.files import write_atomically
from torchsnow.methods import METHODS
from torchsnow.pages import HTML, Page, data_address
from torchsnow.plots import png_bytes
from torchsnow.report.figures import Drawing, drawings
from torchsnow.report.formatting import method_label, variant_label
from torchsnow.report.results import Cell, Results
from torchsnow.report.summary import tally, where_snow_loses, where_snow_wins
from torchsnow.report.tables import accuracy_tables, cost_tables, has_many, summary_tables

Place = Callable[[Drawing], str]
"""Where a picture is found."""


def report_page(results: Results) -> Page:
    """The page of a comparison, tables and pictures; `Page.save` writes it.

    Raises ExperimentError when nothing was finished.
    """
    page = Page(f"Comparison {results.name}")
    page.add(
        "report.jinja", kind="html.jinja", **_content(results, lambda one: data_address("png", png_bytes(one.draw())))
    )
    return page


def results_markdown(results_list: Sequence[Results], pictures: str | None = None) -> str:
    """Comparisons one below the other, each with its losses, tables and choices.

    `pictures` is the path of a folder that `save_pictures` has filled, relative to the file that the text goes to;
    without it there are none. Raises ExperimentError when one of the comparisons has finished nothing.
    """
    sheets = []
    for results in results_list:
        place = partial(_path, pictures, results.name) if pictures is not None else None
        sheets.append(_markdown(_content(results, place)))
    return "\n".join(sheets)


def summary_markdown(results_list: Sequence[Results]) -> str:
    """The same in short: of each comparison the accuracies and costs in one table, and where SNOW wins and loses.

    Raises ExperimentError when one of the comparisons has finished nothing.
    """
    return "\n".join(_markdown({**_content(results, None), "short": True}) for results in results_list)


def save_pictures(results: Results, folder: Path) -> list[Path]:
    """Write the pictures of a comparison as PNG files into an existing folder, and return their paths.

    Raises ExperimentError when the disk refuses.
    """
    paths = []
    for drawing in drawings(results):
        paths.append(folder / _file_name(results.name, drawing))
        write_atomically(paths[-1], png_bytes(drawing.draw()), ExperimentError)
    return paths


def validate_finished(results: Results) -> None:
    """Raises ExperimentError when there is nothing to report."""
    if not results.cells:
        first = f"; the first of {len(results.failed)} failures: {results.failed[0].error}" if results.failed else ""
        raise ExperimentError(
            f"the comparison {results.name!r} has no finished training, so there is nothing to report{first}"
        )


def _content(results: Results, place: Place | None) -> dict[str, Any]:
    """What report.jinja writes down."""
    validate_finished(results)
    return {
        "short": False,
        "many": has_many(cell.data for cell in results.cells),
        "results": results,
        "seeds": ", ".join(str(seed) for seed in sorted({cell.seed for cell in results.cells})),
        "settings": [f"{name}: {_setting(value)}" for name, value in results.experiment.items()],
        "methods": [_about(method) for method in dict.fromkeys(cell.method for cell in results.cells)],
        "has_snow": any(cell.method.partition(":")[0] == "snow" for cell in results.cells),
        "tally": tally(results),
        "wins": where_snow_wins(results),
        "losses": where_snow_loses(results),
        "summary": summary_tables(results),
        "accuracy": accuracy_tables(results),
        "costs": cost_tables(results),
        "pictures": drawings(results) if place else [],
        "place": place,
        "searched": _search([cell for cell in results.cells if cell.tries]),
        "failures": _failures(results),
    }


def _markdown(content: dict[str, Any]) -> str:
    """Its blocks, below a heading of level 2."""
    text = _MARKDOWN.get_template("report.jinja").render(content, kind="markdown.jinja")
    blocks = re.sub(r"\n{3,}", "\n\n", text).strip()
    return f"## Comparison {_plain(content['results'].name)}\n\n{blocks}\n"


def _plain(value: Any) -> str:
    """Text that is shown literally, on one line, never as markup."""
    text = " ".join(str(value).split()).replace("&", "&amp;")
    return re.sub(r"([\\`*_\[\]<>|~$])", r"\\\1", text)


_MARKDOWN = HTML.overlay(autoescape=False)
_MARKDOWN.filters = {**HTML.filters, "plain": _plain}


def _path(folder: str, name: str, drawing: Drawing) -> str:
    return f"{folder}/{_file_name(name, drawing)}"


def _file_name(name: str, drawing: Drawing) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "-", f"{name}-{drawing.name}").strip("-.") + ".png"


def _setting(value: Any) -> str:
    if isinstance(value, list) and not any(isinstance(item, list | dict) for item in value):
        return ", ".join(map(str, value))
    return value if isinstance(value, str) else json.dumps(value)


def _about(method: str) -> str:
    name = method.partition(":")[0]
    about = f"; {METHODS[name].about}" if name in METHODS else ""
    return f"{method}: {method_label(method)}{about}"


def _search(searched: Sequence[Cell]) -> dict[str, Any]:
    """How many learning rates the searches tried, and in how many of them one at the edge was the best."""
    counts = sorted({len(cell.tries) for cell in searched}) or [0]
    number = f"the same number of tries ({counts[0]})" if len(counts) == 1 else f"{counts[0]} to {counts[-1]} tries"
    rates = [(cell.lr, [one.lr for one in cell.tries]) for cell in searched]
    return {"count": len(searched), "number": number, "at_edge": sum(lr in (min(of), max(of)) for lr, of in rates)}


def _failures(results: Results) -> list[str]:
    """One line per method, source and reason, with the places where it was so."""
    places: dict[tuple[str, str, str], list[str]] = {}
    for failure in results.failed:
        place = ", ".join(filter(None, (failure.data, variant_label(failure.variant), f"seed {failure.seed}")))
        places.setdefault((failure.method, failure.source, failure.error), []).append(place)
    return [f"{method} on {source}: {error} ({'; '.join(at)})" for (method, source, error), at in places.items()]
