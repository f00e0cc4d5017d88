from __future__ import annotations

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from toys import TOYS, source_of

from torchsnow.delta import Delta, DeltaSpec
from torchsnow.delta.cost import delta_cost
from torchsnow.delta.inputs import ENTRY, entry_tap, subscribed_taps, tap_names
from torchsnow.errors import DeltaError
from torchsnow.model import SnowModel
from torchsnow.pooling import num_pooled
from torchsnow.source import FeatureMaps, InputConfig, Source, load_source

# where a delta that leaves out maps of more than an eighth of the image enters, at the source's own image size
ENTRIES = {
    "resnet50": "layer2.1.conv1",
    "resnet18": "layer2.0.conv1",
    "tf_efficientnet_lite0": "blocks.2.0.conv_pwl",
    "convnext_atto": "stages.1.downsample.1",
    "densenet121": "features.transition2.conv",
    "hrnet_w18_small": None,  # its four resolutions run side by side and meet at the end
}


@pytest.fixture(scope="module")
def source() -> Source:
    return load_source("test_resnet", weights="random")


def test_unknown_taps_are_refused() -> None:
    source = source_of(TOYS["residual"][0]())
    with pytest.raises(DeltaError, match="toy has no tap 'layer9'; its taps are a, b, tail"):
        tap_names(source, ("tail", "layer9"))
    assert tap_names(source, ("tail", "a")) == ("a", "tail")
    assert tap_names(source, None) == ("a", "b", "tail")
    assert tap_names(source, ()) == ()


@pytest.mark.parametrize("name", ENTRIES)
def test_where_a_delta_enters(name: str) -> None:
    source = load_source(name, "random")
    entry = entry_tap(source, 8)
    assert (entry.name if entry else None) == ENTRIES[name]
    assert entry_tap(source, 1) is None


def test_layers_read_nothing_before_the_entry(source: Source) -> None:
    spec = DeltaSpec(3, entry_reduction=8)
    entry = entry_tap(source, 8)
    late = tuple(source.taps)[tuple(source.taps).index(entry.name) :]
    assert 1 < len(late) < len(source.taps)
    taps = subscribed_taps(source, spec)
    assert tuple(taps) == late
    assert taps[entry.name].consumers == (ENTRY, *source.taps[entry.name].consumers)
    assert all(taps[name] == source.taps[name] for name in late[1:])
    early = next(iter(source.taps))
    with pytest.raises(DeltaError, match=f"'{early}' is before '{entry.name}', where .* entry_reduction=8 enters"):
        Delta(source, DeltaSpec(3, entry_reduction=8, taps=(early,)))
    assert torch.equal(Delta(source, spec).head.channels, torch.arange(source.num_chs))


def test_the_entry_is_read_even_if_the_other_layers_read_nothing(source: Source) -> None:
    taps = subscribed_taps(source, DeltaSpec(3, entry_reduction=8, taps=()))
    assert [tap.consumers for tap in taps.values()] == [(ENTRY,)]


def test_an_entering_delta_is_the_rest_of_the_source() -> None:
    """At full width, with the source's weights and an entry that passes its tap through, it ends as the source does,
    and it does not look at the image."""
    source = load_source("test_resnet", weights="random")
    delta = Delta(source, DeltaSpec(3, 1, 1, entry_reduction=8))
    tap = next(iter(delta.taps.values()))
    with torch.no_grad():
        for node in source.traced.graph.nodes:
            if node.op == "call_module" and hasattr(delta.body, node.name):
                layer = delta.body.get_submodule(node.name)
                if hasattr(layer, "local"):
                    nn.init.zeros_(layer.columns)
                    layer = layer.local
                layer.load_state_dict(source.model.get_submodule(node.target).state_dict())
        entry = delta.body.get_submodule(ENTRY)
        entry.columns.copy_(torch.eye(tap.num_chs)[..., None, None])
    delta.eval()
    images = torch.randn(2, 3, 64, 64)
    features = source(images)
    blind = FeatureMaps(torch.full_like(images, torch.nan), source._dims, features.taps)
    own = delta.own_features(blind, delta.choose())
    torch.testing.assert_close(own, source.model(images), rtol=1e-4, atol=1e-4)


def test_an_entering_delta_costs_less_and_learns(source: Source) -> None:
    whole, late = (delta_cost(source, DeltaSpec(3, entry_reduction=reduction)) for reduction in (1, 8))
    assert late.multiply_adds < whole.multiply_adds / 2
    delta = Delta(source, DeltaSpec(3, entry_reduction=8))
    entry = next(iter(delta.taps.values()))
    assert delta.body.get_submodule(ENTRY).columns.shape[1] == entry.num_chs
    SnowModel(source, delta)(torch.randn(4, 3, 64, 64)).square().sum().backward()
    parameters = dict(delta.named_parameters())
    assert [name for name, p in parameters.items() if p.grad is None] == []
    assert float(parameters[f"body.{ENTRY}.columns"].grad.abs().sum()) > 0
    frozen = delta.freeze(source)
    assert frozen.body.get_submodule(ENTRY).columns.shape[1] == num_pooled(entry.num_chs, 8)


class Skip(nn.Module):
    """A network in which the first map is added at the end: nothing between them is a cut point."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 16, 4, 4), BatchNormAct2d(16)
        self.a, self.b, self.c = (nn.Conv2d(16, 16, 2, 2) for _ in "abc")
        self.tail = nn.Conv2d(16, 24, 1)

    def forward(self, images: Tensor) -> Tensor:
        x = self.norm(self.stem(images))
        y = torch.relu(self.b(self.a(x)))
        return self.tail(self.c(y) + nn.functional.avg_pool2d(x, 8)).mean((2, 3))


def test_a_map_that_something_goes_around_is_no_entry() -> None:
    config = InputConfig((3, 64, 64), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bilinear", 1.0)
    source = Source(Skip(), "skip", config, "random")
    assert entry_tap(source, 8) is source.taps["a"]  # it reads maps of 1/4 and returns maps of 1/8
    assert entry_tap(source, 16) is None  # b reads what x goes around; the tail's maps are half as high


class Gated(nn.Module):
    """A number of the network's own, prepared at the beginning and used at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(1))
        self.stem, self.a, self.b = nn.Conv2d(3, 16, 4, 4), nn.Conv2d(16, 16, 2, 2), nn.Conv2d(16, 24, 1)

    def forward(self, images: Tensor) -> Tensor:
        gate = torch.sigmoid(self.factor)
        return self.b(torch.relu(self.a(torch.relu(self.stem(images))) * gate)).mean((2, 3))


def test_what_does_not_come_from_the_image_is_kept() -> None:
    config = InputConfig((3, 64, 64), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bilinear", 1.0)
    source = Source(Gated(), "gated", config, "random")
    delta = Delta(source, DeltaSpec(3, 2, 2, entry_reduction=8))
    assert not delta.reads_images
    assert SnowModel(source, delta)(torch.randn(2, 3, 64, 64)).shape == (2, 3)
