"""Costs against an independent count by hand, and the bar of the default preset on ResNet-50."""

from __future__ import annotations

import safetensors.torch
import torch
from torch import Tensor, nn

from torchsnow.delta import Delta, DeltaSpec
from torchsnow.delta.cost import delta_cost, source_cost
from torchsnow.methods import PRESETS
from torchsnow.source import load_source


def test_source_cost_equals_a_count_by_hooks() -> None:
    source = load_source("test_resnet", "random")
    counted = 0

    def count(module: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal counted
        assert isinstance(module, nn.Conv2d)
        height, width = module.kernel_size
        counted += output[0].numel() * module.in_channels // module.groups * height * width

    for module in source.model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(count)
    source.model(torch.zeros(1, *source.input_config.input_size))
    cost = source_cost(source)
    assert cost.multiply_adds == counted
    assert cost.num_params == sum(parameter.numel() for parameter in source.model.parameters())


def test_a_wider_delta_costs_more_and_the_head_is_counted() -> None:
    source = load_source("test_resnet", "random")
    narrow, wide = (delta_cost(source, DeltaSpec(3, width_divisor=k, pool_divisor=k)) for k in (8, 2))
    assert wide.num_params > narrow.num_params
    assert wide.multiply_adds > narrow.multiply_adds
    assert delta_cost(source, DeltaSpec(30)).num_params > delta_cost(source, DeltaSpec(3)).num_params


def test_the_default_delta_of_resnet50_is_within_its_budget() -> None:
    """At most 3.5% of the source's multiply-adds and parameters, and a task file of at most 3.5 MB, for 10 classes."""
    source = load_source("resnet50", "random")
    spec = PRESETS["default"].spec(10)
    whole, delta = source_cost(source), delta_cost(source, spec)
    assert delta.multiply_adds <= 0.035 * whole.multiply_adds
    assert delta.num_params <= 0.035 * whole.num_params
    assert len(safetensors.torch.save(Delta(source, spec, frozen=True).state_dict())) <= 3.5e6
