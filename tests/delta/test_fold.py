from __future__ import annotations

import pytest
import torch
from torch import nn

from torchsnow.delta import Delta, DeltaSpec
from torchsnow.delta.fold import fold
from torchsnow.errors import DeltaError
from torchsnow.source import Request, Source, load_source

# plain convolutions, depthwise ones, norms with an activation, weights standardised on the way, linear layers
NETWORKS = (
    "test_resnet",
    "test_efficientnet",
    "mobilenetv2_035",
    "nf_resnet26",
    "test_convnext",
    "tf_efficientnet_lite0",
)


def frozen(source: Source, seed: int = 0, entry_reduction: int = 1) -> Delta:
    """A delta that chose at random, with statistics of its norms as training leaves them."""
    torch.manual_seed(seed)
    delta = Delta(source, DeltaSpec(3, 4, 4, entry_reduction=entry_reduction)).eval()
    with torch.no_grad():
        for pool in delta.named_pools().values():
            pool.weight.uniform_(0.5, 1.5)
        for part in delta.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.running_mean.uniform_(-0.5, 0.5)
                part.running_var.uniform_(0.5, 2)
                part.weight.uniform_(0.5, 2)
                part.bias.uniform_(-0.5, 0.5)
        delta.head.fc.columns.normal_()
    return delta.freeze(source).eval()


@pytest.mark.parametrize("entry_reduction", [1, 8])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_folded_delta_gives_the_same_logits(name: str, entry_reduction: int) -> None:
    source = load_source(name, "random")
    delta = frozen(source, entry_reduction=entry_reduction)
    features = source(torch.randn(2, 3, 64, 64), Request.together([delta.request(delta.choose())]))
    with torch.no_grad():
        expected, given = delta(features), fold(delta)(features)
    torch.testing.assert_close(given, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    assert expected.abs().max() > 0.01


@pytest.mark.parametrize("entry_reduction", [1, 8])
def test_batch_norms_are_gone_and_the_original_is_as_it_was(entry_reduction: int) -> None:
    source = load_source("test_resnet", "random")
    delta = frozen(source, entry_reduction=entry_reduction)
    before = {name: tensor.clone() for name, tensor in delta.state_dict().items()}
    folded = fold(delta)
    assert not [part for part in folded.modules() if isinstance(part, nn.BatchNorm2d)]
    assert [part for part in delta.modules() if isinstance(part, nn.BatchNorm2d)]
    assert all(torch.equal(before[name], tensor) for name, tensor in delta.state_dict().items())
    assert not any(parameter.requires_grad for parameter in folded.parameters())


def test_an_open_delta_is_refused() -> None:
    source = load_source("test_resnet", "random")
    with pytest.raises(DeltaError, match=r"not frozen.*freeze it before"):
        fold(Delta(source, DeltaSpec(3)))


def test_a_folded_delta_is_folded_already() -> None:
    folded = fold(frozen(load_source("test_resnet", "random")))
    assert fold(folded) is folded
