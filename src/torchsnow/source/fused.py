"""A source plan whose convolutions do what follows them: a residual addition, an activation."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from torchsnow.source.graph import VALUE

_ACTS: Mapping[type[nn.Module], tuple[str, list[float]]] = {nn.ReLU: ("relu", []), nn.ReLU6: ("hardtanh", [0.0, 6.0])}
_IDENTITIES = (nn.Identity, nn.Dropout)
_ops: Any = torch.ops.mkldnn


def can_fuse(dtype: torch.dtype) -> bool:
    """Whether this processor's oneDNN takes convolutions of a type; for bfloat16 it needs AVX-512."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    return dtype != torch.bfloat16 or bool(_ops._is_mkldnn_bf16_supported())


class FusedConv2d(nn.Module):
    """A convolution, plus another map if there is one, and an activation, in one step of oneDNN.

    Its weights are laid out for the first shape that it sees, and work for all.
    """

    def __init__(self, conv: nn.Conv2d, act: tuple[str, list[float]]) -> None:
        super().__init__()
        self.conv, self.act = conv, act
        self.geometry = [list(size) for size in (conv.padding, conv.stride, conv.dilation)] + [conv.groups]
        self._laid_out: Tensor | None = None

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        if self._laid_out is None:
            reorder: Any = torch._C._nn.mkldnn_reorder_conv2d_weight
            self._laid_out = reorder(self.conv.weight.detach().to_mkldnn(), *self.geometry, list(x.shape))
        name, numbers = self.act
        args = (self._laid_out, self.conv.bias, *self.geometry)
        result: Tensor
        if other is None:
            result = _ops._convolution_pointwise(x, *args, name, numbers, "")
        else:
            result = _ops._convolution_pointwise.binary(
                x, other, *args, "add", 1.0, None if name == "none" else name, numbers, ""
            )
        return result


FusedConvs = dict[tuple[int, str], FusedConv2d]
"""By convolution and activation: plans share their weights as laid out."""


def fuse(plan: fx.GraphModule, known: FusedConvs) -> fx.GraphModule:
    """Replace a plan's plain convolutions in place, and return it. What is made is kept in `known` for other plans."""
    modules = dict(plan.named_modules())
    for node in list(plan.graph.nodes):
        conv = modules.get(str(node.target)) if node.op == "call_module" else None
        if type(conv) is nn.Conv2d and not isinstance(conv.padding, str) and conv.padding_mode == "zeros":
            _fuse(plan, modules, node, conv, known)
    plan.graph.eliminate_dead_code()
    plan.delete_all_unused_submodules()
    plan.recompile()
    return plan


def _fuse(
    plan: fx.GraphModule, modules: Mapping[str, nn.Module], node: fx.Node, conv: nn.Conv2d, known: FusedConvs
) -> None:
    last, other, act = node, None, ("none", list[float]())
    while len(last.users) == 1:
        (user,) = last.users
        module = modules.get(str(user.target)) if user.op == "call_module" else None
        kind = type(module) if module is not None else nn.Module
        if kind in _ACTS and not (other is not None and kind is nn.ReLU6):
            last, act = user, _ACTS[kind]
            break
        if isinstance(module, _IDENTITIES):
            last = user
        elif other is None and user.op == "call_function" and user.target in (operator.add, operator.iadd, torch.add):
            sides = [side for side in user.args if side is not last]
            if len(sides) != 1 or user.kwargs or not _is_like(sides[0], last):
                break
            last, other = user, sides[0]
        else:
            break
    name = f"fused_{node.name}"
    plan.add_module(name, known.setdefault((id(conv), act[0]), FusedConv2d(conv, act)))
    with plan.graph.inserting_before(last):
        fused = plan.graph.call_module(name, (node.args[0], *([other] if other is not None else [])))
    fused.meta = dict(last.meta)
    last.replace_all_uses_with(fused)


def _is_like(side: Any, node: fx.Node) -> bool:
    """Whether one side of an addition is a map of a node's own shape: oneDNN broadcasts nothing."""
    return isinstance(side, fx.Node) and getattr(side.meta[VALUE], "shape", None) == node.meta[VALUE].shape
