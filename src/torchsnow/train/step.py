"""One step of the optimiser, as training and the learning rate's range test make it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from torchsnow.data import ImageSet
from torchsnow.train.batches import balanced_weights
from torchsnow.train.contract import Method
from torchsnow.train.ranks import ALONE, Ranks
from torchsnow.train.schedule import make_optimizer, set_lr
from torchsnow.train.settings import TrainSettings
from torchsnow.train.targets import losses

MAX_GRADIENT_NORM = 5.0


class Stepper:
    """A method's parameters with their optimiser and the loss. The model has to be on the settings' device.

    Of several processes each makes a step on its share of a batch, with a model that `Ranks.wrap` gave.
    """

    def __init__(
        self,
        method: Method,
        images: ImageSet,
        settings: TrainSettings,
        ranks: Ranks = ALONE,
    ) -> None:
        self.ranks = ranks
        self.device = settings.torch_device()
        self.amp = settings.amp and self.device.type == "cuda"
        self.optimizer = make_optimizer(method.parameter_groups(settings.lr, settings.weight_decay), settings)
        self.parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        self._weights = None if settings.class_weights == "none" else balanced_weights(images).to(self.device)
        self._label_smoothing = settings.label_smoothing

    def step(
        self, model: Callable[[Any], Tensor], images: Any, labels: Tensor, lr_factor: float
    ) -> tuple[Tensor, Tensor]:
        """Train `model` on one batch of images, or of whatever it takes, at `lr_factor` times the learning rate.

        Returns the loss before the step and the logits (B, num_classes).
        """
        set_lr(self.optimizer, lr_factor)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.amp):
            logits = model(images).float()
        loss, weight = self._loss(logits, labels)
        self.optimizer.zero_grad(set_to_none=True)
        (loss * self.ranks.weight(weight)).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.parameters, MAX_GRADIENT_NORM)
        self.optimizer.step()
        return loss.detach(), logits.detach()

    def _loss(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The mean over the batch, of classes with weights the weighted one, and what the batch weighs."""
        of_images = losses(logits, labels, self._weights, self._label_smoothing)
        if self._weights is None or labels.ndim == 2:
            return of_images.mean(), of_images.new_tensor(len(labels))
        weight = self._weights[labels].sum()
        return of_images.sum() / weight, weight
