"""The structures that the kernel takes; mirrored in maps.h and kernel.cpp."""

from __future__ import annotations

import ctypes


class Op(ctypes.Structure):
    """One operation of a delta."""

    _fields_ = [
        *(
            (name, ctypes.c_int32)
            for name in (
                *("kind", "act", "x", "y", "out", "tap", "in_chs", "out_chs", "num_pooled"),
                *("kernel_h", "kernel_w", "stride_h", "stride_w", "pad_h", "pad_w", "dilation_h", "dilation_w"),
                *("same", "count_pad", "ceil", "depth"),
            )
        ),
        ("epsilon", ctypes.c_float),
    ]


class Params(ctypes.Structure):
    """Where an operation's numbers are."""

    _fields_ = [(name, ctypes.c_void_p) for name in ("weight", "bias", "index")]


class HeadParams(ctypes.Structure):
    """A head's numbers."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("own", "columns", "bias", "index")),
        *((name, ctypes.c_int32) for name in ("own_chs", "num_read", "num_classes")),
    ]


class Tap(ctypes.Structure):
    """A tap of all images of a part, channels last."""

    _fields_ = [("data", ctypes.c_void_p), *((name, ctypes.c_int32) for name in ("h", "w", "chs", "offset", "bf16"))]


class Piece(ctypes.Structure):
    """One task on one image."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("params", "head", "memory", "logits")),
        ("image", ctypes.c_int32),
    ]


class Job(ctypes.Structure):
    """Pieces of one shape."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("ops", "pieces", "images", "taps", "averaged", "values")),
        *(
            (name, ctypes.c_int32)
            for name in (
                "num_ops",
                "num_slots",
                "result",
                "num_taps",
                "num_pieces",
                "num_images",
                "h",
                "w",
                "num_values",
            )
        ),
    ]
