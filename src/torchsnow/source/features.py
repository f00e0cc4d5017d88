"""What one source pass gives to the deltas."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from torchsnow.errors import SourceError
from torchsnow.source.grid import ONE_CELL, choose_channels


@dataclass(frozen=True)
class Request:
    """What a source pass shall return.

    - `taps`: names of taps to return whole;
    - `channels`: for a tap's name, the indices of the channels to return, (M,) int64: only these are kept in memory;
    - `grids`: for a grid reduction, the channels to average onto that grid, (M,) int64, ascending, counted through
      all taps in the order of the pass (`Source.channels_of`); `ONE_CELL` gives their averages alone;
    - `last`: whether the pooled features at the end are wanted. The pass stops after the last thing that is.
    """

    taps: tuple[str, ...] = ()
    channels: Mapping[str, Tensor] = field(default_factory=dict)
    grids: Mapping[int, Tensor] = field(default_factory=dict)
    last: bool = False

    @classmethod
    def together(cls, requests: Iterable[Request]) -> Request:
        """One request that serves several deltas: taps of which channels are read come whole."""
        requests = list(requests)
        return cls(
            taps=unique(name for request in requests for name in (*request.taps, *request.channels)),
            grids=_union([request.grids for request in requests]),
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
        reduction: next(iter(found.values())) if len(found) == 1 else torch.unique(torch.cat(list(found.values())))
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
    (B, H, W, C) where the source works channels-last), `grids` by reduction the channels that a grid has (M,) and
    their maps (B, M, Gh, Gw), and `last` (B, num_features) the source's pooled features.
    """

    def __init__(
        self,
        images: Tensor,
        dims: Mapping[str, int],
        taps: Mapping[str, Tensor] | None = None,
        gathered: Mapping[str, tuple[Tensor, Tensor]] | None = None,
        grids: Mapping[int, tuple[Tensor, Tensor]] | None = None,
        last: Tensor | None = None,
    ) -> None:
        self.images = images
        self.taps = dict(taps or {})
        self.grids = dict(grids or {})
        self.last = last
        self._dims = dims
        self._gathered = dict(gathered or {})  # tap -> (indices, those channels)
        self._means: dict[int, Tensor] = {}
        self._stds: dict[int, Tensor] = {}
        self._span_of: tuple[FeatureMaps, slice] | None = None  # whose means and deviations are computed once for all

    def channels(self, tap: str, idx: Tensor) -> Tensor:
        """The channels `idx` (M,) of a tap, (B, M, H, W)."""
        known, values = self._gathered.get(tap, (None, None))
        if known is idx and values is not None:
            return values
        return gather(self.taps[tap], self._dims[tap], idx)

    def grid(self, reduction: int, index: Tensor) -> Tensor:
        """The channels `index` (M,) on the grid, (B, M, Gh, Gw), float32."""
        known, values = self.grids[reduction]
        return values if known is index else choose_channels(values, torch.searchsorted(known, index))

    def averages(self, index: Tensor) -> Tensor:
        """The means of the channels `index` (M,) over all positions, (B, M), float32, from whichever grid has them."""
        reduction = self._grid_with(index)
        known, means = self.grids[reduction][0], self.means(reduction)
        return means if known is index else means.index_select(1, torch.searchsorted(known, index))

    def _grid_with(self, index: Tensor) -> int:
        """The reduction of a grid that has the channels `index` (M,)."""
        if not self.grids:
            raise SourceError("this pass was asked for no grid; ask for what `delta.request` says, or use SnowModel")
        first, *others = sorted(self.grids)
        has_all = (r for r in (first, *others) if torch.isin(index, self.grids[r][0]).all())
        return next(has_all) if others else first

    def means(self, reduction: int) -> Tensor:
        """The averages of all channels of a grid, (B, M); computed once, however many deltas ask."""
        if self._span_of is not None:
            return self._span_of[0].means(reduction)[self._span_of[1]]
        if reduction not in self._means:
            self._means[reduction] = self.grids[reduction][1].mean((2, 3))
        return self._means[reduction]

    def deviations(self, reduction: int, index: Tensor) -> Tensor:
        """The standard deviations of the channels `index` (M,) over the cells of a grid, (B, M), float32."""
        known, stds = self.grids[reduction][0], self.stds(reduction)
        return stds if known is index else stds.index_select(1, torch.searchsorted(known, index))

    def stds(self, reduction: int) -> Tensor:
        """The standard deviations of all channels of a grid over its cells, (B, M); computed once, as `means`."""
        if self._span_of is not None:
            return self._span_of[0].stds(reduction)[self._span_of[1]]
        if reduction not in self._stds:
            maps, means = self.grids[reduction][1], self.means(reduction)
            self._stds[reduction] = (maps - means[:, :, None, None]).square().mean((2, 3)).sqrt()
        return self._stds[reduction]

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

        return FeatureMaps(
            taken(self.images),
            self._dims,
            {name: taken(x) for name, x in self.taps.items()},
            {name: (idx, taken(x)) for name, (idx, x) in self._gathered.items()},
            {reduction: (idx, taken(x)) for reduction, (idx, x) in self.grids.items()},
            None if self.last is None else taken(self.last),
        )

    def span(self, first: int, last: int) -> FeatureMaps:
        """The same of the images from `first` up to, and without, `last`; nothing is copied."""
        part = slice(first, last)
        span = FeatureMaps(
            self.images[part],
            self._dims,
            taps={name: x[part] for name, x in self.taps.items()},
            gathered={name: (idx, x[part]) for name, (idx, x) in self._gathered.items()},
            grids={reduction: (idx, x[part]) for reduction, (idx, x) in self.grids.items()},
            last=None if self.last is None else self.last[part],
        )
        span._span_of = self, part
        return span


def unique(names: Iterable[str]) -> tuple[str, ...]:
    """The names without repeats, in order."""
    return tuple(dict.fromkeys(names))
