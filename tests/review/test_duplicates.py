from __future__ import annotations

import pytest
import torch

from torchsnow.review.duplicates import duplicate_groups, of_several
from torchsnow.review.values import standardised


def values(num: int = 40) -> torch.Tensor:
    return torch.randn(num, 30, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("rows_at_a_time", [7, 1_024])
def test_near_duplicates_are_grouped_and_others_are_not(rows_at_a_time: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchsnow.review.duplicates._ROWS_AT_A_TIME", rows_at_a_time)
    images = values()
    images[30] = images[2] + 0.05 * images[5]
    images[31] = images[30]
    images[12] = images[11] * 1.01
    groups = duplicate_groups(standardised(images))
    assert groups.shape == (40,)
    assert of_several(groups) == [[2, 30, 31], [11, 12]]


def test_without_duplicates_every_image_is_a_group() -> None:
    assert of_several(duplicate_groups(values())) == []


def test_where_most_images_are_duplicates_they_are_found() -> None:
    images = values(10).repeat(3, 1)
    assert of_several(duplicate_groups(images)) == [[i, i + 10, i + 20] for i in range(10)]
