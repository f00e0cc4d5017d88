"""The tables of a report, and results.csv."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean, median
from typing import Any, NamedTuple

from torchsnow.errors import ExperimentError
from torchsnow.io.files import write_csv
from torchsnow.report.formatting import NOTHING, percent, row_label, share_of_source, size
from torchsnow.report.results import Cell, Results, Shipped, StepCost
from torchsnow.report.summary import Estimate, Summary, summarise

MANY_TASKS = 10
MANY_DATA_SETS = 12
"""With more of them a table has a row for each in place of a column, and the summary their mean, median and worst."""
_INFERENCE = (
    "inference in multiply-adds of one image, relative to the source's own pass, of the tasks as they shipped: the "
    "mean over data sets and seeds."
)

_SUMMARY = (
    "Test accuracy in %, mean over the seeds; multiply-adds of a further task, of the source's own pass, and stored "
    "bytes, as shipped; time to train, with the search for a learning rate. Costs are means over data sets and seeds."
)
_OF_DATA = "Test accuracy in %, mean over the seeds."
_OF_MANY = "mean", "median", "worst data set"
_ACCURACY = (
    *("method", "seeds", "accuracy, %", "95% interval", "balanced, %", "calibration error, %"),
    *("validation, %", "shipped", "parameters", "a further task", "stored", "learning rate"),
)
_COSTS = (
    *("method", "step, s", "step, of full", "peak memory", "memory, of full"),
    *("first task", "each further task", f"{MANY_TASKS} tasks together"),
)

_PLACE = ("source", "data", "method", "seed")
_PLAIN = (
    *("train_images", "val_images", "test_images", "num_classes", "lr", "best_epoch"),
    *("trained_params", "stored_bytes", "seconds", "note"),
)


class Table(NamedTuple):
    """Texts under column names, and what they are."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str


def summary_tables(results: Results) -> Iterator[tuple[str, Table]]:
    """A heading and a table for every source: a row per method and variant, a column per data set, then the costs."""
    rows = summarise(results)
    for source in _sources(rows):
        here = [row for row in rows if row.source == source]
        data = list(dict.fromkeys(row.data for row in here))
        methods: dict[str, list[Summary]] = {}
        for row in here:
            methods.setdefault(row_label(row.method, row.variant), []).append(row)
        columns = ["method", *(_OF_MANY if has_many(data) else data), "a further task", "stored", "trained in"]
        lines = [[name, *_summary_row(of_method, data)] for name, of_method in methods.items()]
        yield f"Source {source}", Table(columns, lines, _SUMMARY)


def has_many(data: Iterable[str]) -> bool:
    """Whether these names, repeats aside, are of too many data sets for a column each."""
    return len(set(data)) > MANY_DATA_SETS


def _summary_row(rows: Sequence[Summary], data: Sequence[str]) -> list[str]:
    accuracies = {row.data: row.accuracy.mean for row in rows}
    if has_many(data):
        worst = min(accuracies, key=lambda name: accuracies[name])
        values = fmean(accuracies.values()), median(accuracies.values()), accuracies[worst]
        shown = [*map(percent, values)]
        shown[-1] += f" ({worst})"
    else:
        shown = [percent(accuracies[name]) if name in accuracies else NOTHING for name in data]
    seconds = fmean(cell.seconds for row in rows for cell in row.cells)
    costs = share_of_source(fmean(row.added_share for row in rows)), size(fmean(row.stored_bytes for row in rows))
    return [*shown, *costs, f"{seconds:.0f} s"]


def accuracy_tables(results: Results) -> Iterator[tuple[str, Table]]:
    """A heading and a table for every source and data set; of many data sets, one for every source."""
    rows = summarise(results)
    if has_many(row.data for row in rows):
        yield from (
            (f"Source {source}", _rows_of_data([r for r in rows if r.source == source])) for source in _sources(rows)
        )
        return
    for source, data in dict.fromkeys((row.source, row.data) for row in rows):
        here = [row for row in rows if (row.source, row.data) == (source, data)]
        yield f"{data} on {source}", Table(_ACCURACY, [_accuracy_row(row) for row in here], _images(here))


def _sources(rows: Sequence[Summary]) -> list[str]:
    return list(dict.fromkeys(row.source for row in rows))


def _rows_of_data(rows: Sequence[Summary]) -> Table:
    """A row for every data set, a column for every method and variant."""
    by_data: dict[str, dict[str, Summary]] = {}
    for row in rows:
        by_data.setdefault(row.data, {})[row_label(row.method, row.variant)] = row
    methods = list(dict.fromkeys(name for here in by_data.values() for name in here))
    lines = []
    for data, here in by_data.items():
        cells = [row.cells[0] for row in here.values()]
        shown = [percent(here[name].accuracy.mean) if name in here else NOTHING for name in methods]
        lines.append(
            [data, str(cells[0].num_classes), f"{cells[0].train_images:,}", f"{cells[0].test_images:,}", *shown]
        )
    return Table(["data set", "classes", "to train on", "to test with", *methods], lines, _OF_DATA)


def cost_tables(results: Results) -> Iterator[tuple[str, Table]]:
    """A heading and a table for every source; methods whose costs were not measured have a row of dashes."""
    places = dict.fromkeys((cell.source, cell.method) for cell in results.cells)
    for source in dict.fromkeys(source for source, _ in places):
        here = [row for row in summarise(results) if row.source == source]
        costs = {method: results.cost(source, method) for place, method in places if place == source}
        rows = [_cost_row(cost, [row for row in here if row.method == method]) for method, cost in costs.items()]
        yield f"Costs on {source}", Table(_COSTS, rows, _measured([cost for cost in costs.values() if cost]))


def _accuracy_row(row: Summary) -> list[str]:
    return [
        row_label(row.method, row.variant),
        str(len(row.seeds)),
        _mean_and_deviation(row.accuracy),
        _interval(row.accuracy),
        percent(row.balanced_accuracy),
        percent(row.calibration_error),
        percent(row.val_accuracy),
        shipped_parts(row.cells),
        f"{row.num_params:,}",
        share_of_source(row.added_share),
        size(row.stored_bytes),
        ", ".join(f"{lr:.2g}" for lr in row.lrs),
    ]


def _mean_and_deviation(accuracy: Estimate) -> str:
    spread = "" if accuracy.deviation is None else f" ± {percent(accuracy.deviation)}"
    return percent(accuracy.mean) + spread


def _interval(accuracy: Estimate) -> str:
    if accuracy.interval is None:
        return NOTHING
    low, high = accuracy.interval
    return f"{percent(max(low, 0.0))} to {percent(min(high, 1.0))}"


def _images(rows: Sequence[Summary]) -> str:
    cells = [cell for row in rows for cell in row.cells]
    train, val, test, classes = (
        _range({getattr(cell, key) for cell in cells})
        for key in ("train_images", "val_images", "test_images", "num_classes")
    )
    return f"{classes} classes; {train} images to train on, {val} to choose by, {test} to test with."


def _range(numbers: set[int]) -> str:
    low, high = min(numbers), max(numbers)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def shipped_parts(cells: Sequence[Cell]) -> str:
    """What the tasks of a method are made of: "body", "probe", "body + probe", each with the number of seeds if they
    differ; "-" for methods without such parts."""
    counts = Counter(_parts(cell.shipped) for cell in cells)
    return next(iter(counts)) if len(counts) == 1 else ", ".join(f"{parts} ({n})" for parts, n in counts.items())


def _parts(shipped: Shipped) -> str:
    weights = {"body": shipped.body_weight, "probe": shipped.probe_weight}
    return " + ".join(name for name, weight in weights.items() if weight) or NOTHING


def _cost_row(cost: StepCost | None, rows: Sequence[Summary]) -> list[str]:
    """What a step of a method costs, and its tasks, by the mean of `rows`, which are all of this method."""
    step = [NOTHING] * 4
    if cost is not None:
        numbers = _number(cost.step_s, 3), _number(cost.step_over_full, 2), _number(cost.peak_over_full, 2)
        step = [numbers[0], numbers[1], size(cost.peak_bytes), numbers[2]]
    first, added = fmean(row.first_share for row in rows), fmean(row.added_share for row in rows)
    shares = first, added, first + (MANY_TASKS - 1) * added
    return [rows[0].method, *step, *map(share_of_source, shares)]


def _number(value: float | None, digits: int) -> str:
    return NOTHING if value is None else f"{value:.{digits}g}"


def _measured(costs: Sequence[StepCost]) -> str:
    if not costs:
        return f"Training steps were not measured; {_INFERENCE}"
    how = dict.fromkeys(f"batch {c.batch_size} at {c.image_size} px on {c.device}" for c in costs)
    return (
        f"A training step and its peak memory ({'; '.join(how)}), in seconds and bytes and relative to full "
        f"fine-tuning; {_INFERENCE}"
    )


def write_cells(results: Results, path: Path) -> None:
    """results.csv, one row per cell; swept settings are columns "variant.NAME", scores "val.NAME" and "test.NAME", and
    the task as it shipped "shipped.NAME".

    What a cell does not have is empty. Raises ExperimentError when the disk refuses.
    """
    rows = [_row(cell) for cell in results.cells]
    variants = dict.fromkeys(key for row in rows for key in row if key.startswith("variant."))
    scores = dict.fromkeys(key for row in rows for key in row if key.startswith(("val.", "test.", "shipped.")))
    columns = [*_PLACE, *variants, *scores, *_PLAIN]
    write_csv(path, columns, ([row.get(name) for name in columns] for row in rows), ExperimentError)


def _row(cell: Cell) -> dict[str, Any]:
    row = {key: getattr(cell, key) for key in (*_PLACE, *_PLAIN)}
    parts = {"val": asdict(cell.val), "test": asdict(cell.test), "shipped": asdict(cell.shipped)}
    for prefix, values in {"variant": cell.variant, **parts}.items():
        row.update({f"{prefix}.{key}": value for key, value in values.items()})
    return row
