from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import torchsnow as ts
from scripts import load_script

example = load_script(Path(__file__).parents[2] / "examples" / "tasks_one_after_another.py")


def test_nothing_is_forgotten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = tmp_path / "photos"
    generator = np.random.default_rng(0)
    for label in range(5):  # of which the last finds no partner
        (photos / f"{label}").mkdir(parents=True)
        for number in range(8):
            pixels = generator.integers(0, 100, (32, 32, 3)) + 30 * label
            Image.fromarray(pixels.astype(np.uint8)).save(photos / f"{label}" / f"{number}.png")
    tiny = ["--source", "test_resnet", "--weights", "random", "--epochs", "1", "--image-size", "32"]
    example.main([str(photos), "--out", str(tmp_path / "out"), *tiny])
    *rows, last = capsys.readouterr().out.splitlines()
    assert [len(row.split()) for row in rows] == [1, 2]
    assert last.startswith("forgetting 0.0;")
    assert ts.Hub.open(tmp_path / "out" / "hub").names() == ["task-0", "task-1"]


def test_forgetting_of_a_network_that_forgets() -> None:
    assert example.forgetting([[0.9], [1.0, 0.8], [0.5, 0.6, 0.7]]) == pytest.approx((0.5 + 0.2) / 2)
