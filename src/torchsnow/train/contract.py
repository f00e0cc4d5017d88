"""The contract between training and a method of transfer learning."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from torchsnow.source.config import InputConfig
from torchsnow.source.source import Source
from torchsnow.train.store import FrozenPart

Batches = Iterable[tuple[Tensor, Tensor]]
"""Batches of normalised images (B, 3, H, W) and labels (B,); may be gone through several times."""


@dataclass(frozen=True)
class TaskCost:
    """Multiply-adds of one image, at the source's own size.

    `first` is the whole way of the first task, from the image to its logits; `added` that of each further task when
    whatever the tasks share has run already.
    """

    first: int
    added: int


@dataclass(frozen=True)
class MixingWeights:
    """How much a linear probe over the source's values and a delta's body count in the logits of a task.

    None where a method has no such part; a part that counts 0 is not shipped.
    """

    probe: float | None = None
    body: float | None = None


class Method(Protocol):
    """A way to turn a source into a classifier of one task.

    `name` is the method's name, `source` what it was made of, `model` maps normalised images (B, 3, H, W) to logits
    (B, num_classes), and `input_config` says how the images are normalised. A method draws its initial weights when it
    is made; from then on all its randomness is torch's global generator.
    """

    @property
    def name(self) -> str: ...

    @property
    def source(self) -> Source: ...

    @property
    def model(self) -> nn.Module: ...

    @property
    def input_config(self) -> InputConfig: ...

    def config(self) -> dict[str, Any]:
        """What the method was made with, in JSON values: a run resumes only with an equal one."""

    def start(self, images: Batches, device: torch.device) -> None:
        """Called once before training, with the training images as at evaluation; the model is on `device`."""

    def frozen_part(self, image_size: int) -> tuple[FrozenPart, nn.Module] | None:
        """The two halves of `model`, for images of so many pixels: what reads fixed values (B, N) of a source pass,
        which training never changes once it has started, and a module from values to logits. Training computes the
        values once for every image and view. None if there are none.
        """

    def parameter_groups(self, lr: float, weight_decay: float) -> list[dict[str, Any]]:
        """The parameters that train, as an optimiser's groups, each with its own "lr" and "weight_decay"."""

    @property
    def starts_as_probe(self) -> bool:
        """Whether its start is a linear probe, so that epoch 0 says how good one is."""

    def set_progress(self, fraction: float) -> None:
        """Called before every step with the share of all steps that is done, 0 to below 1."""

    def tune(self, model: nn.Module, batches: Batches, device: torch.device) -> float | None:
        """Called after every epoch, before it is judged, with what `model` takes of the validation images (the images,
        or their fixed values) and their labels: set what they decide. Returns the accuracy of a delta's body alone, if
        that was found on the way."""

    def record(self) -> list[dict[str, Any]]:
        """What to write down after an epoch: rows of plain values, the same columns every time; may be empty."""

    def trainable_state(self) -> dict[str, Tensor]:
        """Everything that training changes, by name, and nothing of a frozen source."""

    def load_trainable_state(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `trainable_state` gave. Raises TrainingError when it does not fit."""

    def subscription(self) -> dict[str, Any]:
        """Which channels are read, tap by tap, in JSON values; empty for methods without channel pooling."""

    def shipped_state(self) -> dict[str, Tensor]:
        """What has to be kept of a finished task besides the source, by name."""

    def mixing_weights(self) -> MixingWeights:
        """How much the parts of the task count in its logits, as it would ship now."""

    def multiply_adds(self) -> TaskCost:
        """What a first and a further task cost at inference, as the task would ship now."""

    def finish(self) -> nn.Module:
        """The model as it ships, in eval mode, with the logits of `model` in eval mode."""


class SharedMethod(Method, Protocol):
    """A method on a source whose `start` can be a part of a pass that is shown to others too: `statistics` is to be
    shown the training images, and `init_from_stats` is the rest."""

    def statistics(self, device: torch.device) -> Any: ...

    def init_from_stats(self, stats: Any) -> None: ...
