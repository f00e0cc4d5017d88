"""results.json: what a comparison has measured, written and read strictly."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from torchsnow.errors import ExperimentError
from torchsnow.io.files import clear_os_errors, write_atomically
from torchsnow.report.checks import check_values, shape_of
from torchsnow.train.history import Epoch

SCHEMA = 2

Variant = Mapping[str, str | bool | float | None]
"""The swept settings of a cell by name; empty when nothing is swept."""


@dataclass(frozen=True)
class Scores:
    """Results on one split: shares from 0 to 1, the loss in nats; `top5` is None for five classes or fewer."""

    accuracy: float
    balanced_accuracy: float
    calibration_error: float
    loss: float
    top5: float | None


@dataclass(frozen=True)
class Try:
    """One learning rate of the search, and the best validation accuracy that it led to; None if training broke down."""

    lr: float
    val_accuracy: float | None


@dataclass(frozen=True)
class Shipped:
    """A task as it shipped.

    `probe_weight` and `body_weight` are how much a linear probe over the source's values and a delta's body count in
    the logits; 0 for a part that did not ship, None where the method has none. `num_params` are the numbers that are
    kept of the task. Multiply-adds are of one image: `first` of the way from the image to the logits of one task,
    `added` what each further task adds to the pass that has run, and `source` the source's own.
    """

    probe_weight: float | None
    body_weight: float | None
    num_params: int
    first_multiply_adds: int
    added_multiply_adds: int
    source_multiply_adds: int

    @property
    def has_body(self) -> bool:
        """Whether a delta's body shipped."""
        return bool(self.body_weight)


@dataclass(frozen=True)
class Cell:
    """One finished training: a source, a data set, a variant, a method and a seed.

    `key` is a hash of the code, data, source and settings that made it. `tries` is empty where the learning rate `lr`
    was taken over from another seed. `stored_bytes` is what has to be kept of the task beside the source, `seconds`
    what the cell took with its search.
    """

    key: str
    source: str
    data: str
    method: str
    seed: int
    variant: Variant
    train_images: int
    val_images: int
    test_images: int
    num_classes: int
    lr: float
    tries: tuple[Try, ...]
    best_epoch: int
    val: Scores
    test: Scores
    history: tuple[Epoch, ...]
    trained_params: int
    stored_bytes: int
    shipped: Shipped
    note: str
    seconds: float

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """A cell from JSON values of the right shape."""
        parts = {
            "tries": tuple(Try(**row) for row in values["tries"]),
            "val": Scores(**values["val"]),
            "test": Scores(**values["test"]),
            "shipped": Shipped(**values["shipped"]),
            "history": tuple(Epoch(**row) for row in values["history"]),
        }
        return cls(**{**values, **parts})


@dataclass(frozen=True)
class Failure:
    """A cell that could not be finished, and why in one sentence."""

    source: str
    data: str
    method: str
    seed: int
    variant: Variant
    error: str
    key: str = ""


@dataclass(frozen=True)
class Cost:
    """What a training step of a method costs on a source, in seconds and bytes; None where it was not measured."""

    source: str
    method: str
    step_s: float | None
    step_over_full: float | None
    peak_bytes: int | None
    peak_over_full: float | None
    image_size: int
    batch_size: int
    device: str


@dataclass(frozen=True)
class Results:
    """A comparison: its settings as JSON values, its finished cells in order, its failures, its costs."""

    name: str
    made: str
    experiment: Mapping[str, Any]
    versions: Mapping[str, str]
    machine: str
    cells: tuple[Cell, ...] = ()
    failed: tuple[Failure, ...] = ()
    costs: tuple[Cost, ...] = ()

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a results.json. Raises ExperimentError, naming the field, for anything that `save` did not write."""
        with clear_os_errors("read", path, ExperimentError):
            content = path.read_bytes()
        try:
            values = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise ExperimentError(
                f"cannot use {path}: it is damaged or only half written ({error}); make the comparison again"
            ) from error
        try:
            return cls.from_dict(values)
        except ValueError as error:
            raise ExperimentError(f"cannot use {path}: {error}") from error

    @classmethod
    def from_dict(cls, values: Any) -> Self:
        """The results in JSON values. Raises ExperimentError, naming the field, for any that are not as they should."""
        try:
            values = _upgraded(values)
        except (KeyError, TypeError, AttributeError) as error:
            raise ExperimentError(f"it says that its schema is 1, and is not of that shape ({error})") from error
        check_values(values, SCHEMA, _SHAPE)
        parts = {
            "cells": tuple(Cell.from_dict(cell) for cell in values["cells"]),
            "failed": tuple(Failure(**failure) for failure in values["failed"]),
            "costs": tuple(Cost(**cost) for cost in values["costs"]),
        }
        return cls(**{key: value for key, value in values.items() if key != "schema"} | parts)

    def to_dict(self) -> dict[str, Any]:
        """JSON values with the keys of the file."""
        values: dict[str, Any] = json.loads(json.dumps({"schema": SCHEMA, **asdict(self)}))
        return values

    def save(self, path: Path) -> None:
        """Write results.json atomically. Raises ExperimentError for values that `load` would refuse, and disks."""
        values = self.to_dict()
        check_values(values, SCHEMA, _SHAPE)
        write_atomically(path, json.dumps(values, indent=1, allow_nan=False) + "\n", ExperimentError)

    def cost(self, source: str, method: str) -> Cost | None:
        """The cost of a method on a source, if it was measured."""
        return next((cost for cost in self.costs if (cost.source, cost.method) == (source, method)), None)


def _upgraded(values: Any) -> Any:
    """Results of schema 1 as those of the present one; others as they are.

    Their cells have no keys, and say nothing of mixing weights; multiply-adds were with the costs of a method.
    """
    if not isinstance(values, dict) or values.get("schema") != 1:
        return values
    counts = ("first_multiply_adds", "added_multiply_adds", "source_multiply_adds")
    of_method = {(cost["source"], cost["method"]): {name: cost[name] for name in counts} for cost in values["costs"]}
    cells = []
    for cell in values["cells"]:
        cost = of_method.get((cell["source"], cell["method"]))
        if cost is None:
            raise ExperimentError(f"it is of schema 1, and lacks the costs of {cell['method']}; make them again")
        shipped = {"probe_weight": None, "body_weight": None, "num_params": cell["trained_params"], **cost}
        history = [{"body_val_accuracy": None, **epoch} for epoch in cell["history"]]
        cells.append({**cell, "key": "", "shipped": shipped, "history": history})
    costs = [{name: value for name, value in cost.items() if name not in counts} for cost in values["costs"]]
    failed = [{"key": "", **failure} for failure in values["failed"]]
    return {**values, "schema": SCHEMA, "cells": cells, "failed": failed, "costs": costs}


_SHAPE = {"schema": int, **shape_of(Results)}
