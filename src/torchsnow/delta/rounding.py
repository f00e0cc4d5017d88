"""How the matrices of a grid delta are rounded, so that a file can hold them in a byte per number.

Every row has a scale of its own (symmetric quantisation per output channel, as in Jacob et al., "Quantization and
Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", CVPR 2018); numbers are whole multiples of
it from -127 to 127. Scales have 11 significant bits, so that all multiples are exact in float32, and a rounded matrix
says by its largest numbers what its scales are. Computing stays in float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

_STEPS, _BITS = 127, 11
LEAST_SCALE = 2.0**-100
"""Of a row that is zero, or all but zero."""


def rounded(matrix: Tensor) -> Tensor:
    """The nearest matrix (rows, ...) that `to_bytes` can hold. It may hold NaN or infinities, and keeps them."""
    numbers, scale = _divided(matrix)
    return numbers.round() * scale


def to_bytes(matrix: Tensor) -> tuple[Tensor, Tensor] | None:
    """The whole numbers (int8, as the matrix) and the scales of the rows (rows,); None where that would lose any of
    it."""
    numbers, scale = _divided(matrix)
    whole = numbers.round()
    fits = bool((whole.abs() <= _STEPS).all()) and bool((whole * scale == matrix).all())
    return (whole.to(torch.int8), scale.flatten()) if fits else None


def from_bytes(numbers: Tensor, scale: Tensor) -> Tensor:
    """The matrix that `to_bytes` was given."""
    return numbers.float() * _by_row(scale, numbers)


def _divided(matrix: Tensor) -> tuple[Tensor, Tensor]:
    largest = matrix.flatten(1).abs().amax(1) if matrix.numel() else matrix.new_zeros(len(matrix))
    mantissa, exponent = torch.frexp(largest / _STEPS)
    scale = torch.ldexp((mantissa * 2**_BITS).ceil() / 2**_BITS, exponent).clamp_min(LEAST_SCALE)
    scale = _by_row(scale, matrix)
    return matrix / scale, scale


def _by_row(scale: Tensor, matrix: Tensor) -> Tensor:
    return scale.reshape(-1, *[1] * (matrix.ndim - 1))
