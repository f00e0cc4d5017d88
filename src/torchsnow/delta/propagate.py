"""How each operation of a network carries channel layouts from what it reads to what it returns.

A value's `Dims` has one entry per dimension: the layout of the channels that stand there, or None where there are
none (batch, height, width, the three colours of the image).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from torchsnow.delta import channels
from torchsnow.delta.channels import Layout, Span
from torchsnow.errors import DeltaError
from torchsnow.source.graph import VALUE

Dims = tuple[Layout | None, ...]


def value(argument: Any) -> Any:
    """What an argument of a node is: for a node its meta value, and containers of those."""
    return fx.node.map_arg(argument, lambda node: node.meta[VALUE])


class Flow:
    """The layouts of every value of a traced network.

    `dims[node]` is the Dims of a tensor, or a list of Dims where the node returns several tensors.
    Raises DeltaError for an operation whose channels cannot be propagated.
    """

    def __init__(self, traced: fx.GraphModule) -> None:
        self.traced = traced
        self.dims: dict[fx.Node, Any] = {}
        for node in traced.graph.nodes:
            if node.op == "output":
                continue
            try:
                self.dims[node] = self._propagate(node)
            except (DeltaError, AssertionError, IndexError, ValueError) as error:
                raise DeltaError(f"cannot propagate the channels through {node.format_node()}: {error}") from error

    def _propagate(self, node: fx.Node) -> Any:
        result = node.meta[VALUE]
        if node.op == "placeholder":
            return (None,) * result.ndim
        if node.op == "get_attr":
            return tuple([Span(size, scaled=False)] if size > 1 else None for size in result.shape)
        if node.op == "call_module":
            return _propagate_module(self, node, self.traced.get_submodule(str(node.target)))
        if not isinstance(result, Tensor | tuple | list) or isinstance(result, torch.Size):
            return None
        rule = RULES.get(operation(node), _broadcast)
        return rule(self, node)

    def of(self, argument: Any) -> Any:
        """The Dims of an argument, or None where it is not a tensor."""
        return self.dims[argument] if isinstance(argument, fx.Node) else None


def operation(node: fx.Node) -> str:
    """The plain name of a function or method: `torch.cat`, `Tensor.cat` and `operator.add` are "cat" and "add"."""
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    return name.strip("_")


def argument(node: fx.Node, position: int, name: str, default: Any = None) -> Any:
    """An argument of a node given by position or by name."""
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def _propagate_module(flow: Flow, node: fx.Node, module: nn.Module) -> Any:
    source = node.args[0]
    result = node.meta[VALUE]
    dims = flow.of(source)
    if isinstance(module, nn.Flatten):
        return _reshape(flow, node)
    if isinstance(module, nn.modules.conv._ConvNd):
        if module.groups == module.in_channels == module.out_channels and module.groups > 1:
            return (*dims[:2], *(None,) * (result.ndim - 2))
        along = [layout if a == b else None for layout, a, b in _aligned(dims, value(source), result)]
        return (None, [Span(module.out_channels)], *along[2:])
    if isinstance(module, nn.Linear):
        return (*dims[:-1], [Span(module.out_features)])
    if any(isinstance(part, nn.modules.conv._ConvNd | nn.Linear) for part in module.modules()):
        raise DeltaError(f"{type(module).__name__} holds convolutions that it does not show")
    return _broadcast(flow, node)


def _aligned(dims: Dims, before: Tensor, after: Tensor) -> list[tuple[Layout | None, int, int]]:
    return list(zip(dims, before.shape, after.shape, strict=True))


def _broadcast(flow: Flow, node: fx.Node) -> Any:
    """An operation that works channel by channel: layouts of one dimension must be one."""
    result = node.meta[VALUE]
    if not isinstance(result, Tensor):
        raise DeltaError("several results")
    operands = [arg for arg in (*node.args, *node.kwargs.values()) if isinstance(arg, fx.Node) and flow.of(arg)]
    merged: list[Layout | None] = [None] * result.ndim
    for operand in operands:
        shape = operand.meta[VALUE].shape
        lost = len(shape) - result.ndim
        if lost > 0:
            raise DeltaError(f"{tuple(shape)} becomes {tuple(result.shape)}")
        for dim, layout in enumerate(flow.of(operand), start=-lost):
            if shape[dim + lost] == result.shape[dim]:
                merged[dim] = _one(merged[dim], layout, result.shape[dim])
            elif layout is not None and shape[dim + lost] > 1 and result.shape[dim] > 1:
                raise DeltaError(f"{tuple(shape)} becomes {tuple(result.shape)}")
    _pin_mixed(flow, operands, merged, result)
    return tuple(merged)


def _one(first: Layout | None, second: Layout | None, size: int) -> Layout | None:
    if first is not None and second is not None and size > 1:
        channels.unify(first, second)
    return second if first is None else first


def _pin_mixed(flow: Flow, operands: list[fx.Node], merged: list[Layout | None], result: Tensor) -> None:
    """Channels added to something that does not shrink (the image, say) cannot shrink either."""
    for operand in operands:
        shape = operand.meta[VALUE].shape
        missing = result.ndim - len(shape)
        for dim, layout in enumerate(flow.of(operand), start=missing):
            combined = merged[dim]
            if combined is not None and layout is None and shape[dim - missing] == result.shape[dim] > 1:
                channels.pin(combined)


def _cat(flow: Flow, node: fx.Node) -> Any:
    tensors = argument(node, 0, "tensors")
    dim = argument(node, 1, "dim", 0)
    result = node.meta[VALUE]
    dim %= result.ndim
    merged: list[Layout | None] = [None] * result.ndim
    for other in range(result.ndim):
        if other != dim:
            for tensor in tensors:
                merged[other] = _one(merged[other], flow.of(tensor)[other], result.shape[other])
    if any(flow.of(tensor)[dim] is not None for tensor in tensors):
        merged[dim] = [
            span
            for tensor in tensors
            for span in flow.of(tensor)[dim] or [Span(tensor.meta[VALUE].shape[dim], scaled=False)]
        ]
    return tuple(merged)


def _stack(flow: Flow, node: fx.Node) -> Any:
    tensors = argument(node, 0, "tensors")
    result = node.meta[VALUE]
    dim = argument(node, 1, "dim", 0) % result.ndim
    merged: list[Layout | None] = [None] * (result.ndim - 1)
    for tensor in tensors:
        merged = [
            _one(a, b, size) for a, b, size in zip(merged, flow.of(tensor), tensors[0].meta[VALUE].shape, strict=True)
        ]
    return (*merged[:dim], None, *merged[dim:])


def _split(flow: Flow, node: fx.Node) -> Any:
    """split, chunk and unbind: several results along one dimension."""
    results = node.meta[VALUE]
    dims = flow.of(node.args[0])
    if operation(node) == "unbind":
        dim = argument(node, 1, "dim", 0) % len(dims)
        if dims[dim] is not None:
            raise DeltaError("unbind along channels")
        return [(*dims[:dim], *dims[dim + 1 :])] * len(results)
    dim = argument(node, 2, "dim", 0) % len(dims)
    if dims[dim] is None:
        return [dims] * len(results)
    parts = channels.pieces(dims[dim], [part.shape[dim] for part in results])
    return [(*dims[:dim], part, *dims[dim + 1 :]) for part in parts]


def slice_dims(index: Any, ndim: int) -> list[tuple[int, Any]]:
    """Which dimension of the tensor each part of an index speaks of; Raises DeltaError for None or tensors."""
    parts = list(index) if isinstance(index, tuple) else [index]
    if any(part is None or isinstance(part, Tensor | list | fx.Node) for part in parts):
        raise DeltaError(f"the index {index}")
    if Ellipsis in parts:
        at = parts.index(Ellipsis)
        parts[at : at + 1] = [slice(None)] * (ndim - len(parts) + 1)
    return list(enumerate(parts))


def _getitem(flow: Flow, node: fx.Node) -> Any:
    source, index = node.args
    dims = flow.of(source)
    if isinstance(dims, list):
        return dims[index] if isinstance(index, int) else None
    result: list[Layout | None] = list(dims)
    dropped = []
    shape = source.meta[VALUE].shape  # type: ignore[union-attr]
    for dim, part in slice_dims(index, len(dims)):
        if isinstance(part, int):
            dropped.append(dim)
        layout = dims[dim]
        if layout is None or part == slice(None):
            continue
        if not isinstance(part, slice) or part.step not in (None, 1):
            raise DeltaError("single channels are taken out")
        start, stop, _ = slice(*value((part.start, part.stop))).indices(shape[dim])
        result[dim] = channels.pieces(layout, [start, stop - start])[1]
    return tuple(layout for dim, layout in enumerate(result) if dim not in dropped)


def _permute(flow: Flow, node: fx.Node) -> Any:
    order = node.args[1] if isinstance(node.args[1], tuple | list) else node.args[1:]
    dims = flow.of(node.args[0])
    return tuple(dims[int(i)] for i in order)  # type: ignore[arg-type]


def _transpose(flow: Flow, node: fx.Node) -> Any:
    dims = list(flow.of(node.args[0]))
    first, second = (int(argument(node, i, f"dim{i - 1}")) for i in (1, 2))
    dims[first], dims[second] = dims[second], dims[first]
    return tuple(dims)


def _reduce(flow: Flow, node: fx.Node) -> Any:
    """mean, sum, amax, ...: the reduced dimensions go, or stay with size one."""
    result = node.meta[VALUE]
    if isinstance(argument(node, 1, "other"), fx.Node):  # max and min of two tensors
        return _broadcast(flow, node)
    if isinstance(result, tuple):  # max and min along a dimension
        return [_reduced(flow, node, part) for part in result]
    return _reduced(flow, node, result)


def _reduced(flow: Flow, node: fx.Node, result: Tensor) -> Dims:
    dims = flow.of(node.args[0])
    given = argument(node, 1, "dim")
    over = range(len(dims)) if given is None else ([given] if isinstance(given, int) else given)
    reduced = {dim % len(dims) for dim in over}
    if result.ndim == len(dims):
        return tuple(None if dim in reduced else layout for dim, layout in enumerate(dims))
    return tuple(layout for dim, layout in enumerate(dims) if dim not in reduced)


def _expand(flow: Flow, node: fx.Node) -> Any:
    source = node.args[0]
    result = node.meta[VALUE]
    dims = flow.of(source)
    grown = result.ndim - len(dims)
    shape = source.meta[VALUE].shape  # type: ignore[union-attr]
    kept = tuple(layout if a == b else None for layout, a, b in zip(dims, shape, result.shape[grown:], strict=True))
    if operation(node) == "expand_as":
        like = flow.of(node.args[1])
        kept = tuple(a if a is not None else b for a, b in zip(kept, like[grown:], strict=True))
    return (*(None,) * grown, *kept)


def _matmul(flow: Flow, node: fx.Node) -> Any:
    first, second = flow.of(node.args[0]), flow.of(node.args[1])
    result = node.meta[VALUE]
    if first[-1] is not None and second[-2] is not None:
        channels.unify(first[-1], second[-2])
    batch = [_one(a, b, 2) for a, b in zip(first[:-2], second[:-2], strict=True)]
    assert len(batch) + 2 == result.ndim
    return (*batch, first[-2], second[-1])


def _linear(flow: Flow, node: fx.Node) -> Any:
    """A linear layer by its function: its weight (out, in) is a value of the graph."""
    weight = flow.of(argument(node, 1, "weight"))
    dims = flow.of(node.args[0])
    if dims[-1] is not None:
        channels.unify(dims[-1], weight[1])
    for span in channels.spans(weight[0]):
        span.scaled = True
    if argument(node, 2, "bias") is not None:
        channels.unify(weight[0], flow.of(argument(node, 2, "bias"))[0])
    return (*dims[:-1], weight[0])


def _reshape(flow: Flow, node: fx.Node) -> Any:
    source = node.args[0]
    before, after = value(source).shape, node.meta[VALUE].shape
    result: list[Layout | None] = []
    for inputs, outputs in _matching(before, after):
        result.extend(_regroup([(before[i], flow.of(source)[i]) for i in inputs], [after[i] for i in outputs]))
    return tuple(result)


def _matching(before: Sequence[int], after: Sequence[int]) -> list[tuple[range, range]]:
    """The smallest consecutive groups of dimensions whose products agree."""
    groups = []
    i = j = 0
    while i < len(before) or j < len(after):
        end_i, end_j = min(i + 1, len(before)), min(j + 1, len(after))
        while (a := math.prod(before[i:end_i])) != (b := math.prod(after[j:end_j])):
            if a < b:
                end_i += 1
            else:
                end_j += 1
        if end_i == len(before) or end_j == len(after):  # only ones are left on either side
            end_i, end_j = len(before), len(after)
        groups.append((range(i, end_i), range(j, end_j)))
        i, j = end_i, end_j
    return groups


def _regroup(inputs: list[tuple[int, Layout | None]], outputs: list[int]) -> list[Layout | None]:
    wide = [(size, layout) for size, layout in inputs if size > 1]
    places = [i for i, size in enumerate(outputs) if size > 1]
    result: list[Layout | None] = [None] * len(outputs)
    if all(layout is None for _, layout in wide):
        return result
    if [size for size, _ in wide] == [outputs[i] for i in places]:
        for place, (_, layout) in zip(places, wide, strict=True):
            result[place] = layout
    elif len(places) == 1 and sum(layout is not None for _, layout in wide) == 1:
        # (q, C, r) -> q * C * r: each channel r times, and all of that q times over
        (at,) = (i for i, (_, layout) in enumerate(wide) if layout is not None)
        outer, inner = (math.prod(size for size, _ in part) for part in (wide[:at], wide[at + 1 :]))
        result[places[0]] = [span for span in channels.spans(wide[at][1] or []) for _ in range(inner)] * outer
    elif len(wide) == 1 and wide[0][1] is not None:
        # r * C -> (r, C): r runs that must shrink alike
        last = outputs[places[-1]]
        runs = channels.pieces(wide[0][1], [last] * (wide[0][0] // last))
        for run in runs[1:]:
            channels.unify(runs[0], run)
        result[places[-1]] = runs[0]
    else:
        raise DeltaError(f"channels are mixed with other dimensions: {[s for s, _ in inputs]} -> {outputs}")
    return result


RULES: dict[str, Callable[[Flow, fx.Node], Any]] = {
    **dict.fromkeys(("cat", "concat", "concatenate"), _cat),
    **dict.fromkeys(("split", "chunk", "unbind", "split_with_sizes", "tensor_split"), _split),
    **dict.fromkeys(("mean", "sum", "amax", "amin", "max", "min", "norm", "var", "std"), _reduce),
    **dict.fromkeys(("view", "reshape", "flatten", "squeeze", "unsqueeze"), _reshape),
    **dict.fromkeys(("expand", "expand_as"), _expand),
    **dict.fromkeys(("matmul", "bmm"), _matmul),
    "linear": _linear,
    "stack": _stack,
    "getitem": _getitem,
    "permute": _permute,
    "transpose": _transpose,
}
