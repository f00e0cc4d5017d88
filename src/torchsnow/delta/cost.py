"""What a pass costs, counted on shapes alone: nothing is computed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from torchsnow.delta.delta import Delta
from torchsnow.delta.spec import DeltaSpec
from torchsnow.source.features import FeatureMaps
from torchsnow.source.graph import VALUE
from torchsnow.source.source import Source


@dataclass(frozen=True)
class Cost:
    """Learned numbers, and multiply-adds for one image at the source's own size."""

    num_params: int
    multiply_adds: int


def source_cost(source: Source) -> Cost:
    """The cost of a source without its classifier."""
    image = source.traced.graph.find_nodes(op="placeholder")[0].meta[VALUE]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        source.traced(image)
    return _cost(source.model, counter, len(image))


def delta_cost(source: Source, spec: DeltaSpec) -> Cost:
    """The cost of a delta as it ships, with its choice of channels fixed and its head."""
    delta = Delta(source, spec, fixed=True).to("meta").eval()
    values = {node.name: node.meta.get(VALUE) for node in source.traced.graph.nodes}
    image = source.traced.graph.find_nodes(op="placeholder")[0].meta[VALUE]
    taps = {tap.name: values[tap.node] for tap in source.taps.values()}
    dims = {tap.name: tap.dim for tap in source.taps.values()}
    features = FeatureMaps(image, dims, taps, last=source.last_node.meta[VALUE])
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        delta(features)
    return _cost(delta, counter, len(image))


def _cost(module: nn.Module, counter: FlopCounterMode, batch_size: int) -> Cost:
    num_params = sum(parameter.numel() for parameter in module.parameters())
    return Cost(num_params, counter.get_total_flops() // (2 * batch_size))
