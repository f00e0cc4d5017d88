"""Which results a task file keeps: a few numbers by split, and nothing that grows with the square of the classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torchsnow.task_file.json_shape import Within, check_shape

SPLITS = ("train", "val", "test")
MOST_ROWS = 100
"""Of `per_class`; a longer table stays in the run folder."""

_COUNT, _SHARE = Within(int, 0, 2**53), Within(float, 0, 1)
_ROW = {"name": str, "num_images": _COUNT, "precision": _SHARE, "recall": _SHARE, "f1": _SHARE}
_SHAPES: dict[str, Any] = {
    "num_images": _COUNT,
    "loss": Within(float, 0, 1e38),
    "accuracy": _SHARE,
    "top5": (None, _SHARE),
    "balanced_accuracy": _SHARE,
    "calibration_error": _SHARE,
    "per_class": [_ROW],
}
_LEFT_OUT = ("confusion", "mistakes")  # older files have the first, which nobody reads there


def kept_metrics(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """What a task file keeps of metrics by split.

    They are as `torchsnow.train.Metrics.to_dict` gives them, or some of that; None for a split that was not measured.
    Raises ValueError, naming the place, for anything else.
    """
    kept = {split: _kept(values) for split, values in metrics.items()}
    check_shape(kept, {split: _shape_of(kept[split]) for split in SPLITS if split in kept}, "metrics")
    return kept


def _kept(values: Any) -> Any:
    if not isinstance(values, dict):
        return values
    rows = values.get("per_class")
    left_out = {*_LEFT_OUT, "per_class"} if isinstance(rows, list) and len(rows) > MOST_ROWS else set(_LEFT_OUT)
    return {key: value for key, value in values.items() if key not in left_out}


def _shape_of(values: Any) -> tuple[Any, ...]:
    """Every number may be missing."""
    return None, {key: shape for key, shape in _SHAPES.items() if not isinstance(values, dict) or key in values}
