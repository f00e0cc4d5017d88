from __future__ import annotations

import copy
from typing import Literal

import pytest
import torch
from torch import nn
from torch.optim import Optimizer

from torchsnow.train import TrainSettings
from torchsnow.train.schedule import (
    load_optimizer_tensors,
    lr_factor,
    make_optimizer,
    optimizer_tensors,
    set_lr,
)


def test_warm_up_rises_and_cosine_falls_to_zero() -> None:
    factors = [lr_factor(step, total_steps=100, warmup_steps=9) for step in range(101)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[9] == 1
    assert factors[:10] == sorted(factors[:10])
    assert factors[9:] == sorted(factors[9:], reverse=True)
    assert factors[100] == pytest.approx(0)


def test_groups_keep_their_share_of_the_rate() -> None:
    layer = nn.Linear(2, 2)
    groups = [{"params": [layer.weight], "lr": 0.1}, {"params": [layer.bias], "lr": 0.3, "weight_decay": 0.0}]
    optimizer = make_optimizer(groups, TrainSettings(optimizer="sgd", weight_decay=0.5))
    set_lr(optimizer, 0.5)
    set_lr(optimizer, 0.5)
    assert [group["lr"] for group in optimizer.param_groups] == [0.05, 0.15]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.5, 0.0]


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_memory_survives_as_flat_tensors(name: Literal["adamw", "sgd"]) -> None:
    settings = TrainSettings(optimizer=name, lr=0.1)

    def optimizer_of(layer: nn.Module) -> Optimizer:
        return make_optimizer([{"params": list(layer.parameters()), "lr": 0.1}], settings)

    def step(layer: nn.Module, optimizer: Optimizer) -> None:
        optimizer.zero_grad()
        layer(torch.arange(3.0)).square().sum().backward()
        optimizer.step()

    first = nn.Linear(3, 3)
    optimizer = optimizer_of(first)
    for _ in range(3):
        step(first, optimizer)
    second, tensors = copy.deepcopy(first), copy.deepcopy(optimizer_tensors(optimizer))
    step(first, optimizer)
    resumed = optimizer_of(second)
    load_optimizer_tensors(resumed, tensors)
    step(second, resumed)
    assert torch.equal(first.weight, second.weight)
    assert torch.equal(first.bias, second.bias)
