"""Means over the seeds, how sure they are, and where SNOW loses and wins, seed by seed against every other method."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from statistics import fmean, stdev
from typing import NamedTuple

from scipy.stats import t

from torchsnow.report.formatting import method_label, percent, share_of_source, size, variant_label
from torchsnow.report.results import Cell, Results, Variant

CONFIDENCE = 0.95


class Estimate(NamedTuple):
    """A mean over `num_seeds` seeds, their standard deviation (n - 1 below), and half the width of a 95% t-interval.

    The last two are None for one seed.
    """

    num_seeds: int
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


class Summary(NamedTuple):
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


class MethodPair(NamedTuple):
    """SNOW against one other method in one place: same source, data set and variant.

    `difference` is the other's test accuracy less SNOW's, seed by seed over the seeds that both have;
    `snow_accuracy` and `other_accuracy` are means over the same seeds. All are shares.
    """

    snow: Summary
    other: Summary
    difference: Estimate
    snow_accuracy: float
    other_accuracy: float

    @property
    def is_clear(self) -> bool:
        """Whether the interval of the difference leaves out zero.

        One seed is never clear, and neither are seeds that agree to the last image: that they do is chance, and an
        interval of no width is not certainty.
        """
        interval = self.difference.interval
        return interval is not None and self.difference.spreads and not interval[0] <= 0 <= interval[1]

    @property
    def is_loss(self) -> bool:
        """Whether the other method is better on the mean."""
        return self.difference.mean > 0

    @property
    def place(self) -> str:
        """ "elpv:binary (bundled, train_share=0.1)"."""
        return f"{self.snow.data} ({', '.join(filter(None, (self.snow.source, variant_label(self.snow.variant))))})"


def compare_with_snow(results: Results) -> list[MethodPair]:
    """SNOW against every other method wherever they have a seed in common; the largest loss of a place first.

    SNOW is the method "snow", or the first preset of it if that was not run. A method that does not know a swept
    setting (fine-tuning has no K) is compared with all its values.
    """
    found: list[MethodPair] = []
    rows = summarise(results)
    for snow in _snow_rows(rows):
        pairs = ((snow, other) for other in _others(snow, rows))
        here = [_compare(*pair) for pair in pairs if _common_seeds(*pair)]
        found += sorted(here, key=lambda one: -one.difference.mean)
    return found


def where_snow_loses(results: Results) -> list[str]:
    """One statement for every method that is better than SNOW on the mean, and what both cost."""
    return [_loss(one) for one in compare_with_snow(results) if one.is_loss]


def where_snow_wins(results: Results) -> list[str]:
    """One statement for every place: which methods SNOW is better than, or as good as."""
    places: dict[str, list[MethodPair]] = {}
    for one in compare_with_snow(results):
        if not one.is_loss:
            places.setdefault(one.place, []).append(one)
    return [_wins(place, wins) for place, wins in places.items()]


def tally(results: Results) -> str:
    """How many of the comparisons went which way, in one sentence."""
    compared = compare_with_snow(results)
    if not compared:
        return "There is nothing to compare: nowhere do SNOW and another method have a finished seed in common."
    counts = Counter((one.is_loss, one.is_clear) for one in compared)
    return (
        f"{len(compared)} comparisons of test accuracy: SNOW is clearly worse in {counts[True, True]}, worse within "
        f"noise in {counts[True, False]}, better or equal within noise in {counts[False, False]}, and clearly better "
        f"in {counts[False, True]}."
    )


def _snow_rows(rows: Sequence[Summary]) -> list[Summary]:
    ours = [row for row in rows if row.method.partition(":")[0] == "snow"]
    plain = [row for row in ours if row.method == "snow"]
    return plain or [row for row in ours if row.method == ours[0].method]


def _others(snow: Summary, rows: Sequence[Summary]) -> Iterator[Summary]:
    """Of every other method in the same place the row that shares most of SNOW's variant and contradicts none."""
    best: dict[str, Summary] = {}
    for row in rows:
        fits = (row.source, row.data) == (snow.source, snow.data) and row.variant.items() <= snow.variant.items()
        known = best.get(row.method)
        if fits and row.method != snow.method and (known is None or len(row.variant) > len(known.variant)):
            best[row.method] = row
    return iter(best.values())


def _common_seeds(snow: Summary, other: Summary) -> list[int]:
    return [seed for seed in snow.seeds if seed in other.seeds]


def _compare(snow: Summary, other: Summary) -> MethodPair:
    seeds = _common_seeds(snow, other)
    ours, theirs = ({cell.seed: cell.test.accuracy for cell in row.cells} for row in (snow, other))
    means = (estimate([accuracies[seed] for seed in seeds]).mean for accuracies in (ours, theirs))
    return MethodPair(snow, other, estimate([theirs[seed] - ours[seed] for seed in seeds]), *means)


def _loss(one: MethodPair) -> str:
    verdict = "a clear difference" if one.is_clear else "within noise"
    return (
        f"On {one.place}: {method_label(one.other.method)} is {_points(one.difference.mean)} better than "
        f"{method_label(one.snow.method)} ({percent(one.other_accuracy)}% against {percent(one.snow_accuracy)}%; "
        f"{_certainty(one.difference)}), {verdict}. {_costs(one.snow, one.other)}"
    )


def _costs(snow: Summary, other: Summary) -> str:
    return (
        f"{method_label(snow.method)} stores {size(snow.stored_bytes)} against {size(other.stored_bytes)}, with "
        f"{snow.num_params:,} parameters against {other.num_params:,}; a further task adds "
        f"{share_of_source(snow.added_share)} of the source's multiply-adds against "
        f"{share_of_source(other.added_share)}."
    )


def _wins(place: str, wins: Sequence[MethodPair]) -> str:
    named = {
        "clearly better than": [one for one in wins if one.is_clear],
        "better within noise than": [one for one in wins if not one.is_clear and one.difference.mean],
        "exactly as good as": [one for one in wins if not one.difference.mean],
    }
    parts = [f"{how} {', '.join(_margin(one) for one in those)}" for how, those in named.items() if those]
    return f"On {place}: {method_label(wins[0].snow.method)} is {'; '.join(parts)}."


def _margin(one: MethodPair) -> str:
    name = method_label(one.other.method)
    return f"{name} ({_points(-one.difference.mean)})" if one.difference.mean else name


def _points(share: float) -> str:
    return f"{percent(share, 2 if abs(share) < 0.0005 else 1)} points"


def _certainty(difference: Estimate) -> str:
    if difference.interval is None:
        return "one seed, so no interval"
    if not difference.spreads:
        return f"{difference.num_seeds} seeds with the same difference, so no interval"
    low, high = difference.interval
    return f"{difference.num_seeds} seeds, paired difference 95% interval {percent(low)} to {percent(high)}"
