"""What the cells of an experiment share: sources, data and decoded images; and hashes of what results depend on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

from torchsnow.data import ImageSet, LoadedData, load_data
from torchsnow.errors import TorchsnowError
from torchsnow.experiments.plan import Experiment, PlannedCell
from torchsnow.source import PACKAGES, Framing, Source, load_source
from torchsnow.train.batches import plain_images

T = TypeVar("T")
_PACKAGE = Path(__file__).parents[1]
_OF_RESULTS = ("source", "pooling.py", "delta", "model.py", "data", "train", "methods", "experiments/cell.py")
_LIBRARIES = ("torch", "torchvision", "timm", "scikit-learn")


class ResourceCache:
    """Loads what is asked for; a source and decoded images are kept until others are asked for.

    `load` turns a data set's name into LoadedData, with whatever progress the caller shows.
    """

    def __init__(self, experiment: Experiment, load: Callable[[str], LoadedData] = load_data) -> None:
        self.experiment, self.load = experiment, load
        self._source: tuple[str, Source] | None = None
        self._data: dict[str, LoadedData] = {}
        self._pool: tuple[tuple[str, str], ImageSet] | None = None
        self._errors: dict[str, TorchsnowError] = {}  # what cannot be had is not asked for again by every cell

    def source(self, name: str) -> Source:
        """The source of this name. Raises SourceError."""
        if self._source is None or self._source[0] != name:
            weights = "pretrained" if name in PACKAGES else self.experiment.weights
            self._source = (
                name,
                self._loaded(f"source {name}", lambda: load_source(name, weights, self.experiment.precision)),
            )
        return self._source[1]

    def data(self, name: str) -> LoadedData:
        """The data set of this name. Raises DataError."""
        if name not in self._data:
            self._data[name] = self._loaded(f"data {name}", lambda: self.load(name))
        return self._data[name]

    def _loaded(self, key: str, load: Callable[[], T]) -> T:
        if key in self._errors:
            raise self._errors[key]
        try:
            return load()
        except TorchsnowError as error:
            self._errors[key] = error
            raise

    def pool(self, cell: PlannedCell) -> ImageSet:
        """An empty set that keeps the images of a cell's data as its source wants them."""
        key = cell.source, cell.data
        if self._pool is None or self._pool[0] != key:
            config = self.source(cell.source).input_config
            self._pool = (
                key,
                plain_images(config, Framing(self.experiment.image_size), self.experiment.image_cache_bytes),
            )
        return self._pool[1]


@cache
def code_digest() -> str:
    """A SHA-256 over the code that trains and tests, as it was when first asked, and the versions of what it uses."""
    digest = hashlib.sha256()
    for name in _OF_RESULTS:
        path = _PACKAGE / name
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            content = hashlib.sha256(file.read_bytes()).hexdigest()
            digest.update(f"{file.relative_to(_PACKAGE).as_posix()} {content}\n".encode())
    digest.update(" ".join(f"{name} {version(name)}" for name in _LIBRARIES).encode())
    return digest.hexdigest()


def result_key(depends_on: Mapping[str, Any]) -> str:
    """A SHA-256 over JSON values that a result depends on, and over the code."""
    text = json.dumps({"code": code_digest(), **depends_on}, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
