"""The grid: channels of any taps averaged onto one small map.

A cell is the mean over its part of the map, by area: a pixel that lies in two cells counts in each by the share that
lies there. So every pixel counts alike in the mean over all cells, whatever the sizes, and the mean of a channel's
cells is its mean over the map.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from torchsnow.errors import SourceError

ONE_CELL = 0
"""A grid reduction: one cell for the whole image, so that the grid holds the channels' averages."""

Size = tuple[int, int]
ChannelsByTap = Sequence[Tensor | None]
"""Which channels of each of several taps: (M,) each, or None for all."""
GridWanted = tuple[ChannelsByTap, Size]
"""Which channels of several taps are averaged onto a grid of which size."""


class Grid(NamedTuple):
    """Channels of a pass on a grid: their numbers `channels` (M,), counted through all taps and ascending, their `maps`
    (B, M, Gh, Gw), the `means` of these over the cells (B, M) and, where asked for, their deviations `stds` (B, M)."""

    channels: Tensor
    maps: Tensor
    means: Tensor
    stds: Tensor | None = None

    @classmethod
    def of(cls, channels: Tensor, maps: Tensor) -> Grid:
        """Maps with their means and deviations."""
        return cls(channels, maps, *moments(maps, with_std=True))

    def images(self, rows: slice | Tensor) -> Grid:
        """The same for some of the images: a slice, or their numbers (n,)."""
        return Grid(self.channels, self.maps[rows], self.means[rows], None if self.stds is None else self.stds[rows])


def moments(maps: Tensor, with_std: bool) -> tuple[Tensor, Tensor | None]:
    """Means (B, M) of maps (B, M, Gh, Gw) over their cells, and their standard deviations, if asked for."""
    means = maps.mean((2, 3))
    return means, (maps - means[:, :, None, None]).square().mean((2, 3)).sqrt() if with_std else None


def sorted_union(indices: Sequence[Tensor]) -> Tensor:
    """The channels of several sets (M,), ascending and once each: without sorting, for a pass finds it every time."""
    joint = torch.cat(list(indices))
    known = torch.zeros(int(joint.max()) + 1 if len(joint) else 0, dtype=torch.bool, device=joint.device)
    known[joint] = True
    return known.nonzero().flatten()


def places_in(channels: Tensor, index: Tensor) -> Tensor:
    """Where the channels `index` (n,) stand among `channels` (M,), all of which differ."""
    return _places(channels, channels._version).index_select(0, index)


@lru_cache(8)  # by identity: all tasks of a pass look up in the same
def _places(channels: Tensor, version: int) -> Tensor:
    """`version` changes when a subscription is written to in place, and what was found before no longer holds."""
    del version
    places = torch.zeros(int(channels.max()) + 1 if len(channels) else 0, dtype=torch.int64, device=channels.device)
    places[channels] = torch.arange(len(channels), device=channels.device)
    return places


def grid_size(height: int, width: int, reduction: int) -> Size:
    """Rows and columns of the grid of an image of so many pixels: one cell per `reduction` pixels, rounded up.

    Raises SourceError for an image smaller than a cell.
    """
    if reduction == ONE_CELL:
        return 1, 1
    if min(height, width) < reduction:
        raise SourceError(
            f"the images have {height} x {width} pixels, less than the {reduction} x {reduction} of one cell of the "
            "grid; use larger images"
        )
    return math.ceil(height / reduction), math.ceil(width / reduction)


def to_grid(x: Tensor, dim: int, idx: Tensor | None, size: Size) -> Tensor:
    """The channels `idx` (M,), or all for None, of a tap whose channels stand in `dim`, averaged onto a grid.

    (B, C, H, W), (B, H, W, C), or tokens (B, L, C) that make a map of the grid's aspect -> (B, M, *size), float32.
    """
    if idx is not None and len(idx) == 0:
        return x.new_empty(x.shape[0], 0, *size, dtype=torch.float32)  # `len` would fix the batch of an export
    x = _as_maps(x, dim, size)
    pool_first = x.stride(1) == 1 and x.shape[1] > 1  # channels last: averaging is fast there, and gathering slow
    if idx is not None and not pool_first:
        x = x.index_select(1, idx)
    pooled = _pool(x.float(), size)
    return choose_channels(pooled, idx) if idx is not None and pool_first else pooled


Parts = tuple[Tensor, Tensor, Tensor | None]
"""The maps, means and deviations of a grid."""


def join_channels(parts: Sequence[Parts]) -> Parts:
    """The channels of several taps as one grid, laid out channel by channel: then choosing channels copies long rows,
    and what is chosen is the matrix that a 1x1 convolution multiplies with."""
    maps, means, stds = zip(*([part for part in parts if part[0].shape[1]] or parts), strict=True)
    return _joined(maps, 0), torch.cat(means, 1), None if stds[0] is None else torch.cat(stds, 1)


def join_images(parts: Sequence[Parts]) -> Parts:
    """What `join_channels` gives of several parts of a batch, as of one."""
    maps, means, stds = zip(*parts, strict=True)
    if len(parts) == 1:
        return parts[0]
    return _joined(maps, 1), torch.cat(means), None if stds[0] is None else torch.cat(stds)


def _joined(parts: Sequence[Tensor], dim: int) -> Tensor:
    # of three dimensions, because torch lays a joint tensor of four out as its parts are
    joint = torch.cat([part.flatten(2).transpose(0, 1) for part in parts], dim)
    return _as_grid(joint, parts[0])


def choose_channels(x: Tensor, idx: Tensor) -> Tensor:
    """The channels `idx` (M,) of what `join_channels` gives, (B, M, Gh, Gw), laid out alike."""
    return _as_grid(x.transpose(0, 1).flatten(2).index_select(0, idx), x)


def _as_grid(rows: Tensor, like: Tensor) -> Tensor:
    """(C, B, cells) -> (B, C, Gh, Gw) with the cells of another grid."""
    return rows.transpose(0, 1).reshape(rows.shape[1], rows.shape[0], *like.shape[2:])


def _as_maps(x: Tensor, dim: int, size: Size) -> Tensor:
    """(B, C, H, W), without a copy."""
    if x.ndim == 3:
        tokens = x if dim == 2 else x.transpose(1, 2)
        return tokens.transpose(1, 2).reshape(*tokens.shape[::2], *_sides(tokens.shape[1], size))
    return x if dim == 1 else x.movedim(dim, 1)


def _sides(num_positions: int, size: Size) -> Size:
    """Height and width of a map of so many positions, in the aspect nearest to the grid's."""
    heights = (height for height in range(1, num_positions + 1) if num_positions % height == 0)
    height = min(heights, key=lambda height: abs(math.log(height**2 / num_positions * size[1] / size[0])))
    return height, num_positions // height


def _pool(x: Tensor, size: Size) -> Tensor:
    height, width = (int(side) for side in x.shape[2:])  # plain numbers also where a tracer stands in for them
    if size == (height, width):
        return x
    if size == (1, 1):
        return x.mean((2, 3), keepdim=True)
    if height % size[0] == 0 and width % size[1] == 0:
        return F.avg_pool2d(x, (height // size[0], width // size[1]))
    rows, columns = (_cells(*sides).to(x.device) for sides in zip((height, width), size, strict=True))
    return rows @ x @ columns.T


def _cells(side: int, cells: int) -> Tensor:
    """(cells, side): the share of every pixel in the mean of each cell, along one side."""
    edges = torch.arange(cells + 1, dtype=torch.float64) * side / cells
    pixels = torch.arange(side, dtype=torch.float64)
    overlap = torch.minimum(edges[1:, None], pixels + 1) - torch.maximum(edges[:-1, None], pixels)
    return (overlap.clamp_min(0) * cells / side).float()
