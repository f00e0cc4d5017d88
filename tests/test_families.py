"""What holds for every network that can be a source, from timm's tiny test networks to one of each family."""

from __future__ import annotations

from importlib.metadata import version
from operator import attrgetter

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchsnow.delta import Delta, DeltaSpec
from torchsnow.delta.layers import SubscribedLayer
from torchsnow.errors import SourceError
from torchsnow.model import SnowModel
from torchsnow.source import Source, load_source, make_source
from torchsnow.source.families import CONVOLUTIONAL, OTHER, unlisted_families

TINY = [name for name in timm.list_models("test_*") if "vit" not in name and "coatnet" not in name]
REFUSED = [name for name in timm.list_models("test_*") if name not in TINY]

# Parameters that no gradient reaches, by source, each with its reason.
WITHOUT_GRADIENT: dict[str, set[str]] = {}


def images(size: int, batch: int = 4) -> Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(1))


def trained_twice(source: Source, spec: DeltaSpec, pictures: Tensor, seed: int) -> SnowModel:
    """A model after two steps: the head starts blind to the source, so only the second reaches its pool."""
    torch.manual_seed(seed)
    model = SnowModel(source, Delta(source, spec)).train()
    for pool in model.delta.named_pools().values():
        pool.sigma = 0.1
    optimizer = torch.optim.SGD(model.delta.parameters(), lr=0.01)
    for _ in range(2):
        F.cross_entropy(model(pictures), torch.arange(len(pictures)) % spec.num_classes).backward()
        optimizer.step()
    return model


def without_gradient(model: SnowModel) -> set[str]:
    gradients = {name: parameter.grad for name, parameter in model.delta.named_parameters()}
    assert all(gradient is None or gradient.isfinite().all() for gradient in gradients.values())
    return {name for name, gradient in gradients.items() if gradient is None or not gradient.abs().sum() > 0}


def assert_contract(source: Source, spec: DeltaSpec, pictures: Tensor) -> None:
    """A delta derives, learns with every parameter, is smaller than the source, and settles to the same logits."""
    model = trained_twice(source, spec, pictures, seed=0)
    without = without_gradient(model) - WITHOUT_GRADIENT.get(source.name, set())
    for seed in range(1, 5):  # the one or two rectified channels of a narrow squeeze-and-excite may be silent
        without &= without_gradient(trained_twice(source, spec, pictures, seed)) if without else set()
    assert without == set()

    model.eval()
    settled = model.settle().eval()
    with torch.no_grad():
        logits = model(pictures)
        assert logits.shape == (len(pictures), spec.num_classes)
        assert logits.isfinite().all()
        torch.testing.assert_close(settled(pictures), logits, rtol=1e-4, atol=1e-5)
    sizes = [sum(p.numel() for p in network.parameters()) for network in (settled.delta.body, source)]
    assert sizes[0] < sizes[1] / 2


def assert_full_width_is_the_source(source: Source, pictures: Tensor) -> None:
    """With the source's width and weights, and blind to its taps, a delta's body computes the source's features."""
    delta = Delta(source, DeltaSpec(2, 1, 1))
    delta.head = nn.Identity()
    with torch.no_grad():
        for node in source.traced.graph.nodes:
            path = str(node.target)
            if node.op == "call_module":
                layer = delta.body.get_submodule(node.name)
                if isinstance(layer, SubscribedLayer):
                    layer.columns.zero_()
                    layer = layer.local
                layer.load_state_dict(source.model.get_submodule(path).state_dict())
            elif node.op == "get_attr":
                getattr(delta.body, node.name).copy_(attrgetter(path)(source.model))
        own, expected = SnowModel(source, delta).eval()(pictures), source.model(pictures)
    torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("name", TINY)
def test_tiny_networks(name: str) -> None:
    source = load_source(name, weights="random")
    assert_contract(source, DeltaSpec(3, 4, 4), images(64))


@pytest.mark.parametrize("name", TINY)
def test_tiny_networks_at_full_width_are_the_source(name: str) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False, num_classes=0).eval()
    with torch.no_grad():  # norms and scales away from one and zero
        for tensor in model.state_dict().values():
            if tensor.is_floating_point() and tensor.ndim <= 1:
                tensor.add_(0.5 * torch.rand_like(tensor))
    assert_full_width_is_the_source(make_source(model, name, "random"), images(64))


@pytest.mark.parametrize("name", REFUSED)
def test_tiny_networks_of_other_kinds_are_refused_by_name_with_the_reason(name: str) -> None:
    with pytest.raises(SourceError, match=f"{name} cannot be a source: it is a (hybrid of|vision transformer)"):
        load_source(name, weights="random")


def test_families_are_either_convolutional_or_not() -> None:
    assert set(CONVOLUTIONAL).isdisjoint(OTHER)
    known = set(timm.list_models())
    assert [name for name in CONVOLUTIONAL.values() if name not in known] == []


@pytest.mark.skipif(version("timm") != "1.0.31", reason="another timm may have other families")
def test_every_family_of_timm_is_listed() -> None:
    assert unlisted_families() == []


@pytest.mark.slow
@pytest.mark.parametrize("family", CONVOLUTIONAL)
def test_families(family: str) -> None:
    """On images of half the usual size where the network takes them."""
    source = load_source(CONVOLUTIONAL[family], weights="random")
    size = 128 if source.input_config.input_size[1] < 300 else 192
    assert_contract(source, DeltaSpec(3, 8, 8), images(size, batch=2))


@pytest.mark.slow
@pytest.mark.parametrize("family", OTHER)
def test_other_families_are_refused(family: str) -> None:
    models = timm.list_models(module=family)
    assert models
    with pytest.raises(SourceError, match=f"{models[0]} cannot be a source: it is a"):
        load_source(models[0], weights="random")
