"""What a report says, from top to bottom, whatever it is written on."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

from torchsnow.errors import ExperimentError
from torchsnow.methods import METHODS
from torchsnow.report.comparison import tally, where_snow_loses, where_snow_wins
from torchsnow.report.figures import Drawing, drawings
from torchsnow.report.results import Cell, Results
from torchsnow.report.tables import Table, accuracy_tables, cost_tables, summary_tables
from torchsnow.report.words import method_words, variant_words

_CAUTION = (
    "Differences are taken seed by seed, and called clear when their 95% t-interval leaves out zero. Each interval "
    "stands for itself: of twenty comparisons without any true difference one looks clear by chance. The intervals "
    "know the spread between seeds, not what other test images would change."
)
_COLUMNS = (
    "Accuracy on the test split is the mean over the seeds ± their standard deviation, with the 95% t-interval of the "
    "mean. Balanced is the mean of the accuracies of the classes, calibration error that of the test split, validation "
    "the accuracy on the images that choices were made by; all three are means over the seeds. Shipped says which "
    "parts of a delta count in the logits; parameters, the multiply-adds of a further task (of the source's own) and "
    "stored bytes are those of the task that shipped."
)


class Sheet(Protocol):
    """What a report can be written on."""

    def heading(self, text: str, level: int = 2) -> None: ...

    def paragraph(self, text: str) -> None: ...

    def listing(self, items: Sequence[str]) -> None: ...

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[Any]], caption: str = "") -> None: ...


def check_finished(results: Results) -> None:
    """Raises ExperimentError when there is nothing to report."""
    if not results.cells:
        first = f"; the first of {len(results.failed)} failures: {results.failed[0].error}" if results.failed else ""
        raise ExperimentError(
            f"the comparison {results.name!r} has no finished training, so there is nothing to report{first}"
        )


def write_report(sheet: Sheet, results: Results, place: Callable[[Drawing], None] | None) -> None:
    """Write all sections; `place` puts a picture on the sheet, without it there are none."""
    _write_run(sheet, results)
    _write_comparison(sheet, results)
    sheet.heading("Accuracy")
    sheet.paragraph(_COLUMNS)
    _write_tables(sheet, accuracy_tables(results))
    sheet.heading("Costs")
    _write_tables(sheet, cost_tables(results))
    if place:
        sheet.heading("Pictures")
        for drawing in drawings(results):
            place(drawing)
    _write_choices(sheet, results)
    if results.failed:
        sheet.heading("What failed")
        sheet.listing(_failures(results))


def write_summary(sheet: Sheet, results: Results) -> None:
    """Write what a reader wants first: what every method reaches and costs, and where SNOW wins and loses."""
    seeds = sorted({cell.seed for cell in results.cells})
    sheet.paragraph(f"{len(results.cells)} trainings, with the seeds {', '.join(map(str, seeds))}.")
    _write_tables(sheet, summary_tables(results), 2)
    sheet.heading("Where SNOW wins and loses")
    sheet.paragraph(tally(results))
    statements = [*where_snow_wins(results), *where_snow_loses(results)]
    if statements:
        sheet.listing(statements)


def _write_run(sheet: Sheet, results: Results) -> None:
    if results.experiment.get("remark"):
        sheet.paragraph(str(results.experiment["remark"]))
    sheet.heading("What was run")
    seeds = sorted({cell.seed for cell in results.cells})
    sheet.paragraph(
        f"{len(results.cells)} trainings finished and {len(results.failed)} failed, with the seeds "
        f"{', '.join(map(str, seeds))}. Made {results.made} on {results.machine}, with "
        f"{', '.join(f'{name} {version}' for name, version in results.versions.items())}."
    )
    sheet.heading("Settings", 3)
    sheet.listing([f"{name}: {_setting(value)}" for name, value in results.experiment.items()])
    sheet.heading("Methods", 3)
    sheet.listing([_about(method) for method in dict.fromkeys(cell.method for cell in results.cells)])


def _setting(value: Any) -> str:
    if isinstance(value, list) and not any(isinstance(item, list | dict) for item in value):
        return ", ".join(map(str, value))
    return value if isinstance(value, str) else json.dumps(value)


def _about(method: str) -> str:
    name = method.partition(":")[0]
    about = f"; {METHODS[name].about}" if name in METHODS else ""
    return f"{method}: {method_words(method)}{about}"


def _write_comparison(sheet: Sheet, results: Results) -> None:
    if not any(cell.method.partition(":")[0] == "snow" for cell in results.cells):
        return
    sheet.heading("Where SNOW loses")
    sheet.paragraph(f"{tally(results)} {_CAUTION}")
    losses = where_snow_loses(results)
    sheet.listing(losses) if losses else sheet.paragraph("Nowhere in this comparison is another method better.")
    wins = where_snow_wins(results)
    if wins:
        sheet.heading("Where SNOW wins")
        sheet.listing(wins)


def _write_tables(sheet: Sheet, tables: Iterable[tuple[str, Table]], level: int = 3) -> None:
    for heading, table in tables:
        sheet.heading(heading, level)
        sheet.table(table.columns, table.rows, table.caption)


def _write_choices(sheet: Sheet, results: Results) -> None:
    sheet.heading("How choices were made")
    searched = [cell for cell in results.cells if cell.tries]
    sheet.listing(
        [
            _search(searched),
            "Of a training's epochs the one with the best validation accuracy was kept.",
            "The test split was touched once per training, after both choices; nothing was chosen by it.",
        ]
    )


def _search(searched: Sequence[Cell]) -> str:
    if not searched:
        return "No learning rate was searched for."
    counts = sorted({len(cell.tries) for cell in searched})
    number = f"the same number of tries ({counts[0]})" if len(counts) == 1 else f"{counts[0]} to {counts[-1]} tries"
    edges = sum(cell.lr in (min(rates), max(rates)) for cell, rates in ((c, [t.lr for t in c.tries]) for c in searched))
    return (
        f"The learning rate was searched for with the first seed, for every method with {number}, by validation "
        f"accuracy; the other seeds took it over. In {edges} of {len(searched)} searches the lowest or the highest "
        "rate tried was the best, so that a better one may lie beyond."
    )


def _failures(results: Results) -> list[str]:
    """One line per method, source and reason, with the places where it was so."""
    places: dict[tuple[str, str, str], list[str]] = {}
    for failure in results.failed:
        place = ", ".join(filter(None, (failure.data, variant_words(failure.variant), f"seed {failure.seed}")))
        places.setdefault((failure.method, failure.source, failure.error), []).append(place)
    return [f"{method} on {source}: {error} ({'; '.join(at)})" for (method, source, error), at in places.items()]
