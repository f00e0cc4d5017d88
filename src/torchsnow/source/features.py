"""What one source pass gives to the deltas."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from torchsnow.errors import SourceError
from torchsnow.source.grid import ONE_CELL, Grid, choose_channels, places_in, sorted_union


@dataclass(frozen=True)
class Request:
    """What a source pass shall return.

    - `taps`: names of taps to return whole;
    - `channels`: for a tap's name, the indices of the channels to return, (M,) int64: only these are kept in memory;
    - `grids`: for a grid reduction, the channels to average onto that grid, (M,) int64, ascending, counted through
      all taps in the order of the pass (`Source.channels_of`); `ONE_CELL` gives their averages alone;
    - `stds`: of which of these grids the standard deviations over the cells are wanted;
    - `last`: whether the pooled features at the end are wanted. The pass stops after the last thing that is.
    """

    taps: tuple[str, ...] = ()
    channels: Mapping[str, Tensor] = field(default_factory=dict)
    grids: Mapping[int, Tensor] = field(default_factory=dict)
    stds: frozenset[int] = frozenset()
    last: bool = False

    @classmethod
    def together(cls, requests: Iterable[Request]) -> Request:
        """One request that serves several deltas: taps of which channels are read come whole."""
        requests = list(requests)
        return cls(
            taps=unique(name for request in requests for name in (*request.taps, *request.channels)),
            grids=_union([request.grids for request in requests]),
            stds=frozenset().union(*(request.stds for request in requests)),
            last=any(request.last for request in requests),
        )

    @property
    def is_empty(self) -> bool:
        """Whether nothing of the source is wanted."""
        return not (self.taps or self.channels or self.grids or self.last)


def _union(grids: list[Mapping[int, Tensor]]) -> dict[int, Tensor]:
    """The channels of several requests by reduction; averages are taken from a grid that is made anyway."""
    by_reduction: dict[int, dict[int, Tensor]] = {}
    finest = min((reduction for grid in grids for reduction in grid if reduction != ONE_CELL), default=ONE_CELL)
    for grid in grids:
        for reduction, index in grid.items():
            by_reduction.setdefault(reduction or finest, {})[id(index)] = index
    return {
        reduction: next(iter(found.values())) if len(found) == 1 else sorted_union(list(found.values()))
        for reduction, found in by_reduction.items()
    }


def gather(x: Tensor, dim: int, idx: Tensor) -> Tensor:
    """The channels `idx` (M,) of a tap whose channels stand in `dim`, in float32, as the layers of deltas read them.

    On the CPU (B, C, H, W) is laid out channels-last: narrow convolutions are a quarter faster there.
    """
    taken = x.index_select(dim, idx)
    if dim == 1 and taken.ndim == 4 and taken.device.type == "cpu":
        return taken.to(torch.float32, memory_format=torch.channels_last)
    return taken.float()


class FeatureMaps:
    """The result of one source pass over a batch.

    `images` (B, 3, H, W) are the normalised images, `taps` the taps returned whole by name, (B, C, H, W) each (or
    (B, H, W, C) where the source works channels-last), `grids` the grids by reduction, and `last` (B, num_features) the
    source's pooled features.
    """

    def __init__(
        self,
        images: Tensor,
        dims: Mapping[str, int],
        taps: Mapping[str, Tensor] | None = None,
        gathered: Mapping[str, tuple[Tensor, Tensor]] | None = None,
        grids: Mapping[int, Grid] | None = None,
        last: Tensor | None = None,
    ) -> None:
        self.images = images
        self.taps = dict(taps or {})
        self.grids = dict(grids or {})
        self.last = last
        self._dims = dims
        self._gathered = dict(gathered or {})  # tap -> (indices, those channels)

    def channels(self, tap: str, idx: Tensor) -> Tensor:
        """The channels `idx` (M,) of a tap, (B, M, H, W)."""
        known, values = self._gathered.get(tap, (None, None))
        if known is idx and values is not None:
            return values
        return gather(self.taps[tap], self._dims[tap], idx)

    def grid(self, reduction: int, index: Tensor) -> Tensor:
        """The channels `index` (M,) on the grid, (B, M, Gh, Gw), float32."""
        grid = self.grids[reduction]
        return grid.maps if grid.channels is index else choose_channels(grid.maps, places_in(grid.channels, index))

    def averages(self, index: Tensor) -> Tensor:
        """The means of the channels `index` (M,) over all positions, (B, M), float32, from whichever grid has them."""
        grid = self.grids[self._grid_with(index)]
        return _columns(grid.means, grid.channels, index)

    def deviations(self, reduction: int, index: Tensor) -> Tensor:
        """The standard deviations of the channels `index` (M,) over the cells of a grid, (B, M), float32."""
        grid = self.grids[reduction]
        if grid.stds is None:
            raise SourceError("this pass was asked for no deviations; ask for what `delta.request` says")
        return _columns(grid.stds, grid.channels, index)

    def _grid_with(self, index: Tensor) -> int:
        """The reduction of a grid that has the channels `index` (M,)."""
        if not self.grids:
            raise SourceError("this pass was asked for no grid; ask for what `delta.request` says, or use SnowModel")
        first, *others = sorted(self.grids)
        has_all = (r for r in (first, *others) if torch.isin(index, self.grids[r].channels).all())
        return next(has_all) if others else first

    def values(self, index: Tensor, last: bool, std_reduction: int | None = None) -> Tensor:
        """The averages of the channels `index` (M,), then, if asked for, their deviations over the cells of a grid of
        this reduction, and the last features: (B, N)."""
        parts = [self.averages(index)] if len(index) else []
        if len(index) and std_reduction is not None:
            parts.append(self.deviations(std_reduction, index))
        if last:
            assert self.last is not None
            parts.append(self.last)
        return torch.cat(parts, dim=1)

    def rows(self, index: Tensor) -> FeatureMaps:
        """The same for the images `index` (n,) of the batch alone."""

        def taken(x: Tensor) -> Tensor:
            last = x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)
            layout = torch.channels_last if last else torch.contiguous_format
            return x.index_select(0, index).contiguous(memory_format=layout)

        return self._of_images(taken, index)

    def span(self, first: int, last: int) -> FeatureMaps:
        """The same of the images from `first` up to, and without, `last`; nothing is copied."""
        part = slice(first, last)
        return self._of_images(lambda x: x[part], part)

    def _of_images(self, taken: Callable[[Tensor], Tensor], rows: Tensor | slice) -> FeatureMaps:
        return FeatureMaps(
            taken(self.images),
            self._dims,
            taps={name: taken(x) for name, x in self.taps.items()},
            gathered={name: (idx, taken(x)) for name, (idx, x) in self._gathered.items()},
            grids={reduction: grid.images(rows) for reduction, grid in self.grids.items()},
            last=None if self.last is None else taken(self.last),
        )


def _columns(x: Tensor, known: Tensor, index: Tensor) -> Tensor:
    """The columns of x (B, N) of the channels `index` (M,), of which `known` (N,) are there."""
    return x if known is index else x.index_select(1, places_in(known, index))


def unique(names: Iterable[str]) -> tuple[str, ...]:
    """The names without repeats, in order."""
    return tuple(dict.fromkeys(names))
