"""Small folders of small pictures."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from torchsnow.data import DATASETS, catalogue, loading

Folder = Callable[[dict[str, int]], Path]
Expect = Callable[..., None]


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


@pytest.fixture
def data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty data folder, and no network."""

    def refuse(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    monkeypatch.setenv("TORCHSNOW_DATA", str(tmp_path / "store"))
    return tmp_path / "store"


@pytest.fixture
def expect(data_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Expect:
    """expect("dtd", classes=2, train=4, test=2) makes a small data set of a few pictures the whole of it."""

    def change(name: str, classes: int, **counts: int) -> None:
        small = {**loading.DATASETS, name: replace(DATASETS[name], num_classes=classes, counts=counts)}
        monkeypatch.setattr(loading, "DATASETS", small)
        monkeypatch.setattr(catalogue, "DATASETS", small)

    return change
