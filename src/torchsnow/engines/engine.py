"""What answers for tasks: one source pass per batch of images, and every delta on the images that ask for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from torchsnow.delta import Delta
from torchsnow.delta.fold import fold
from torchsnow.source import FeatureMaps, Request, Source


@dataclass(frozen=True)
class Work:
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
        """The delta with pooling weights and norms folded. Raises DeltaError for one that is not settled."""
        return fold(delta)

    def run(self, images: Tensor, work: Sequence[Work]) -> list[Tensor]:
        """Logits (len(rows), num_classes) for every piece of work, from one source pass.

        `images` (B, 3, H, W) are normalised as the source's `input_config` says. The pass gathers and computes no
        more than the deltas that are asked for read. Raises SourceError for images of a shape that cannot be used.
        """
        deltas = [piece.prepared for piece in work]
        assert all(isinstance(delta, Delta) for delta in deltas)
        with torch.no_grad():
            features = self.source(images, Request.together(delta.request(delta.choose()) for delta in deltas))
            return [_on_rows(delta, features, piece.rows) for delta, piece in zip(deltas, work, strict=True)]


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
