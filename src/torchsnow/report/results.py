"""results.json: what a comparison has measured, written and read strictly."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Self, get_args, get_origin, get_type_hints

from torchsnow.errors import ExperimentError
from torchsnow.io.files import clear_os_errors, write_atomically
from torchsnow.task_file.json_shape import validate_shape
from torchsnow.train.history import Epoch

SCHEMA = 2
_SHARES = {
    *("accuracy", "balanced_accuracy", "calibration_error", "top5"),
    *("val_accuracy", "train_accuracy", "body_val_accuracy"),
}
_POSITIVE = {"lr", "source_multiply_adds", "num_classes"}
_CELL = ("source", "data", "method", "seed", "variant")

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
class Trial:
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
    was taken over from another seed. `stored_bytes` is what has to be kept of the task besides the source, `seconds`
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
    tries: tuple[Trial, ...]
    best_epoch: int
    val: Scores
    test: Scores
    history: tuple[Epoch, ...]
    trained_params: int
    stored_bytes: int
    shipped: Shipped
    note: str
    seconds: float


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
class StepCost:
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
    costs: tuple[StepCost, ...] = ()

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
        validate_values(values)
        made: Self = _made(cls, {key: value for key, value in values.items() if key != "schema"})
        return made

    def to_dict(self) -> dict[str, Any]:
        """JSON values with the keys of the file."""
        values: dict[str, Any] = json.loads(json.dumps({"schema": SCHEMA, **asdict(self)}))
        return values

    def save(self, path: Path) -> None:
        """Write results.json atomically. Raises ExperimentError for values that `load` would refuse, and disks."""
        values = self.to_dict()
        validate_values(values)
        write_atomically(path, json.dumps(values, indent=1, allow_nan=False) + "\n", ExperimentError)

    def cost(self, source: str, method: str) -> StepCost | None:
        """The cost of a method on a source, if it was measured."""
        return next((cost for cost in self.costs if (cost.source, cost.method) == (source, method)), None)


def _made(kind: Any, value: Any) -> Any:
    """An object of a type from JSON values of its shape."""
    if is_dataclass(kind):
        kinds = get_type_hints(kind)
        return kind(**{name: _made(kinds[name], inner) for name, inner in value.items()})  # type: ignore[operator]
    return tuple(_made(get_args(kind)[0], one) for one in value) if get_origin(kind) is tuple else value


def _shape_of(kind: Any) -> Any:
    """The shape, as `validate_shape` takes it, of the JSON values of a type."""
    if is_dataclass(kind):
        return {name: _shape_of(field) for name, field in get_type_hints(kind).items()}
    inner = get_args(kind)
    if get_origin(kind) is tuple:
        return [_shape_of(inner[0])]
    if get_origin(kind) is Mapping:
        return dict if inner[1] is Any else {str: _shape_of(inner[1])}
    if isinstance(kind, UnionType):  # the last alternative is the one that messages name
        return (None, *(_shape_of(one) for one in inner if one is not NoneType))
    return kind


def validate_values(values: Any) -> None:
    """Raise ExperimentError, naming the first field that is wrong, unless these are the values of a results.json."""
    try:
        _validate_schema(values)
        validate_shape(values, {"schema": int, **_shape_of(Results)}, "results")
        for place, key, number in _numbers(values, "results", ""):
            _validate_number(place, key, number)
        _validate_twins(values["cells"])
    except ValueError as error:
        raise ExperimentError(str(error)) from error


def _validate_schema(values: Any) -> None:
    given = values.get("schema") if isinstance(values, dict) else None
    if type(given) is not int:
        raise ValueError("it does not say its schema, so it is no results.json of a comparison")
    if given != SCHEMA:
        raise ValueError(f"its schema is {given}, this torchsnow reads {SCHEMA}; use the torchsnow that wrote it")


def _numbers(value: Any, place: str, key: str) -> Iterator[tuple[str, str, float]]:
    """Every number with its place and the last key on the way to it."""
    if isinstance(value, dict):
        for inner, item in value.items():
            yield from _numbers(item, f"{place}.{inner}", inner)
    elif isinstance(value, list):
        for i, item in enumerate(value):
            yield from _numbers(item, f"{place}[{i}]", key)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield place, key, value


def _validate_number(place: str, key: str, number: float) -> None:
    if not math.isfinite(number):
        raise ValueError(f"{place} is {number}; expected a finite number")
    if place.startswith("results.experiment.") or ".variant." in place:
        return  # settings: whatever their names, nothing is known of what they can be
    if key in _SHARES and not 0 <= number <= 1:
        raise ValueError(f"{place} is {number:g}; expected a share from 0 to 1")
    if number < 0 or (number == 0 and key in _POSITIVE):
        raise ValueError(f"{place} is {number:g}; expected {'more than 0' if key in _POSITIVE else '0 or more'}")


def _validate_twins(cells: list[dict[str, Any]]) -> None:
    seen: set[str] = set()
    for i, cell in enumerate(cells):
        place = json.dumps([cell[key] for key in _CELL], sort_keys=True)
        if place in seen:
            raise ValueError(f"results.cells[{i}] is there twice: {place}")
        seen.add(place)
