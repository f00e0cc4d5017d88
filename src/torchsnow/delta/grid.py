"""The body of a grid delta: a small convolutional network over the channels that a task subscribes to, on one grid.

    x = w * grid[:, index]                                       channel pooling: select and scale
    x = gelu(norm(stem(x)))                                      1x1: a column of weights per subscribed channel
    x = x + norm(project(gelu(norm(depthwise(gelu(norm(expand(x))))))))      for every block: 1x1, 3x3, 1x1
    features = mean(gelu(norm(gather(x))))                       1x1, then the mean over the grid

(The inverted bottleneck is that of Sandler et al., "MobileNetV2", CVPR 2018.) While it trains, a norm is a batch norm;
in a frozen delta it is folded into the convolution before it, so that nothing but convolutions with biases is left.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_weights

EXPANSION = 3
"""How many times wider a block is inside."""
FEATURES_PER_WIDTH = 4
"""The features that a body gives, as a multiple of its width."""


class GridBody(nn.Module):
    """Subscribed channels on a grid (B, num_chs, Gh, Gw) and their pooling weights -> features (B, num_features)."""

    def __init__(self, num_chs: int, width: int, num_blocks: int, frozen: bool) -> None:
        super().__init__()
        self.num_features = FEATURES_PER_WIDTH * width
        self.stem = _layer(num_chs, width, 1, frozen)
        self.blocks = nn.Sequential(*(Block(width, frozen) for _ in range(num_blocks)))
        self.gather = _layer(width, self.num_features, 1, frozen)

    def forward(self, x: Tensor, weight: Tensor) -> Tensor:
        conv, *norm = self.stem
        assert isinstance(conv, nn.Conv2d)
        # A 1x1 convolution as one matrix product, without a copy in either layout that maps come in: channels last, or
        # channel by channel. Scaling the few columns gives what scaling the maps would.
        rows = x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])
        columns = conv.weight.flatten(1) * weight
        x = F.linear(rows, columns, conv.bias).reshape(x.shape[0], *x.shape[2:], len(columns)).permute(0, 3, 1, 2)
        for module in norm:
            x = module(x)
        x = self.blocks(F.gelu(x))
        return F.gelu(self.gather(x)).mean((2, 3))


class Block(nn.Module):
    """An inverted bottleneck: (B, width, Gh, Gw) -> the same shape. It starts as the identity."""

    def __init__(self, width: int, frozen: bool) -> None:
        super().__init__()
        inner = EXPANSION * width
        self.expand = _layer(width, inner, 1, frozen)
        self.depthwise = _layer(inner, inner, 3, frozen, groups=inner)
        self.project = _layer(inner, width, 1, frozen)
        if not frozen:
            norm = self.project[1]
            assert isinstance(norm, nn.BatchNorm2d)
            nn.init.zeros_(norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        inner = F.gelu(self.depthwise(F.gelu(self.expand(x))))
        projected: Tensor = self.project(inner)
        return x + projected


def _layer(in_chs: int, out_chs: int, kernel_size: int, frozen: bool, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(in_chs, out_chs, kernel_size, padding=kernel_size // 2, groups=groups, bias=frozen)
    return nn.Sequential(conv) if frozen else nn.Sequential(conv, nn.BatchNorm2d(out_chs))


def frozen_state(body: GridBody) -> dict[str, Tensor]:
    """The state of the frozen body that gives the same as this one in eval mode."""
    state: dict[str, Tensor] = {}
    for name, layer in body.named_modules():
        if isinstance(layer, nn.Sequential) and isinstance(norm := layer[-1], nn.BatchNorm2d):
            conv = layer[0]
            assert isinstance(conv, nn.Conv2d)
            assert norm.running_mean is not None
            assert norm.running_var is not None
            weight, bias = fuse_conv_bn_weights(
                conv.weight, None, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
            )
            state |= {f"{name}.0.weight": weight.detach(), f"{name}.0.bias": bias.detach()}
    return state
