"""Numbers as the kernel reads them."""

from __future__ import annotations

import ctypes

import numpy as np
from torch import Tensor

from torchsnow.compile.native.build import kernel as compiled_kernel


def packed(weight: np.ndarray) -> np.ndarray:
    """Weights (depth, chs), block by block of output channels."""
    depth, chs = weight.shape
    weight = np.ascontiguousarray(weight, np.float32)
    packed = np.empty(depth * compiled_kernel().block_stride(chs), np.float32)
    pointers = (ctypes.c_void_p(weight.ctypes.data), depth, chs, ctypes.c_void_p(packed.ctypes.data))
    compiled_kernel().pack(*pointers)
    return packed


def padded(weight: np.ndarray) -> np.ndarray:
    """(depth, chs) with zeros up to whole vectors of channels."""
    stride = compiled_kernel().block_stride(weight.shape[1])
    return np.ascontiguousarray(np.pad(weight, ((0, 0), (0, stride - weight.shape[1]))), np.float32)


def numbers(tensor: Tensor) -> np.ndarray:
    """A tensor in float32 as an array."""
    return np.ascontiguousarray(tensor.detach().float().cpu().numpy())
