"""Model patch: only batch norms, their scales, shifts and statistics, and the last layer.

Mudrarkarta et al., "K for the Price of 1: Parameter-efficient Multi-task and Transfer Learning", ICLR 2019.
"""

from __future__ import annotations

from torch import nn

from torchsnow.errors import TrainingError
from torchsnow.methods.network import NetworkMethod
from torchsnow.source.source import Source


def make_bn(source: Source, num_classes: int, seed: int) -> NetworkMethod:
    """Raises TrainingError for a network without batch norms."""
    norms = {name for name, part in source.model.named_modules() if isinstance(part, nn.BatchNorm2d)}
    if not norms:
        raise TrainingError(
            f"the method 'bn' trains batch norms, and {source.name} has none; choose another method or another source"
        )
    return NetworkMethod("bn", source, num_classes, seed, lives=norms.__contains__)
