"""The tables of a report: accuracies per source and data set, costs per source."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torchsnow.report.results import Cost, Results
from torchsnow.report.summary import Estimate, Summary, summarise
from torchsnow.report.words import NOTHING, percent, row_words, share_of_source, size

MANY_TASKS = 10

_ACCURACY = (
    *("method", "seeds", "accuracy, %", "95% interval", "balanced, %", "calibration error, %"),
    *("validation, %", "trained parameters", "stored", "learning rate"),
)
_COSTS = (
    *("method", "step, s", "step, of full", "peak memory", "memory, of full"),
    *("first task", "each further task", f"{MANY_TASKS} tasks together"),
)


@dataclass(frozen=True)
class Table:
    """Texts under column names, and what they are."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str


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
        costs = {method: results.cost(source, method) for place, method in places if place == source}
        rows = [[method, *_cost_row(cost)] for method, cost in costs.items()]
        yield f"Costs on {source}", Table(_COSTS, rows, _measured([cost for cost in costs.values() if cost]))


def _accuracy_row(row: Summary) -> list[str]:
    return [
        row_words(row.method, row.variant),
        str(len(row.seeds)),
        _mean_and_deviation(row.accuracy),
        _interval(row.accuracy),
        percent(row.balanced_accuracy),
        percent(row.calibration_error),
        percent(row.val_accuracy),
        f"{row.trained_params:,}",
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


def _cost_row(cost: Cost | None) -> list[str]:
    if cost is None:
        return [NOTHING] * (len(_COSTS) - 1)
    first, added = cost.first_multiply_adds, cost.added_multiply_adds
    return [
        _number(cost.step_s, 3),
        _number(cost.step_over_full, 2),
        size(cost.peak_bytes),
        _number(cost.peak_over_full, 2),
        *(share_of_source(m, cost.source_multiply_adds) for m in (first, added, first + (MANY_TASKS - 1) * added)),
    ]


def _number(value: float | None, digits: int) -> str:
    return NOTHING if value is None else f"{value:.{digits}g}"


def _measured(costs: Sequence[Cost]) -> str:
    if not costs:
        return "Not measured."
    how = dict.fromkeys(f"batch {c.batch_size} at {c.image_size} px on {c.device}" for c in costs)
    return (
        f"A training step and its peak memory ({'; '.join(how)}), in seconds and bytes and relative to full "
        "fine-tuning; inference in multiply-adds of one image, relative to the source's own pass."
    )
