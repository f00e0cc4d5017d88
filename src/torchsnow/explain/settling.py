"""How the choice of channels settled while a task was trained, from its run folder."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from torchsnow.delta import Delta
from torchsnow.errors import TrainingError
from torchsnow.io.files import clear_os_errors
from torchsnow.methods.snow import chosen_channels
from torchsnow.plots import selection_figure
from torchsnow.train import RunFolder


def task_of_run(run: RunFolder, deltas: Mapping[str, Delta]) -> str:
    """The name of the task that a run gave: the one whose channels and weights are those that the run ended with.

    Raises TrainingError for a folder without a finished run of a method that chooses channels, and when the run
    is that of another task.
    """
    chosen = _subscription(run)
    for name, delta in deltas.items():
        if chosen_channels(delta) == chosen:
            return name
    names = " or ".join(repr(name) for name in deltas)
    raise TrainingError(
        f"the run {run.path} is not that of task {names}: it ended with another subscription; "
        "give the folder that `train --out` wrote for this task"
    )


def settling_figure(run: RunFolder) -> Figure:
    """The picture of a run's selection.csv. Raises TrainingError when it cannot be read."""
    with clear_os_errors("read", run.selection, TrainingError):
        text = run.selection.read_text(encoding="utf-8", errors="replace")
    try:
        return selection_figure(list(csv.DictReader(text.splitlines())))
    except (KeyError, TypeError, ValueError, ZeroDivisionError, IndexError) as error:
        raise TrainingError(
            f"{run.selection} is damaged ({error}); resuming the run (--resume) writes it anew"
        ) from error


def _subscription(run: RunFolder) -> Any:
    with clear_os_errors("look at the run folder", run.path, TrainingError):
        known, finished = run.args.exists(), run.subscription.exists()
    if not known:
        raise TrainingError(f"{run.path} holds no run: it has no {run.args.name}; give what was `train --out`")
    if not finished:
        raise TrainingError(
            f"the run {run.path} has no {run.subscription.name}: it is not finished, or its method chooses no channels"
        )
    try:
        with clear_os_errors("read", run.subscription, TrainingError):
            return json.loads(run.subscription.read_text(encoding="utf-8", errors="replace"))
    except json.JSONDecodeError as error:
        raise TrainingError(
            f"{run.subscription} is damaged ({error}); resuming the run (--resume) writes it anew"
        ) from error
