"""A grid delta in two parts: what the source gives of an image, which can be stored, and the delta on that."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from torchsnow.delta.delta import Delta
from torchsnow.delta.head import Head
from torchsnow.source.features import FeatureMaps, Request
from torchsnow.source.grid import grid_size
from torchsnow.source.source import Source


class SubscribedValues:
    """What a subscribed grid delta reads of images, (B, D), in half precision.

    First the grid of the subscribed channels, cell by cell (Gh * Gw * M), then the head's standardised values.
    """

    def __init__(self, source: Source, delta: Delta) -> None:
        self.source, self.delta = source, delta

    def chosen(self) -> dict[str, Tensor]:
        """The subscribed channels, and which values the head reads, standardised how."""
        pool, head = self.delta.grid_pool, self.delta.head
        assert pool is not None
        if not isinstance(head, Head):
            return {"index": pool.index}
        of_head = {"weight": head.pool.weight, "center": head.center, "spread": head.spread, "num": head.num_read}
        return {"index": pool.index} | of_head

    def request(self) -> Request:
        """What a source pass must return for `read`."""
        with self._choice_made():
            return self.delta.request({})

    def read(self, features: FeatureMaps) -> Tensor:
        """The values, from a pass over the images."""
        pool, head = self.delta.grid_pool, self.delta.head
        assert pool is not None
        parts = [features.grid(self.delta.spec.grid_reduction, pool.index).flatten(2).transpose(1, 2).flatten(1)]
        if isinstance(head, Head):
            with self._choice_made():
                parts.append(head.read(features)[0])
        # A half holds up to 65,504; no channel that is worth reading comes near it.
        return torch.cat(parts, dim=1).clamp(-6e4, 6e4).half()

    @contextmanager
    def _choice_made(self) -> Iterator[None]:
        """In eval mode, where a head names just the values that it reads."""
        training = self.delta.training
        self.delta.eval()
        yield
        self.delta.train(training)


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
