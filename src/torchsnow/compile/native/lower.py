"""A folded delta as the operations that the kernel knows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from torchsnow.compile.native.lower_head import lower_head
from torchsnow.compile.native.mirrors import HeadParams, Op, Params
from torchsnow.compile.native.packing import packed, padded
from torchsnow.compile.native.steps import CONV, IMAGE, NOTHING, Reader, Step
from torchsnow.delta import Delta
from torchsnow.source import Source


@dataclass(frozen=True, eq=False)
class Lowered:
    """A delta for the kernel. Deltas of equal `shape` can be run together.

    `taps` are the numbers of the taps, in the source's order, that layers or averages read; `reads` says which of them
    each operation reads (-1: none), and `reads_from` which are read by all from one on; `reads_last` says whether the
    head reads the source's last features.
    """

    shape: bytes
    ops: Any
    num_ops: int
    num_slots: int
    result: int
    params: Any
    head: HeadParams
    averaged: np.ndarray
    taps: frozenset[int]
    reads: tuple[int, ...]
    reads_from: tuple[frozenset[int], ...]
    reads_last: bool
    kept: tuple[Any, ...]


def lower(delta: Delta, source: Source) -> Lowered:
    """Raises CompileError for a folded delta with an operation that the kernel does not know, naming it."""
    steps, result = Reader(delta.body, delta, source).read() if delta.body else ([], IMAGE)
    slots, num_slots = _slots(steps, result)
    ops = (Op * len(steps))(*(_op(step, slots) for step in steps))
    params, kept = _params(steps)
    head, averaged, reads_last, head_kept = lower_head(delta, source)
    reads = tuple(step.tap for step in steps)
    taps = frozenset(set(reads) - {-1} | {int(tap) for tap in np.flatnonzero(averaged)})
    return Lowered(
        bytes(ops),
        ops,
        len(steps),
        max(1, num_slots),
        max(0, slots[result]),  # a head alone reads no map
        params,
        head,
        averaged,
        taps,
        reads,
        tuple(frozenset(reads[i:]) for i in range(len(reads) + 1)),
        reads_last,
        (kept, head_kept),
    )


def _slots(steps: list[Step], result: int) -> tuple[dict[int, int], int]:
    """A place in memory for every value; places are used again once nobody reads what is there."""
    last_read = {value: i for i, step in enumerate(steps) for value in (step.x, step.y)}
    last_read[result] = len(steps)
    slots, free, count = {IMAGE: IMAGE, NOTHING: NOTHING}, list[int](), 0
    for i, step in enumerate(steps):
        if not free:
            free.append(count)
            count += 1
        slots[step.out] = free.pop()
        done = {value for value in (step.x, step.y, step.out) if value >= 0 and last_read.get(value, i) <= i}
        free += [slots[value] for value in done]
    return slots, count


def _op(step: Step, slots: Mapping[int, int]) -> Op:
    places = {"x": slots[step.x], "y": slots[step.y], "out": slots[step.out]}
    return Op(kind=step.kind, act=step.act, tap=step.tap, out_chs=step.chs, **places, **step.settings)


def _params(steps: list[Step]) -> tuple[Any, list[np.ndarray]]:
    """The numbers of every step, laid out as the kernel reads them, and what must be kept for them."""
    params, kept = (Params * len(steps))(), []
    for i, step in enumerate(steps):
        arrays = {"index": step.index}
        if step.weight is not None and step.bias is not None:
            arrays["weight"] = packed(step.weight) if step.kind == CONV else padded(step.weight)
            arrays["bias"] = padded(step.bias[None])[0]
        for name, array in arrays.items():
            if array is not None:
                setattr(params[i], name, array.ctypes.data)
                kept.append(array)
    return params, kept
