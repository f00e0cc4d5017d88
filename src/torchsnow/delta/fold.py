"""A frozen delta as it runs fastest: pooling weights and batch norms folded into the layers before them."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

from timm.layers import BatchNormAct2d, Conv2dSame
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from torchsnow.delta.delta import Delta
from torchsnow.delta.derive import key_of
from torchsnow.delta.grid import GridBody
from torchsnow.delta.head import FoldedHead, Head, linear_of
from torchsnow.delta.layers import Columns, SubscribedLayer, SubscribedLinear
from torchsnow.errors import DeltaError
from torchsnow.pooling import Picked, Subscription
from torchsnow.source.plan import FOLDABLE


def fold(delta: Delta) -> Delta:
    """A copy of a frozen delta that gives the same logits in fewer steps; it can neither be trained nor stored.

    A folded delta is returned as it is. Raises DeltaError for a delta that is not frozen.
    """
    if not delta.frozen:
        raise DeltaError("this delta is not frozen, so its choice may change; freeze it before folding it")
    if any(isinstance(layer, FoldedLayer | FoldedHead) for layer in delta.modules()):
        return delta
    folded = copy.deepcopy(delta).eval().requires_grad_(False)
    if isinstance(folded.head, Head):
        folded.head = FoldedHead(folded.head)
    if isinstance(folded.body, fx.GraphModule):
        _fold_copy(folded, folded.body)
    elif isinstance(folded.body, GridBody) and (pool := folded.grid_pool) is not None:
        folded.body.scale_stem(pool.weight)
        pool.register_parameter("weight", None)
    return folded.requires_grad_(False)


def _fold_copy(folded: Delta, body: fx.GraphModule) -> None:
    for name, tap in folded.taps.items():
        pool = folded.pools[key_of(name)]
        assert isinstance(pool, Subscription)
        for consumer in tap.consumers:
            layer = body.get_submodule(consumer)
            assert isinstance(layer, Columns)
            setattr(body, consumer, FoldedLayer(layer, pool))
    _fold_norms(body)


class FoldedLayer(nn.Module):
    """A subscribed layer as two plain ones, `own(x) + pooled(picked channels)`; an entry has no `own`."""

    def __init__(self, layer: Columns, pool: Subscription) -> None:
        super().__init__()
        self.own = layer.local if isinstance(layer, SubscribedLayer) else None
        weight = layer.pooled_weight(Picked(layer.columns, pool.weight, None)).detach()
        self.pooled: nn.Conv2d | nn.Linear = (
            linear_of(weight) if isinstance(layer, SubscribedLinear) else _plain_conv(self.own, weight)
        )

    def forward(self, *inputs: Any) -> Tensor:
        """(B, C, H, W), where there is `own`, and the chosen channels of a tap (B, M, H, W) -> (B, C', H', W')."""
        *x, picked = inputs
        added: Tensor = self.pooled(picked.x)
        return added if self.own is None else self.own(*x) + added


def _plain_conv(like: nn.Module | None, weight: Tensor) -> nn.Conv2d:
    """A convolution with these weights and the geometry of another, or of none but a 1x1 one."""
    like = nn.Conv2d(1, 1, 1) if like is None else like
    assert isinstance(like, nn.Conv2d)
    same = isinstance(like, Conv2dSame) or getattr(like, "same_pad", False)
    kind: Any = Conv2dSame if same else nn.Conv2d
    padding = 0 if same else like.padding
    conv = kind(weight.shape[1], weight.shape[0], like.kernel_size, like.stride, padding, like.dilation, bias=False)
    assert isinstance(conv, nn.Conv2d)
    conv.weight = nn.Parameter(weight)
    return conv


def _fold_norms(body: fx.GraphModule) -> None:
    calls = Counter(node.target for node in body.graph.nodes if node.op == "call_module")
    for node in list(body.graph.nodes):
        norm = body.get_submodule(node.target) if node.op == "call_module" else None
        if not isinstance(norm, nn.BatchNorm2d):
            continue
        before = node.args[0]
        if before.op != "call_module" or len(before.users) > 1 or max(calls[before.target], calls[node.target]) > 1:
            continue
        if not _fold_norm(body.get_submodule(before.target), norm):
            continue
        if isinstance(norm, BatchNormAct2d):
            setattr(body, node.target, norm.act)
        else:
            node.replace_all_uses_with(before)
            body.graph.erase_node(node)
    body.delete_all_unused_submodules()
    body.recompile()


def _fold_norm(layer: nn.Module, norm: nn.BatchNorm2d) -> bool:
    """Fold a norm into the layer before it, where that is a convolution whose weight is used as it stands."""
    conv = (layer.own or layer.pooled) if isinstance(layer, FoldedLayer) else layer
    if not isinstance(conv, nn.Conv2d) or type(conv).forward not in FOLDABLE:
        return False
    if isinstance(layer, FoldedLayer) and layer.own is not None:
        layer.pooled.weight = _folded(layer.pooled.weight, None, norm)[0]  # the shift is in the other one's bias
    conv.weight, conv.bias = _folded(conv.weight, conv.bias, norm)
    return True


def _folded(weight: Tensor, bias: Tensor | None, norm: nn.BatchNorm2d) -> tuple[nn.Parameter, nn.Parameter]:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    folded: tuple[nn.Parameter, nn.Parameter] = fuse_conv_bn_weights(
        weight, bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )
    return folded
