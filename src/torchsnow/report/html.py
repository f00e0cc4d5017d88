"""report.html: a whole comparison in one self-contained page."""

from __future__ import annotations

from torchsnow.pages import Page
from torchsnow.plots import png_bytes
from torchsnow.report.results import Results
from torchsnow.report.sections import check_finished, write_report


def report_page(results: Results) -> Page:
    """The page of a comparison, tables and pictures; `Page.save` writes it.

    Raises ExperimentError when nothing was finished.
    """
    check_finished(results)
    page = Page(f"Comparison {results.name}")
    write_report(page, results, lambda drawing: page.picture(png_bytes(drawing.draw()), drawing.text, drawing.caption))
    return page
