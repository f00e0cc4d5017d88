"""What an experiment consists of, and which cells that makes; one YAML file describes one."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch

from torchsnow.data.datasets import CACHE_BYTES
from torchsnow.errors import ExperimentError
from torchsnow.io.yaml_file import read_yaml
from torchsnow.methods import METHODS, PRESETS, split_name
from torchsnow.source import Precision
from torchsnow.train import TrainSettings

OF_DATA = ("train_images", "train_share", "shots")  # factors that choose training images; others are of the delta
_LISTS = ("sources", "data", "methods", "seeds")
_WHOLE = ("epochs", "image_size", "batch_size", "lr_tries")
_SPEED = ("num_workers", "store_bytes")  # settings of a training that change its time alone
_HALF_DECADE = 10**0.5


@dataclass(frozen=True)
class PlannedCell:
    """One result to come: a method on a data set with a source, a seed and the values of the varied factors."""

    source: str
    data: str
    method: str
    seed: int
    variant: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    def __str__(self) -> str:
        varied = "".join(f", {name} {value}" for name, value in self.variant.items())
        return f"{self.method} on {self.data} with {self.source}{varied}, seed {self.seed}"


@dataclass(frozen=True)
class Experiment:
    """Methods x data sets x sources x variants x seeds under one budget.

    - `sources`: names for `load_source`; `weights` are those of all of them.
    - `data`: what `load_data` takes. `methods`: "NAME" or "NAME:PRESET".
    - `epochs`, `image_size` (pixels), `batch_size`, `augmentation`: the same for every method; `augmentations` has
      other ones for single data sets.
    - `lr_tries`: learning rates that are tried for every method, with the first seed, around the method's own, half a
      decade apart; the best on the validation split is kept for the other seeds.
    - `train_images`, `val_images`, `test_images`: subsamples; None takes all.
    - `optimizer`, `weight_decay`, `precision` (of the source pass), `amp`: as in `TrainSettings`.
    - `num_workers`: processes that load images; `image_cache_bytes`: most memory for decoded images, in each of them.
    - `remark`: a sentence that stands on top of the report.
    - `vary`: values of factors. Those of `OF_DATA` choose training images, the others are settings of a delta.
    """

    name: str
    data: tuple[str, ...]
    methods: tuple[str, ...]
    sources: tuple[str, ...] = ("bundled",)
    weights: str = "pretrained"
    seeds: tuple[int, ...] = (0, 1, 2)
    epochs: int = 15
    image_size: int = 224
    batch_size: int = 32
    augmentation: str = "flip"
    augmentations: Mapping[str, str] = field(default_factory=dict)
    lr_tries: int = 3
    train_images: int | None = None
    val_images: int | None = None
    test_images: int | None = None
    vary: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    optimizer: str = "adamw"
    weight_decay: float = 0.05
    precision: Precision = "fp32"
    amp: bool = False
    device: str = "auto"
    num_workers: int = 0
    image_cache_bytes: int = CACHE_BYTES
    remark: str = ""

    def __post_init__(self) -> None:
        for name in _LISTS:
            values = getattr(self, name)
            if not values:
                raise ExperimentError(f"{name} is empty; name at least one")
            if len(set(values)) < len(values):
                raise ExperimentError(f"{name} lists something twice: {', '.join(map(str, values))}")
        for name in _WHOLE:
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ExperimentError(f"{name} is {value!r}; expected a whole number of 1 or more")
        cache = self.image_cache_bytes
        if not isinstance(cache, int) or isinstance(cache, bool) or cache < 0:
            raise ExperimentError(f"image_cache_bytes is {cache!r}; expected a whole number of 0 or more")
        self._validate_vary()
        unknown = sorted(set(self.augmentations) - set(self.data))
        if unknown:
            raise ExperimentError(f"augmentations names {unknown[0]!r}, which is not among the data")
        for text in self.methods:
            self._validate_method(text)
        for name, seed in itertools.product(self.data, self.seeds):
            self.settings(name, 1e-3, seed)

    def _validate_vary(self) -> None:
        for factor, values in self.vary.items():
            if not values:
                raise ExperimentError(f"vary.{factor} is empty; give the values to try")
            for value in values if factor not in OF_DATA else ():
                PRESETS["default"].changed({factor: value})  # raises for what is no setting

    def _validate_method(self, text: str) -> None:
        name, preset = split_name(text)
        of_delta = [factor for factor in self.vary if factor not in OF_DATA]
        if of_delta and not METHODS[name].is_delta:
            raise ExperimentError(
                f"vary has {of_delta[0]!r}, a setting of a delta, and the method {name!r} makes none; compare it in an "
                "experiment of its own"
            )
        if name == "snow":
            for values in itertools.product(*(self.vary[factor] for factor in of_delta)):
                PRESETS[preset].changed(dict(zip(of_delta, values, strict=True))).spec(num_classes=2)
        if self.train_images is not None and any(factor in OF_DATA for factor in self.vary):
            raise ExperimentError("train_images contradicts a varied number of training images; leave one of them out")

    def settings(self, data: str, lr: float, seed: int) -> TrainSettings:
        """The budget of one run. Raises a TorchsnowError for values out of range."""
        return TrainSettings(
            epochs=self.epochs,
            batch_size=self.batch_size,
            image_size=self.image_size,
            lr=lr,
            warmup_epochs=min(1, self.epochs - 1),
            augmentation=self.augmentations.get(data, self.augmentation),
            seed=seed,
            optimizer=self.optimizer,  # type: ignore[arg-type] # checked by the settings
            weight_decay=self.weight_decay,
            precision=self.precision,
            amp=self.amp,
            device=self.device,  # type: ignore[arg-type] # checked by the settings
            num_workers=self.num_workers,
        )

    def torch_device(self) -> torch.device:
        """Where the experiment runs."""
        return self.settings(self.data[0], 1e-3, 0).torch_device()

    def lrs(self, method: str) -> list[float]:
        """The learning rates that are tried: the method's own in the middle, lower ones first."""
        own = METHODS[split_name(method)[0]].lr
        return [own * _HALF_DECADE ** (place - (self.lr_tries - 1) / 2) for place in range(self.lr_tries)]

    def cells(self) -> list[PlannedCell]:
        """All cells; those of one data set follow each other, and the first seed comes before the others."""
        variants = [dict(zip(self.vary, values, strict=True)) for values in itertools.product(*self.vary.values())]
        return [
            PlannedCell(source, data, method, seed, variant)
            for source, data, seed, variant, method in itertools.product(
                self.sources, self.data, self.seeds, variants, self.methods
            )
        ]

    def shard(self, number: int, count: int) -> list[PlannedCell]:
        """The cells of one of `count` machines, numbered from 1. All seeds of a method on a data set are in one shard:
        they share a search. Raises ExperimentError for a shard that there is not."""
        if not 1 <= number <= count:
            raise ExperimentError(f"the shard is {number}/{count}; expected I/N with I from 1 to N")
        groups: dict[str, int] = {}
        places = [groups.setdefault(str(replace(cell, seed=0)), len(groups)) for cell in self.cells()]
        return [cell for cell, place in zip(self.cells(), places, strict=True) if place % count == number - 1]

    def settings_of(self, cell: PlannedCell) -> dict[str, Any]:
        """All that a cell's result depends on besides the code, the data's and the source's content, in JSON values."""
        training = self.settings(cell.data, 1.0, cell.seed).to_dict()
        budget = {name: value for name, value in training.items() if name not in ("lr", *_SPEED)}
        images = {name: getattr(self, name) for name in ("train_images", "val_images", "test_images")}
        search = {"lrs": self.lrs(cell.method), "first_seed": self.seeds[0]}
        return {"cell": cell.to_dict(), "budget": budget, **images, **search}

    def changed(self, changes: Mapping[str, Any]) -> Experiment:
        """The same with other values of some names, as `from_dict` takes them."""
        values = {**self.to_dict(), **changes}
        values["augmentations"] = {
            name: value for name, value in values["augmentations"].items() if name in values["data"]
        }
        return Experiment.from_dict(values)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        values = asdict(self)
        values["vary"] = {name: list(options) for name, options in self.vary.items()}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Experiment:
        """From plain values, as in a YAML file. Raises ExperimentError for unknown or missing names and wrong types."""
        known = {field.name for field in fields(cls)}
        unknown = sorted(map(str, set(values) - known))
        if unknown:
            raise ExperimentError(f"an experiment has no {unknown[0]!r}; expected some of {', '.join(sorted(known))}")
        missing = [name for name in ("name", "data", "methods") if name not in values]
        if missing:
            raise ExperimentError(f"the experiment lacks {missing[0]!r}")
        given = dict(values)
        for name in _LISTS:
            if name in given:
                given[name] = _listed(name, given[name], int if name == "seeds" else str)
        given["vary"] = {name: _listed(f"vary.{name}", options) for name, options in _mapping("vary", given).items()}
        given["augmentations"] = _mapping("augmentations", given)
        return cls(**given)

    @classmethod
    def load(cls, path: Path) -> Experiment:
        """Read a YAML file. Raises ExperimentError when it is none, or not of an experiment."""
        values = read_yaml(path, ExperimentError, "the experiment")
        if not isinstance(values, dict):
            raise ExperimentError(f"{path} does not describe an experiment: expected names and values")
        return cls.from_dict({"name": path.stem, **values})


def _listed(name: str, values: object, kind: type | None = None) -> tuple[Any, ...]:
    if not isinstance(values, list | tuple):
        raise ExperimentError(f"{name} is {values!r}; expected a list")
    for value in values:
        if kind is not None and (not isinstance(value, kind) or isinstance(value, bool)):
            raise ExperimentError(f"{name} has {value!r}; expected values of type {kind.__name__}")
    return tuple(values)


def _mapping(name: str, values: Mapping[str, Any]) -> Mapping[str, Any]:
    value = values.get(name, {})
    if not isinstance(value, Mapping):
        raise ExperimentError(f"{name} is {value!r}; expected names and values")
    return value


def packaged_experiment(name: str) -> Experiment:
    """The experiment that comes with the package under that name: "paper" or "smoke"."""
    return Experiment.load(Path(__file__).with_name(f"{name}.yaml"))
