"""How the matrices of a grid delta are rounded, so that a file can hold them in a byte per number, or in half a byte.

Every row has a scale of its own (symmetric quantisation per output channel, as in Jacob et al., "Quantization and
Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", CVPR 2018); numbers are whole multiples of
it from -127 to 127, or from -7 to 7. Scales have 11 significant bits, so that all multiples are exact in float32, and a
rounded matrix says by its largest numbers what its scales are. Computing stays in float32.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

_STEPS = {4: 7, 8: 127}  # by the bits of a number
_SCALE_BITS = 11
LEAST_SCALE = 2.0**-100
"""Of a row that is zero, or all but zero."""


def rounded(matrix: Tensor, bits: int = 8) -> Tensor:
    """The nearest matrix (rows, ...) that `to_bytes` can hold in so many bits per number, 8 or 4. It may hold NaN or
    infinities, and keeps them."""
    numbers, scale = _divided(matrix, bits)
    return numbers.round() * scale


def to_bytes(matrix: Tensor) -> tuple[Tensor, Tensor] | None:
    """The whole numbers and the scales of the rows (rows,); None where that would lose any of the matrix.

    The numbers are int8, shaped as the matrix, or, if half a byte will do for each, uint8 of shape `packed_shape`.
    """
    for bits in _STEPS:
        numbers, scale = _divided(matrix, bits)
        whole = numbers.round()
        if bool((whole.abs() <= _STEPS[bits]).all()) and bool((whole * scale == matrix).all()):
            whole = whole.to(torch.int8)
            return (_packed(whole) if bits == 4 else whole), scale.flatten()
    return None


def from_bytes(numbers: Tensor, scale: Tensor, shape: torch.Size) -> Tensor:
    """The matrix, of such a shape, that `to_bytes` was given."""
    if numbers.dtype == torch.uint8:
        halves = torch.stack([numbers & 15, numbers >> 4], 2).flatten(1)[:, : shape[1:].numel()]
        numbers = (halves.to(torch.int8) - 8).reshape(shape)
    return numbers.float() * _by_row(scale, numbers)


def packed_shape(shape: torch.Size) -> tuple[int, int]:
    """Of a matrix in half a byte per number: rows, and the bytes of each."""
    return shape[0], (shape[1:].numel() + 1) // 2


def _packed(whole: Tensor) -> Tensor:
    """Whole numbers from -7 to 7, int8 (rows, ...) -> uint8 of `packed_shape`: the first number in the lower half."""
    rows = F.pad(whole.flatten(1) + 8, (0, whole[:1].numel() % 2)).to(torch.uint8)
    return rows[:, ::2] | rows[:, 1::2] << 4


def _divided(matrix: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    largest = matrix.flatten(1).abs().amax(1) if matrix.numel() else matrix.new_zeros(len(matrix))
    mantissa, exponent = torch.frexp(largest / _STEPS[bits])
    scale = torch.ldexp((mantissa * 2**_SCALE_BITS).ceil() / 2**_SCALE_BITS, exponent).clamp_min(LEAST_SCALE)
    scale = _by_row(scale, matrix)
    return matrix / scale, scale


def _by_row(scale: Tensor, matrix: Tensor) -> Tensor:
    return scale.reshape(-1, *[1] * (matrix.ndim - 1))
