"""Pictures of a training run, as PNG files."""

from __future__ import annotations

import csv
import io
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from torchsnow.errors import TrainingError
from torchsnow.io.files import clear_os_errors, write_atomically
from torchsnow.train.evaluate import Metrics
from torchsnow.train.history import Epoch
from torchsnow.train.loop import FitResult
from torchsnow.train.run_folder import RunFolder

DPI = 120
_TRAIN, _VAL = "#7a8a99", "#c8501e"  # training in grey, validation in orange
_MOST_COUNTS = 25  # classes up to which the cells of a confusion matrix show their numbers
_MOST_NAMES = 60  # classes or taps up to which every one is named
_NAME_LENGTH = 24  # characters

Row = Mapping[str, str]


@contextmanager
def without_harm(say: Callable[[str], None], what: str) -> Iterator[None]:
    """Let a drawing fail: what it shows is stored already, and `say` is told why there is no picture of it."""
    try:
        yield
    except Exception as error:  # fonts, names of classes, the disk: many things are wrong with pictures
        say(f"warning: {what} could not be drawn ({error}); the results are stored")


def draw_run(run: RunFolder, result: FitResult) -> list[Path]:
    """Draw what a run ended with into its folder, and return the pictures' paths.

    These are results.png, confusion_matrix.png where the metrics have a matrix, and for methods that choose channels
    selection.png. Raises TrainingError when selection.csv cannot be read or the pictures not be written.
    """
    figures = {"results.png": results_figure(result.history)}
    if result.metrics.confusion is not None:
        figures["confusion_matrix.png"] = confusion_figure(result.metrics)
    if run.selection.exists():
        figures["selection.png"] = selection_figure(run)
    for name, figure in figures.items():
        save_png(figure, run.path / name)
    return [run.path / name for name in figures]


def results_figure(history: Sequence[Epoch]) -> Figure:
    """Loss, accuracy and learning rate of every epoch."""
    figure = new_figure(12, 3.6)
    loss, accuracy, lr = figure.subplots(1, 3)
    epochs = _column(history, "epoch")
    for axes, name in ((loss, "loss"), (accuracy, "accuracy")):
        axes.plot(epochs, _column(history, f"train_{name}"), color=_TRAIN, marker=".", label="training")
        axes.plot(epochs, _column(history, f"val_{name}"), color=_VAL, marker=".", label="validation")
        axes.legend(frameon=False)
    lr.plot(epochs, _column(history, "lr"), color=_TRAIN, marker=".")
    lr.set_ylim(bottom=0)
    accuracy.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    for axes, title in ((loss, "loss (nats)"), (accuracy, "accuracy"), (lr, "learning rate at the end of the epoch")):
        axes.set_title(title)
        _epoch_axis(axes)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def confusion_figure(metrics: Metrics) -> Figure:
    """True classes down, predicted ones across; the colour is the share of the true class, the number a count. The
    metrics must have a matrix."""
    counts = np.array(metrics.confusion)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    size = min(12.0, 3.5 + 0.45 * len(counts))
    figure = new_figure(size + 1, size)
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, shrink=0.8, format=PercentFormatter(1, decimals=0), label="share of the true class")
    axes.set_title(f"accuracy {metrics.accuracy:.1%} of {metrics.num_images} images")
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    if len(counts) <= _MOST_NAMES:
        names = [_shortened(name) for name in metrics.classes]
        axes.set_xticks(range(len(names)), names, rotation=90, parse_math=False)
        axes.set_yticks(range(len(names)), names, parse_math=False)
    if len(counts) <= _MOST_COUNTS:
        for (row, column), count in np.ndenumerate(counts):
            colour = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, str(count), ha="center", va="center", color=colour, fontsize=8)
    return figure


def selection_figure(run: RunFolder) -> Figure:
    """How the choice of channels settled, tap by tap and epoch by epoch, from a run's selection.csv.

    On the left the share of a tap's channels that were ever chosen, on the right the share of the chosen ones that
    another draw of the noise would replace. Raises TrainingError when the table cannot be read.
    """
    rows = _read(run.selection)
    try:
        taps = list(dict.fromkeys(row["tap"] for row in rows))
        panels = {
            "ever chosen, of all channels": _grid(rows, len(taps), "ever_chosen", "channels"),
            "still changing, of the chosen ones": _grid(rows, len(taps), "still_changing", "chosen"),
        }
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise TrainingError(
            f"{run.selection} is damaged ({error}); resuming the run (--resume) writes it again"
        ) from error
    figure = new_figure(11, min(16.0, 2.0 + 0.18 * len(taps)))
    for axes, (title, shares) in zip(figure.subplots(1, 2, sharey=True), panels.items(), strict=True):
        extent = (0.5, shares.shape[1] + 0.5, len(taps) - 0.5, -0.5)
        image = axes.imshow(shares, cmap="viridis", vmin=0, vmax=1, aspect="auto", extent=extent, interpolation="none")
        axes.set_title(title)
        _epoch_axis(axes)
        if len(taps) <= _MOST_NAMES:
            axes.set_yticks(range(len(taps)), taps, fontsize=7)
    figure.colorbar(image, ax=figure.axes, format=PercentFormatter(1, decimals=0))
    return figure


def save_png(figure: Figure, path: Path) -> None:
    """Write a figure atomically. Raises TrainingError when the disk refuses."""
    write_atomically(path, png_bytes(figure), TrainingError)


def png_bytes(figure: Figure) -> bytes:
    """A figure as a PNG file's content."""
    data = io.BytesIO()
    with warnings.catch_warnings():
        # Class names may be in a script that the font lacks; a box in their place is good enough.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(data, format="png", dpi=DPI)
    return data.getvalue()


def new_figure(width_inches: float, height_inches: float) -> Figure:
    """An empty figure that needs no screen."""
    figure = Figure(figsize=(width_inches, height_inches), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _epoch_axis(axes: Axes) -> None:
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def _grid(rows: Sequence[Row], num_taps: int, part: str, total: str) -> np.ndarray:
    """Shares (taps, epochs)."""
    return np.array([float(row[part]) / float(row[total]) for row in rows]).reshape(-1, num_taps).T


def _column(history: Sequence[Epoch], name: str) -> list[float]:
    values = [getattr(epoch, name) for epoch in history]
    return [math.nan if value is None else float(value) for value in values]  # the start has no figures of training


def _shortened(name: str) -> str:
    return name if len(name) <= _NAME_LENGTH else name[: _NAME_LENGTH - 3] + "..."


def _read(path: Path) -> list[dict[str, str]]:
    with clear_os_errors("read", path, TrainingError):
        text = path.read_text(encoding="utf-8", errors="replace")
    return list(csv.DictReader(text.splitlines()))
