"""What a pass costs, counted on shapes alone: nothing is computed."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from torchsnow.delta.delta import HEAD_COLUMNS, Delta
from torchsnow.delta.rounding import packed_shape
from torchsnow.delta.spec import DeltaSpec
from torchsnow.source.features import FeatureMaps
from torchsnow.source.graph import VALUE
from torchsnow.source.grid import Grid, grid_size
from torchsnow.source.source import Source

LEAST_GRID_WIDTH = 32
GRID_WIDTH_STEP = 8  # processors work on so many numbers at once
MOST_HEAD_DIVISOR = 32


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
    """The cost of a delta as it ships, with its choice of channels frozen and its head."""
    with torch.random.fork_rng(devices=[]):  # making it draws weights
        delta = Delta(source, spec, frozen=True).to("meta").eval()
    values = {node.name: node.meta.get(VALUE) for node in source.traced.graph.nodes}
    image = source.traced.graph.find_nodes(op="placeholder")[0].meta[VALUE]
    taps = {tap.name: values[tap.node] for tap in source.taps.values()}
    dims = {tap.name: tap.dim for tap in source.taps.values()}
    grids = {}
    if (pool := delta.grid_pool) is not None:
        size = grid_size(image.shape[2], image.shape[3], spec.grid_reduction)
        grids[spec.grid_reduction] = Grid.of(pool.index, image.new_empty(len(image), pool.num_pooled, *size))
    features = FeatureMaps(image, dims, taps, grids=grids)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        delta.own_features(features, delta.choose())
    body = _cost(delta, counter, len(image))
    linear = sum(parameter.numel() for name, parameter in delta.head.named_parameters() if parameter.ndim > 1)
    return replace(body, multiply_adds=body.multiply_adds + linear)


def size_bytes(source: Source, spec: DeltaSpec) -> int:
    """What the numbers of a grid delta take in a task file: a byte for each of its matrices', or half of one for the
    head's, and four for a row."""
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        tensors = Delta(source, spec, frozen=True).state_dict()
    total = 0
    for key, one in tensors.items():
        halves = key == HEAD_COLUMNS and spec.head_bits == 4
        numbers = math.prod(packed_shape(one.shape)) if halves else one.numel()
        total += numbers + 4 * len(one) if one.is_floating_point() and one.ndim > 1 else one.nbytes
    return total


def within_size(source: Source, spec: DeltaSpec, budget: float) -> DeltaSpec:
    """A grid delta of at most `budget` times the bytes of the source's parameters in float32: if it must, its head has
    weights of 4 bits, and reads as many values as that allows, but at least every `MOST_HEAD_DIVISOR`-th."""
    most = 4 * budget * source_cost(source).num_params
    divisors = range(spec.head_divisor, max(spec.head_divisor, MOST_HEAD_DIVISOR) + 1)
    tried = [spec, *(replace(spec, head_divisor=divisor, head_bits=4) for divisor in divisors)]
    return next((one for one in tried if size_bytes(source, one) <= most), tried[-1])


def within_budget(source: Source, spec: DeltaSpec, budget: float) -> DeltaSpec:
    """A grid delta of at most `budget` times the source's multiply-adds: the widest up to the spec's own width, but
    never narrower than `LEAST_GRID_WIDTH`."""
    assert spec.grid_width is not None
    most = budget * source_cost(source).multiply_adds
    for width in range(spec.grid_width, LEAST_GRID_WIDTH, -GRID_WIDTH_STEP):
        narrower = replace(spec, grid_width=width)
        if delta_cost(source, narrower).multiply_adds <= most:
            return narrower
    return replace(spec, grid_width=min(spec.grid_width, LEAST_GRID_WIDTH))


def _cost(module: nn.Module, counter: FlopCounterMode, batch_size: int) -> Cost:
    num_params = sum(parameter.numel() for parameter in module.parameters())
    return Cost(num_params, counter.get_total_flops() // (2 * batch_size))
