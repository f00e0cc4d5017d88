"""A delta's head as the kernel reads it."""

from __future__ import annotations

import numpy as np
from torch import nn

from torchsnow.compile.native.mirrors import HeadParams
from torchsnow.compile.native.packing import numbers, padded
from torchsnow.delta import Delta
from torchsnow.delta.head import Head
from torchsnow.pooling import Subscription
from torchsnow.source import Source


def lower_head(delta: Delta, source: Source) -> tuple[HeadParams, np.ndarray, bool, list[np.ndarray]]:
    """A head with its standardisation folded; its index counts the averages of all taps, then the last features.

    Also which taps' averages it reads, whether it reads the last features, and what must be kept for the pointers.
    """
    averaged = np.zeros(len(source.taps), np.uint8)
    if isinstance(delta.head, nn.Linear):
        own, bias = numbers(delta.head.weight), numbers(delta.head.bias)
        columns, index = np.zeros((0, len(own)), np.float32), np.zeros(0, np.int32)
    else:
        head = delta.head
        assert isinstance(head, Head)
        assert isinstance(head.pool, Subscription)
        weight = (head.fc.columns * head.pool.weight * head.scale / head.spread).detach().double()
        own = numbers(head.fc.local.weight)
        bias = numbers((head.fc.local.bias.double() - weight @ head.center.double()).float())
        columns, index = numbers(weight.float()).T, _places(head, source)[head.pool.index.numpy()]
        tap_of = np.repeat(np.arange(len(source.taps)), [tap.num_chs for tap in source.taps.values()])
        averaged[np.unique(tap_of[index[index < len(tap_of)]])] = 1
    sizes = sum(tap.num_chs for tap in source.taps.values())
    arrays = [own, padded(columns), bias, np.ascontiguousarray(index, np.int32)]
    pointers = dict(zip(("own", "columns", "bias", "index"), (array.ctypes.data for array in arrays), strict=True))
    params = HeadParams(own_chs=own.shape[1], num_read=len(index), num_classes=len(own), **pointers)
    return params, averaged, bool((index >= sizes).any()), arrays


def _places(head: Head, source: Source) -> np.ndarray:
    """Where the values that a head may read stand among the averages of all taps and the last features."""
    starts, total = {}, 0
    for name, tap in source.taps.items():
        starts[name] = total
        total += tap.num_chs
    places = [np.arange(starts[name], starts[name] + source.taps[name].num_chs) for name in head.taps]
    if head.last:
        places.append(np.arange(total, total + source.num_features))
    return np.concatenate(places).astype(np.int32)
