"""A plain loop around a method, as anybody would write it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from torchsnow.train import Method, TrainSettings
from torchsnow.train.schedule import make_optimizer

CPU = torch.device("cpu")
Batches = list[tuple[Tensor, Tensor]]


def train(method: Method, batches: Batches, steps: int = 4) -> None:
    """A plain loop over a method, after its look at the images."""
    torch.manual_seed(0)
    method.start(batches, CPU)
    optimizer = make_optimizer(method.parameter_groups(1e-2, 0.05), TrainSettings(lr=1e-2))
    method.model.train()
    for step in range(steps):
        method.set_progress(step / steps)
        images, labels = batches[step % 2]
        optimizer.zero_grad()
        nn.functional.cross_entropy(method.model(images), labels).backward()
        optimizer.step()


def logits(model: nn.Module, batches: Batches) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        return torch.as_tensor(model(batches[0][0]))
