"""Whether JSON values are those of a results.json: right keys, right types, numbers that can be."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

from torchsnow.errors import ExperimentError
from torchsnow.task_file.json_shape import check_shape

_SHARES = {
    "accuracy",
    "balanced_accuracy",
    "calibration_error",
    "top5",
    "val_accuracy",
    "train_accuracy",
    "body_val_accuracy",
}
_POSITIVE = {"lr", "source_multiply_adds", "num_classes"}
_CELL = ("source", "data", "method", "seed", "variant")


def shape_of(kind: Any) -> Any:
    """The shape, as `check_shape` takes it, of the JSON values of a dataclass or of one of its fields."""
    if is_dataclass(kind):
        return {name: shape_of(field) for name, field in get_type_hints(kind).items()}
    inner = get_args(kind)
    if get_origin(kind) is tuple:
        return [shape_of(inner[0])]
    if get_origin(kind) is Mapping:
        return dict if inner[1] is Any else {str: shape_of(inner[1])}
    if isinstance(kind, UnionType):  # the last alternative is the one that messages name
        return (None, *(shape_of(one) for one in inner if one is not NoneType))
    return kind


def check_values(values: Any, schema: int, shape: Any) -> None:
    """Raise ExperimentError, naming the first field that is wrong, unless these are results of this schema."""
    try:
        _check_schema(values, schema)
        check_shape(values, shape, "results")
        for place, key, number in _numbers(values, "results", ""):
            _check_number(place, key, number)
        _check_twins(values["cells"])
    except ValueError as error:
        raise ExperimentError(str(error)) from error


def _check_schema(values: Any, known: int) -> None:
    given = values.get("schema") if isinstance(values, dict) else None
    if type(given) is not int:
        raise ValueError("it does not say its schema, so it is no results.json of a comparison")
    if given != known:
        raise ValueError(f"its schema is {given}, this torchsnow reads {known}; use the torchsnow that wrote it")


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


def _check_number(place: str, key: str, number: float) -> None:
    if not math.isfinite(number):
        raise ValueError(f"{place} is {number}; expected a finite number")
    if place.startswith("results.experiment.") or ".variant." in place:
        return  # settings: whatever their names, nothing is known of what they can be
    if key in _SHARES and not 0 <= number <= 1:
        raise ValueError(f"{place} is {number:g}; expected a share from 0 to 1")
    if number < 0 or (number == 0 and key in _POSITIVE):
        raise ValueError(f"{place} is {number:g}; expected {'more than 0' if key in _POSITIVE else '0 or more'}")


def _check_twins(cells: list[dict[str, Any]]) -> None:
    seen: set[str] = set()
    for i, cell in enumerate(cells):
        place = json.dumps([cell[key] for key in _CELL], sort_keys=True)
        if place in seen:
            raise ValueError(f"results.cells[{i}] is there twice: {place}")
        seen.add(place)
