"""What one source pass gives to the deltas."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


class FeatureMaps:
    """The result of one source pass over a batch.

    `images` (B, 3, H, W) are the normalised images, `taps` the asked-for taps by name, (B, C, H, W) each (or
    (B, H, W, C) where the source works channels-last), and `last` (B, num_features) the source's pooled features, if asked for.
    Averages of taps are computed once, however many deltas ask for them.
    """

    def __init__(
        self, images: Tensor, taps: Mapping[str, Tensor], dims: Mapping[str, int], last: Tensor | None
    ) -> None:
        self.images = images
        self.taps = dict(taps)
        self.last = last
        self._dims = dims
        self._averages: dict[str, Tensor] = {}

    def average(self, tap: str) -> Tensor:
        """The mean of a tap over all positions, (B, C), in float32."""
        if tap not in self._averages:
            x = self.taps[tap]
            positions = [dim for dim in range(1, x.ndim) if dim != self._dims[tap]]
            self._averages[tap] = x.mean(positions, dtype=torch.float32)
        return self._averages[tap]

    def vector(self, taps: Sequence[str], last: bool) -> Tensor:
        """The averages of `taps`, followed by the last features if asked for, (B, N)."""
        parts = [self.average(tap) for tap in taps]
        if last:
            assert self.last is not None
            parts.append(self.last)
        return torch.cat(parts, dim=1)
