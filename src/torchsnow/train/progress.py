"""The progress bar of a training run."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Self, TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

from torchsnow.io.bars import TimeLeft

T = TypeVar("T")


class _Speed(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text("" if task.speed is None else f"{task.speed:.0f} images/s")


class TrainingBar:
    """A bar over all images of all epochs, on stderr if that is a terminal; nothing at all if `quiet`."""

    def __init__(self, epochs: int, num_images: int, quiet: bool) -> None:
        self.epochs, self.num_images = epochs, num_images
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[figures]}"))
        self._quiet = quiet
        # FORCE_COLOR makes no terminal of a log, whatever Rich takes it for.
        self._progress = Progress(
            *columns,
            _Speed(),
            TimeLeft(),
            console=Console(stderr=True),
            disable=quiet or not sys.stderr.isatty(),
        )
        self._task = self._progress.add_task("", total=epochs * num_images, figures="")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def begin(self, epochs: int, num_images: int) -> None:
        """What follows is a run of so many epochs over so many images."""
        self.epochs, self.num_images = epochs, num_images

    def prepare(self) -> None:
        """The method collects feature statistics before training."""
        self._progress.update(self._task, description="collecting feature statistics")

    def store(self) -> None:
        """Features are computed and stored."""
        self._progress.update(self._task, description="storing features", total=None)

    def stored(self, done: int, total: int) -> None:
        """So many images of all views are stored."""
        self._progress.update(self._task, completed=done, total=total)

    def start_epoch(self, epoch: int) -> None:
        """Epoch `epoch`, counted from 1, begins."""
        done, total = (epoch - 1) * self.num_images, self.epochs * self.num_images
        self._progress.update(self._task, description=f"epoch {epoch}/{self.epochs}", completed=done, total=total)

    def advance(self, num_images: int) -> None:
        """So many images more are done."""
        self._progress.advance(self._task, num_images)

    def show(self, loss: float, accuracy: float) -> None:
        """Mean loss and accuracy of this epoch so far."""
        self._progress.update(self._task, figures=f"loss {loss:.3f}  accuracy {accuracy:.1%}")

    def say(self, line: str) -> None:
        """A line above the bar."""
        if not self._quiet:
            self._progress.console.print(line, highlight=False, markup=False, soft_wrap=True)
