"""What one source pass gives to the deltas."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Request:
    """What a source pass shall return.

    - `taps`: names of taps to return whole;
    - `channels`: for a tap's name, the indices of the channels to return, (M,) int64: only these are kept in memory;
    - `averages`: names of taps whose mean over all positions is wanted;
    - `last`: whether the pooled features at the end are wanted. The pass stops after the last thing that is.
    """

    taps: tuple[str, ...] = ()
    channels: Mapping[str, Tensor] = field(default_factory=dict)
    averages: tuple[str, ...] = ()
    last: bool = False

    @classmethod
    def together(cls, requests: Iterable[Request]) -> Request:
        """One request that serves several deltas: taps of which channels are read come whole."""
        requests = list(requests)
        return cls(
            taps=unique(name for request in requests for name in (*request.taps, *request.channels)),
            averages=unique(name for request in requests for name in request.averages),
            last=any(request.last for request in requests),
        )


def average(x: Tensor, dim: int) -> Tensor:
    """The mean over all dimensions but the batch and `dim`, in float32: (B, C, H, W) -> (B, C)."""
    return x.mean([other for other in range(1, x.ndim) if other != dim], dtype=torch.float32)


def gather(x: Tensor, dim: int, idx: Tensor) -> Tensor:
    """The channels `idx` (M,) of a tap whose channels stand in `dim`, in float32, as the layers of deltas read them.

    On the CPU (B, C, H, W) is laid out channels-last: narrow convolutions are a quarter faster there.
    """
    taken = x.index_select(dim, idx)
    if dim == 1 and taken.ndim == 4 and taken.device.type == "cpu":
        return taken.to(torch.float32, memory_format=torch.channels_last)
    return taken.float()


def gather_rows(x: Tensor, dim: int, part: tuple[Tensor, slice]) -> Tensor:
    """The channels `idx` (M,) of some images of a batch: `part` is (idx, which images)."""
    idx, rows = part
    return gather(x[rows], dim, idx)


class FeatureMaps:
    """The result of one source pass over a batch.

    `images` (B, 3, H, W) are the normalised images, `taps` the taps returned whole by name, (B, C, H, W) each (or
    (B, H, W, C) where the source works channels-last), and `last` (B, num_features) the source's pooled features.
    """

    def __init__(
        self,
        images: Tensor,
        dims: Mapping[str, int],
        taps: Mapping[str, Tensor] | None = None,
        gathered: Mapping[str, tuple[Tensor, Tensor]] | None = None,
        averages: Mapping[str, Tensor] | None = None,
        last: Tensor | None = None,
    ) -> None:
        self.images = images
        self.taps = dict(taps or {})
        self.last = last
        self._dims = dims
        self._gathered = dict(gathered or {})  # tap -> (indices, those channels)
        self._averages = dict(averages or {})

    def channels(self, tap: str, idx: Tensor) -> Tensor:
        """The channels `idx` (M,) of a tap, (B, M, H, W)."""
        known, values = self._gathered.get(tap, (None, None))
        if known is idx and values is not None:
            return values
        return gather(self.taps[tap], self._dims[tap], idx)

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
            {name: taken(x) for name, x in self._averages.items()},
            None if self.last is None else taken(self.last),
        )

    def average(self, tap: str) -> Tensor:
        """The mean of a tap over all positions, (B, C), in float32; computed once, however many deltas ask."""
        if tap not in self._averages:
            self._averages[tap] = average(self.taps[tap], self._dims[tap])
        return self._averages[tap]

    def span(self, first: int, last: int) -> FeatureMaps:
        """The same of the images from `first` up to, and without, `last`; nothing is copied."""
        part = slice(first, last)
        return FeatureMaps(
            self.images[part],
            self._dims,
            taps={name: x[part] for name, x in self.taps.items()},
            gathered={name: (idx, x[part]) for name, (idx, x) in self._gathered.items()},
            averages={name: x[part] for name, x in self._averages.items()},
            last=None if self.last is None else self.last[part],
        )

    def vector(self, taps: Sequence[str], last: bool) -> Tensor:
        """The averages of `taps`, followed by the last features if asked for, (B, N)."""
        parts = [self.average(tap) for tap in taps]
        if last:
            assert self.last is not None
            parts.append(self.last)
        return torch.cat(parts, dim=1)


def unique(names: Iterable[str]) -> tuple[str, ...]:
    """The names without repeats, in order."""
    return tuple(dict.fromkeys(names))
