"""What a comparison is going to do, and about how long that takes, before it starts."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from torchsnow.errors import TorchsnowError
from torchsnow.experiments.cell import cell_method, cell_splits
from torchsnow.experiments.material import Material
from torchsnow.experiments.measuring import median_times_s, wait_for
from torchsnow.experiments.plan import Cell, Experiment
from torchsnow.train.store import MOST_VIEWS

_ROUNDS = 2
_PASSES_OF_A_STEP = 3  # forward, and backward through inputs and weights


def plan_words(cells: Sequence[Cell], experiment: Experiment, material: Material) -> str:
    """How many cells and trainings there are, of what, and about how long they take, in one sentence.

    The time is that of the passes through the source, by passes of one batch that are measured here; what cannot be
    had is left out.
    """
    names = [len({getattr(cell, name) for cell in cells}) for name in ("method", "data", "source", "seed")]
    of = "methods", "data sets", "sources", "seeds"
    counted = ", ".join(f"{number} {name}" for number, name in zip(names, of, strict=True))
    trainings = sum(_num_trainings(cell, experiment) for cell in cells)
    device = experiment.settings(experiment.data[0], 1e-3, 0).torch_device()
    seconds = _estimate_s(cells, experiment, material, device)
    return (
        f"{len(cells)} cells to do ({counted}) in {trainings} trainings of up to {experiment.epochs} epochs: about "
        f"{_time_words(seconds)} on {device.type} for passes through the source; decoding images comes on top"
    )


def _num_trainings(cell: Cell, experiment: Experiment) -> int:
    return len(experiment.lrs(cell.method)) if cell.seed == experiment.seeds[0] else 1


def _estimate_s(cells: Sequence[Cell], experiment: Experiment, material: Material, device: torch.device) -> float:
    pass_s: dict[str, float] = {}  # by source
    passes: dict[str, int] = {}  # of one training, by all but the seed
    total_s = 0.0
    for cell in cells:
        place = str((cell.source, cell.data, cell.method, cell.variant))
        try:
            if place not in passes:
                passes[place] = _num_passes(cell, experiment, material)
            if cell.source not in pass_s:
                pass_s[cell.source] = _pass_s(cell, experiment, material, device)
        except TorchsnowError:  # the cell will say it
            continue
        total_s += _num_trainings(cell, experiment) * passes[place] * pass_s[cell.source]
    return total_s


def _num_passes(cell: Cell, experiment: Experiment, material: Material) -> int:
    """How many images go through the source in one training, a step counted as three."""
    splits = cell_splits(cell, experiment, material)
    num_train, num_val, num_test = len(splits.train), len(splits.val), len(splits.test)
    if cell_method(cell, material, len(splits.classes)).frozen_part(experiment.image_size) is not None:
        views = {"none": 1, "flip": 2}.get(experiment.settings(cell.data, 1e-3, 0).augmentation, MOST_VIEWS)
        return (1 + views) * num_train + 2 * num_val + num_test
    return num_train + experiment.epochs * (_PASSES_OF_A_STEP * num_train + num_val) + num_val + num_test


def _pass_s(cell: Cell, experiment: Experiment, material: Material, device: torch.device) -> float:
    """Seconds of a pass of one image, within a batch."""
    source = material.source(cell.source).to(device)
    images = torch.zeros(experiment.batch_size, 3, experiment.image_size, experiment.image_size, device=device)

    def step() -> None:
        source(images)
        wait_for(device.type)

    with torch.no_grad():
        return median_times_s({"pass": step}, _ROUNDS)["pass"] / experiment.batch_size


def _time_words(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
