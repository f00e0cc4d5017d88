"""The tables of a report, and results.csv."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from torchsnow.errors import ExperimentError
from torchsnow.io.files import write_csv
from torchsnow.report.formatting import NOTHING, percent, row_label, share_of_source, size
from torchsnow.report.results import Cell, Results, Shipped, StepCost
from torchsnow.report.summary import Estimate, Summary, summarise

MANY_TASKS = 10
_INFERENCE = (
    "inference in multiply-adds of one image, relative to the source's own pass, of the tasks as they shipped: the "
    "mean over data sets and seeds."
)

_SUMMARY = (
    "Test accuracy in %, mean over the seeds; multiply-adds of a further task, of the source's own pass, and stored "
    "bytes, as shipped; time to train, with the search for a learning rate. Costs are means over data sets and seeds."
)
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
    for source in dict.fromkeys(row.source for row in rows):
        here = [row for row in rows if row.source == source]
        data = list(dict.fromkeys(row.data for row in here))
        methods: dict[str, list[Summary]] = {}
        for row in here:
            methods.setdefault(row_label(row.method, row.variant), []).append(row)
        columns = ["method", *data, "a further task", "stored", "trained in"]
        lines = [[name, *_summary_row(of_method, data)] for name, of_method in methods.items()]
        yield f"Source {source}", Table(columns, lines, _SUMMARY)


def _summary_row(rows: Sequence[Summary], data: Sequence[str]) -> list[str]:
    accuracies = {row.data: percent(row.accuracy.mean) for row in rows}
    seconds = fmean(cell.seconds for row in rows for cell in row.cells)
    costs = share_of_source(fmean(row.added_share for row in rows)), size(fmean(row.stored_bytes for row in rows))
    return [*(accuracies.get(name, NOTHING) for name in data), *costs, f"{seconds:.0f} s"]


def accuracy_tables(results: Results) -> Iterator[tuple[str, Table]]:
    """A heading and a table for every source and data set."""
    rows = summarise(results)
    for source, data in dict.fromkeys((row.source, row.data) for row in rows):
        here = [row for row in rows if (row.source, row.data) == (source, data)]
        yield f"{data} on {source}", Table(_ACCURACY, [_accuracy_row(row) for row in here], _images(here))


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
