"""The grid: channels of any taps averaged onto one small map.

A cell is the mean over its part of the map, by area: a pixel that lies in two cells counts in each by the share that
lies there. So every pixel counts alike in the mean over all cells, whatever the sizes, and the mean of a channel's
cells is its mean over the map.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

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
    return pooled.index_select(1, idx) if idx is not None and pool_first else pooled


def join_channels(parts: Sequence[Tensor]) -> Tensor:
    """Maps (B, C, Gh, Gw) as one (B, all channels, Gh, Gw), laid out channel by channel: then choosing channels copies
    long rows, and what is chosen is the matrix that a 1x1 convolution multiplies with."""
    return _joined([part for part in parts if part.shape[1]] or parts, 0)


def join_images(parts: Sequence[Tensor]) -> Tensor:
    """What `join_channels` gives of several parts of a batch, as of one."""
    return parts[0] if len(parts) == 1 else _joined(parts, 1)


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
