from __future__ import annotations

import pytest
import torch
from networks import TINY, image, lively_source, timm_model
from torch import Tensor, nn

from torchsnow.source import load_source


@pytest.mark.parametrize("name", [*TINY, "resnet18"])
def test_taps_are_what_the_plain_model_feeds_its_convolutions(name: str) -> None:
    source, plain = lively_source(name), timm_model(name)
    read: dict[str, Tensor] = {}
    for target, module in plain.named_modules():
        if target in source.taps:
            module.register_forward_pre_hook(
                lambda _, inputs, target=target: read.__setitem__(target, inputs[0].clone())
            )
    with torch.no_grad():
        last = plain(image())
    features = source(image())
    assert set(features.taps) == set(source.taps) == set(read)
    for tap, value in features.taps.items():
        torch.testing.assert_close(value, read[tap], rtol=1e-3, atol=1e-4 * float(read[tap].abs().max()))
        assert value.shape[source.taps[tap].dim] == source.taps[tap].num_chs
    torch.testing.assert_close(features.last, last, rtol=1e-3, atol=1e-4 * float(last.abs().max()))


def dense_layers(model: nn.Module) -> list[str]:
    return [name for name, m in model.named_modules() if isinstance(m, nn.Conv2d) and m.groups == 1]


def test_every_dense_convolution_but_the_first_reads_a_tap() -> None:
    source = load_source("resnet50", weights="random")
    consumers = [reader for tap in source.taps.values() for reader in tap.consumers]
    first, *others = dense_layers(source.model)
    assert first == "conv1"
    assert sorted(consumers) == sorted(name.replace(".", "_") for name in others)
    assert len(source.taps) == 48


def test_convolutions_of_one_tensor_share_a_tap() -> None:
    source = load_source("resnet18", weights="random")
    tap = source.taps["layer2.0.conv1"]
    assert tap.consumers == ("layer2_0_conv1", "layer2_0_downsample_0")
    assert (tap.num_chs, tap.dim, tap.size) == (64, 1, (56, 56))
    assert "layer2.0.downsample.0" not in source.taps
    assert list(source.taps)[:4] == ["layer1.0.conv1", "layer1.0.conv2", "layer1.1.conv1", "layer1.1.conv2"]


def test_linear_layers_over_positions_are_convolutions() -> None:
    source = load_source("test_convnext", weights="random")
    modules = dict(source.model.named_modules())
    by_kind = {type(modules[name]): tap for name, tap in source.taps.items()}
    assert by_kind[nn.Linear].dim == 3
    assert by_kind[nn.Conv2d].dim == 1


def test_depthwise_squeeze_and_image_convolutions_have_no_tap() -> None:
    source = load_source("test_efficientnet", weights="random")
    consumers = {reader for tap in source.taps.values() for reader in tap.consumers}
    for name, module in source.model.named_modules():
        if isinstance(module, nn.Conv2d):
            untapped = module.groups > 1 or ".se." in name or name == "conv_stem"
            assert (name.replace(".", "_") in consumers) == (not untapped), name
    assert any(".se." in name for name, _ in source.model.named_modules())
