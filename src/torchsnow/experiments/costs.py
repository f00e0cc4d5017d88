"""What the methods of an experiment cost, measured side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torchsnow.delta.cost import source_cost
from torchsnow.experiments.plan import Experiment
from torchsnow.experiments.training_speed import TrainingSpeed, training_speeds
from torchsnow.methods import make_method, split_name
from torchsnow.source import PACKAGES, load_source

_ROUNDS = 5


def measure_costs(
    experiment: Experiment, source_name: str, methods: Sequence[str], num_classes: int, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Costs of methods that a source can take, as plain JSON values.

    Times and memory are those of training steps on the experiment's batches, multiply-adds those of inference at the
    source's own size. Full fine-tuning is always measured beside the others.
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
        num_classes=num_classes,
        say=say,
    )
    if "full" not in speeds:
        return []
    source = load_source(source_name, weights)
    whole = source_cost(source).multiply_adds
    rows = []
    for name in methods:
        if name in speeds:
            method, preset = split_name(name)
            cost = make_method(method, source, num_classes, preset).multiply_adds()
            rows.append(
                {
                    "source": source_name,
                    "method": name,
                    **_speed(name, speeds),
                    "first_multiply_adds": cost.first,
                    "added_multiply_adds": cost.added,
                    "source_multiply_adds": whole,
                    "image_size": experiment.image_size,
                    "batch_size": experiment.batch_size,
                    "device": device.type,
                }
            )
    return rows


def _speed(name: str, speeds: Mapping[str, TrainingSpeed]) -> dict[str, Any]:
    own, full = speeds[name], speeds["full"]
    return {
        "step_s": own.step_s,
        "step_over_full": own.step_s / full.step_s,
        "peak_bytes": own.peak_bytes,
        "peak_over_full": own.peak_bytes / full.peak_bytes,
    }
