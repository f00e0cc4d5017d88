"""Full fine-tuning (FT): every weight of the network trains."""

from __future__ import annotations

from torchsnow.methods.network import NetworkMethod
from torchsnow.source.source import Source


def make_full(source: Source, num_classes: int, seed: int, preset: str = "default") -> NetworkMethod:
    """The whole network and a new last layer; see `NetworkMethod` for the presets."""
    return NetworkMethod("full", source, num_classes, seed, lives=lambda name: True, preset=preset)
