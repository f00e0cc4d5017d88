"""A folded delta as the operations that the kernel knows."""

from __future__ import annotations

import ctypes
import operator
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from timm.layers import Conv2dSame
from torch import Tensor, fx, nn

from torchsnow.compile.native.build import kernel as compiled_kernel
from torchsnow.compile.native.mirrors import HeadParams, Op, Params
from torchsnow.delta import Delta
from torchsnow.delta.derive import PICKED, key_of
from torchsnow.delta.fold import FoldedLayer
from torchsnow.delta.head import Head
from torchsnow.errors import CompileError
from torchsnow.pooling import Subscription
from torchsnow.source import Source

CONV, DEPTHWISE, ACT, ADD, MUL, MAXPOOL, AVGPOOL, MEAN = range(8)
NONE, RELU, RELU6, SILU, SIGMOID, HARDSWISH, HARDSIGMOID, GELU = range(8)
IMAGE = -2  # in place of a slot
_FUSED_ACTS = (NONE, RELU, RELU6)

_ACTS: Mapping[Any, int] = {
    nn.ReLU: RELU,
    nn.ReLU6: RELU6,
    nn.SiLU: SILU,
    nn.Sigmoid: SIGMOID,
    nn.Hardswish: HARDSWISH,
    nn.Hardsigmoid: HARDSIGMOID,
    nn.GELU: GELU,
    torch.relu: RELU,
    nn.functional.relu: RELU,
    torch.sigmoid: SIGMOID,
    "relu": RELU,
    "sigmoid": SIGMOID,
}
_SAME_VALUE = (nn.Identity, nn.Dropout, nn.Flatten)


@dataclass
class _Step:
    """One operation while the graph is read: inputs and output are still numbers of values, not slots."""

    kind: int
    x: int
    out: int
    chs: int
    y: int = -1
    act: int = NONE
    tap: int = -1
    settings: dict[str, int] = field(default_factory=dict)
    weight: np.ndarray | None = None
    bias: np.ndarray | None = None
    index: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Lowered:
    """A delta for the kernel. Deltas of equal `shape` can be run together.

    `taps` are the numbers of the taps, in the source's order, that layers or averages read; `reads` says which of them
    each operation reads (-1: none), and `reads_from` which are read by all from one on; `reads_last` says whether the
    head reads the source's last features.
    """

    shape: bytes
    ops: Any
    num_ops: int
    num_slots: int
    result: int
    params: Any
    head: HeadParams
    averaged: np.ndarray
    taps: frozenset[int]
    reads: tuple[int, ...]
    reads_from: tuple[frozenset[int], ...]
    reads_last: bool
    kept: tuple[Any, ...]


def lower(delta: Delta, source: Source) -> Lowered:
    """Raises CompileError for a folded delta with an operation that the kernel does not know, naming it."""
    reader = _Reader(delta, source)
    steps, result = reader.read()
    slots, num_slots = _slots(steps, result)
    ops = (Op * len(steps))(*(_op(step, slots) for step in steps))
    params, kept = _params(steps)
    head, averaged, reads_last, head_kept = _head(delta, source)
    reads = tuple(step.tap for step in steps)
    taps = frozenset(set(reads) - {-1} | {int(tap) for tap in np.flatnonzero(averaged)})
    return Lowered(
        bytes(ops),
        ops,
        len(steps),
        num_slots,
        slots[result],
        params,
        head,
        averaged,
        taps,
        reads,
        tuple(frozenset(reads[i:]) for i in range(len(reads) + 1)),
        reads_last,
        (kept, head_kept),
    )


class _Reader:
    """Reads a folded body's graph, node by node."""

    def __init__(self, delta: Delta, source: Source) -> None:
        self.body = delta.body
        self.modules = dict(delta.body.named_modules())
        self.tap_numbers = {name: i for i, name in enumerate(source.taps)}
        self.taps = {PICKED + key_of(name): name for name in delta.taps}
        self.indices = {name: delta.pools[key_of(name)] for name in delta.taps}
        self.values: dict[fx.Node, int] = {}
        self.steps: list[_Step] = []

    def read(self) -> tuple[list[_Step], int]:
        """The steps, and which value is the body's result."""
        for node in self.body.graph.nodes:
            if node.op == "placeholder":
                if node.target not in self.taps:
                    self.values[node] = IMAGE
            elif node.op == "output":
                return self.steps, self._in(node)
            else:
                self.values[node] = self._value(node)
        raise AssertionError("a graph ends in its output")

    def _value(self, node: fx.Node) -> int:
        what = self.modules[str(node.target)] if node.op == "call_module" else node.target
        kind = type(what) if node.op == "call_module" else what
        if isinstance(what, FoldedLayer | nn.Conv2d):
            return self._conv(node, what)
        if kind in _ACTS:
            return self._act(node, _ACTS[kind])
        if isinstance(what, _SAME_VALUE) or kind == "flatten":
            return self._in(node)
        if kind in (operator.add, torch.add, operator.iadd):
            return self._add(node)
        if kind in (operator.mul, torch.mul):
            return self._step(MUL, node, y=self._in(node, 1))
        if isinstance(what, nn.AdaptiveAvgPool2d) and what.output_size in (1, (1, 1)):
            return self._step(MEAN, node)
        if kind == "mean" and node.args[1] in ((2, 3), [2, 3]):
            return self._step(MEAN, node)
        if isinstance(what, nn.MaxPool2d | nn.AvgPool2d):
            return self._pool(node, what)
        raise _unknown(node, what)

    def _in(self, node: fx.Node, place: int = 0) -> int:
        given = node.args[place]
        if not isinstance(given, fx.Node):
            raise _unknown(node, node.target)
        return self.values[given]

    def _chs(self, value: int) -> int:
        return 3 if value == IMAGE else next(step.chs for step in reversed(self.steps) if step.out == value)

    def _step(self, kind: int, node: fx.Node, **more: Any) -> int:
        x = self._in(node)
        chs = more.pop("chs", None) or self._chs(x)
        if kind in (MEAN, MUL, ADD, ACT) and x == IMAGE:
            raise CompileError("the backend 'native' reads the image by convolutions alone")
        self.steps.append(_Step(kind, x, len(self.steps), chs, **more))
        return len(self.steps) - 1

    def _conv(self, node: fx.Node, layer: nn.Module) -> int:
        own = layer.own if isinstance(layer, FoldedLayer) else layer
        if not isinstance(own, nn.Conv2d) or isinstance(own.padding, str):
            raise _unknown(node, own)
        bias = np.zeros(own.out_channels, np.float32) if own.bias is None else _numbers(own.bias)
        settings = _window(own.kernel_size, own.stride, own.padding, own.dilation)
        settings["same"] = int(isinstance(own, Conv2dSame) or getattr(own, "same_pad", False))
        if own.groups == own.in_channels == own.out_channels > 1 and own is layer:
            weight = _numbers(own.weight).reshape(own.out_channels, -1).T
            return self._step(DEPTHWISE, node, chs=own.out_channels, settings=settings, weight=weight, bias=bias)
        if own.groups != 1:
            raise _unknown(node, own)
        parts, tap, index = [own.weight], -1, None
        if isinstance(layer, FoldedLayer):
            picked = node.args[1]
            assert isinstance(picked, fx.Node)
            name = self.taps[str(picked.target)]
            pool = self.indices[name]
            assert isinstance(pool, Subscription)
            tap, index = self.tap_numbers[name], pool.index.numpy().astype(np.int32)
            parts.append(layer.pooled.weight)
        settings |= {"in_chs": own.in_channels, "num_pooled": 0 if index is None else len(index)}
        weight = np.concatenate([_numbers(part).transpose(2, 3, 1, 0) for part in parts], axis=2)
        settings["depth"] = weight.size // own.out_channels
        weight = weight.reshape(-1, own.out_channels)
        more = {"settings": settings, "weight": weight, "bias": bias, "index": index}
        return self._step(CONV, node, chs=own.out_channels, tap=tap, **more)

    def _act(self, node: fx.Node, act: int) -> int:
        value = self._in(node)
        before = self._only_for(node, value)
        if act in _FUSED_ACTS and before is not None and before.act == NONE and before.kind in (CONV, DEPTHWISE):
            before.act = act
            return value
        return self._step(ACT, node, act=act)

    def _add(self, node: fx.Node) -> int:
        """An addition, done by the convolution that makes the later of its two sides where nobody else reads that."""
        one, other = self._in(node, 0), self._in(node, 1)
        later, earlier = max(one, other), min(one, other)
        before = self._only_for(node, later)
        if before is not None and (before.kind, before.act, before.y) == (CONV, NONE, -1) and one != other:
            before.y = earlier
            return later
        return self._step(ADD, node, y=other)

    def _only_for(self, node: fx.Node, value: int) -> _Step | None:
        """The step that made a value, if it is made for this node alone."""
        names = [made for made, number in self.values.items() if number == value]
        waiting = {user for made in names for user in made.users if user not in self.values}
        read = any(value in (step.x, step.y) for step in self.steps)
        return None if value < 0 or read or waiting != {node} else self.steps[value]

    def _pool(self, node: fx.Node, pool: nn.MaxPool2d | nn.AvgPool2d) -> int:
        if getattr(pool, "divisor_override", None) or type(pool) not in (nn.MaxPool2d, nn.AvgPool2d):
            raise _unknown(node, pool)
        dilation = pool.dilation if isinstance(pool, nn.MaxPool2d) else 1
        settings = _window(pool.kernel_size, pool.stride, pool.padding, dilation) | {"ceil": int(pool.ceil_mode)}
        if isinstance(pool, nn.AvgPool2d):
            settings["count_pad"] = int(pool.count_include_pad)
        kind = MAXPOOL if isinstance(pool, nn.MaxPool2d) else AVGPOOL
        return self._step(kind, node, settings=settings)


def _window(kernel: Any, stride: Any, padding: Any, dilation: Any) -> dict[str, int]:
    pairs = {"kernel": kernel, "stride": stride, "pad": padding, "dilation": dilation}
    both = {name: value if isinstance(value, tuple) else (value, value) for name, value in pairs.items()}
    return {f"{name}_{axis}": int(pair[i]) for name, pair in both.items() for i, axis in enumerate("hw")}


def _slots(steps: list[_Step], result: int) -> tuple[dict[int, int], int]:
    """A place in memory for every value; places are used again once nobody reads what is there."""
    last_read = {value: i for i, step in enumerate(steps) for value in (step.x, step.y)}
    last_read[result] = len(steps)
    slots, free, count = {IMAGE: IMAGE, -1: -1}, list[int](), 0
    for i, step in enumerate(steps):
        if not free:
            free.append(count)
            count += 1
        slots[step.out] = free.pop()
        done = {value for value in (step.x, step.y, step.out) if value >= 0 and last_read.get(value, i) <= i}
        free += [slots[value] for value in done]
    return slots, count


def _op(step: _Step, slots: Mapping[int, int]) -> Op:
    places = {"x": slots[step.x], "y": slots[step.y], "out": slots[step.out]}
    return Op(kind=step.kind, act=step.act, tap=step.tap, out_chs=step.chs, **places, **step.settings)


def _params(steps: list[_Step]) -> tuple[Any, list[np.ndarray]]:
    """The numbers of every step, laid out as the kernel reads them, and what must be kept for them."""
    params, kept = (Params * len(steps))(), []
    for i, step in enumerate(steps):
        arrays = {"index": step.index}
        if step.weight is not None and step.bias is not None:
            arrays["weight"] = _packed(step.weight) if step.kind == CONV else _padded(step.weight)
            arrays["bias"] = _padded(step.bias[None])[0]
        for name, array in arrays.items():
            if array is not None:
                setattr(params[i], name, array.ctypes.data)
                kept.append(array)
    return params, kept


def _packed(weight: np.ndarray) -> np.ndarray:
    depth, chs = weight.shape
    weight = np.ascontiguousarray(weight, np.float32)
    packed = np.empty(depth * compiled_kernel().block_stride(chs), np.float32)
    pointers = (ctypes.c_void_p(weight.ctypes.data), depth, chs, ctypes.c_void_p(packed.ctypes.data))
    compiled_kernel().pack(*pointers)
    return packed


def _padded(weight: np.ndarray) -> np.ndarray:
    stride = compiled_kernel().block_stride(weight.shape[1])
    return np.ascontiguousarray(np.pad(weight, ((0, 0), (0, stride - weight.shape[1]))), np.float32)


def _head(delta: Delta, source: Source) -> tuple[HeadParams, np.ndarray, bool, list[np.ndarray]]:
    """A head with its standardisation folded; its index counts the averages of all taps, then the last features."""
    averaged = np.zeros(len(source.taps), np.uint8)
    if isinstance(delta.head, nn.Linear):
        own, bias = _numbers(delta.head.weight), _numbers(delta.head.bias)
        columns, index = np.zeros((0, len(own)), np.float32), np.zeros(0, np.int32)
    else:
        head = delta.head
        assert isinstance(head, Head)
        assert isinstance(head.pool, Subscription)
        weight = (head.fc.columns * head.pool.weight * head.scale / head.spread).detach().double()
        own = _numbers(head.fc.local.weight)
        bias = _numbers((head.fc.local.bias.double() - weight @ head.center.double()).float())
        columns, index = _numbers(weight.float()).T, _places(head, source)[head.pool.index.numpy()]
        tap_of = np.repeat(np.arange(len(source.taps)), [tap.num_chs for tap in source.taps.values()])
        averaged[np.unique(tap_of[index[index < len(tap_of)]])] = 1
    sizes = sum(tap.num_chs for tap in source.taps.values())
    arrays = [own, _padded(columns), bias, np.ascontiguousarray(index, np.int32)]
    pointers = dict(zip(("own", "columns", "bias", "index"), (array.ctypes.data for array in arrays), strict=True))
    params = HeadParams(own_chs=own.shape[1], num_read=len(index), num_classes=len(own), **pointers)
    return params, averaged, bool((index >= sizes).any()), arrays


def _places(head: Head, source: Source) -> np.ndarray:
    """Where the values that a head may read stand among the averages of all taps and the last features."""
    starts, total = {}, 0
    for name, tap in source.taps.items():
        starts[name] = total
        total += tap.num_chs
    places = [np.arange(starts[name], starts[name] + source.taps[name].num_chs) for name in head.taps]
    if head.last:
        places.append(np.arange(total, total + source.num_features))
    return np.concatenate(places).astype(np.int32)


def _numbers(tensor: Tensor) -> np.ndarray:
    return np.ascontiguousarray(tensor.detach().float().cpu().numpy())


def _unknown(node: fx.Node, what: Any) -> CompileError:
    name = type(what).__name__ if isinstance(what, nn.Module) else getattr(what, "__name__", what)
    return CompileError(
        f"the backend 'native' does not know {name} as in {node.name!r}, which deltas of this source use"
    )
