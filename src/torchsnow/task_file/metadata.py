"""What a task file says about itself: one JSON text in the header of the .safetensors file."""

from __future__ import annotations

import json
from dataclasses import fields
from datetime import datetime
from typing import Any

from torchsnow.delta import DeltaSpec
from torchsnow.errors import TaskFileError
from torchsnow.source.config import Framing
from torchsnow.task_file.info import TaskInfo, check_classes, check_framing, check_task_name, check_training
from torchsnow.task_file.json_shape import Within, check_shape, check_version, parse_json
from torchsnow.task_file.metrics import kept_metrics
from torchsnow.task_file.source_info import SourceInfo

SCHEMA_VERSION = 6

_TEXT = Within(str, 1, 100)
_TAPS = (None, [str])
_SHAPE = {
    "schema_version": int,
    "name": str,
    "classes": [str],
    "spec": {
        "num_classes": int,
        "width_divisor": (None, int),
        "pool_divisor": int,
        "grid_width": (None, int),
        "grid_blocks": int,
        "grid_reduction": int,
        "global_pool": str,
        "entry_reduction": int,
        "slots": str,
        "taps": _TAPS,
        "head_last": bool,
        "head_taps": _TAPS,
        "head_divisor": int,
        "head_bits": int,
    },
    "source_info": dict,
    "subscription": {str: Within(int, 1, 2**31)},
    "image_size": int,
    "crop_mode": str,
    "unknown_above": (None, Within(float, 0, 1e38)),
    "training": dict,
    "metrics": dict,
    "versions": {"torchsnow": _TEXT, "torch": _TEXT, "timm": _TEXT},
    "created": _TEXT,
}


def encode_info(info: TaskInfo) -> str:
    """A task's information as JSON, the same text for the same information."""
    values = {field.name: getattr(info, field.name) for field in fields(TaskInfo)}
    values |= {"spec": info.spec.to_dict(), "source_info": info.source_info.to_dict()}
    return json.dumps({"schema_version": SCHEMA_VERSION, **values}, allow_nan=False, sort_keys=True)


def decode_info(text: str) -> TaskInfo:
    """Read what `encode_info` wrote. Raises TaskFileError for another version, shape or contradictory values."""
    try:
        values = _from_former_version(parse_json(text))
        check_version(values, SCHEMA_VERSION)
        check_shape(values, _SHAPE, "metadata")
        values["metrics"] = kept_metrics(values["metrics"])
        values["source_info"] = SourceInfo.from_dict(values["source_info"])
        values["spec"] = DeltaSpec.from_dict(values["spec"])
        _check_values(values)
    except ValueError as error:
        raise TaskFileError(str(error)) from error
    del values["schema_version"]
    return TaskInfo(**{**values, "classes": tuple(values["classes"])})


def _from_former_version(values: Any) -> Any:
    """Version 1 had no entry: every delta began at the image. Version 2 had no grid; up to version 3 the middle was cut
    out of every picture, up to version 4 grid bodies had means alone, and no matrix less than a byte per number, and up
    to version 5 no distance was known from where on images are unknown."""
    version, spec = (values.get(key) if isinstance(values, dict) else None for key in ("schema_version", "spec"))
    if type(version) is not int or not 1 <= version < SCHEMA_VERSION or not isinstance(spec, dict):
        return values
    of_spec = {key: value for first, new in _ADDED_TO_SPEC.items() if version <= first for key, value in new.items()}
    added = {key: value for first, new in _ADDED.items() if version <= first for key, value in new.items()}
    if set(spec) & set(of_spec) or set(values) & set(added):
        return values
    return {**values, **added, "schema_version": SCHEMA_VERSION, "spec": {**spec, **of_spec}}


_ADDED: dict[int, dict[str, Any]] = {3: {"crop_mode": "center"}, 5: {"unknown_above": None}}
_ADDED_TO_SPEC: dict[int, dict[str, Any]] = {
    1: {"entry_reduction": 1},
    2: {"grid_width": None, "grid_blocks": 3, "grid_reduction": 32},
    4: {"global_pool": "avg", "head_bits": 8},
}
"""What files of these versions and before lack, and the values under which nothing changes."""


def _check_values(values: dict[str, Any]) -> None:
    check_task_name(values["name"])
    check_classes(values["classes"], values["spec"].num_classes)
    check_framing(Framing(values["image_size"], values["crop_mode"]))
    check_training(values["training"])
    _check_date(values["created"])
    for key in ("taps", "head_taps"):
        names = getattr(values["spec"], key)
        if names is not None and len(set(names)) != len(names):
            raise ValueError(f"metadata.spec.{key} names a tap twice")


def _check_date(text: str) -> None:
    try:
        datetime.fromisoformat(text)
    except ValueError as error:
        raise ValueError(
            f"metadata.created is {text!r}; expected a date and time, as 2026-01-31T12:00:00+00:00"
        ) from error
