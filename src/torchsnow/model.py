"""A source and one delta as an ordinary module: images to logits."""

from __future__ import annotations

from torch import Tensor, nn

from torchsnow.delta.delta import Delta
from torchsnow.source.source import Source


class SnowModel(nn.Module):
    """Images (B, 3, H, W), normalised as the source's `input_config` says -> logits (B, num_classes).

    Works in a plain PyTorch loop: `train()` reaches the delta alone, and only the delta's parameters get gradients.
    """

    def __init__(self, source: Source, delta: Delta) -> None:
        super().__init__()
        self.source = source
        self.delta = delta
        self.train(delta.training)

    def forward(self, images: Tensor) -> Tensor:
        """One source pass, then the delta."""
        choice = self.delta.choose()  # before the pass, which then keeps the chosen channels alone
        features = self.source(images, self.delta.request(choice))
        logits: Tensor = self.delta(features, choice)
        return logits

    def freeze(self) -> SnowModel:
        """The same model with the delta's choice of channels frozen."""
        return SnowModel(self.source, self.delta.freeze(self.source))
