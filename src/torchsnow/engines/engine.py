"""What answers for tasks: one source pass per batch of images, and every delta on the images that ask for it.

`Engine` runs tasks that come and go; a `Program` is the source and some deltas as one module, to be timed or exported.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from torchsnow.delta import Delta
from torchsnow.delta.fold import fold
from torchsnow.delta.head import FoldedHead
from torchsnow.source import FeatureMaps, Request, Source
from torchsnow.source.grid import ONE_CELL, choose_channels, places_in


class DeltaRequest(NamedTuple):
    """One delta, as its engine prepared it, for the images of a batch that ask for it: `rows`, in ascending order.

    No image need ask for it: then it has no logits, (0, num_classes).
    """

    prepared: Any
    rows: tuple[int, ...]


class Engine:
    """Runs one source and any number of deltas, on the source's device. Safe to be used by several threads at once."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def prepare(self, delta: Delta) -> Delta:
        """The delta with pooling weights and norms folded. Raises DeltaError for one that is not frozen."""
        return fold(delta)

    def run(self, images: Tensor, requests: Sequence[DeltaRequest]) -> list[Tensor]:
        """Logits (len(rows), num_classes) for every request, from one source pass.

        `images` (B, 3, H, W) are normalised as the source's `input_config` says. The pass gathers and computes no
        more than the deltas that are asked for read. Raises SourceError for images of a shape that cannot be used.
        """
        deltas = [request.prepared for request in requests]
        assert all(isinstance(delta, Delta) for delta in deltas)
        with torch.no_grad():
            features = self.source(images, Request.together(delta.request(delta.choose()) for delta in deltas))
            return [_on_rows(delta, features, request.rows) for delta, request in zip(deltas, requests, strict=True)]


def _on_rows(delta: Delta, features: FeatureMaps, rows: Sequence[int]) -> Tensor:
    """A delta on some of the images, in runs of neighbours, so that no tap is copied."""
    parts = [delta(features.span(first, last)) for first, last in runs(rows) or [(0, 0)]]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def runs(rows: Sequence[int]) -> list[tuple[int, int]]:
    """Ascending numbers as runs of neighbours: 0, 1, 4 are (0, 2) and (4, 5)."""
    found: list[tuple[int, int]] = []
    for row in rows:
        if found and found[-1][1] == row:
            found[-1] = found[-1][0], row + 1
        else:
            found.append((row, row + 1))
    return found


class Reader(nn.Module):
    """A folded delta that knows where the channels that it reads stand among those of one request.

    So nothing has to be looked up while it runs, and a graph of it holds plain selections.
    """

    grid_places: Tensor
    average_places: Tensor

    def __init__(self, delta: Delta, request: Request) -> None:
        super().__init__()
        self.delta = delta
        self.reduction, known = _grid_of(delta, request)
        pool, head = delta.grid_pool, delta.head
        none = torch.empty(0, dtype=torch.int64)
        grid = none if pool is None else pool.index
        averaged = head.channels if isinstance(head, FoldedHead) else none
        self.register_buffer("grid_places", places_in(known, grid))
        self.register_buffer("average_places", places_in(known, averaged))

    def forward(self, features: FeatureMaps) -> Tensor:
        logits: Tensor = self.delta(_Placed(self, features))
        return logits


class _Placed(FeatureMaps):
    """A pass as one reader sees it."""

    def __init__(self, reader: Reader, features: FeatureMaps) -> None:
        super().__init__(features.images, features._dims, features.taps, grids=features.grids, last=features.last)
        self._reader = reader

    def grid(self, reduction: int, index: Tensor) -> Tensor:
        return choose_channels(self.grids[reduction].maps, self._reader.grid_places)

    def averages(self, index: Tensor) -> Tensor:
        return self.grids[self._reader.reduction].means.index_select(1, self._reader.average_places)

    def deviations(self, reduction: int, index: Tensor) -> Tensor:
        stds = self.grids[self._reader.reduction].stds
        assert stds is not None
        return stds.index_select(1, self._reader.average_places)


def _grid_of(delta: Delta, request: Request) -> tuple[int, Tensor]:
    """The grid of a request that a delta reads, and its channels."""
    own = delta.request(delta.choose()).grids
    reduction = next((reduction for reduction in own if reduction in request.grids), None)
    reduction = min(request.grids, default=ONE_CELL) if reduction is None else reduction
    return reduction, request.grids.get(reduction, torch.empty(0, dtype=torch.int64))


class Program(nn.Module):
    """One source pass and frozen deltas: images (B, 3, H, W) -> logits (B, num_classes) of every delta.

    Pooling weights and batch norms are folded into the layers that they act on, and the source stops after the last
    tap that a delta reads. The deltas given are left unchanged. Raises DeltaError for one that is not frozen.
    """

    def __init__(self, source: Source, deltas: Sequence[Delta]) -> None:
        super().__init__()
        self.source = source
        self.deltas = nn.ModuleList(fold(delta) for delta in deltas)
        self.request = Request.together(delta.request(delta.choose()) for delta in self._folded())
        self.readers = nn.ModuleList(Reader(delta, self.request) for delta in self._folded())
        for reduction, index in self.request.grids.items():
            for at, channels in enumerate(source.by_tap(index)):
                self.register_buffer(f"channels_{reduction}_{at}", channels)
        self.eval()

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        parts = {
            reduction: [getattr(self, f"channels_{reduction}_{at}") for at in range(len(self.source.taps))]
            for reduction in self.request.grids
        }
        with torch.no_grad():
            features = self.source.differentiable(images, self.request, parts)
        return tuple(reader(features) for reader in self.readers)

    def _folded(self) -> list[Delta]:
        return [delta for delta in self.deltas if isinstance(delta, Delta)]
