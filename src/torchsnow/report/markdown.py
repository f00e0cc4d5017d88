"""The same report as Markdown, in the flavour that GitHub shows."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torchsnow.errors import ExperimentError
from torchsnow.io.files import write_atomically
from torchsnow.plots import png_bytes
from torchsnow.report.figures import Drawing, drawings
from torchsnow.report.results import Results
from torchsnow.report.sections import check_finished, write_report, write_summary


def results_markdown(results_list: Sequence[Results], pictures: str | None = None) -> str:
    """Comparisons one below the other, each with its losses, tables and choices.

    `pictures` is the path of a folder that `save_pictures` has filled, relative to the file that the text goes to;
    without it there are none. Raises ExperimentError when one of the comparisons has finished nothing.
    """
    sheets = []
    for results in results_list:
        check_finished(results)
        sheet = _MarkdownSheet(results.name, pictures)
        write_report(sheet, results, sheet.picture if pictures is not None else None)
        sheets.append(sheet.text())
    return "\n".join(sheets)


def summary_markdown(results_list: Sequence[Results]) -> str:
    """The same in short: of each comparison the accuracies and costs in one table, and where SNOW wins and loses.

    Raises ExperimentError when one of the comparisons has finished nothing.
    """
    sheets = []
    for results in results_list:
        check_finished(results)
        sheet = _MarkdownSheet(results.name, None)
        write_summary(sheet, results)
        sheets.append(sheet.text())
    return "\n".join(sheets)


def save_pictures(results: Results, folder: Path) -> list[Path]:
    """Write the pictures of a comparison as PNG files into an existing folder, and return their paths.

    Raises ExperimentError when the disk refuses.
    """
    paths = []
    for drawing in drawings(results):
        paths.append(folder / _file_name(results.name, drawing))
        write_atomically(paths[-1], png_bytes(drawing.draw()), ExperimentError)
    return paths


class _MarkdownSheet:
    """Paragraphs, one after the other; headings start at level 2, below the title of the file."""

    def __init__(self, name: str, pictures: str | None) -> None:
        self._name, self._pictures = name, pictures
        self._parts = [f"## Comparison {_plain(name)}"]

    def heading(self, text: str, level: int = 2) -> None:
        self._parts.append(f"{'#' * (level + 1)} {_plain(text)}")

    def paragraph(self, text: str) -> None:
        self._parts.append(_plain(text))

    def listing(self, items: Sequence[str]) -> None:
        self._parts.append("\n".join(f"- {_plain(item)}" for item in items))

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[Any]], caption: str = "") -> None:
        if caption:
            self.paragraph(caption)
        rule = ["---", *["---:"] * (len(columns) - 1)]
        lines = [map(_plain, columns), rule, *(map(_plain, row) for row in rows)]
        self._parts.append("\n".join(f"| {' | '.join(line)} |" for line in lines))

    def picture(self, drawing: Drawing) -> None:
        path = f"{self._pictures}/{_file_name(self._name, drawing)}"
        self._parts.append(f"![{_plain(drawing.text)}]({path})\n\n{_plain(drawing.caption)}")

    def text(self) -> str:
        return "\n\n".join(self._parts) + "\n"


def _plain(value: Any) -> str:
    """Text that is shown as it is, on one line, never as markup."""
    text = " ".join(str(value).split()).replace("&", "&amp;")
    return re.sub(r"([\\`*_\[\]<>|~$])", r"\\\1", text)


def _file_name(name: str, drawing: Drawing) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "-", f"{name}-{drawing.name}").strip("-.") + ".png"
