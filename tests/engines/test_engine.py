from __future__ import annotations

import pytest
import torch

from torchsnow.engines import DeltaRequest, Engine
from torchsnow.engines.engine import runs
from torchsnow.experiments.serving_speed import random_deltas
from torchsnow.methods import PRESETS
from torchsnow.model import SnowModel
from torchsnow.source import load_source


@pytest.mark.parametrize("preset", ["default", "paper"])
@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_convnext"])
def test_rows_of_a_batch_get_what_the_images_get_alone(name: str, preset: str) -> None:
    source = load_source(name, "random")
    deltas = random_deltas(source, PRESETS[preset].spec(3), 3)
    images = torch.randn(5, 3, 64, 64)
    engine = Engine(source)
    rows = [(0, 1, 4), (2,), (0, 1, 2, 3, 4)]
    work = [DeltaRequest(engine.prepare(delta), own) for delta, own in zip(deltas, rows, strict=True)]
    with torch.no_grad():
        for output, delta, own in zip(engine.run(images, work), deltas, rows, strict=True):
            expected = torch.cat([SnowModel(source, delta)(images[row : row + 1]) for row in own])
            torch.testing.assert_close(output.logits, expected, rtol=1e-3, atol=1e-4)


def test_a_task_that_no_image_asks_for_has_no_logits() -> None:
    source = load_source("test_resnet", "random")
    one, other = random_deltas(source, PRESETS["default"].spec(3), 2)
    run, images = Engine(source), torch.randn(2, 3, 32, 32)
    empty, some = run.run(images, [DeltaRequest(run.prepare(one), ()), DeltaRequest(run.prepare(other), (1,))])
    assert (empty.logits.shape, some.logits.shape) == ((0, 3), (1, 3))
    assert run.run(images, [DeltaRequest(run.prepare(one), ())])[0].logits.shape == (0, 3)


@pytest.mark.parametrize(
    ("rows", "expected"), [((), []), ((3,), [(3, 4)]), ((0, 1, 2), [(0, 3)]), ((0, 2, 3, 7), [(0, 1), (2, 4), (7, 8)])]
)
def test_neighbours_are_joined(rows: tuple[int, ...], expected: list[tuple[int, int]]) -> None:
    assert runs(rows) == expected
