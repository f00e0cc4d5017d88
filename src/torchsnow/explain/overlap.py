"""How much the subscriptions of several tasks have in common, and how much they would by chance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from torchsnow.explain.subscriptions import TapSubscription
from torchsnow.plots import new_figure

_MOST_NUMBERS = 12  # tasks up to which the cells of a matrix show their numbers
_MOST_NAMES = 40  # tasks up to which each is named
_OBSERVED, _CHANCE = "#c8501e", "#7a8a99"


@dataclass(frozen=True, eq=False)
class Overlap:
    """Jaccard indices of tasks: channels that both subscribe to over channels that either does.

    `observed` and `by_chance` are (tasks, tasks) over all (tap, channel) pairs; `tap_observed` and `tap_by_chance`
    (taps,) are means over all pairs of tasks, NaN where fewer than two tasks read a tap. By chance means: every task
    draws as many channels of each tap as it has, at random. The diagonals of chance are NaN.
    """

    tasks: tuple[str, ...]
    taps: tuple[str, ...]
    observed: np.ndarray
    by_chance: np.ndarray
    tap_observed: np.ndarray
    tap_by_chance: np.ndarray

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; null for NaN."""
        names = ("observed", "by_chance", "tap_observed", "tap_by_chance")
        numbers = {name: _plain(getattr(self, name)) for name in names}
        return {"tasks": list(self.tasks), "taps": list(self.taps), **numbers}


def overlap_of(subscriptions: dict[str, Sequence[TapSubscription]], order: Sequence[str]) -> Overlap:
    """The overlap between two tasks or more, by name; `order` has all names of taps, in the order of the pass."""
    sizes = {part.tap: part.num_chs for parts in subscriptions.values() for part in parts}
    taps = tuple(tap for tap in order if tap in sizes)
    shared, counts = _counted(list(subscriptions.values()), taps, sizes)
    total = np.array([sizes[tap] for tap in taps])
    expected = counts[:, :, None] * counts[:, None, :] / total[:, None, None]
    by_chance = _jaccard(expected.sum(0), counts.sum(0))
    np.fill_diagonal(by_chance, np.nan)
    return Overlap(
        tasks=tuple(subscriptions),
        taps=taps,
        observed=_jaccard(shared.sum(0), counts.sum(0)),
        by_chance=by_chance,
        tap_observed=_mean_of_pairs(_jaccard(shared, counts), counts),
        tap_by_chance=_mean_of_pairs(_jaccard(expected, counts), counts),
    )


def overlap_figure(overlap: Overlap, what: str) -> Figure:
    """The matrix as it is, as it would be by chance, and the mean over pairs for each tap, with depth to the right."""
    figure = new_figure(10, 6.6)
    above, below = figure.subfigures(2, 1, height_ratios=(1.5, 1), squeeze=False)[:, 0]
    figure.suptitle(f"Overlap of what {what} of tasks read (Jaccard index, 1 = the same channels)", fontsize=11)
    top = max(0.01, float(np.nanmax([_off_diagonal(overlap.observed), _off_diagonal(overlap.by_chance)])))
    matrices = {"as it is": overlap.observed, "expected by chance": overlap.by_chance}
    panels = above.subplots(1, 2, sharey=True)
    for axes, (title, matrix) in zip(panels, matrices.items(), strict=True):
        image = _matrix(axes, matrix, overlap.tasks, top)
        axes.set_title(title, fontsize=10)
    above.colorbar(image, ax=panels, shrink=0.8, label="Jaccard index")
    _by_tap(below.subplots(), overlap)
    return figure


def _counted(
    tasks: Sequence[Sequence[TapSubscription]], taps: Sequence[str], sizes: dict[str, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of channels that pairs of tasks share, (taps, tasks, tasks), and that each has, (taps, tasks)."""
    shared = np.zeros((len(taps), len(tasks), len(tasks)))
    for at, tap in enumerate(taps):
        member = np.zeros((len(tasks), sizes[tap]))
        for task, parts in enumerate(tasks):
            for part in parts:
                if part.tap == tap:
                    member[task, part.index.numpy()] = 1
        shared[at] = member @ member.T
    return shared, shared.diagonal(axis1=1, axis2=2)


def _jaccard(shared: np.ndarray, counts: np.ndarray) -> np.ndarray:
    either = counts[..., :, None] + counts[..., None, :] - shared
    index: np.ndarray = np.divide(shared, either, out=np.zeros_like(shared), where=either > 0)
    return index


def _mean_of_pairs(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """(taps, tasks, tasks) -> (taps,), over pairs of tasks that both read the tap."""
    both = (counts[:, :, None] > 0) & (counts[:, None, :] > 0) & ~np.eye(counts.shape[1], dtype=bool)
    pairs = both.sum((1, 2))
    sums = (values * both).sum((1, 2))
    means: np.ndarray = np.divide(sums, pairs, out=np.full(len(values), np.nan), where=pairs > 0)
    return means


def _off_diagonal(matrix: np.ndarray) -> np.ndarray:
    return matrix[~np.eye(len(matrix), dtype=bool)]


def _matrix(axes: Axes, matrix: np.ndarray, tasks: Sequence[str], top: float) -> Any:
    shown = matrix.copy()
    np.fill_diagonal(shown, np.nan)  # a task with itself says nothing, and would set the scale
    image = axes.imshow(shown, cmap="Oranges", vmin=0, vmax=top)
    named = range(len(tasks)) if len(tasks) <= _MOST_NAMES else []
    axes.set_xticks(named, [tasks[i] for i in named], rotation=45, ha="right", fontsize=8)
    axes.set_yticks(named, [tasks[i] for i in named], fontsize=8)
    if len(tasks) <= _MOST_NUMBERS:
        for (row, column), value in np.ndenumerate(shown):
            if not np.isnan(value):
                colour = "white" if value > 0.6 * top else "black"
                axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=9, color=colour)
    return image


def _by_tap(axes: Axes, overlap: Overlap) -> None:
    places = range(1, len(overlap.taps) + 1)
    axes.plot(places, overlap.tap_observed, color=_OBSERVED, marker="o", markersize=4, label="as it is")
    axes.plot(places, overlap.tap_by_chance, color=_CHANCE, marker=".", linestyle="--", label="expected by chance")
    axes.set_title("tap by tap, mean over pairs of tasks", fontsize=10)
    axes.set_xlabel("tap, counted from the image on")
    axes.set_ylabel("Jaccard index")
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, ncols=2, loc="lower right", bbox_to_anchor=(1, 1), fontsize=9)


def _plain(values: np.ndarray) -> list[Any]:
    return [
        _plain(value) if isinstance(value, np.ndarray) else None if np.isnan(value) else float(value)
        for value in values
    ]
