"""How long an experiment will take, before it starts, and what its methods cost, measured side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from torchsnow.errors import TorchsnowError
from torchsnow.experiments.cell import cell_method, cell_splits
from torchsnow.experiments.measuring import Workload, median_times_s, wait_for
from torchsnow.experiments.plan import Experiment, PlannedCell
from torchsnow.experiments.resources import ResourceCache
from torchsnow.experiments.training_speed import training_speeds
from torchsnow.source import PACKAGES
from torchsnow.train.store import MOST_VIEWS

_ROUNDS = 5
_ROUNDS_OF_A_PASS = 2
_PASSES_OF_A_STEP = 3  # forward, and backward through inputs and weights


def measure_costs(
    experiment: Experiment, source: str, methods: Sequence[str], num_classes: int, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Times and memory of training steps on the experiment's batches, of methods that a source can take, as plain JSON
    values. Full fine-tuning is always measured as well.
    """
    load = Workload(
        source=source,
        weights="pretrained" if source in PACKAGES else experiment.weights,
        image_size=experiment.image_size,
        batch_size=experiment.batch_size,
        device=experiment.torch_device().type,
        precision=experiment.precision,
        num_classes=num_classes,
    )
    speeds = training_speeds(load, tuple(dict.fromkeys(("full", *methods))), _ROUNDS, say)
    full = speeds.get("full")
    return [
        {
            "source": source,
            "method": name,
            "step_s": speeds[name].step_s,
            "step_over_full": speeds[name].step_s / full.step_s,
            "peak_bytes": speeds[name].peak_bytes,
            "peak_over_full": speeds[name].peak_bytes / full.peak_bytes,
            "image_size": load.image_size,
            "batch_size": load.batch_size,
            "device": load.device,
        }
        for name in methods
        if full is not None and name in speeds
    ]


def plan_text(cells: Sequence[PlannedCell], experiment: Experiment, resources: ResourceCache) -> str:
    """How many cells and trainings there are, of what, and about how long they take, in one sentence.

    The time is that of the passes through the source, by passes of one batch that are measured here; what cannot be
    had is left out.
    """
    names = [len({getattr(cell, name) for cell in cells}) for name in ("method", "data", "source", "seed")]
    of = "methods", "data sets", "sources", "seeds"
    counted = ", ".join(f"{number} {name}" for number, name in zip(names, of, strict=True))
    trainings = sum(_num_trainings(cell, experiment) for cell in cells)
    device = experiment.torch_device()
    seconds = _estimate_s(cells, experiment, resources, device)
    return (
        f"{len(cells)} cells to do ({counted}) in {trainings} trainings of up to {experiment.epochs} epochs: about "
        f"{_time_text(seconds)} on {device.type} for passes through the source; decoding images comes on top"
    )


def _num_trainings(cell: PlannedCell, experiment: Experiment) -> int:
    return len(experiment.lrs(cell.method)) if cell.seed == experiment.seeds[0] else 1


def _estimate_s(
    cells: Sequence[PlannedCell], experiment: Experiment, resources: ResourceCache, device: torch.device
) -> float:
    pass_s: dict[str, float] = {}  # by source
    passes: dict[str, int] = {}  # of one training, by all but the seed
    total_s = 0.0
    for cell in cells:
        place = str((cell.source, cell.data, cell.method, cell.variant))
        try:
            if place not in passes:
                passes[place] = _num_passes(cell, experiment, resources)
            if cell.source not in pass_s:
                pass_s[cell.source] = _pass_s(cell, experiment, resources, device)
        except TorchsnowError:  # the cell will say it
            continue
        total_s += _num_trainings(cell, experiment) * passes[place] * pass_s[cell.source]
    return total_s


def _num_passes(cell: PlannedCell, experiment: Experiment, resources: ResourceCache) -> int:
    """How many images go through the source in one training, a step counted as three."""
    splits = cell_splits(cell, experiment, resources)
    num_train, num_val, num_test = len(splits.train), len(splits.val), len(splits.test)
    if cell_method(cell, resources, len(splits.classes)).frozen_part(experiment.image_size) is not None:
        views = {"none": 1, "flip": 2}.get(experiment.settings(cell.data, 1e-3, 0).augmentation, MOST_VIEWS)
        return (1 + views) * num_train + 2 * num_val + num_test
    return num_train + experiment.epochs * (_PASSES_OF_A_STEP * num_train + num_val) + num_val + num_test


def _pass_s(cell: PlannedCell, experiment: Experiment, resources: ResourceCache, device: torch.device) -> float:
    """Seconds of a pass of one image, within a batch."""
    source = resources.source(cell.source).to(device)
    images = torch.zeros(experiment.batch_size, 3, experiment.image_size, experiment.image_size, device=device)

    def step() -> None:
        source(images)
        wait_for(device.type)

    with torch.no_grad():
        return median_times_s({"pass": step}, _ROUNDS_OF_A_PASS)["pass"] / experiment.batch_size


def _time_text(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
