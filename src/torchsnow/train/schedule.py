"""The optimiser, and its learning rate as a pure function of the step."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.optim import SGD, AdamW, Optimizer

from torchsnow.train.settings import TrainSettings

MOMENTUM = 0.9
_PEAK = "peak_lr"  # key of a parameter group: its learning rate after the warm-up


def make_optimizer(groups: list[dict[str, Any]], settings: TrainSettings) -> Optimizer:
    """AdamW or SGD with momentum over a method's parameter groups, each of which keeps its share of the rate."""
    optimizer: Optimizer
    if settings.optimizer == "adamw":
        # fused: a delta has hundreds of small tensors, and one loop over each of them costs more than the arithmetic
        optimizer = AdamW(groups, lr=settings.lr, weight_decay=settings.weight_decay, fused=True)
    else:
        optimizer = SGD(groups, lr=settings.lr, weight_decay=settings.weight_decay, momentum=MOMENTUM)
    for group in optimizer.param_groups:
        group[_PEAK] = group["lr"]
    return optimizer


def set_lr(optimizer: Optimizer, factor: float) -> None:
    """Set every group to `factor` times its own peak."""
    for group in optimizer.param_groups:
        group["lr"] = factor * group[_PEAK]


def lr_factor(step: int, total_steps: int, warmup_steps: int) -> float:
    """The learning rate of a step, counted from 0, as a share of its peak.

    It rises linearly to 1 over the warm-up and falls to 0 along half a cosine: step `total_steps` would have 0.
    """
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / (total_steps - warmup_steps)))


def optimizer_tensors(optimizer: Optimizer) -> dict[str, torch.Tensor]:
    """The optimiser's memory as flat tensors, "PARAMETER.NAME"; everything else of it follows from the settings."""
    state = optimizer.state_dict()["state"]
    return {
        f"{index}.{name}": value
        for index, values in state.items()
        for name, value in values.items()
        if isinstance(value, torch.Tensor)
    }


def load_optimizer_tensors(optimizer: Optimizer, tensors: dict[str, torch.Tensor]) -> None:
    """Take back what `optimizer_tensors` gave."""
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
