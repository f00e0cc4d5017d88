"""The body of a grid delta: a small convolutional network over the channels that a task subscribes to, on one grid.

    x = w * grid[:, index]                                       channel pooling: select and scale
    x = gelu(norm(stem(x)))                                      1x1: a column of weights per subscribed channel
    x = x + norm(project(gelu(norm(depthwise(gelu(norm(expand(x))))))))      for every block: 1x1, 3x3, 1x1
    x = gelu(norm(gather(x)))                                    1x1
    features = mean(x), max(x)                                   over the cells of the grid

(The inverted bottleneck is that of Sandler et al., "MobileNetV2", CVPR 2018.) While it trains, a norm is a batch norm;
in a frozen delta it is folded into the convolution before it, so that nothing but convolutions with biases is left.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights

from torchsnow.delta.spec import GlobalPool

EXPANSION = 3
"""How many times wider a block is inside."""
FEATURES_PER_WIDTH = 4
"""The channels of a body's last map, as a multiple of its width."""

# All layers but the 3x3 ones work on rows (B * Gh * Gw, channels), one per cell: a 1x1 convolution is a matrix product
# there, and with its norm almost twice as fast to train on a CPU as on maps. Rows and maps are views of each other.


class GridBody(nn.Module):
    """Subscribed channels on a grid (B, num_chs, Gh, Gw) and their pooling weights (num_chs,), or None where these are
    folded into the stem -> features (B, num_features)."""

    def __init__(self, num_chs: int, width: int, num_blocks: int, global_pool: GlobalPool, frozen: bool) -> None:
        super().__init__()
        self.last_chs = FEATURES_PER_WIDTH * width
        self.with_max = global_pool == "catavgmax"
        self.num_features = 2 * self.last_chs if self.with_max else self.last_chs
        self.stem = _pointwise(num_chs, width, frozen)
        self.blocks = nn.ModuleList(Block(width, frozen) for _ in range(num_blocks))
        self.gather = _pointwise(width, self.last_chs, frozen)

    def scale_stem(self, weight: Tensor) -> None:
        """Fold pooling weights (num_chs,) into the stem."""
        with torch.no_grad():
            self.stem[0].get_parameter("weight").mul_(weight)

    def forward(self, x: Tensor, weight: Tensor | None) -> Tensor:
        batch_size, num_chs, height, width = x.shape
        linear, *norm = self.stem
        assert isinstance(linear, nn.Linear)
        # Without a copy in either layout that maps come in: channels last, or channel by channel. Scaling the few
        # columns gives what scaling the maps would.
        columns = linear.weight if weight is None else linear.weight * weight
        rows = F.linear(x.permute(0, 2, 3, 1).reshape(-1, num_chs), columns, linear.bias)
        for module in norm:
            rows = module(rows)
        rows = F.gelu(rows)
        for block in self.blocks:
            rows = block(rows, height, width)
        cells = F.gelu(self.gather(rows)).reshape(batch_size, height * width, self.last_chs)
        return torch.cat([cells.mean(1), cells.amax(1)], 1) if self.with_max else cells.mean(1)


class Block(nn.Module):
    """An inverted bottleneck: rows (B * Gh * Gw, width) of maps of Gh x Gw cells -> the same shape. It starts as the
    identity."""

    def __init__(self, width: int, frozen: bool) -> None:
        super().__init__()
        inner = EXPANSION * width
        self.expand = _pointwise(width, inner, frozen)
        self.depthwise = nn.Conv2d(inner, inner, 3, padding=1, groups=inner, bias=frozen)
        self.norm = nn.Identity() if frozen else nn.BatchNorm1d(inner)
        self.project = _pointwise(inner, width, frozen)
        if not frozen:
            norm = self.project[1]
            assert isinstance(norm, nn.BatchNorm1d)
            nn.init.zeros_(norm.weight)

    def forward(self, rows: Tensor, height: int, width: int) -> Tensor:
        inner = F.gelu(self.expand(rows))
        num_chs = inner.shape[1]
        maps = self.depthwise(inner.reshape(-1, height, width, num_chs).permute(0, 3, 1, 2))
        projected: Tensor = self.project(F.gelu(self.norm(maps.permute(0, 2, 3, 1).reshape(-1, num_chs))))
        return rows + projected


def _pointwise(in_chs: int, out_chs: int, frozen: bool) -> nn.Sequential:
    linear = nn.Linear(in_chs, out_chs, bias=frozen)
    return nn.Sequential(linear) if frozen else nn.Sequential(linear, nn.BatchNorm1d(out_chs))


def frozen_state(body: GridBody) -> dict[str, Tensor]:
    """The state of the frozen body that gives the same as this one in eval mode."""
    state: dict[str, Tensor] = {}
    for name, layer in body.named_modules():
        if isinstance(layer, nn.Sequential):
            state |= _folded(f"{name}.0", layer[0], layer[1])
        elif isinstance(layer, Block):
            state |= _folded(f"{name}.depthwise", layer.depthwise, layer.norm)
    return state


def _folded(name: str, layer: nn.Module, norm: nn.Module) -> dict[str, Tensor]:
    """The state of a layer that does what it and the norm behind it do together."""
    assert isinstance(layer, nn.Linear | nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm1d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    fuse = fuse_linear_bn_weights if isinstance(layer, nn.Linear) else fuse_conv_bn_weights
    weight, bias = fuse(layer.weight, None, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias)
    return {f"{name}.weight": weight.detach(), f"{name}.bias": bias.detach()}
