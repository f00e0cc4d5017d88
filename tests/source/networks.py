"""Sources whose numbers are worth comparing: no layer of them is left at a neutral start."""

from __future__ import annotations

import timm
import torch
from torch import nn

from torchsnow.source import Source, make_source

TINY = ("test_resnet", "test_efficientnet", "test_byobnet", "test_convnext", "test_mambaout", "test_nfnet")


def lively(model: nn.Module) -> nn.Module:
    """Move every vector and scalar (norms, statistics, biases, scales) off its start of zero or one."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point() and tensor.ndim <= 1:
                tensor.add_(0.5 * torch.rand(tensor.shape, generator=generator))
    return model.eval()


def timm_model(name: str) -> nn.Module:
    torch.manual_seed(0)
    return lively(timm.create_model(name, pretrained=False, num_classes=0))


def lively_source(name: str, **settings: str) -> Source:
    return make_source(timm_model(name), name, "random", **settings)  # type: ignore[arg-type]


def image(size: int = 64, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(2))
