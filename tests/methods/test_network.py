"""Methods that train parts of the network itself: which parts, and what becomes of the others."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable

import pytest
import torch
from method_training import Batches, train
from torch import nn
from torch.nn import functional as F

from torchsnow.errors import TrainingError
from torchsnow.methods import make_method
from torchsnow.methods.features import make_features
from torchsnow.methods.full import make_full
from torchsnow.methods.head import make_head
from torchsnow.methods.lora import lora_layers, make_lora
from torchsnow.methods.network import NetworkMethod
from torchsnow.source import Source, load_source


def changed(method: NetworkMethod, batches: Batches) -> set[str]:
    """Names of the tensors of the network, batch norm statistics included, that training changes."""
    before = copy.deepcopy(method.model.body.state_dict())
    train(method, batches)
    return {name for name, tensor in method.model.body.state_dict().items() if not torch.equal(tensor, before[name])}


def test_full_changes_everything(source: Source, batches: Batches) -> None:
    method = make_full(source, 3, seed=0)
    assert changed(method, batches) == set(method.model.body.state_dict())


def test_features_change_the_last_stage_alone(source: Source, batches: Batches) -> None:
    method = make_features(source, 3, seed=0)
    names = changed(method, batches)
    assert names == {name for name in method.model.body.state_dict() if name.startswith("layer4.")}
    assert any(name.endswith("running_mean") for name in names)


@pytest.mark.parametrize("preset", ["frozen-bn", "probe"])
@pytest.mark.parametrize("make", [make_full, make_features])
def test_frozen_statistics_are_all_that_stays(
    make: Callable[..., NetworkMethod], preset: str, source: Source, batches: Batches
) -> None:
    names = [changed(make(source, 3, seed=0, preset=name), batches) for name in ("default", preset)]
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    assert names[0] - names[1] == {name for name in names[0] if name.endswith(statistics)} != set()


@pytest.mark.parametrize("make", [make_full, make_features])
def test_a_network_can_start_as_the_probe(make: Callable[..., NetworkMethod], source: Source, batches: Batches) -> None:
    probe, method = make_head(source, 3, probe=True), make(source, 3, seed=0, preset="probe")
    for one in (probe, method):
        one.start(batches, torch.device("cpu"))
    images = batches[0][0]
    with torch.no_grad():
        torch.testing.assert_close(method.model.eval()(images), probe.model.eval()(images), rtol=1e-3, atol=1e-3)
    assert method.starts_as_probe
    assert not make(source, 3, seed=0).starts_as_probe


@pytest.mark.parametrize(
    ("model", "frozen", "trained"),
    [
        ("resnet50", "layer3.5.bn3.weight", "layer4.0.conv1.weight"),
        ("tf_efficientnet_lite0", "blocks.4.2.bn3.weight", "blocks.5.0.conv_pw.weight"),
        ("convnext_atto", "stages.2.blocks.5.gamma", "stages.3.downsample.0.weight"),
    ],
)
def test_three_of_four_stages_are_frozen(model: str, frozen: str, trained: str) -> None:
    parameters = dict(make_features(load_source(model, "random"), 3, seed=0).model.body.named_parameters())
    assert not parameters[frozen].requires_grad
    assert parameters[trained].requires_grad
    names = list(parameters)
    assert not any(parameters[name].requires_grad for name in names[: names.index(frozen) + 1])
    assert all(parameters[name].requires_grad for name in names[names.index(trained) :])


def test_bn_changes_batch_norms_and_their_statistics_alone(source: Source, batches: Batches) -> None:
    method = make_method("bn", source, 3)
    assert isinstance(method, NetworkMethod)
    norms = {name for name, part in method.model.body.named_modules() if isinstance(part, nn.BatchNorm2d)}
    expected = {name for name in method.model.body.state_dict() if name.rpartition(".")[0] in norms}
    assert changed(method, batches) == expected


def test_bn_needs_batch_norms() -> None:
    with pytest.raises(TrainingError, match="trains batch norms, and convnext_atto has none"):
        make_method("bn", load_source("convnext_atto", "random"), 3)


def test_lora_changes_its_updates_alone(source: Source, batches: Batches) -> None:
    pytest.importorskip("peft")
    names = changed(make_lora(source, 3, seed=0), batches)
    assert names
    assert all(".lora_A." in name or ".lora_B." in name for name in names)


def test_lora_adds_a_low_rank_convolution(source: Source, batches: Batches) -> None:
    """W x + (alpha / r) B A x, with A of the convolution's kernel and B 1x1 (Hu et al., section 4.1)."""
    pytest.importorskip("peft")
    method = make_lora(source, 3, seed=0)
    train(method, batches)
    layer = method.model.body.get_submodule("layer2.0.conv1")
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    conv = source.model.get_submodule("layer2.0.conv1")
    assert isinstance(conv, nn.Conv2d)
    x = torch.randn(2, conv.in_channels, 8, 8)
    weight = conv.weight + 16 / 8 * torch.einsum("or,rikl->oikl", b[:, :, 0, 0], a)
    expected = F.conv2d(x, weight, conv.bias, conv.stride, conv.padding)
    assert torch.allclose(layer(x), expected, atol=1e-5)
    assert bool(b.any())


def test_lora_leaves_depthwise_and_padded_convolutions_alone() -> None:
    source = load_source("tf_efficientnet_lite0", "random")
    layers = {name: source.model.get_submodule(name) for name in lora_layers(source)}
    assert len(layers) > 30
    assert all(type(layer) is nn.Conv2d and layer.groups == 1 for layer in layers.values())
    assert "conv_stem" not in layers  # it pads in its forward


def test_lora_says_which_sources_it_cannot_take() -> None:
    pytest.importorskip("peft")
    with pytest.raises(TrainingError, match=r"LoRA needs plain dense convolutions .*, and nf_resnet26 has none"):
        make_lora(load_source("nf_resnet26", "random"), 3, seed=0)


def test_lora_names_the_extra_that_it_needs(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(TrainingError, match=r"pip install 'torchsnow\[lora\]'"):
        make_lora(source, 3, seed=0)


def test_parts_that_are_frozen_stay_in_eval_mode(source: Source) -> None:
    model = make_features(source, 3, seed=0).model.train()
    modes = {name: part.training for name, part in model.body.named_modules()}
    assert not modes["layer3.0.bn1"]
    assert modes["layer4.0.bn1"]
    assert not any(part.training for part in model.eval().modules())
