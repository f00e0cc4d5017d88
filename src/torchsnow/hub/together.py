"""One source pass, many tasks."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from torchsnow.source import Request, Source
from torchsnow.task_file import Task


def predict_together(source: Source, tasks: Mapping[str, Task], images: Tensor) -> dict[str, Tensor]:
    """Logits (B, num_classes) of every task from one pass over normalised images (B, 3, H, W); none for no tasks.

    All of them are on one device. Raises SourceError for images of another shape.
    """
    deltas = {name: task.delta.eval() for name, task in tasks.items()}
    if not deltas:
        return {}
    with torch.no_grad():
        requests = (delta.request(delta.choose()) for delta in deltas.values())
        features = source(images, Request.together(requests))
        return {name: delta(features) for name, delta in deltas.items()}


def not_finite(logits: Mapping[str, Tensor]) -> list[str]:
    """The tasks with logits that are no finite numbers; an accelerator is waited for once, not for every task."""
    if not logits:
        return []
    are_finite = torch.stack([own.isfinite().all() for own in logits.values()]).tolist()
    return [name for name, is_finite in zip(logits, are_finite, strict=True) if not is_finite]
