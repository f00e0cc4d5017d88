"""Tiny networks, one for each way in which a network can handle its channels.

Each reads an image, makes 16 channels by `stem`, does its one thing in `middle`, and ends in `tail`, a convolution to
24 channels, and an average. `TOYS` says how many channels reach `tail` in a delta with width_divisor=4.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchsnow.source import InputConfig, Source

CONFIG = InputConfig((3, 16, 16), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bilinear", 1.0)


class Toy(nn.Module):
    def __init__(self, middle_chs: int = 16, **layers: nn.Module) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.tail = nn.Conv2d(middle_chs, 24, 1)

    def forward(self, images: Tensor) -> Tensor:
        self.images = images
        return self.tail(self.middle(self.stem(images))).mean((2, 3))

    def middle(self, x: Tensor) -> Tensor:
        return x


def conv(in_chs: int, out_chs: int, kernel: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_chs, out_chs, kernel, padding=kernel // 2, groups=groups)


def toy(middle: Callable[..., Tensor], middle_chs: int = 16, **layers: nn.Module) -> Toy:
    kind = type(f"Toy_{middle.__name__}", (Toy,), {"middle": middle})
    made = kind(middle_chs, **layers)
    assert isinstance(made, Toy)
    return made


def cat(self, x):
    return torch.cat([self.a(x), self.b(x)], 1)


def residual(self, x):
    y = F.relu(self.b(F.relu(self.a(x))))
    y += x
    return y


def split(self, x):
    first, second = x.split([2, 14], 1)
    return torch.cat([second, self.a(first)], dim=1)


def chunk(self, x):
    first, second, third = torch.chunk(x, 3, dim=1)
    return torch.cat([third, first, second], dim=1)


def tensor_split(self, x):
    first, second = x.tensor_split([4], 1)
    return torch.cat([second, first], dim=1)


def slices(self, x):
    return torch.cat([x[:, -4:], self.a(x[:, :6]), x[:, 6:12, ...]], 1)


def growing(self, x):
    for layer in (self.a, self.b):  # as in DenseNet
        x = torch.cat([x, layer(x)], 1)
    return x


def shuffle(self, x):
    batch, chs, height, width = x.shape
    return x.view(batch, 2, chs // 2, height, width).transpose(1, 2).reshape(batch, chs, height, width)


def shuffle_in_eight(self, x):
    batch, _, height, width = x.shape
    return x.view(batch, 8, 2, height, width).transpose(1, 2).reshape(batch, 16, height, width)


def interleaved(self, x):
    x = torch.cat([self.a(x), self.b(x)], 1)
    x = torch.stack([x, F.relu(x)], 2).flatten(1, 2)
    return torch.cat([x[:, 12:], x[:, :12]], 1)


def repeated(self, x):
    x = torch.cat([self.a(x), self.b(x)], 1)
    x = torch.stack([x, F.relu(x)], 1).flatten(1, 2)
    return torch.cat([x[:, 12:], x[:, :12]], 1)


def stack_and_sum(self, x):
    return torch.stack([self.a(x), self.b(x)], dim=1).sum(dim=1)


def efficient_channel_attention(self, x):
    y = x.mean((2, 3)).view(x.shape[0], 1, -1)
    y = self.a(y).view(x.shape[0], -1, 1, 1).sigmoid()
    return x * y.expand_as(x)


def squeeze_and_excite(self, x):
    return x * self.b(F.relu(self.a(x.mean((2, 3), keepdim=True)))).sigmoid()


def permute_and_linear(self, x):
    y = self.b(F.gelu(self.a(x.permute(0, 2, 3, 1))))
    return y.permute(0, 3, 1, 2) + x


def linear_over_positions(self, x):
    batch, chs, height, width = x.shape
    y = self.a(x.flatten(2).transpose(1, 2))
    return y.transpose(1, 2).reshape(batch, chs, height, width)


def depthwise(self, x):
    return self.a(x)


def grouped(self, x):
    return self.a(x)


def learned_scale(self, x):
    return x * self.a.weight.view(1, 16, 1, 1) + self.a.bias.reshape(1, -1, 1, 1)


def expanded_scale(self, x):
    return x * self.a.weight.view(1, 16, 1, 1).expand(x.shape[0], 16, -1, 1)


def gate_over_positions(self, x):
    gate = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
    return x * self.a(gate).sigmoid()


def mixture_of_two(self, x):
    batch, chs, _, _ = x.shape
    attention = self.b(self.a(x.mean((2, 3), keepdim=True))).view(batch, 2, chs, 1, 1).softmax(1)
    return (torch.stack([x, F.relu(x)], 1) * attention).sum(1)  # as in selective kernels


def larger_of_two(self, x):
    return torch.max(self.a(x), x)


def pyramid(self, x):
    y = F.pad(F.max_pool2d(self.a(x), 2), (0, 1, 0, 1))
    return x + F.interpolate(y, size=x.shape[-2:], mode="nearest")


def channel_affinity(self, x):
    batch, chs, height, width = x.shape
    q, k = self.a(x).flatten(2), x.flatten(2)
    return torch.matmul(torch.matmul(q, k.transpose(1, 2)).softmax(-1), k).view(batch, chs, height, width)


def image_added(self, x):
    return self.a(x) + self.images


def image_concatenated(self, x):
    return torch.cat([self.images, x], 1)


# name: the network, the channels of the source and of the delta that reach `tail`
TOYS: dict[str, tuple[Callable[[], Toy], int, int]] = {
    "plain": (Toy, 16, 4),
    "cat": (lambda: toy(cat, 32, a=conv(16, 8), b=conv(16, 24)), 32, 2 + 6),
    "residual": (lambda: toy(residual, a=conv(16, 32, 3), b=conv(32, 16, 3)), 16, 4),
    "split": (lambda: toy(split, 18, a=conv(2, 4)), 18, 4 + 1),
    "chunk": (lambda: toy(chunk), 16, 2 + 2 + 1),
    "tensor_split": (lambda: toy(tensor_split), 16, 3 + 1),
    "slices": (lambda: toy(slices, 18, a=conv(6, 8)), 18, 1 + 2 + 2),
    "growing": (lambda: toy(growing, 32, a=conv(16, 8), b=conv(24, 8)), 32, 4 + 2 + 2),
    "shuffle": (lambda: toy(shuffle), 16, 4),
    "shuffle_in_eight": (lambda: toy(shuffle_in_eight), 16, 8),
    "interleaved": (lambda: toy(interleaved, 32, a=conv(16, 6), b=conv(16, 10)), 32, 2 * (2 + 2)),
    "repeated": (lambda: toy(repeated, 32, a=conv(16, 6), b=conv(16, 10)), 32, 2 * (2 + 2 + 1)),
    "stack_and_sum": (lambda: toy(stack_and_sum, a=conv(16, 16), b=conv(16, 16, 3)), 16, 4),
    "efficient_channel_attention": (
        lambda: toy(efficient_channel_attention, a=nn.Conv1d(1, 1, 3, padding=1, bias=False)),
        16,
        4,
    ),
    "squeeze_and_excite": (lambda: toy(squeeze_and_excite, a=conv(16, 8), b=conv(8, 16)), 16, 4),
    "permute_and_linear": (lambda: toy(permute_and_linear, a=nn.Linear(16, 64), b=nn.Linear(64, 16)), 16, 4),
    "linear_over_positions": (lambda: toy(linear_over_positions, a=nn.Linear(16, 16)), 16, 4),
    "depthwise": (lambda: toy(depthwise, a=conv(16, 16, 3, groups=16)), 16, 4),
    "grouped": (lambda: toy(grouped, 32, a=conv(16, 32, 3, groups=4)), 32, 8),
    "learned_scale": (lambda: toy(learned_scale, a=nn.BatchNorm2d(16)), 16, 4),
    "expanded_scale": (lambda: toy(expanded_scale, a=nn.BatchNorm2d(16)), 16, 4),
    "gate_over_positions": (lambda: toy(gate_over_positions, a=conv(2, 1, 3)), 16, 4),
    "mixture_of_two": (lambda: toy(mixture_of_two, a=conv(16, 8), b=conv(8, 32)), 16, 4),
    "larger_of_two": (lambda: toy(larger_of_two, a=conv(16, 16)), 16, 4),
    "pyramid": (lambda: toy(pyramid, a=conv(16, 16)), 16, 4),
    "channel_affinity": (lambda: toy(channel_affinity, a=conv(16, 16)), 16, 4),
    "image_added": (lambda: toy(image_added, 3, a=conv(16, 3)), 3, 3),
    "image_concatenated": (lambda: toy(image_concatenated, 19), 19, 3 + 4),
}


def source_of(model: nn.Module) -> Source:
    """A source of small images."""
    return Source(model, "toy", CONFIG, "random")
