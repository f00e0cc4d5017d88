"""What the cells of an experiment share: sources and data sets, loaded once, and images, decoded once."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from torchsnow.data import ImageSet, LoadedData, load_data
from torchsnow.errors import TorchsnowError
from torchsnow.experiments.plan import Cell, Experiment
from torchsnow.source import PACKAGES, Framing, Source, load_source
from torchsnow.train.batches import plain_images

T = TypeVar("T")


class Material:
    """Loads what is asked for; a source and decoded images are kept until others are asked for.

    `load` turns a data set's name into LoadedData, with whatever progress the caller shows.
    """

    def __init__(self, experiment: Experiment, load: Callable[[str], LoadedData] = load_data) -> None:
        self.experiment, self.load = experiment, load
        self._source: tuple[str, Source] | None = None
        self._data: dict[str, LoadedData] = {}
        self._pool: tuple[tuple[str, str], ImageSet] | None = None
        self._refused: dict[str, TorchsnowError] = {}  # what cannot be had is not asked for again by every cell

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
        if key in self._refused:
            raise self._refused[key]
        try:
            return load()
        except TorchsnowError as error:
            self._refused[key] = error
            raise

    def pool(self, cell: Cell) -> ImageSet:
        """An empty set that keeps the images of a cell's data as its source wants them."""
        key = cell.source, cell.data
        if self._pool is None or self._pool[0] != key:
            config = self.source(cell.source).input_config
            self._pool = (
                key,
                plain_images(config, Framing(self.experiment.image_size), self.experiment.image_cache_bytes),
            )
        return self._pool[1]
