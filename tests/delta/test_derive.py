from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
from timm.layers import GroupNorm
from torch import Tensor, fx, nn
from torch.nn import functional as F
from toys import TOYS, Toy, source_of

from torchsnow.delta import DeltaSpec, channels
from torchsnow.delta.derive import PICKED, derive_body, key_of
from torchsnow.delta.layers import Slots, SubscribedLayer
from torchsnow.delta.propagate import Flow
from torchsnow.errors import DeltaError
from torchsnow.pooling import ChannelPooling, Picked, num_pooled
from torchsnow.source import Source, load_source


def picked_by(source: Source, images: Tensor, spec: DeltaSpec) -> dict[str, Picked]:
    """What fresh pools choose of every tap that the spec names, as the body's inputs."""
    features = source(images)
    picked = {}
    for name in source.taps if spec.taps is None else spec.taps:
        tap = source.taps[name]
        pool = ChannelPooling(tap.num_chs, num_pooled(tap.num_chs, spec.pool_divisor), tap.dim)
        idx = pool.choose()
        picked[PICKED + key_of(name)] = pool.take(features.channels(name, idx), idx)
    return picked


class Recording(fx.Interpreter):
    """Runs a graph and keeps every value."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self.values: dict[str, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        self.values[n.name] = super().run_node(n)
        return self.values[n.name]


@pytest.mark.parametrize("name", TOYS)
def test_a_body_runs_and_learns_at_any_image_and_batch_size(name: str) -> None:
    torch.manual_seed(0)
    source = source_of(TOYS[name][0]())
    spec = DeltaSpec(2, width_divisor=4, pool_divisor=4)
    body, feature_chs = derive_body(source, spec, frozen=False)
    for batch, size in ((1, (16, 16)), (5, (20, 12)), (2, (33, 31))):
        images = torch.randn(batch, 3, *size)
        features = body(images, **picked_by(source, images, spec))
        assert features.shape == (batch, feature_chs) == (batch, 6)
    features.square().sum().backward()
    assert [key for key, p in body.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


@pytest.mark.parametrize("name", TOYS)
def test_every_value_of_a_body_has_the_width_that_was_followed(name: str) -> None:
    source = source_of(TOYS[name][0]())
    spec = DeltaSpec(2, width_divisor=4, pool_divisor=8)
    body, _ = derive_body(source, spec, frozen=False)
    images = torch.randn(2, 3, 16, 16)
    recording = Recording(body)
    recording.run(images, *picked_by(source, images, spec).values())
    flow = Flow(source.traced)
    checked = 0
    for node, dims in flow.dims.items():
        value = recording.values.get(node.name)
        if isinstance(dims, tuple) and isinstance(value, Tensor):
            for layout, size in zip(dims, value.shape, strict=True):
                assert layout is None or channels.width(layout, 4) == size, node.format_node()
                checked += layout is not None
    assert checked > 2


def give_the_sources_weights(body: fx.GraphModule, source: Source) -> None:
    """Copy every layer's numbers by graph node, and silence the pooled channels."""
    for node in source.traced.graph.nodes:
        if node.op == "call_module":
            layer = body.get_submodule(node.name)
            if isinstance(layer, SubscribedLayer):
                nn.init.zeros_(layer.columns)
                layer = layer.local
            layer.load_state_dict(source.model.get_submodule(node.target).state_dict())
        elif node.op == "get_attr":
            path, _, name = node.target.rpartition(".")
            with torch.no_grad():
                getattr(body, node.name).copy_(getattr(source.model.get_submodule(path), name))


@pytest.mark.parametrize("name", TOYS)
def test_a_body_of_full_width_with_the_sources_weights_is_the_source(name: str) -> None:
    torch.manual_seed(0)
    source = source_of(TOYS[name][0]())
    spec = DeltaSpec(2, width_divisor=1, pool_divisor=1)
    body, feature_chs = derive_body(source, spec, frozen=False)
    assert feature_chs == source.num_features == 24
    give_the_sources_weights(body, source)
    body.eval()
    for size in ((16, 16), (20, 12)):
        images = torch.randn(3, 3, *size)
        with torch.no_grad():
            expected = source.model(images)
        torch.testing.assert_close(body(images, **picked_by(source, images, spec)), expected, rtol=1e-5, atol=1e-5)


def test_no_layer_keeps_the_sources_numbers() -> None:
    source = load_source("test_resnet", weights="random")
    body, _ = derive_body(source, DeltaSpec(2, 1, 1), frozen=False)
    ours = {id(tensor) for tensor in (*body.parameters(), *body.buffers())}
    assert ours.isdisjoint(id(tensor) for tensor in (*source.parameters(), *source.buffers()))
    assert not torch.equal(body.conv1_0.weight, source.model.conv1[0].weight)
    assert all(parameter.requires_grad for parameter in body.parameters())
    assert all(module.training for module in body.modules())


def test_a_body_learns_although_the_source_is_in_eval_mode() -> None:
    """Batch norms of a new body must use the batch's statistics without a call of train()."""
    source = load_source("test_resnet", weights="random")
    spec = DeltaSpec(2, 4, 4)
    body, _ = derive_body(source, spec, frozen=False)
    images = torch.randn(2, 3, 64, 64)
    body(images, **picked_by(source, images, spec))
    norms = [module for module in body.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms
    assert all(norm.num_batches_tracked == 1 for norm in norms)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("slots", get_args(Slots))
def test_columns(frozen: bool, slots: Any) -> None:
    source = load_source("test_resnet", weights="random")
    body, _ = derive_body(source, DeltaSpec(2, 8, 8, slots=slots), frozen)
    reading = {name: layer for name, layer in body.named_modules() if isinstance(layer, SubscribedLayer)}
    assert sorted(reading) == sorted(reader for tap in source.taps.values() for reader in tap.consumers)
    for tap in source.taps.values():
        for reader in tap.consumers:
            narrow = frozen or slots != "channel"
            assert reading[reader].columns.shape[1] == (num_pooled(tap.num_chs, 8) if narrow else tap.num_chs)


def test_layers_outside_the_named_taps_read_only_their_own_input() -> None:
    source = load_source("test_resnet", weights="random")
    some = tuple(source.taps)[1:3]
    body, _ = derive_body(source, DeltaSpec(2, 8, 8, taps=some), frozen=False)
    reading = {name for name, layer in body.named_modules() if isinstance(layer, SubscribedLayer)}
    assert reading == {reader for name in some for reader in source.taps[name].consumers}
    inputs = [node.name for node in body.graph.nodes if node.op == "placeholder"]
    assert inputs == [inputs[0], *(PICKED + key_of(name) for name in some)]


@pytest.mark.parametrize("setting", ["width_divisor", "pool_divisor"])
def test_a_divisor_that_leaves_nothing_is_refused(setting: str) -> None:
    source = source_of(TOYS["plain"][0]())  # its one tap has 16 channels
    derive_body(source, DeltaSpec(2, **{"width_divisor": 1, "pool_divisor": 1, setting: 16}), frozen=False)
    with pytest.raises(DeltaError, match=f"{setting}=17 leaves no channel.*has 16; use a divisor of at most 16"):
        derive_body(source, DeltaSpec(2, **{"width_divisor": 1, "pool_divisor": 1, setting: 17}), frozen=False)


class Scaled(Toy):
    """Tensors that the forward pass uses directly: learned, scalar and fixed."""

    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((1, 16, 1, 1), 1e-6))
        self.gain = nn.Parameter(torch.tensor(0.25))
        self.norm = GroupNorm(16, 4)
        self.register_buffer("ramp", torch.arange(16.0).view(1, 16, 1, 1))

    def middle(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(x * self.gamma + self.ramp)) * self.gain


def test_tensors_of_the_forward_pass() -> None:
    body, _ = derive_body(source_of(Scaled()), DeltaSpec(2, 4, 4), frozen=False)
    state = dict(body.named_parameters()) | dict(body.named_buffers())
    assert state["gamma"].flatten().tolist() == [1.0] * 4  # a source's trained scale is no start for a fresh layer
    assert state["gain"].item() == 0.25
    assert state["ramp"].flatten().tolist() == [0.0, 1.0, 2.0, 3.0]
    assert state["gamma"].requires_grad
    assert not state["ramp"].requires_grad
