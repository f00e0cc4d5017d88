"""The delta's body, derived from the source's own graph node by node.

Every layer is made again at the delta's width; every dense convolution also reads pooled channels of its tap;
numbers in the graph that speak of channels (split sizes, slices, shapes) are rewritten.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx, nn

from torchsnow.delta import channels
from torchsnow.delta.channels import Layout
from torchsnow.delta.inputs import ENTRY, subscribed_taps, values_of_image
from torchsnow.delta.layers import Entry, SubscribedConv2d, SubscribedLinear
from torchsnow.delta.propagate import Flow, argument, operation, slice_dims, value
from torchsnow.delta.resize import init_weight, resized_copy, resized_layer
from torchsnow.delta.spec import DeltaSpec
from torchsnow.errors import DeltaError
from torchsnow.pooling import num_pooled
from torchsnow.source.graph import VALUE, forget_text, is_attention
from torchsnow.source.source import Source
from torchsnow.source.taps import Tap

PICKED = "picked_"  # prefix of the body's inputs that carry pooled channels
ENTRY_NORM = f"{ENTRY}_norm"


def derive_body(source: Source, spec: DeltaSpec, frozen: bool) -> tuple[fx.GraphModule, int]:
    """The body of a delta and the number of pooled features it returns.

    The body maps images (B, 3, H, W) and one Picked per subscribed tap to features (B, chs). With `frozen` the layers
    have a column per chosen channel only. Raises DeltaError when the divisors leave nothing, an operation of the
    source cannot be followed, or the source has attention, whose layers cannot be made narrow.
    """
    if any(map(is_attention, source.model.modules())):
        raise DeltaError(
            f"{source.name} has layers of attention, and a narrow copy of them cannot be made; train a grid delta: "
            "method snow with the preset 'default', 'small' or 'large'"
        )
    body = _Derivation(source, spec, frozen)
    return body.build(), body.feature_chs


class _Derivation:
    def __init__(self, source: Source, spec: DeltaSpec, frozen: bool) -> None:
        self.source, self.spec, self.frozen = source, spec, frozen
        self.flow = Flow(source.traced)
        self.graph = fx.Graph()
        self.parts: dict[str, Any] = {}
        self.made: dict[fx.Node, fx.Node] = {}
        self.taps: dict[str, Tap] = {
            consumer: tap for name, tap in subscribed_taps(source, spec).items() for consumer in tap.consumers
        }
        self._validate_not_empty()

    def _validate_not_empty(self) -> None:
        widest = max(tap.num_chs for tap in self.source.taps.values())
        for name in ("width_divisor", "pool_divisor"):
            divisor = getattr(self.spec, name)
            if divisor > widest:
                raise DeltaError(
                    f"{name}={divisor} leaves no channel: the widest tap of {self.source.name} has {widest}; "
                    f"use a divisor of at most {widest}"
                )

    @property
    def feature_chs(self) -> int:
        return self.width(self.flow.dims[self.source.last_node][1])

    def width(self, layout: Layout) -> int:
        assert self.spec.width_divisor is not None  # without it there is no body to derive
        return channels.width(layout, self.spec.width_divisor)

    def build(self) -> fx.GraphModule:
        nodes = list(self.source.traced.graph.nodes)
        for node in nodes:
            if node.op == "placeholder":
                self.made[node] = self.graph.placeholder(node.name)
        picked = {tap.name: None for tap in self.taps.values()}
        inputs = {name: self.graph.placeholder(PICKED + key_of(name)) for name in picked}
        entry = self.taps.get(ENTRY)
        if entry is not None:
            nodes = self._enter(nodes, entry, inputs[entry.name])
        for node in nodes:
            if node.op == "output":
                self.graph.output(self.made[node.args[0]])
            elif node.op != "placeholder":
                self.made[node] = self._make(node, inputs)
        body = forget_text(fx.GraphModule(self.parts, self.graph, "DeltaBody"))
        body.graph.eliminate_dead_code()
        body.delete_all_unused_submodules()
        body.recompile()
        forget_text(body)
        body.graph.owning_module = None  # else the two keep each other alive until the garbage collector comes
        return body.train()  # these are copies of the source's layers, which are in eval mode

    def _enter(self, nodes: list[fx.Node], tap: Tap, picked: fx.Node) -> list[fx.Node]:
        """Make the entry, which stands for the tap's own node. Returns the nodes that remain to be made."""
        node = next(node for node in nodes if node.name == tap.node)
        out_chs = self.width(self.flow.dims[node][tap.dim])
        self.parts[ENTRY] = Entry(out_chs, *self._columns(tap), self.spec.slots)
        self.parts[ENTRY_NORM] = nn.BatchNorm2d(out_chs)
        entry = self.graph.create_node("call_module", ENTRY, (picked,), {}, ENTRY)
        self.made[node] = self.graph.create_node("call_module", ENTRY_NORM, (entry,), {}, ENTRY_NORM)
        at = nodes.index(node)
        replaced = values_of_image(nodes[:at])  # the entry stands for them
        return [earlier for earlier in nodes[:at] if earlier not in replaced] + nodes[at + 1 :]

    def _columns(self, tap: Tap) -> tuple[int, int]:
        """How many columns the consumers of a tap have, and how many channels they read."""
        pooled = num_pooled(tap.num_chs, self.spec.pool_divisor)
        return pooled if self.frozen or self.spec.slots != "channel" else tap.num_chs, pooled

    def _make(self, node: fx.Node, inputs: Mapping[str, fx.Node]) -> fx.Node:
        if node.op == "call_module":
            return self._make_module(node, inputs)
        if node.op == "get_attr":
            self.parts[node.name] = self._parameter(node)
            return self.graph.get_attr(node.name)
        rewrite = _REWRITES.get(operation(node))
        target, args, kwargs = rewrite(self, node) if rewrite else (node.target, node.args, node.kwargs)
        args, kwargs = fx.node.map_arg((args, dict(kwargs)), lambda n: self.made[n])
        return self.graph.create_node(node.op, target, args, kwargs, node.name)

    def _make_module(self, node: fx.Node, inputs: Mapping[str, fx.Node]) -> fx.Node:
        module = self.source.traced.get_submodule(str(node.target))
        args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), lambda n: self.made[n])
        if isinstance(module, nn.modules.conv._ConvNd | nn.Linear):
            tap = self.taps.get(node.name)
            self.parts[node.name] = self._layer(node, module, tap)
            if tap is not None:
                args = (*args, inputs[tap.name])
        else:
            real = self.source.model.get_submodule(str(node.target))
            self.parts[node.name] = self._resized(node, real)
        return self.graph.create_node("call_module", node.name, args, kwargs, node.name)

    def _layer(self, node: fx.Node, module: nn.Module, tap: Tap | None) -> nn.Module:
        dim = 1 if isinstance(module, nn.modules.conv._ConvNd) else value(node.args[0]).ndim - 1
        source_node = node.args[0]
        assert isinstance(source_node, fx.Node)
        reads, gives = self.flow.dims[source_node][dim], self.flow.dims[node][dim]
        in_chs = source_node.meta[VALUE].shape[dim] if reads is None else self.width(reads)
        layer = resized_layer(module, in_chs, self.width(gives))
        if tap is None:
            return layer
        kind = SubscribedLinear if isinstance(module, nn.Linear) else SubscribedConv2d
        return kind(layer, *self._columns(tap), self.spec.slots)

    def _resized(self, node: fx.Node, module: nn.Module) -> nn.Module:
        layouts = [layout for layout in self.flow.dims[node] if layout is not None]
        if len(layouts) != 1:
            return resized_copy(module, 0, 0)
        return resized_copy(module, channels.num_chs(layouts[0]), self.width(layouts[0]))

    def _parameter(self, node: fx.Node) -> Any:
        """A tensor that the source's forward uses directly: learned vectors start at one, matrices as weights do,
        scalars and fixed tensors as they are in the source."""
        path, _, name = str(node.target).rpartition(".")
        tensor = getattr(self.source.model.get_submodule(path), name)
        dims = self.flow.dims[node]
        shape = [
            size if layout is None else self.width(layout) for size, layout in zip(tensor.shape, dims, strict=True)
        ]
        kept = tensor.detach()[tuple(slice(size) for size in shape)].clone()
        if not isinstance(tensor, nn.Parameter):
            return kept
        if sum(size > 1 for size in kept.shape) > 1:
            init_weight(kept, math.prod(kept.shape[1:]))
        elif kept.numel() > 1:
            kept = torch.ones_like(kept)
        return nn.Parameter(kept)

    def sizes_of(self, node: fx.Node, dims: Any, sizes: Any) -> list[Any]:
        """Sizes given as numbers, those of channel dimensions at the delta's width."""
        return [
            self.width(layout) if layout is not None and isinstance(size, int) and size > 1 else size
            for size, layout in zip(sizes, dims, strict=True)
        ]


def key_of(tap: str) -> str:
    """A tap's name as an identifier."""
    return tap.replace(".", "_")


Call = tuple[Any, tuple[Any, ...], dict[str, Any]]


def _rewrite_shape(derivation: _Derivation, node: fx.Node) -> Call:
    tensor, *sizes = node.args
    packed = len(sizes) == 1 and isinstance(sizes[0], tuple | list)
    given = sizes[0] if packed else sizes
    dims = derivation.flow.dims[node]
    if len(given) != len(dims):  # type: ignore[arg-type]
        return node.target, node.args, dict(node.kwargs)
    new = derivation.sizes_of(node, dims, given)
    return node.target, (tensor, tuple(new)) if packed else (tensor, *new), dict(node.kwargs)


def _rewrite_split(derivation: _Derivation, node: fx.Node) -> Call:
    dim = argument(node, 2, "dim", 0)
    parts = [part[dim] for part in derivation.flow.dims[node]]
    if any(part is None for part in parts):
        return node.target, node.args, dict(node.kwargs)
    sizes = [derivation.width(part) for part in parts]
    if node.op == "call_method":
        return "split", (node.args[0], sizes, dim), {}
    return torch.split, (node.args[0], sizes, dim), {}


def _rewrite_getitem(derivation: _Derivation, node: fx.Node) -> Call:
    source, index = node.args
    dims = derivation.flow.of(source)
    if not isinstance(dims, tuple):
        return node.target, node.args, {}
    parts = []
    for dim, part in slice_dims(index, len(dims)):
        layout = dims[dim]
        if layout is not None and isinstance(part, slice) and part != slice(None):
            start, stop, _ = slice(*value((part.start, part.stop))).indices(channels.num_chs(layout))
            before, taken = channels.pieces(layout, [start, stop - start])
            first = derivation.width(before)
            part = slice(first, first + derivation.width(taken))
        parts.append(part)
    return node.target, (source, tuple(parts)), {}


_REWRITES: dict[str, Callable[[_Derivation, fx.Node], Call]] = {
    **dict.fromkeys(("view", "reshape", "expand"), _rewrite_shape),
    **dict.fromkeys(("split", "chunk", "split_with_sizes", "tensor_split"), _rewrite_split),
    "getitem": _rewrite_getitem,
}
