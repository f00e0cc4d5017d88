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
from torchsnow.errors import DeltaError, SourceError
from torchsnow.model import SnowModel
from torchsnow.source import Request, Source, Tap, load_source, make_source
from torchsnow.source.families import ATTENTIVE, CONVOLUTIONAL, OTHER, unlisted_families

TINY = [name for name in timm.list_models("test_*") if "vit" not in name and "coatnet" not in name]
TINY_ATTENTIVE = [name for name in timm.list_models("test_*") if name not in TINY]

# Endings of the names of parameters that no gradient reaches.
WITHOUT_GRADIENT: dict[str, str] = {
    # A batch norm follows, which takes any constant away again.
    "rexnet_100": "_se_fc1.bias",
    "hgnetv2_b0": "_lab_bias",
}
FULL_SIZE = {"vgg"}  # families whose networks end in a convolution as large as the last map


def images(size: int, batch: int = 4) -> Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(1))


def lifelike_source(name: str, size: int) -> Source:
    """With random weights, but with batch norms that have seen images: activations neither die nor explode."""
    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False, num_classes=0)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = 1.0
    with torch.no_grad():
        model.train()(images(size))
        for tensor in model.state_dict().values():  # other norms, scales and biases off their start of zero or one
            if tensor.is_floating_point() and tensor.ndim <= 1:
                tensor.add_(0.2 * torch.rand_like(tensor))
    return make_source(model, name, "random")


def lively_source(name: str) -> Source:
    """With random weights, and no vector or scalar at its start of zero or one."""
    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False, num_classes=0).eval()
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point() and tensor.ndim <= 1:
                tensor.add_(0.2 * torch.rand_like(tensor))
    return make_source(model, name, "random")


def trained_twice(source: Source, spec: DeltaSpec, pictures: Tensor, seed: int) -> SnowModel:
    """A model after two steps: the head starts blind to the source, so only the second reaches its pool."""
    torch.manual_seed(seed)
    model = SnowModel(source, Delta(source, spec)).train()
    for name, parameter in model.delta.body.named_parameters():
        if name.endswith("bias"):
            nn.init.constant_(parameter, 0.5)  # so that few rectifiers are silent where one or two channels are left
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
    excused = WITHOUT_GRADIENT.get(model.source.name)
    return {
        name
        for name, gradient in gradients.items()
        if (gradient is None or not gradient.abs().sum() > 0) and not (excused and name.endswith(excused))
    }


def assert_contract(source: Source, spec: DeltaSpec, pictures: Tensor) -> None:
    """The source computes what the plain network does, and a delta derives, learns with every parameter, is smaller
    than the source, and freezes to the same logits."""
    with torch.no_grad():
        expected = source.model(pictures)
    torch.testing.assert_close(source(pictures).last, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))

    model = trained_twice(source, spec, pictures, seed=0)
    without = without_gradient(model)
    for seed in range(1, 6):  # a squeeze-and-excite of one channel is silent in every second start
        without &= without_gradient(trained_twice(source, spec, pictures, seed)) if without else set()
    assert without == set()

    model.eval()
    frozen = model.freeze().eval()
    with torch.no_grad():
        logits = model(pictures)
        assert logits.shape == (len(pictures), spec.num_classes)
        assert logits.isfinite().all()
        torch.testing.assert_close(frozen(pictures), logits, rtol=1e-4, atol=1e-5)
    sizes = [sum(p.numel() for p in network.parameters()) for network in (frozen.delta.body, source)]
    assert sizes[0] < sizes[1] / 2


def assert_full_width_is_the_source(source: Source, pictures: Tensor) -> None:
    """With the source's width and weights, and blind to its taps, a delta's body computes the source's features."""
    delta = Delta(source, DeltaSpec(2, 1, 1)).eval()
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
        own, expected = delta.own_features(source(pictures), delta.choose()), source.model(pictures)
    torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("name", TINY)
def test_tiny_networks(name: str) -> None:
    assert_contract(lifelike_source(name, 64), DeltaSpec(3, 4, 4), images(64))


@pytest.mark.parametrize("name", TINY)
def test_tiny_networks_at_full_width_are_the_source(name: str) -> None:
    assert_full_width_is_the_source(lifelike_source(name, 64), images(64))


def assert_attentive_contract(source: Source) -> None:
    """The source computes what the plain network does; its grid has the means over the places of every tap and no
    other tokens; a grid delta learns, and freezes to the same logits; a narrow copy is refused."""
    size = source.input_config.input_size[1]
    pictures = images(size, batch=2)
    with torch.no_grad():
        expected = source.model(pictures)
    everything = torch.arange(source.num_chs)
    maps = source(pictures, Request(taps=tuple(source.taps), grids={32: everything}, last=True))
    assert maps.last is not None
    torch.testing.assert_close(maps.last, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
    means = [mean_over_places(maps.taps[tap.name], tap) for tap in source.taps.values()]
    torch.testing.assert_close(maps.averages(everything), torch.cat(means, 1), rtol=1e-3, atol=1e-4)

    spec = DeltaSpec(3, width_divisor=None, grid_width=32, head_divisor=4)
    model = SnowModel(source, Delta(source, spec)).train()
    F.cross_entropy(model(pictures), torch.tensor([0, 1])).backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.delta.parameters())
    model.eval()
    with torch.no_grad():
        frozen, logits = model.freeze().eval()(pictures), model(pictures)
    torch.testing.assert_close(frozen, logits, rtol=0, atol=0.1 * float(logits.abs().max()))  # it is rounded to bytes
    with pytest.raises(DeltaError, match=r"narrow copy of them cannot be made|cannot propagate the channels"):
        Delta(source, DeltaSpec(3, 8, 8))


def mean_over_places(value: Tensor, tap: Tap) -> Tensor:
    """The mean of a tap's channels, (B, C)."""
    places = value[:, tap.num_prefix :] if value.ndim == 3 else value
    return places.float().movedim(tap.dim, 1).flatten(2).mean(2)


@pytest.mark.parametrize("name", TINY_ATTENTIVE)
def test_tiny_networks_with_attention(name: str) -> None:
    assert_attentive_contract(lively_source(name))


def test_class_tokens_and_registers_are_no_places() -> None:
    plain, registers = (lively_source(name) for name in ("test_vit", "test_vit3"))
    assert {tap.num_prefix for tap in plain.taps.values()} == {1}
    assert {tap.num_prefix for tap in registers.taps.values()} == {registers.model.num_prefix_tokens}


@pytest.mark.slow
@pytest.mark.parametrize("family", ATTENTIVE)
def test_attentive_families(family: str) -> None:
    assert_attentive_contract(lively_source(ATTENTIVE[family]))


MAIN = ["deit3_small_patch16_224", "vit_small_patch14_reg4_dinov2", "vit_base_patch32_clip_224"]
MAIN += ["vit_base_patch16_siglip_224", "caformer_s18", "fastvit_sa12", "mobilenetv4_hybrid_medium"]


@pytest.mark.slow
@pytest.mark.parametrize("name", MAIN)
def test_what_people_use(name: str) -> None:
    assert_attentive_contract(lively_source(name))


def test_families_are_either_convolutional_or_not() -> None:
    assert len({*CONVOLUTIONAL, *ATTENTIVE, *OTHER}) == len(CONVOLUTIONAL) + len(ATTENTIVE) + len(OTHER)
    known = set(timm.list_models())
    assert [name for name in (*CONVOLUTIONAL.values(), *ATTENTIVE.values()) if name not in known] == []


@pytest.mark.skipif(version("timm") != "1.0.31", reason="another timm may have other families")
def test_every_family_of_timm_is_listed() -> None:
    assert unlisted_families() == []


@pytest.mark.slow
@pytest.mark.parametrize("family", CONVOLUTIONAL)
def test_families(family: str) -> None:
    size = 224 if family in FULL_SIZE else 128
    assert_contract(lifelike_source(CONVOLUTIONAL[family], size), DeltaSpec(3, 8, 8), images(size, batch=2))


@pytest.mark.slow
@pytest.mark.parametrize("family", OTHER)
def test_other_families_are_refused(family: str) -> None:
    models = timm.list_models(module=family)
    assert models
    with pytest.raises(SourceError, match=f"{models[0]} cannot be a source: it is a"):
        load_source(models[0], weights="random")
