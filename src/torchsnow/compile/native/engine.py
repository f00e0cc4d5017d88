"""The engine of the backend "native": a fused source pass, and the kernel for deltas, on parts of the batch."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from torchsnow.compile.engine import Work
from torchsnow.compile.native.build import kernel
from torchsnow.compile.native.fused import fuse
from torchsnow.compile.native.lower import HeadParams, Lowered, Params, lower
from torchsnow.delta import Delta
from torchsnow.delta.fold import fold
from torchsnow.errors import CompileError, SourceError
from torchsnow.source import Source
from torchsnow.source.plan import FoldedPass, PlanOutput

PART_SIZE = 2  # images that a thread takes at once: more pushes their taps out of the cache before deltas read them

_MAX_PLANS = 4  # each has the source's weights laid out anew; tasks of one preset need one


class _Tap(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), *((name, ctypes.c_int32) for name in ("h", "w", "chs", "offset"))]


class NativeEngine:
    """The CPU's fastest engine, for sources and deltas of convolutions, batch norms and common activations.

    Every thread takes a part of the batch through the source pass and all deltas, so that threads never wait for each
    other in between. A new task is ready at once: nothing is compiled for it.

    Raises CompileError for a source in another precision than fp32 or on another device, and without a C++ compiler.
    """

    name = "native"

    def __init__(self, source: Source, num_threads: int | None = None) -> None:
        if source.precision != "fp32" or next(source.parameters()).device.type != "cpu":
            raise CompileError("the backend 'native' takes sources in fp32 on the CPU; use the backend 'eager'")
        if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
            raise CompileError(
                "the backend 'native' needs a PyTorch that was built with oneDNN; use the backend 'eager'"
            )
        self.source = source
        self._kernel = kernel()
        self._folded = FoldedPass(source.model, source.traced, torch.float32)
        self._plans: dict[tuple[PlanOutput, ...], fx.GraphModule] = {}
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(
            num_threads or torch.get_num_threads(), initializer=lambda: torch.set_num_threads(1)
        )

    def prepare(self, delta: Delta) -> Lowered:
        """See `Engine.prepare`."""
        return lower(fold(delta), self.source)

    def run(self, images: Tensor, work: Sequence[Work]) -> list[Tensor]:
        """See `Engine.run`."""
        deltas = [piece.prepared for piece in work]
        results = [torch.empty(len(piece.rows), piece.prepared.head.num_classes) for piece in work]
        wanted = _Wanted(frozenset().union(*(delta.taps for delta in deltas)), any(d.reads_last for d in deltas))
        asks: list[list[tuple[int, int]]] = [[] for _ in images]  # for every image: which work, and its place there
        for number, piece in enumerate(work):
            for place, row in enumerate(piece.rows):
                asks[row].append((number, place))
        plan = self._plan(wanted)
        firsts = range(0, len(images), PART_SIZE)
        list(self._pool.map(lambda first: self._part(plan, wanted, images, first, asks, deltas, results), firsts))
        return results

    def last(self, images: Tensor) -> Tensor:
        """The source's last features (B, num_features) alone, for linear heads."""
        plan = self._plan(_Wanted(frozenset(), last=True))

        def part(first: int) -> Tensor:
            with torch.no_grad():
                (features,) = plan(_channels_last(images[first : first + PART_SIZE]))
            assert isinstance(features, Tensor)
            return features

        return torch.cat(list(self._pool.map(part, range(0, len(images), PART_SIZE))))

    def _plan(self, wanted: _Wanted) -> fx.GraphModule:
        taps = list(self.source.taps.values())
        outputs = tuple(PlanOutput(taps[number].node) for number in sorted(wanted.taps))
        if wanted.last:
            outputs += (PlanOutput(self.source.last_node.name),)
        with self._lock:
            if outputs not in self._plans:
                if len(self._plans) >= _MAX_PLANS:
                    self._plans.pop(next(iter(self._plans)))
                self._plans[outputs] = fuse(self._folded.plan(outputs))
            return self._plans[outputs]

    def _part(
        self,
        plan: fx.GraphModule,
        wanted: _Wanted,
        images: Tensor,
        first: int,
        asks: Sequence[Sequence[tuple[int, int]]],
        deltas: Sequence[Lowered],
        results: Sequence[Tensor],
    ) -> None:
        part = _channels_last(images[first : first + PART_SIZE])
        with torch.no_grad():
            try:
                maps = plan(part)
            except RuntimeError as error:
                raise SourceError(
                    f"{self.source.name} cannot take images of shape {tuple(images.shape)}: {error}"
                ) from error
        seen = _Seen(self.source, wanted, part, maps)
        for i in range(len(part)):
            for group in _alike(asks[first + i], deltas):
                self._image(seen, i, [deltas[number] for number, _ in group], [results[n][p] for n, p in group])

    def _image(self, seen: _Seen, image: int, deltas: Sequence[Lowered], logits: Sequence[Tensor]) -> None:
        one, count = deltas[0], len(deltas)
        params = (ctypes.POINTER(Params) * count)(*(delta.params for delta in deltas))
        heads = (HeadParams * count)(*(delta.head for delta in deltas))
        outputs = (ctypes.c_void_p * count)(*(tensor.data_ptr() for tensor in logits))
        averaged = np.bitwise_or.reduce([delta.averaged for delta in deltas]) & ~seen.averaged[image]
        seen.averaged[image] |= averaged
        h, w = seen.images.shape[2:]
        self._kernel.run_image(
            one.ops,
            one.num_ops,
            one.num_slots,
            one.result,
            params,
            heads,
            count,
            ctypes.c_void_p(seen.images.data_ptr() + image * h * w * 3 * 4),
            h,
            w,
            seen.taps(image),
            len(seen.averaged[image]),
            ctypes.c_void_p(averaged.ctypes.data),
            ctypes.c_void_p(seen.values[image].ctypes.data),
            outputs,
        )


@dataclass(frozen=True)
class _Wanted:
    """The numbers of the taps that a pass returns, and whether it returns the last features."""

    taps: frozenset[int]
    last: bool


class _Seen:
    """What a pass returned for a part of a batch: taps, channels last, and room for their averages."""

    def __init__(self, source: Source, wanted: _Wanted, images: Tensor, maps: Sequence[Tensor]) -> None:
        self.images = images
        taps = sorted(wanted.taps)
        self.maps = dict(zip(taps, (_channels_last(x) for x in maps[: len(taps)]), strict=True))
        chs = [tap.num_chs for tap in source.taps.values()]
        self.starts = [0, *np.cumsum(chs).tolist()]
        self.averaged = np.zeros((len(images), len(chs)), np.uint8)
        self.values = np.zeros((len(images), self.starts[-1] + source.num_features), np.float32)
        if wanted.last:
            self.values[:, self.starts[-1] :] = maps[-1].numpy()

    def taps(self, image: int) -> Any:
        """All taps of one image; those that were not asked for are empty."""
        taps = (_Tap * (len(self.starts) - 1))()
        for number, x in self.maps.items():
            _, chs, h, w = x.shape
            data = x.data_ptr() + image * chs * h * w * 4
            taps[number] = _Tap(data=data, h=h, w=w, chs=chs, offset=self.starts[number])
        return taps


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _alike(asks: Sequence[tuple[int, int]], deltas: Sequence[Lowered]) -> list[list[tuple[int, int]]]:
    """Work on one image, in groups of deltas of one shape."""
    groups: dict[bytes, list[tuple[int, int]]] = {}
    for number, place in asks:
        groups.setdefault(deltas[number].shape, []).append((number, place))
    return list(groups.values())
