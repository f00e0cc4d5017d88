"""Small folders of small photographs, one colour a class."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = ("red", "green", "blue")


def make_photos(root: Path, num_images: int = 10, classes: tuple[str, ...] = COLOURS) -> Path:
    """Class folders of noisy PNGs of 40 x 40 pixels, named 0.png, 1.png and so on; returns `root`."""
    generator = np.random.default_rng(0)
    for name in classes:
        (root / name).mkdir(parents=True)
        for number in range(num_images):
            pixels = generator.integers(0, 160, (40, 40, 3), dtype=np.uint8)
            pixels[..., COLOURS.index(name)] += 80
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    return root
