"""A network as a graph of leaf modules and functions, with the shape of every value.

The graph is torch.fx's. While it is traced every node is also run on the meta device (shapes without numbers), so
control flow that depends on a shape is resolved at the traced image size instead of failing.
"""

from __future__ import annotations

import copy
import linecache
import operator
from collections.abc import Callable
from types import ModuleType
from typing import Any

import timm.layers
import torch
from timm.layers import evo_norm, filter_response_norm
from timm.layers.grn import GlobalResponseNorm
from timm.models._features_fx import get_notrace_functions, get_notrace_modules
from timm.models.nfnet import NormFreeBlock
from timm.models.vgg import ConvMlp
from torch import Tensor, fx, nn

from torchsnow.errors import SourceError

VALUE = "val"  # key of a node's meta value in `node.meta`


def _layers_in(module: ModuleType) -> list[type[nn.Module]]:
    return [value for value in vars(module).values() if isinstance(value, type) and issubclass(value, nn.Module)]


# Layers that stay one node: each only follows the width of what it reads, and is resized as a whole.
_LEAVES = (
    timm.layers.BlurPool2d,
    timm.layers.GroupNorm,
    timm.layers.GroupNorm1,
    timm.layers.GroupNormAct,
    timm.layers.LayerNorm,
    timm.layers.LayerNorm2d,
    timm.layers.LayerNormAct,
    timm.layers.LayerNormAct2d,
    timm.layers.RmsNorm,
    timm.layers.RmsNorm2d,
    timm.layers.ScaledStdConv2d,
    timm.layers.SimpleNorm,
    timm.layers.SimpleNorm2d,
    timm.layers.StdConv2d,
    GlobalResponseNorm,
    *_layers_in(evo_norm),
    *_layers_in(filter_response_norm),
)
# timm keeps these whole only because plain fx cannot trace their control flow; ours can.
_TRACEABLE = (NormFreeBlock, ConvMlp)


def is_attention(module: nn.Module) -> bool:
    """Whether a layer mixes positions by attention: it stays whole, for what is read inside it is no map."""
    name = type(module).__name__
    return "Attention" in name and "Pool" not in name


class _Tracer(fx.Tracer):
    """fx's tracer that keeps timm's layers whole and knows the shape of every value."""

    def __init__(self, image: Tensor) -> None:
        super().__init__(autowrap_functions=tuple(get_notrace_functions()))
        kept = [module for module in get_notrace_modules() if module not in _TRACEABLE]
        self._leaves = (*kept, *_LEAVES)
        self._image = image
        self._evaluating = False

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, self._leaves) or is_attention(m) or super().is_leaf_module(m, module_qualified_name)

    def create_node(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **named: Any) -> fx.Node:
        node = super().create_node(kind, target, args, kwargs, *rest, **named)
        if kind == "get_attr":  # here, because a buffer among the arguments of a function gets no proxy
            self._set_value(node)
        return node

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **named: Any) -> fx.Proxy:
        proxy = super().create_proxy(kind, target, args, kwargs, *rest, **named)
        if kind == "placeholder":
            proxy.node.meta[VALUE] = self._image
        elif kind not in ("output", "get_attr"):
            self._set_value(proxy.node)
        return proxy

    def _set_value(self, node: fx.Node) -> None:
        self._evaluating = True
        try:
            node.meta[VALUE] = self._evaluate(node)
        finally:
            self._evaluating = False

    def _evaluate(self, node: fx.Node) -> Any:
        args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), lambda n: n.meta[VALUE])
        if node.op == "call_module":
            return self.root.get_submodule(str(node.target)).forward(*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        if node.op == "get_attr":
            return operator.attrgetter(str(node.target))(self.root)
        assert callable(node.target)
        return node.target(*args, **kwargs)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        return forward(*args, **kwargs) if self._evaluating else super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        return attr_val if self._evaluating else super().getattr(attr, attr_val, parameter_proxy_cache)

    def to_bool(self, obj: fx.Proxy) -> bool:
        return bool(obj.node.meta[VALUE])


def to_meta(model: nn.Module) -> nn.Module:
    """A copy of `model` with shapes but no numbers; nothing is duplicated in memory."""
    shapes: dict[int, Any] = {}
    for parameter in model.parameters():
        shapes[id(parameter)] = nn.Parameter(parameter.to("meta"), requires_grad=False)
    for buffer in model.buffers():
        shapes[id(buffer)] = buffer.to("meta")
    return copy.deepcopy(model, shapes)


def trace(model: nn.Module, input_size: tuple[int, int, int]) -> fx.GraphModule:
    """Trace `model` on an image of `input_size` (channels, height, width).

    Returns the graph, free of in-place operations, over a meta copy of the model; `node.meta[VALUE]` of a node is
    what it computes for a batch of two.
    Raises SourceError when the forward pass cannot be traced or the image size does not fit.
    """
    shapes = to_meta(model).eval()
    for module in shapes.modules():
        if getattr(module, "inplace", False):
            setattr(module, "inplace", False)  # noqa: B010
    _take_images_alone(shapes)
    tracer = _Tracer(torch.empty(2, *input_size, device="meta"))
    try:
        with torch.no_grad():
            graph = tracer.trace(shapes)
    except Exception as error:
        what = str(error).strip().split("\n")[0]
        raise SourceError(f"cannot trace {type(model).__name__} on an image of {input_size}: {what}") from error
    if any(node.op == "get_attr" and "_tensor_constant" in str(node.target) for node in graph.nodes):
        raise SourceError(
            f"cannot trace {type(model).__name__}: its pass makes numbers of its own, besides the weights"
        )
    _remove_in_place(graph)
    traced = fx.GraphModule(shapes, graph)
    traced.graph.eliminate_dead_code()
    return traced


def _take_images_alone(model: nn.Module) -> None:
    """Leave out what a forward pass takes besides images, a mask for instance: fx would make inputs of it."""
    kind = type(model)
    model.__class__ = type(kind.__name__, (kind,), {"forward": lambda self, images: kind.forward(self, images)})


def _remove_in_place(graph: fx.Graph) -> None:
    """Make every operation return a new tensor: a tap must still hold its values when a delta reads it.

    `x += y` needs nothing: fx records it as an addition.
    """
    for node in graph.nodes:
        if node.op == "call_function" and node.kwargs.get("inplace"):
            node.kwargs = {**node.kwargs, "inplace": False}
        elif node.op == "call_method" and node.target.endswith("_") and not node.target.endswith("__"):
            node.target = node.target.rstrip("_")
            changed = node.args[0]
            changed.replace_all_uses_with(node, delete_user_cb=lambda user, node=node: user is not node and node < user)


def forget_text(module: fx.GraphModule) -> fx.GraphModule:
    """Drop the text of a graph's generated code, which torch.fx keeps for tracebacks as long as the process lives.

    Without this every task that is loaded, and every plan, would cost memory for good.
    """
    key = type(module).forward.__code__.co_filename
    linecache.cache.pop(key, None)
    fx.graph_module._loader.eval_cache.pop(key, None)
    return module
