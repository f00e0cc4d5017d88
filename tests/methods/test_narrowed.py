from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from method_training import CPU, Batches

from torchsnow.errors import TrainingError
from torchsnow.methods import PRESETS, Snow
from torchsnow.methods.narrowed import NarrowedSnow, PartOf
from torchsnow.source import Source
from torchsnow.train.store import values_of


def made(source: Source, divisor: int, width: int) -> Snow:
    spec = PRESETS["default"].spec_for(source, 3)
    return Snow(source, replace(spec, pool_divisor=divisor, grid_width=width), PRESETS["default"].pools)


@pytest.mark.parametrize("divisor", [4, 8, 16])
def test_it_starts_and_reads_as_it_would_alone(source: Source, batches: Batches, divisor: int) -> None:
    own, base = made(source, divisor, 40), made(source, 4, 32)
    narrowed = NarrowedSnow(base, own.spec)
    own.start(batches, CPU)
    base.start(batches, CPU)
    narrowed.start([], CPU)
    assert narrowed.config() == own.config()
    state = narrowed.trainable_state()
    assert all(torch.equal(one, state[key]) for key, one in own.trainable_state().items())
    parts, of_own = narrowed.frozen_part(64), own.frozen_part(64)
    assert parts is not None
    assert of_own is not None
    assert isinstance(parts[1], PartOf)
    stored, expected = (values_of(part, batches[0][0]) for part in (parts[0], of_own[0]))
    assert torch.equal(stored[:, parts[1].places], expected)
    own.delta.eval()
    narrowed.delta.eval()
    assert torch.equal(parts[1](stored), of_own[1](expected))


def test_channels_that_are_not_stored_are_refused(source: Source, batches: Batches) -> None:
    base, other = made(source, 4, 32), made(source, 8, 32)
    base.start(batches, CPU)
    other.start(batches, CPU)
    narrowed = NarrowedSnow(base, other.spec)
    state = other.trainable_state()
    missing = base.ranking[-state["pools.grid.index"].numel() :].sort().values
    narrowed.load_trainable_state({**state, "pools.grid.index": missing})
    with pytest.raises(TrainingError, match="delete its folder, and resume"):
        narrowed.frozen_part(64)
