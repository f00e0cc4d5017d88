"""JSON from a file, read strictly: what is not of the expected shape is refused with its place."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

_LARGEST_INT = 2**53  # beyond it other JSON readers lose digits
_TYPE_NAMES = {str: "a text", int: "a whole number", float: "a number", bool: "true or false", dict: "an object"}


@dataclass(frozen=True)
class Within:
    """A shape: a number of a type, from `least` to `most`, or a text of so many characters."""

    kind: type
    least: float
    most: float


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text. Raises ValueError for anything else, for NaN and infinite numbers, and for a key
    that occurs twice in one object."""
    try:
        return json.loads(text, parse_constant=_reject_constant, parse_float=_finite, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not valid JSON: {error}") from error


def validate_shape(value: Any, shape: Any, where: str) -> None:
    """Raise ValueError, naming the place inside `where`, unless a JSON value is of the given shape.

    A shape is a type (float takes whole numbers too, dict any object), a type with bounds, None, a list [shape of
    every item], a tuple of alternatives, a dict {key: shape} with exactly these keys, or {str: shape} with any keys.
    """
    if isinstance(shape, tuple):
        _validate_alternatives(value, shape, where)
    elif isinstance(shape, list):
        _expect(isinstance(value, list), value, "a list", where)
        for i, item in enumerate(value):
            validate_shape(item, shape[0], f"{where}[{i}]")
    elif isinstance(shape, dict):
        _expect(isinstance(value, dict), value, "an object", where)
        any_key = str in shape
        if not any_key:
            _validate_keys(value, shape, where)
        for key, item in value.items():
            validate_shape(item, shape[str if any_key else key], f"{where}.{key}")
    elif isinstance(shape, Within):
        _validate_within(value, shape, where)
    elif shape is None:
        _expect(value is None, value, "null", where)
    else:
        _expect(_is_a(value, shape), value, _TYPE_NAMES[shape], where)


def is_deeper(value: Any, levels: int) -> bool:
    """Whether a JSON value has more than so many levels of lists and objects in each other."""
    if not isinstance(value, list | dict):
        return False
    items = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(is_deeper(item, levels - 1) for item in items)


def validate_version(values: Any, known: int) -> None:
    """Raise ValueError unless a JSON object says that it is of the known schema version."""
    given = values.get("schema_version") if isinstance(values, dict) else None
    if type(given) is not int or given < 1:
        raise ValueError("it does not say its schema version: it was not written by torchsnow")
    if given != known:
        advice = "upgrade torchsnow to use it" if given > known else "an older torchsnow wrote it, use that one"
        raise ValueError(f"its schema version is {given}, this torchsnow reads {known}; {advice}")


def _is_a(value: Any, kind: type) -> bool:
    if isinstance(value, bool):
        return kind is bool
    if isinstance(value, int) and kind in (int, float):
        return abs(value) <= _LARGEST_INT
    return isinstance(value, kind)


def _validate_alternatives(value: Any, shapes: tuple[Any, ...], where: str) -> None:
    for shape in shapes[:-1]:
        try:
            return validate_shape(value, shape, where)
        except ValueError:
            continue
    return validate_shape(value, shapes[-1], where)


def _validate_within(value: Any, shape: Within, where: str) -> None:
    validate_shape(value, shape.kind, where)
    size, unit = (len(value), " characters") if isinstance(value, str) else (value, "")
    _expect(shape.least <= size <= shape.most, value, f"{shape.least:g} to {shape.most:g}{unit}", where)


def _validate_keys(value: dict[str, Any], shape: dict[str, Any], where: str) -> None:
    missing, unknown = sorted(set(shape) - set(value)), sorted(set(value) - set(shape))
    if missing:
        raise ValueError(f"{where} lacks {missing[0]!r}")
    if unknown:
        raise ValueError(f"{where} has an unknown key {_short(unknown[0])}")


def _expect(holds: bool, value: Any, expected: str, where: str) -> None:
    if not holds:
        raise ValueError(f"{where} is {_short(value)}; expected {expected}")


def _short(value: Any) -> str:
    text = json.dumps(value, allow_nan=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        ((key, _),) = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"the key {_short(key)} occurs twice")
    return value


def _reject_constant(text: str) -> float:
    raise ValueError(f"{text} is not a finite number")


def _finite(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _reject_constant(text)
