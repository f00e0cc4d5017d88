from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from toys import TOYS, Toy, conv, source_of, toy

from torchsnow.delta import channels
from torchsnow.delta.propagate import Flow, argument, operation
from torchsnow.errors import DeltaError
from torchsnow.source.graph import VALUE


def flow_of(model: nn.Module) -> Flow:
    return Flow(source_of(model).traced)


def width_before_tail(flow: Flow, divisor: int) -> int:
    (tail,) = (node for node in flow.traced.graph.nodes if node.target == "tail")
    return channels.width(flow.dims[tail.args[0]][1] or [channels.Span(3, scaled=False)], divisor)


@pytest.mark.parametrize("name", TOYS)
def test_widths(name: str) -> None:
    make, full, expected = TOYS[name]
    assert width_before_tail(flow_of(make()), 4) == expected
    assert width_before_tail(flow_of(make()), 1) == full


@pytest.mark.parametrize("name", TOYS)
def test_every_layout_has_the_channels_of_its_dimension(name: str) -> None:
    flow = flow_of(TOYS[name][0]())
    checked = 0
    for node, dims in flow.dims.items():
        tensors = node.meta[VALUE]
        pairs = zip(dims, tensors, strict=True) if isinstance(dims, list) else [(dims, tensors)]
        for layouts, tensor in pairs:
            for layout, size in zip(layouts or (), tensor.shape if layouts else (), strict=True):
                assert layout is None or channels.num_chs(layout) == size
                checked += layout is not None
    assert checked > 2


def single_channels(self: Any, x: Tensor) -> Tensor:
    return torch.cat([x[:, ::2], x[:, 1::2]], 1)


def chosen_channels(self: Any, x: Tensor) -> Tensor:
    return x[:, list(range(15, -1, -1))]


def unbound_channels(self: Any, x: Tensor) -> Tensor:
    return torch.stack(x.unbind(1), 1)


def channels_to_space(self: Any, x: Tensor) -> Tensor:
    return F.pixel_shuffle(x, 2)


def repeated_channels(self: Any, x: Tensor) -> Tensor:
    return x.repeat(1, 2, 1, 1)


def channels_into_positions(self: Any, x: Tensor) -> Tensor:
    return x.reshape(x.shape[0], 4, 32, 32)


def unflattened_channels(self: Any, x: Tensor) -> Tensor:
    return x.unflatten(1, (4, 4)).flatten(1, 2)


def borrowed_weights(self: Any, x: Tensor) -> Tensor:
    return F.conv2d(x, self.a.weight)


@pytest.mark.parametrize(
    ("middle", "middle_chs", "operation_name"),
    [
        (single_channels, 16, "getitem"),
        (chosen_channels, 16, "getitem"),
        (unbound_channels, 16, "unbind"),
        (channels_to_space, 4, "pixel_shuffle"),
        (repeated_channels, 32, "repeat"),
        (channels_into_positions, 4, "reshape"),
        (unflattened_channels, 16, "unflatten"),
        (borrowed_weights, 16, "conv2d"),
    ],
)
def test_what_cannot_be_followed_is_refused_by_name(
    middle: Callable[..., Tensor], middle_chs: int, operation_name: str
) -> None:
    layers = {"a": conv(16, 16)} if middle is borrowed_weights else {}
    with pytest.raises(DeltaError, match=rf"cannot propagate the channels through .*{operation_name}"):
        flow_of(toy(middle, middle_chs, **layers))


def test_a_layer_that_hides_convolutions_is_refused() -> None:
    class Hiding(Toy):
        def __init__(self) -> None:
            super().__init__()
            self.hiding = nn.TransformerEncoderLayer(16, 2, 16)  # torch's own layers are not looked into

        def middle(self, x: Tensor) -> Tensor:
            return self.hiding(x.flatten(2).transpose(1, 2)).transpose(1, 2).view_as(x)

    with pytest.raises(DeltaError, match="TransformerEncoderLayer holds convolutions that it does not show"):
        flow_of(Hiding())


def test_operations_and_arguments_are_found_however_they_are_written() -> None:
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    by_function = graph.call_function(torch.cat, ([x, x],), {"dim": 1})
    by_method = graph.call_method("chunk", (x, 2, 1))
    assert [operation(node) for node in (by_function, by_method)] == ["cat", "chunk"]
    assert argument(by_function, 1, "dim", 0) == argument(by_method, 2, "dim", 0) == 1
    assert argument(by_method, 3, "other", "default") == "default"
