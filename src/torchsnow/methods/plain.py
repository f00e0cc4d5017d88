"""What methods without channel pooling answer to the parts of the contract that are about choosing."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from torchsnow.train.contract import Batches, MixingWeights


class PlainMethod:
    """Nothing is chosen, nothing changes along the way, and what was trained is what is kept."""

    @property
    def starts_as_probe(self) -> bool:
        """It starts as the source, or at random."""
        return False

    def set_progress(self, fraction: float) -> None:
        """Nothing changes along the way."""

    def tune(self, model: nn.Module, batches: Batches, device: torch.device) -> None:
        """Nothing but the best epoch is chosen by the validation split."""

    def record(self) -> list[dict[str, Any]]:
        """Nothing is chosen."""
        return []

    def subscription(self) -> dict[str, Any]:
        """No channel pooling."""
        return {}

    def mixing_weights(self) -> MixingWeights:
        """There are no parts."""
        return MixingWeights()

    def trainable_state(self) -> dict[str, Tensor]:
        """Everything that training changes, by name."""
        raise NotImplementedError

    def shipped_state(self) -> dict[str, Tensor]:
        """What was trained."""
        return self.trainable_state()
