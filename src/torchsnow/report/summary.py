"""Cells of equal source, data, variant and method as one row: means over the seeds, and how sure they are."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from scipy.stats import t

from torchsnow.report.results import Cell, Results, Variant

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean over `count` seeds, their standard deviation (n - 1 below), and half the width of a 95% t-interval.

    The last two are None for one seed.
    """

    count: int
    mean: float
    deviation: float | None
    half_width: float | None

    @property
    def spreads(self) -> bool:
        """Whether the seeds differ by more than rounding."""
        return self.deviation is not None and self.deviation > 1e-9

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95% t-interval, low to high."""
        return None if self.half_width is None else (self.mean - self.half_width, self.mean + self.half_width)


def estimate(values: Sequence[float]) -> Estimate:
    """What one or more seeds say together."""
    count, mean = len(values), fmean(values)
    if count == 1:
        return Estimate(1, mean, None, None)
    deviation = stdev(values)
    quantile = float(t.ppf((1 + CONFIDENCE) / 2, count - 1))
    return Estimate(count, mean, deviation, quantile * deviation / count**0.5)


@dataclass(frozen=True)
class Summary:
    """One row of a table; `cells` are its seeds, at least one."""

    source: str
    data: str
    variant: Variant
    method: str
    cells: tuple[Cell, ...]

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(cell.seed for cell in self.cells)

    @property
    def accuracy(self) -> Estimate:
        """On the test split."""
        return estimate([cell.test.accuracy for cell in self.cells])

    @property
    def balanced_accuracy(self) -> float:
        """Mean over the seeds, on the test split."""
        return fmean(cell.test.balanced_accuracy for cell in self.cells)

    @property
    def calibration_error(self) -> float:
        """Mean over the seeds, on the test split."""
        return fmean(cell.test.calibration_error for cell in self.cells)

    @property
    def val_accuracy(self) -> float:
        """Mean over the seeds, on the validation split."""
        return fmean(cell.val.accuracy for cell in self.cells)

    @property
    def num_params(self) -> int:
        """Of the shipped task, mean over the seeds: methods that choose what they train may end with other numbers."""
        return round(fmean(cell.shipped.num_params for cell in self.cells))

    @property
    def added_share(self) -> float:
        """The multiply-adds of a further task as it shipped, of the source's; mean over the seeds."""
        return fmean(cell.shipped.added_multiply_adds / cell.shipped.source_multiply_adds for cell in self.cells)

    @property
    def first_share(self) -> float:
        """The same of the first task, source pass included."""
        return fmean(cell.shipped.first_multiply_adds / cell.shipped.source_multiply_adds for cell in self.cells)

    @property
    def stored_bytes(self) -> int:
        """Mean over the seeds."""
        return round(fmean(cell.stored_bytes for cell in self.cells))

    @property
    def lrs(self) -> tuple[float, ...]:
        """The learning rates that were chosen; usually one for all seeds."""
        return tuple(dict.fromkeys(cell.lr for cell in self.cells))


def summarise(results: Results) -> list[Summary]:
    """One row per source, data set, variant and method, in the order in which the cells first name them."""
    groups: dict[str, list[Cell]] = {}
    for cell in results.cells:
        key = json.dumps([cell.source, cell.data, cell.variant, cell.method], sort_keys=True)
        groups.setdefault(key, []).append(cell)
    return [Summary(g[0].source, g[0].data, g[0].variant, g[0].method, tuple(g)) for g in groups.values()]
