from __future__ import annotations

import pytest
import torch

from torchsnow.delta.rounding import from_bytes, packed_shape, rounded, to_bytes


@pytest.mark.parametrize("shape", [(5, 7), (4, 1, 3, 3), (3, 1), (2, 0)])
@pytest.mark.parametrize("size", [1e-12, 1.0, 3e7])
@pytest.mark.parametrize(("bits", "steps"), [(8, 127), (4, 7)])
def test_what_is_rounded_is_held_without_loss(shape: tuple[int, ...], size: float, bits: int, steps: int) -> None:
    torch.manual_seed(0)
    for _ in range(50):
        matrix = size * torch.randn(shape)
        near = rounded(matrix, bits)
        numbers, scale = to_bytes(near) or pytest.fail("it does not fit")
        halves = bits == 4 or near.numel() == 0
        assert numbers.dtype == (torch.uint8 if halves else torch.int8)
        assert tuple(numbers.shape) == (packed_shape(near.shape) if halves else shape)
        assert scale.shape == shape[:1]
        assert torch.equal(from_bytes(numbers, scale, near.shape), near)
        assert torch.equal(rounded(near, bits), near)
        if near.numel():
            largest = matrix.flatten(1).abs().amax(1)
            assert bool(((near - matrix).flatten(1).abs().amax(1) <= largest / steps / 2 * 1.002).all())


def test_rows_of_zeros_are_held() -> None:
    matrix = torch.tensor([[0.0, 0.0], [1e-40, 0.0], [1.0, -0.3]])
    numbers, scale = to_bytes(rounded(matrix)) or pytest.fail("it does not fit")
    assert from_bytes(numbers, scale, matrix.shape)[:2].abs().max() < 1e-30
    assert bool((scale > 0).all())


def test_what_rounding_would_change_is_not_held() -> None:
    assert to_bytes(torch.tensor([[1.0, 0.3333]])) is None
    assert to_bytes(torch.tensor([[1.0, torch.inf]])) is None
    assert to_bytes(torch.tensor([[1.0, torch.nan]])) is None
