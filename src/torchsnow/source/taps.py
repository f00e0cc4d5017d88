"""Taps: the tensors inside a source that a delta may subscribe to.

A tap is what a dense convolution reads, after normalisation, activation and residual addition; a linear layer over
positions is a 1x1 convolution in this sense, and the tokens of a transformer are positions. Tensors read by several
convolutions are one tap. Convolutions of the image have no tap, and neither have layers behind a global pooling
(squeeze-and-excite), which see one position, and layers inside attention.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import fx, nn

from torchsnow.source.graph import VALUE


@dataclass(frozen=True)
class Tap:
    """One tap: `name` is its first consumer's place in the source, `num_chs` its channels, in dimension `dim`.

    `size` is its height and width in pixels at the source's own image size; `consumers` are the names of all the
    layers that read it; `node` is the graph node whose value it is; `num_prefix` how many tokens that are no places of
    the image (class tokens, registers) stand before the others.
    """

    name: str
    num_chs: int
    dim: int
    size: tuple[int, int]
    consumers: tuple[str, ...]
    node: str
    num_prefix: int = 0


def find_taps(traced: fx.GraphModule, num_prefix: int = 0) -> dict[str, Tap]:
    """All taps of a traced source, by name, in the order of the pass; its tokens begin with `num_prefix` that are no
    places of the image."""
    consumers: dict[fx.Node, list[fx.Node]] = {}
    learned: set[fx.Node] = set()  # values that have a convolution or linear layer behind them
    for node in traced.graph.nodes:
        if node.op == "call_module":
            module = traced.get_submodule(node.target)
            if isinstance(module, nn.Conv2d | nn.Linear):
                tapped = node.args[0]
                if tapped in learned and _is_dense(module, tapped):
                    consumers.setdefault(tapped, []).append(node)
                learned.add(node)
                continue
        if any(parent in learned for parent in node.all_input_nodes):
            learned.add(node)
    taps = (_tap(traced, node, nodes, num_prefix) for node, nodes in consumers.items())
    return {tap.name: tap for tap in taps}


def _is_dense(module: nn.Module, tapped: fx.Node) -> bool:
    shape = tapped.meta[VALUE].shape
    if isinstance(module, nn.Linear):
        return len(shape) > 2 and math.prod(shape[1:-1]) > 1
    return isinstance(module, nn.Conv2d) and module.groups == 1 < shape[1] and math.prod(shape[2:]) > 1


def _tap(traced: fx.GraphModule, node: fx.Node, consumers: list[fx.Node], num_prefix: int) -> Tap:
    shape = node.meta[VALUE].shape
    is_linear = isinstance(traced.get_submodule(str(consumers[0].target)), nn.Linear)
    dim = len(shape) - 1 if is_linear else 1
    positions = [size for at, size in enumerate(shape) if at not in (0, dim)]
    height, width = positions if len(positions) == 2 else (positions[0], 1)
    return Tap(
        name=str(consumers[0].target),
        num_chs=shape[dim],
        dim=dim,
        size=(height, width),
        consumers=tuple(consumer.name for consumer in consumers),
        node=node.name,
        num_prefix=num_prefix if len(shape) == 3 else 0,
    )
