"""A method so small that a run takes no time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from torchsnow.source import InputConfig
from torchsnow.train.contract import MixingWeights, TaskCost


class Tiny:
    """The smallest method that has all that a resumed run must bring back: dropout, and a batch norm's buffers."""

    name = "tiny"
    starts_as_probe = False

    def __init__(self, config: InputConfig, seed: int = 0) -> None:
        self.input_config, self.seed = config, seed
        torch.manual_seed(seed)
        layers = nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.BatchNorm1d(12), nn.Dropout(0.2), nn.Linear(12, 2)
        self.model = nn.Sequential(*layers)
        self.progress: list[float] = []
        self.starts = 0

    def config(self) -> dict[str, Any]:
        return {"name": self.name, "seed": self.seed}

    def start(self, images: Any, device: torch.device) -> None:
        self.starts += sum(len(labels) for _, labels in images)

    def frozen_part(self, image_size: int) -> None:
        return None

    def parameter_groups(self, lr: float, weight_decay: float) -> list[dict[str, Any]]:
        return [{"params": list(self.model.parameters()), "lr": lr, "weight_decay": weight_decay}]

    def set_progress(self, fraction: float) -> None:
        self.progress.append(fraction)

    def tune(self, model: nn.Module, batches: Any, device: torch.device) -> None:
        """Nothing."""

    def record(self) -> list[dict[str, Any]]:
        return [{"tap": "none", "weight": float(self.model[4].weight.detach().std())}]

    def trainable_state(self) -> dict[str, Tensor]:
        return dict(self.model.state_dict())

    def load_trainable_state(self, state: Mapping[str, Tensor]) -> None:
        self.model.load_state_dict(state)

    def subscription(self) -> dict[str, Any]:
        return {}

    def shipped_state(self) -> dict[str, Tensor]:
        return self.trainable_state()

    def mixing_weights(self) -> MixingWeights:
        return MixingWeights()

    def multiply_adds(self) -> TaskCost:
        return TaskCost(24, 24)

    def finish(self) -> nn.Module:
        return self.model.eval()
