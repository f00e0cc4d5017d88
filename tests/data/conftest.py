"""Small folders of small pictures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

Folder = Callable[[dict[str, int]], Path]


@pytest.fixture
def image_folder(tmp_path: Path) -> Folder:
    """make({"train/cat": 5}) -> a folder with five different PNGs of 12 x 10 pixels in train/cat."""

    def make(counts: dict[str, int]) -> Path:
        generator = np.random.default_rng(0)
        for name, count in counts.items():
            folder = tmp_path / "pets" / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(0, 256, (10, 12, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"img{number}.png")
        return tmp_path / "pets"

    return make
