"""Many tasks as they are served: a network per task or heads on one source, and deltas to compare them with."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from torchsnow.delta import Delta, DeltaSpec
from torchsnow.source import Request, Source


class Heads(nn.Module):
    """One source pass and a linear layer per task: images (B, 3, H, W) -> logits (B, num_classes) of every task.

    With one task it is a network of its own: the fine-tuned one, batch norms folded as in every source pass.
    """

    def __init__(self, source: Source, num_tasks: int, num_classes: int) -> None:
        super().__init__()
        self.source = source
        self.layers = nn.ModuleList(nn.Linear(source.num_features, num_classes) for _ in range(num_tasks))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        last = self.source(images, Request(last=True)).last
        return tuple(layer(last) for layer in self.layers)


def random_deltas(source: Source, spec: DeltaSpec, count: int) -> list[Delta]:
    """Settled deltas, each of which chose other channels: what a delta costs does not depend on how well it was
    trained, but which channels many of them read together does. torch's global generator is left as it was."""
    deltas = []
    with torch.random.fork_rng(devices=[]):
        for seed in range(count):
            torch.manual_seed(seed)
            delta = Delta(source, spec).eval()
            if (grid := delta.grid_pool) is not None:
                index = torch.randperm(grid.num_chs)[: grid.num_pooled].sort().values
                delta.subscribe(index, torch.ones(grid.num_pooled))
            for pool in delta.named_pools().values():
                nn.init.uniform_(pool.weight, 0.5, 1.5)
            deltas.append(delta.settle(source))
    return deltas
