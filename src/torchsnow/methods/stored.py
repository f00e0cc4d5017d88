"""A grid delta in two parts: what the source gives of an image, which can be stored, and the delta on that."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from torchsnow.delta.delta import Delta
from torchsnow.delta.head import Head
from torchsnow.source.features import Request
from torchsnow.source.grid import grid_size
from torchsnow.source.source import Source


class SubscribedValues(nn.Module):
    """Images (B, 3, H, W) -> what a subscribed grid delta reads of them, (B, D), in half precision.

    First the grid of the subscribed channels, cell by cell (Gh * Gw * M), then the head's standardised values.
    """

    def __init__(self, source: Source, delta: Delta) -> None:
        super().__init__()
        self.source, self.delta = source, delta

    def chosen(self) -> dict[str, Tensor]:
        """The subscribed channels, and which values the head reads, standardised how."""
        pool, head = self.delta.grid_pool, self.delta.head
        assert pool is not None
        if not isinstance(head, Head):
            return {"index": pool.index}
        of_head = {"weight": head.pool.weight, "center": head.center, "spread": head.spread, "num": head.num_read}
        return {"index": pool.index} | of_head

    def forward(self, images: Tensor) -> Tensor:
        training = self.delta.training
        self.delta.eval()  # the head then names just the values that it reads
        pool, head, reduction = self.delta.grid_pool, self.delta.head, self.delta.spec.grid_reduction
        assert pool is not None
        request = Request(grids={reduction: pool.index})
        features = self.source(
            images, Request.together([request, head.request(reduction)]) if isinstance(head, Head) else request
        )
        parts = [features.grid(reduction, pool.index).flatten(2).transpose(1, 2).flatten(1)]
        if isinstance(head, Head):
            parts.append(head.read(features)[0])
        self.delta.train(training)
        # A half holds up to 65,504; no channel that is worth reading comes near it.
        return torch.cat(parts, dim=1).clamp(-6e4, 6e4).half()


class StoredDelta(nn.Module):
    """What `SubscribedValues` gives of images of `image_size` pixels, (B, D) -> logits (B, num_classes)."""

    def __init__(self, delta: Delta, image_size: int) -> None:
        super().__init__()
        self.delta = delta
        self._size = grid_size(image_size, image_size, delta.spec.grid_reduction)

    def forward(self, values: Tensor) -> Tensor:
        delta, pool = self.delta, self.delta.grid_pool
        assert pool is not None
        cells = self._size[0] * self._size[1]
        grid = values[:, : cells * pool.num_pooled].float()
        maps = grid.reshape(len(grid), *self._size, pool.num_pooled).permute(
            0, 3, 1, 2
        )  # channels last, without a copy
        own = delta.body_features(maps)
        if not isinstance(delta.head, Head):
            logits: Tensor = delta.head(own)
            return logits
        head = delta.head
        if not head.reads_source:
            return head.own_logits(own)
        return head.logits(own, values[:, cells * pool.num_pooled :].float(), head.pool.choose())
