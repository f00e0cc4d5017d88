"""Deltas by a small compiled kernel, and the source by PyTorch's fused convolutions: the fastest on a CPU."""

from torchsnow.compile.native.engine import NativeEngine

__all__ = ["NativeEngine"]
