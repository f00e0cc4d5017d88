"""A folded body's graph as the steps that the kernel knows."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from timm.layers import BatchNormAct2d, Conv2dSame
from torch import Tensor, fx, nn

from torchsnow.compile.native.packing import numbers
from torchsnow.delta import Delta
from torchsnow.delta.derive import PICKED, key_of
from torchsnow.delta.fold import FoldedLayer
from torchsnow.delta.follow import argument
from torchsnow.errors import CompileError
from torchsnow.pooling import Subscription
from torchsnow.source import Source
from torchsnow.source.graph import VALUE

CONV, DEPTHWISE, ACT, ADD, MUL, MAXPOOL, AVGPOOL, MEAN, NORM, CAT, SLICE = range(11)
NONE, RELU, RELU6, SILU, SIGMOID, HARDSWISH, HARDSIGMOID, GELU, GELU_TANH = range(9)
NOTHING, IMAGE = -1, -2  # in place of a slot
CONSTANTS = -3  # the first of the values that are numbers of the delta
_FUSED_ACTS = (NONE, RELU, RELU6)

_ACTS: Mapping[Any, int] = {
    nn.ReLU: RELU,
    nn.ReLU6: RELU6,
    nn.SiLU: SILU,
    nn.Sigmoid: SIGMOID,
    nn.Hardswish: HARDSWISH,
    nn.Hardsigmoid: HARDSIGMOID,
    nn.functional.gelu: GELU,
    torch.relu: RELU,
    nn.functional.relu: RELU,
    torch.sigmoid: SIGMOID,
    "relu": RELU,
    "sigmoid": SIGMOID,
}
_PERMUTES = ((0, 2, 3, 1), (0, 3, 1, 2))  # channels to the end, and back
_SAME_VALUE = (nn.Identity, nn.Dropout, nn.Flatten)


@dataclass
class Step:
    """One operation while the graph is read: inputs and output are still numbers of values, not slots."""

    kind: int
    x: int
    out: int
    chs: int
    y: int = -1
    act: int = NONE
    tap: int = -1
    settings: dict[str, Any] = field(default_factory=dict)
    weight: np.ndarray | None = None
    bias: np.ndarray | None = None
    index: np.ndarray | None = None


class Reader:
    """Reads a folded body's graph, node by node."""

    def __init__(self, body: fx.GraphModule, delta: Delta, source: Source) -> None:
        self.body = body
        self.modules = dict(body.named_modules())
        self.tap_numbers = {name: i for i, name in enumerate(source.taps)}
        self.taps = {PICKED + key_of(name): name for name in delta.taps}
        self.indices = {name: delta.pools[key_of(name)] for name in delta.taps}
        self.sizes = {
            node.name: node.meta[VALUE].shape[2:]
            for node in source.traced.graph.nodes
            if isinstance(node.meta.get(VALUE), Tensor) and node.meta[VALUE].ndim == 4
        }
        self.values: dict[fx.Node, int] = {}
        self.constants: dict[int, np.ndarray] = {}
        self.steps: list[Step] = []

    def read(self) -> tuple[list[Step], int]:
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
        if isinstance(what, FoldedLayer | nn.Conv2d | nn.Linear):
            return self._conv(node, what)
        if kind in _ACTS or isinstance(what, nn.GELU):
            return self._act(node, _act_of(node, what, kind))
        if isinstance(what, _SAME_VALUE) or _is_same_value(node, kind):
            return self._in(node)
        if node.op == "get_attr" or kind in ("reshape", "view"):
            return self._constant(node)
        if isinstance(what, nn.LayerNorm):
            return self._norm(node, what)
        if isinstance(what, nn.BatchNorm2d):
            return self._batch_norm(node, what)
        if kind in (torch.cat, torch.concat):
            return self._cat(node)
        if kind is operator.getitem:
            return self._slice(node)
        if kind in (operator.add, torch.add, operator.iadd):
            return self._add(node)
        if kind in (operator.mul, torch.mul, "mul"):
            return self._mul(node)
        if isinstance(what, nn.AdaptiveAvgPool2d) and what.output_size in (1, (1, 1)):
            return self._step(MEAN, node)
        if kind == "mean" and node.args[1] in ((2, 3), [2, 3]):
            return self._step(MEAN, node)
        if isinstance(what, nn.MaxPool2d | nn.AvgPool2d):
            return self._pool(node, what)
        raise _unknown(node, what)

    def _in(self, node: fx.Node, place: int = 0) -> int:
        value = self._value_or_constant(node, place)
        if value in self.constants:
            raise _unknown(node, node.target)
        return value

    def _value_or_constant(self, node: fx.Node, place: int) -> int:
        given = node.args[place]
        if not isinstance(given, fx.Node):
            raise _unknown(node, node.target)
        return self.values[given]

    def _chs(self, value: int) -> int:
        return 3 if value == IMAGE else next(step.chs for step in reversed(self.steps) if step.out == value)

    def _step(self, kind: int, node: fx.Node, **more: Any) -> int:
        x = more.pop("x", None) or self._in(node)
        chs = more.pop("chs", None) or self._chs(x)
        if kind != CONV and x == IMAGE:
            raise CompileError("the backend 'native' reads the image by convolutions alone")
        self.steps.append(Step(kind, x, len(self.steps), chs, **more))
        return len(self.steps) - 1

    def _conv(self, node: fx.Node, layer: nn.Module) -> int:
        pooled = None
        if isinstance(layer, FoldedLayer):
            if layer.own is None:
                return self._entry(node, layer.pooled)
            pooled = _as_conv(layer.pooled)
        own = _as_conv(layer.own if isinstance(layer, FoldedLayer) else layer)
        if not isinstance(own, nn.Conv2d) or isinstance(own.padding, str):
            raise _unknown(node, own)
        bias = np.zeros(own.out_channels, np.float32) if own.bias is None else numbers(own.bias)
        settings = _window(own.kernel_size, own.stride, own.padding, own.dilation)
        settings["same"] = int(isinstance(own, Conv2dSame) or getattr(own, "same_pad", False))
        if own.groups == own.in_channels == own.out_channels > 1 and pooled is None:
            weight = numbers(own.weight).reshape(own.out_channels, -1).T
            return self._step(DEPTHWISE, node, chs=own.out_channels, settings=settings, weight=weight, bias=bias)
        parts, tap, index = [_dense(own)], -1, None
        if isinstance(pooled, nn.Conv2d):
            tap, index = self._picked(node.args[1])
            parts.append(pooled.weight)
        settings |= {"in_chs": own.in_channels, "num_pooled": 0 if index is None else len(index)}
        weight = np.concatenate([numbers(part).transpose(2, 3, 1, 0) for part in parts], axis=2)
        settings["depth"] = weight.size // own.out_channels
        weight = weight.reshape(-1, own.out_channels)
        more = {"settings": settings, "weight": weight, "bias": bias, "index": index}
        return self._step(CONV, node, chs=own.out_channels, tap=tap, **more)

    def _picked(self, picked: Any) -> tuple[int, np.ndarray]:
        """The number of a tap, and the channels of it that the delta reads."""
        name = self.taps[str(picked.target)]
        pool = self.indices[name]
        assert isinstance(pool, Subscription)
        return self.tap_numbers[name], pool.index.numpy().astype(np.int32)

    def _entry(self, node: fx.Node, conv: nn.Module) -> int:
        """A body's beginning at a tap: a 1x1 convolution without input of its own."""
        assert isinstance(conv, nn.Conv2d)
        assert conv.bias is not None  # of the norm that is folded into it
        tap, index = self._picked(node.args[0])
        settings = _window(1, 1, 0, 1) | {"same": 0, "in_chs": 0, "num_pooled": len(index), "depth": len(index)}
        weight = numbers(conv.weight).reshape(conv.out_channels, -1).T
        more = {"settings": settings, "weight": weight, "bias": numbers(conv.bias), "index": index}
        return self._step(CONV, node, x=NOTHING, chs=conv.out_channels, tap=tap, **more)

    def _act(self, node: fx.Node, act: int) -> int:
        value = self._in(node)
        before = self._only_for(node, value)
        if act in _FUSED_ACTS and before is not None and before.act == NONE and before.kind in (CONV, DEPTHWISE):
            before.act = act
            return value
        return self._step(ACT, node, act=act)

    def _add(self, node: fx.Node) -> int:
        """An addition, done by the convolution that makes the later of its two sides where nobody else reads that."""
        self._refuse_broadcast(node)
        one, other = self._in(node, 0), self._in(node, 1)
        later, earlier = max(one, other), min(one, other)
        before = self._only_for(node, later)
        if before is not None and (before.kind, before.act, before.y) == (CONV, NONE, -1) and one != other:
            before.y = earlier
            return later
        return self._step(ADD, node, y=other)

    def _refuse_broadcast(self, node: fx.Node) -> None:
        """The kernel adds maps of one size; a delta's are those of the source's nodes of the same names."""
        sizes = {self.sizes[side.name] for side in node.args if isinstance(side, fx.Node) and side.name in self.sizes}
        if len(sizes) > 1:
            raise _unknown(node, node.target)

    def _mul(self, node: fx.Node) -> int:
        """A product; one with a number for each channel is done by the convolution that makes the other side."""
        x, factors = self._in(node), self.constants.get(self._value_or_constant(node, 1))
        if factors is None:
            return self._step(MUL, node, y=self._in(node, 1))
        before = self._only_for(node, x)
        if before is None or (before.kind, before.act, before.y) != (CONV, NONE, -1) or before.chs != len(factors):
            raise _unknown(node, node.target)
        assert before.weight is not None
        assert before.bias is not None
        before.weight, before.bias = before.weight * factors, before.bias * factors
        return x

    def _constant(self, node: fx.Node) -> int:
        """A vector of the delta, in any shape: a value without a step."""
        if node.op == "get_attr":
            path, _, name = str(node.target).rpartition(".")
            number = CONSTANTS - len(self.constants)
            self.constants[number] = numbers(getattr(self.body.get_submodule(path), name)).reshape(-1)
            return number
        number = self._value_or_constant(node, 0)
        if number not in self.constants:
            raise _unknown(node, node.target)
        return number

    def _norm(self, node: fx.Node, norm: nn.LayerNorm) -> int:
        chs = self._chs(self._in(node))
        if tuple(norm.normalized_shape) != (chs,):
            raise _unknown(node, norm)
        weight, bias = (None if part is None else numbers(part) for part in (norm.weight, norm.bias))
        weight = np.ones((1, chs), np.float32) if weight is None else weight[None]
        bias = np.zeros(chs, np.float32) if bias is None else bias
        return self._step(NORM, node, settings={"epsilon": norm.eps}, weight=weight, bias=bias)

    def _batch_norm(self, node: fx.Node, norm: nn.BatchNorm2d) -> int:
        """One that no convolution could take over: a factor and a shift for each channel, and an activation."""
        if norm.running_mean is None or norm.running_var is None:
            raise _unknown(node, norm)
        factor = (norm.running_var + norm.eps).rsqrt() * (1 if norm.weight is None else norm.weight)
        shift = (0 if norm.bias is None else norm.bias) - norm.running_mean * factor
        act = norm.act if isinstance(norm, BatchNormAct2d) else nn.Identity()
        if type(act) not in _ACTS and not isinstance(act, nn.GELU | nn.Identity):
            raise _unknown(node, act)
        code = NONE if isinstance(act, nn.Identity) else _act_of(node, act, type(act))
        fused = code if code in _FUSED_ACTS else NONE
        more = {"settings": _window(1, 1, 0, 1), "weight": numbers(factor)[None], "bias": numbers(shift), "act": fused}
        value = self._step(DEPTHWISE, node, **more)
        if fused != code:
            self.steps.append(Step(ACT, value, value + 1, self._chs(value), act=code))
        return len(self.steps) - 1

    def _cat(self, node: fx.Node) -> int:
        """Maps side by side, two at a time."""
        parts, dim = argument(node, 0, "tensors"), argument(node, 1, "dim", 0)
        values = [self.values.get(part, IMAGE) for part in parts if isinstance(part, fx.Node)]
        if dim != 1 or self._reordered or min(values) < 0:
            raise _unknown(node, node.target)
        x = values[0]
        for y in values[1:]:
            own = self._chs(x)
            self.steps.append(Step(CAT, x, len(self.steps), own + self._chs(y), y=y, settings={"in_chs": own}))
            x = len(self.steps) - 1
        return x

    def _slice(self, node: fx.Node) -> int:
        """Some channels of a map: `x[:, first:last]`, or one of the parts that `torch.split` makes."""
        whole, index = node.args
        span = _span_of(whole, index)
        if span is None or self._reordered:
            raise _unknown(node, node.target)
        settings = {"in_chs": span[0]}
        self.steps.append(Step(SLICE, self._in(node), len(self.steps), span[1] - span[0], settings=settings))
        return len(self.steps) - 1

    @property
    def _reordered(self) -> bool:
        """Whether a tensor of this graph may have its channels elsewhere than second."""
        return any(node.target in ("permute", torch.permute) for node in self.body.graph.nodes)

    def _only_for(self, node: fx.Node, value: int) -> Step | None:
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


def _is_same_value(node: fx.Node, kind: Any) -> bool:
    """Whether an operation returns what it reads. A map has its channels last, whatever the order of its dimensions;
    which part of a split is meant is told later."""
    if kind == "permute":
        return node.args[1:] in _PERMUTES
    off = kind is nn.functional.dropout and node.kwargs.get("training") is False
    return off or kind in ("flatten", "split", torch.split)


def _span_of(whole: Any, index: Any) -> tuple[int, int] | None:
    """The first channel that an index takes of a map, or of its parts, and the first that it does not; None for
    anything else than whole runs of channels."""
    if isinstance(index, int) and len(whole.args) == 3 and whole.args[2] == 1:  # torch.split(x, sizes, 1)
        sizes = whole.args[1]
        if not isinstance(sizes, Sequence):
            return None
        place = index % len(sizes)
        return sum(sizes[:place]), sum(sizes[: place + 1])
    if not isinstance(index, tuple) or len(index) < 2 or not isinstance(index[1], slice):
        return None
    first, last, step = index[1].start, index[1].stop, index[1].step
    others = all(part in (slice(None), ...) for part in (index[0], *index[2:]))
    if not others or step is not None or not (type(first) is type(last) is int):
        return None
    return (first, last) if 0 <= first < last else None


def _act_of(node: fx.Node, what: Any, kind: Any) -> int:
    how = what.approximate if isinstance(what, nn.GELU) else node.kwargs.get("approximate", "none")
    return GELU_TANH if how == "tanh" else _ACTS.get(kind, GELU)


def _as_conv(layer: nn.Module | None) -> nn.Module | None:
    """A linear layer over the channels of a map as the 1x1 convolution that it is."""
    if not isinstance(layer, nn.Linear):
        return layer
    conv = nn.Conv2d(layer.in_features, layer.out_features, 1, bias=layer.bias is not None)
    conv.weight, conv.bias = nn.Parameter(layer.weight[..., None, None]), layer.bias
    return conv


def _dense(conv: nn.Conv2d) -> Tensor:
    """The weight of a convolution as if it had one group: what a group does not read has zeros. Deltas are narrow, so
    that is often no more than a vector holds anyway."""
    outs, ins = (chs // conv.groups for chs in (conv.out_channels, conv.in_channels))
    weight = conv.weight.new_zeros(conv.out_channels, conv.in_channels, *conv.kernel_size)
    for group in range(conv.groups):
        rows, columns = (slice(group * size, (group + 1) * size) for size in (outs, ins))
        weight[rows, columns] = conv.weight[rows]
    return weight


def _window(kernel: Any, stride: Any, padding: Any, dilation: Any) -> dict[str, int]:
    pairs = {"kernel": kernel, "stride": stride, "pad": padding, "dilation": dilation}
    both = {name: value if isinstance(value, tuple) else (value, value) for name, value in pairs.items()}
    return {f"{name}_{axis}": int(pair[i]) for name, pair in both.items() for i, axis in enumerate("hw")}


def _unknown(node: fx.Node, what: Any) -> CompileError:
    name = type(what).__name__ if isinstance(what, nn.Module) else getattr(what, "__name__", what)
    return CompileError(
        f"the backend 'native' does not know {name} as in {node.name!r}, which deltas of this source use"
    )
