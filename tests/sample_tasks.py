"""Tasks with numbers and choices of channels of their own, as training would leave them."""

from __future__ import annotations

from typing import Any

import torch

from torchsnow.delta import Delta, DeltaSpec
from torchsnow.model import SnowModel
from torchsnow.source import Framing, Source
from torchsnow.task_file import Task, make_task

torch.set_num_threads(1)  # threads that wait for each other cost tiny networks most of their time

CLASSES = ("cat", "dog", "Überhund", "fox", "owl", *(f"kind {i}" for i in range(5, 10_000)))


def sample_task(source: Source, name: str = "pets", num_classes: int = 3, seed: int = 0, **settings: Any) -> Task:
    generator = torch.Generator().manual_seed(seed)
    delta = Delta(source, DeltaSpec(num_classes, **settings))
    with torch.no_grad():
        for parameter in delta.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    training, metrics = {"lr": 0.1, "sizes": (64, 64)}, {"val": {"accuracy": 0.5}}
    return make_task(source, delta.freeze(source).eval(), name, CLASSES[:num_classes], Framing(64), training, metrics)


def logits(source: Source, task: Task, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = SnowModel(source, task.delta.eval())(images)
    return result
