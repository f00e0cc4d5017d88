"""Runs that end at a place of a test's choice, and what makes two runs the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from torchsnow.train.checkpoint import Checkpoint
from torchsnow.train.history import Epoch

NARROW = {"width_divisor": 8, "grid_width": None, "learned": True, "sigma": 0.5}
"""Changes to the default preset: a narrow copy whose choice is learned, which reads the images in every step."""


class Killed(BaseException):
    """Ends a run at a place of the test's choice, as nothing in the code expects."""


def at(fraction: float, action: Callable[[], None], method: Any) -> Any:
    """The method, with `action` done before the first step at or after a share of all steps."""
    set_progress = method.set_progress

    def hooked(now: float) -> None:
        if now >= fraction:
            action()
        set_progress(now)

    method.set_progress = hooked
    return method


def raising(error: BaseException) -> Callable[[], None]:
    def action() -> None:
        raise error

    return action


def without_times(history: tuple[Epoch, ...] | list[Epoch]) -> list[Epoch]:
    return [replace(row, images_per_s=0.0, seconds=0.0) for row in history]


def assert_same_run(first: Path, second: Path) -> None:
    """Equal checkpoints, bit by bit, and equal tables but for the times."""
    for name in ("last.safetensors", "best.safetensors"):
        a, b = Checkpoint.load(first / name), Checkpoint.load(second / name)
        for then, now in ((a.model, b.model), (a.optimizer, b.optimizer)):
            assert then.keys() == now.keys()
            assert [key for key in then if not torch.equal(then[key], now[key])] == []
        assert without_times(a.history) == without_times(b.history)
        assert a.selection == b.selection
    first_rows, second_rows = (len((path / "results.csv").read_text().splitlines()) for path in (first, second))
    assert first_rows == second_rows
