"""What methods without channel pooling have in common: answers about choosing, and how their state is kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from torchsnow.errors import TrainingError
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


def decayed_groups(model: nn.Module, lr: float, weight_decay: float) -> list[dict[str, Any]]:
    """The parameters that need gradients in two groups: with weight decay, and vectors (norms, biases) without."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [([p for p in trained if p.ndim > 1], weight_decay), ([p for p in trained if p.ndim <= 1], 0.0)]
    return [{"params": group, "lr": lr, "weight_decay": decay} for group, decay in groups if group]


def load_living(model: nn.Module, own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """Copy `state` over the tensors `own` of a model. Raises TrainingError unless names and shapes are equal."""
    invalid = sorted(set(own) ^ set(state)) or sorted(name for name in own if own[name].shape != state[name].shape)
    if invalid:
        raise TrainingError(
            f"the saved state does not fit this model: {invalid[0]!r} differs ({len(invalid)} tensors in all)"
        )
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(state[name])
