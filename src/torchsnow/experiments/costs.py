"""What the methods of an experiment cost, measured side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torchsnow.experiments.plan import Experiment
from torchsnow.experiments.training_speed import TrainingSpeed, training_speeds
from torchsnow.source import PACKAGES

_ROUNDS = 5


def measure_costs(
    experiment: Experiment, source_name: str, methods: Sequence[str], num_classes: int, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Times and memory of training steps on the experiment's batches, of methods that a source can take, as plain JSON
    values. Full fine-tuning is always measured beside the others.
    """
    weights = "pretrained" if source_name in PACKAGES else experiment.weights
    beside = tuple(dict.fromkeys(("full", *methods)))
    device = experiment.settings(experiment.data[0], 1e-3, 0).torch_device()
    speeds = training_speeds(
        source_name,
        weights,
        beside,
        image_size=experiment.image_size,
        batch_size=experiment.batch_size,
        rounds=_ROUNDS,
        device=device.type,
        precision=experiment.precision,
        num_classes=num_classes,
        say=say,
    )
    if "full" not in speeds:
        return []
    shape = {"image_size": experiment.image_size, "batch_size": experiment.batch_size, "device": device.type}
    return [
        {"source": source_name, "method": name, **_speed(name, speeds), **shape} for name in methods if name in speeds
    ]


def _speed(name: str, speeds: Mapping[str, TrainingSpeed]) -> dict[str, Any]:
    own, full = speeds[name], speeds["full"]
    return {
        "step_s": own.step_s,
        "step_over_full": own.step_s / full.step_s,
        "peak_bytes": own.peak_bytes,
        "peak_over_full": own.peak_bytes / full.peak_bytes,
    }
