"""A part of a batch on its way through the source: deltas go on with it soon after a tap is there."""

from __future__ import annotations

import ctypes
import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from torchsnow.compile.native import mirrors
from torchsnow.compile.native.lower import Lowered
from torchsnow.source import Source

_ENOUGH_BYTES = 2 << 20  # of taps: fewer are not worth a start of the kernel, more leave the cache
_SPARE = 4  # times as large as what is needed: larger memory of an earlier run is given back


@dataclass(frozen=True)
class Ask:
    """One delta on one image of a part, and where its logits (num_classes,) go."""

    delta: Lowered
    image: int
    logits: Tensor


class Memory:
    """Room for maps, used again by later runs: fresh memory would be cleared page by page. Safe for threads."""

    def __init__(self) -> None:
        self._free: list[np.ndarray] = []
        self._lock = threading.Lock()

    def take(self, size: int) -> np.ndarray:
        """At least `size` floats."""
        with self._lock:
            found = self._free.pop() if self._free else np.empty(0, np.float32)
        return found if size <= len(found) <= _SPARE * size else np.empty(size, np.float32)

    def give_back(self, room: np.ndarray) -> None:
        """What was taken."""
        with self._lock:
            self._free.append(room)


class TapLayout:
    """What does not change from part to part: in which dimension every tap has its channels, and where its averages
    stand among an image's `num_values` values, the source's last features at the end."""

    def __init__(self, source: Source) -> None:
        taps = source.taps.values()
        self.dims = [tap.dim for tap in taps]
        *self.starts, self.num_averages = accumulate((tap.num_chs for tap in taps), initial=0)
        self.num_values = self.num_averages + source.num_features


class Part:
    """Some images of a batch, and what is asked of them.

    `see` takes the source's taps as they are made, by number, and runs what of the deltas can be run as soon as some
    megabytes are there. With several threads everything waits for `finish`, as the source's pass uses the same
    processors: each operation is shared by the threads then.
    """

    def __init__(
        self,
        kernel: ctypes.CDLL,
        memory: Memory,
        layout: TapLayout,
        images: Tensor,
        asks: Sequence[Ask],
        num_threads: int,
    ) -> None:
        self._images, self._layout, self._num_threads = images, layout, num_threads
        self._taps = (mirrors.Tap * len(layout.dims))()
        self._maps: dict[int, Tensor] = {}
        self._new: list[int] = []
        self._new_bytes = 0
        self._arrived: set[int] = {-1}
        self._averaged = np.bitwise_or.reduce([ask.delta.averaged for ask in asks], axis=0)
        self._values = np.zeros((len(images), layout.num_values), np.float32)
        self._runs = [_Run(self, kernel, memory, own) for own in _alike(asks)]

    def see(self, number: int, x: Tensor) -> None:
        """A tap of all images of the part, in float32 or bfloat16."""
        self._maps[number] = x
        self._new.append(number)
        self._new_bytes += x.nbytes
        if self._num_threads == 1 and self._new_bytes >= _ENOUGH_BYTES:
            self._advance()
            read = frozenset().union(*(run.still_reads for run in self._runs))
            self._maps = {key: kept for key, kept in self._maps.items() if key in read}

    def finish(self, last: Tensor | None) -> None:
        """The rest, with the source's last features (len(images), num_features), if they are wanted."""
        if last is not None:
            self._values[:, self._layout.num_averages :] = last.float().numpy()
        self._advance()
        for run in self._runs:
            run.finish()

    def _advance(self) -> None:
        """Run what the taps that came since the last time allow."""
        for number in self._new:
            self._place(number)
        self._arrived.update(self._new)
        self._new, self._new_bytes = [], 0
        for run in self._runs:
            run.advance(self._arrived, self._num_threads)

    def _place(self, number: int) -> None:
        x, chs_first = self._maps[number], self._layout.dims[number] == 1
        self._maps[number] = x = channels_last(x) if chs_first else x.contiguous()
        chs, h, *width = x.shape[1:] if chs_first else (x.shape[-1], *x.shape[1:-1])
        bf16 = x.dtype == torch.bfloat16
        self._taps[number] = mirrors.Tap(x.data_ptr(), h, math.prod(width), chs, self._layout.starts[number], bf16)

    def job(self, delta: Lowered, pieces: ctypes.Array[mirrors.Piece]) -> mirrors.Job:
        """The kernel's view of some pieces of the part."""
        return mirrors.Job(
            ops=ctypes.addressof(delta.ops),
            pieces=ctypes.addressof(pieces),
            images=self._images.data_ptr(),
            taps=ctypes.addressof(self._taps),
            averaged=self._averaged.ctypes.data,
            values=self._values.ctypes.data,
            num_ops=delta.num_ops,
            num_slots=delta.num_slots,
            result=delta.result,
            num_taps=len(self._taps),
            num_pieces=len(pieces),
            num_images=len(self._images),
            h=self._images.shape[2],
            w=self._images.shape[3],
            num_values=self._layout.num_values,
        )


class _Run:
    """The deltas of one shape on a part, as far as they have come."""

    def __init__(self, part: Part, kernel: ctypes.CDLL, memory: Memory, asks: Sequence[Ask]) -> None:
        self._delta, self._kernel, self._asks, self._memory = asks[0].delta, kernel, asks, memory
        self._done = 0
        self._room: np.ndarray | None = None
        self._pieces = (mirrors.Piece * len(asks))()
        self._job = part.job(self._delta, self._pieces)

    @property
    def still_reads(self) -> frozenset[int]:
        """The taps that operations to come read."""
        return self._delta.reads_from[self._done]

    def advance(self, arrived: set[int], num_threads: int) -> None:
        """Run all operations up to the first that reads a tap which is not there yet, and average taps."""
        first, reads = self._done, self._delta.reads
        while self._done < len(reads) and reads[self._done] in arrived:
            self._done += 1
        if self._done:
            self._take_room()
        self._kernel.advance(ctypes.byref(self._job), first, self._done, num_threads)

    def finish(self) -> None:
        """Write the logits."""
        room = self._take_room()  # for a head alone it was not taken yet
        self._kernel.finish(ctypes.byref(self._job))
        self._memory.give_back(room)

    def _take_room(self) -> np.ndarray:
        """Room for the maps of all pieces. How much is known once the tap is there that a body begins at."""
        if self._room is not None:
            return self._room
        size = self._kernel.memory_size(ctypes.byref(self._job))
        self._room = self._memory.take(size * len(self._asks))
        for i, ask in enumerate(self._asks):
            self._pieces[i] = mirrors.Piece(
                params=ctypes.addressof(ask.delta.params),
                head=ctypes.addressof(ask.delta.head),
                memory=self._room.ctypes.data + 4 * size * i,
                logits=ask.logits.data_ptr(),
                image=ask.image,
            )
        return self._room


def channels_last(x: Tensor) -> Tensor:
    """The same in channels-last layout; no copy where it is in it."""
    return x.contiguous(memory_format=torch.channels_last)


def _alike(asks: Sequence[Ask]) -> list[list[Ask]]:
    """Groups of deltas of one shape."""
    groups: dict[bytes, list[Ask]] = {}
    for ask in asks:
        groups.setdefault(ask.delta.shape, []).append(ask)
    return list(groups.values())
