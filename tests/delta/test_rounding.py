from __future__ import annotations

import pytest
import torch

from torchsnow.delta.rounding import from_bytes, rounded, to_bytes


@pytest.mark.parametrize("shape", [(5, 7), (4, 1, 3, 3), (3, 1), (2, 0)])
@pytest.mark.parametrize("size", [1e-12, 1.0, 3e7])
def test_what_is_rounded_is_held_without_loss(shape: tuple[int, ...], size: float) -> None:
    torch.manual_seed(0)
    for _ in range(50):
        matrix = size * torch.randn(shape)
        near = rounded(matrix)
        numbers, scale = to_bytes(near) or pytest.fail("it does not fit")
        assert (numbers.dtype, numbers.shape, scale.shape) == (torch.int8, shape, shape[:1])
        assert torch.equal(from_bytes(numbers, scale), near)
        assert torch.equal(rounded(near), near)
        if near.numel():
            largest = matrix.flatten(1).abs().amax(1)
            assert bool(((near - matrix).flatten(1).abs().amax(1) <= largest / 127 / 2 * 1.002).all())


def test_rows_of_zeros_are_held() -> None:
    matrix = torch.tensor([[0.0, 0.0], [1e-40, 0.0], [1.0, -0.3]])
    numbers, scale = to_bytes(rounded(matrix)) or pytest.fail("it does not fit")
    assert from_bytes(numbers, scale)[:2].abs().max() < 1e-30
    assert bool((scale > 0).all())


def test_what_rounding_would_change_is_not_held() -> None:
    assert to_bytes(torch.tensor([[1.0, 0.3333]])) is None
    assert to_bytes(torch.tensor([[1.0, torch.inf]])) is None
    assert to_bytes(torch.tensor([[1.0, torch.nan]])) is None
