from __future__ import annotations

import math
from typing import Any

import pytest

from torchsnow.errors import ServingError
from torchsnow.serving.settings import _BOUNDS, ServeSettings


@pytest.mark.parametrize("name", _BOUNDS)
def test_numbers_have_bounds(name: str) -> None:
    for value in (math.inf, -math.inf, math.nan, -1, 10**15):
        with pytest.raises(ServingError, match=rf"{name} is {value}; expected"):
            ServeSettings(**{name: value})


def test_every_number_that_can_be_given_has_bounds() -> None:
    numbers = {name for name, value in vars(ServeSettings()).items() if type(value) in (int, float)}
    assert {name for name in numbers if not name.startswith("max_")} == {*_BOUNDS} - {"max_pixels"}


def test_the_bounds_can_be_used() -> None:
    ends: list[dict[str, Any]] = [{name: bounds[end] for name, bounds in _BOUNDS.items()} for end in (0, 1)]
    for settings in ends:
        ServeSettings(**settings)
