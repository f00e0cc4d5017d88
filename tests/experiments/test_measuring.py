from __future__ import annotations

import os
import time
from functools import partial

import pytest
import torch
from torch import Tensor

from torchsnow.errors import ExperimentError
from torchsnow.experiments.measuring import median_times_s, peak_bytes

MIB = 2**20


class Clock:
    """A clock that only the steps move."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 0.0
        monkeypatch.setattr(time, "perf_counter", lambda: self.now_s)

    def steps(self, *seconds: float) -> partial[None]:
        rest = iter(seconds)
        return partial(self._move, rest)

    def _move(self, rest: object) -> None:
        self.now_s += next(rest)  # type: ignore[call-overload]


def test_medians_without_the_first_round(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    steps = {"slow start": clock.steps(100, 1, 9, 2), "steady": clock.steps(4, 4, 4, 4)}
    assert median_times_s(steps, 3) == {"slow start": 2, "steady": 4}


def test_steps_take_turns() -> None:
    order: list[str] = []
    steps = {name: partial(order.append, name) for name in "ab"}
    median_times_s(steps, 2, lambda: order.append("."))
    assert "".join(order) == "a.b." * 3


def test_no_round_is_refused() -> None:
    with pytest.raises(ExperimentError, match="rounds is 0; expected"):
        median_times_s({}, 0)


class Holder:
    """Has 200 MiB when it is made, and takes 100 MiB for a moment when it is called."""

    def __init__(self) -> None:
        self.held = torch.ones(50 * MIB)
        torch.ones(100 * MIB)  # freed before the step

    def __call__(self) -> Tensor:
        return torch.ones(25 * MIB).sum()


def test_the_peak_of_a_step_is_its_own() -> None:
    assert 95 * MIB < peak_bytes("cpu", Holder, whole=False) < 130 * MIB


def test_the_peak_of_the_whole_has_what_came_before() -> None:
    assert 590 * MIB < peak_bytes("cpu", Holder, whole=True) < 650 * MIB


def test_a_process_that_is_killed_is_told() -> None:
    with pytest.raises(ExperimentError, match="was killed"):
        peak_bytes("cpu", partial(os._exit, 9), whole=True)
