"""What a task file says about itself: all that is known of a task but its numbers, as one JSON text in the header of
the .safetensors file, written and read strictly."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO

from torchsnow.delta import DeltaSpec
from torchsnow.errors import TaskFileError, TorchsnowError
from torchsnow.io.files import clear_os_errors
from torchsnow.source.config import CROP_MODES, GREYS, MAX_IMAGE_SIZE, Framing
from torchsnow.task_file.json_shape import Within, is_deeper, parse_json, validate_shape, validate_version
from torchsnow.task_file.labels import Thresholds
from torchsnow.task_file.source_info import SourceInfo

_TASK_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_MAX_LEVELS = 8  # of lists and objects in each other
_MAX_NAME_CHARACTERS = 1_000  # of a class
_MAX_NAMES_BYTES = 4 * 2**20  # of all classes; a header holds them in JSON within JSON, at most twice as long


@dataclass(frozen=True)
class Limits:
    """What validation images say of a task: `unknown_above` and `thresholds`, as `TaskInfo` has them."""

    unknown_above: float | None = None
    thresholds: Thresholds = None


@dataclass(frozen=True)
class TaskInfo:
    """All that is known of a task but its numbers.

    `classes` are in the order of the logits; `subscription` is the number of chosen channels per tap (or of all taps
    together as "grid"), the head's own last as "head"; `image_size`, `crop_mode` and `grey_range` say how pictures were
    shown to it (see `Framing`); images whose distance (see `FoldedHead`) is above `unknown_above` are unlike those that
    it was trained for (None: not known); `thresholds` (num_classes,) are those of labels of which an image has any
    number (None: an image has one class, see `task_file.labels`); `training` is a free JSON object, `metrics` the main
    results by split; `versions` are those of torchsnow, torch and timm, and `created` is an ISO date and time in UTC.
    """

    name: str
    classes: tuple[str, ...]
    spec: DeltaSpec
    source_info: SourceInfo
    subscription: dict[str, int]
    image_size: int
    crop_mode: str
    grey_range: tuple[int, int]
    unknown_above: float | None
    thresholds: Thresholds
    training: dict[str, Any]
    metrics: dict[str, Any]
    versions: dict[str, str]
    created: str

    @property
    def framing(self) -> Framing:
        """How pictures are shown to it."""
        return Framing(self.image_size, self.crop_mode, self.grey_range)

    def __repr__(self) -> str:
        what = f"{len(self.classes)} classes, {self.image_size} px, on {self.source_info.name}"
        return f"{type(self).__name__}({self.name!r}, {what})"


def validate_task_name(name: str) -> None:
    """Raise TaskFileError unless a name can be a task's: it is also a folder's name on every file system."""
    if not _TASK_NAME.fullmatch(name):
        raise TaskFileError(
            f"{name[:80]!r} cannot be a task's name; expected 1 to 64 of a-z, 0-9, '.', '_' and '-', "
            "beginning with a letter or a digit, for example 'solar-cells'"
        )


def validate_framing(framing: Framing) -> None:
    """Raise TaskFileError unless such images can be asked of whoever uses the task."""
    if not 1 <= framing.image_size <= MAX_IMAGE_SIZE:
        raise TaskFileError(f"image_size is {framing.image_size}; expected 1 pixel to {MAX_IMAGE_SIZE}")
    if framing.crop_mode not in CROP_MODES:
        raise TaskFileError(f"crop_mode is {framing.crop_mode!r}; expected one of {', '.join(CROP_MODES)}")
    if len(framing.grey_range) != 2 or not 0 <= framing.grey_range[0] < framing.grey_range[1] <= GREYS[1]:
        raise TaskFileError(f"grey_range is {list(framing.grey_range)}; expected two values of 0 to 65535, rising")


def validate_training(training: Mapping[str, Any]) -> None:
    """Raise TaskFileError for settings of a training, in JSON values, that not every printer of JSON could print."""
    if is_deeper(training, _MAX_LEVELS):
        raise TaskFileError(
            f"training is nested too deeply; expected {_MAX_LEVELS} levels of lists and objects or fewer"
        )


def validate_classes(classes: Sequence[str], num_classes: int) -> None:
    """Raise TaskFileError unless the class names are unique, not empty, as many as the delta has logits, and fit into
    a task file."""
    if len(classes) != num_classes:
        raise TaskFileError(f"{len(classes)} class names for a delta of {num_classes} classes; they must be as many")
    seen: set[str] = set()
    for name in classes:
        if not name.strip():
            raise TaskFileError(f"class {len(seen)} has an empty name; every class needs one")
        if len(name) > _MAX_NAME_CHARACTERS:
            raise TaskFileError(
                f"class {len(seen)} has a name of {len(name)} characters, {name[:40]!r}...; "
                f"expected {_MAX_NAME_CHARACTERS} or fewer"
            )
        if name in seen:
            raise TaskFileError(f"two classes are named {name!r}; class names must be unique")
        seen.add(name)
    size_bytes = len(json.dumps(list(classes), allow_nan=False))
    if size_bytes > _MAX_NAMES_BYTES:
        raise TaskFileError(
            f"the {len(classes)} class names take {size_bytes} bytes in JSON, more than the {_MAX_NAMES_BYTES} that a "
            "task file has room for; use shorter names"
        )


SPLITS = ("train", "val", "test")
MOST_ROWS = 100
"""Of `per_class`; a longer table stays in the run folder."""

_COUNT, _SHARE = Within(int, 0, 2**53), Within(float, 0, 1)
_ROW = {"name": str, "num_images": _COUNT, "precision": _SHARE, "recall": _SHARE, "f1": _SHARE}
_OF_LABELS = "mean_average_precision"
_SHAPES: dict[str, Any] = {
    "num_images": _COUNT,
    "loss": Within(float, 0, 1e38),
    "accuracy": _SHARE,
    "top5": (None, _SHARE),
    "balanced_accuracy": _SHARE,
    "calibration_error": _SHARE,
    _OF_LABELS: _SHARE,
    "per_class": [_ROW],
}
_LEFT_OUT = ("confusion", "mistakes")  # older files have the first, which nobody reads there


def kept_metrics(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """What a task file keeps of metrics by split.

    They are as `torchsnow.train.Metrics.to_dict` gives them, or some of that; None for a split that was not measured.
    Raises ValueError, naming the place, for anything else.
    """
    kept = {split: _kept(values) for split, values in metrics.items()}
    validate_shape(kept, {split: _shape_of(kept[split]) for split in SPLITS if split in kept}, "metrics")
    return kept


def _kept(values: Any) -> Any:
    if not isinstance(values, dict):
        return values
    if values.get(_OF_LABELS, 0) is None:  # images have one class
        values = {key: value for key, value in values.items() if key != _OF_LABELS}
    rows = values.get("per_class")
    left_out = {*_LEFT_OUT, "per_class"} if isinstance(rows, list) and len(rows) > MOST_ROWS else set(_LEFT_OUT)
    return {key: value for key, value in values.items() if key not in left_out}


def _shape_of(values: Any) -> tuple[Any, ...]:
    """Every number may be missing."""
    return None, {key: shape for key, shape in _SHAPES.items() if not isinstance(values, dict) or key in values}


SCHEMA_VERSION = 7

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
        "head_std": bool,
        "head_divisor": int,
        "head_bits": int,
    },
    "source_info": dict,
    "subscription": {str: Within(int, 1, 2**31)},
    "image_size": int,
    "crop_mode": str,
    "grey_range": [int],
    "unknown_above": (None, Within(float, 0, 1e38)),
    "thresholds": (None, [_SHARE]),
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
        validate_version(values, SCHEMA_VERSION)
        validate_shape(values, _SHAPE, "metadata")
        values["metrics"] = kept_metrics(values["metrics"])
        values["source_info"] = SourceInfo.from_dict(values["source_info"])
        values["spec"] = DeltaSpec.from_dict(values["spec"])
        _validate_values(values)
    except ValueError as error:
        raise TaskFileError(str(error)) from error
    del values["schema_version"]
    lists = {key: tuple(values[key]) for key in ("classes", "grey_range", "thresholds") if values[key] is not None}
    return TaskInfo(**{**values, **lists})


def _from_former_version(values: Any) -> Any:
    """Version 1 had no entry: every delta began at the image. Version 2 had no grid; up to version 3 the middle was cut
    out of every picture, up to version 4 all greys were in range, bodies and heads read means alone, and no matrix had
    less than a byte per number, up to version 5 no distance was known from where on images are unknown, and up to
    version 6 every image had one class."""
    version, spec = (values.get(key) if isinstance(values, dict) else None for key in ("schema_version", "spec"))
    if type(version) is not int or not 1 <= version < SCHEMA_VERSION or not isinstance(spec, dict):
        return values
    of_spec = {key: value for first, new in _ADDED_TO_SPEC.items() if version <= first for key, value in new.items()}
    added = {key: value for first, new in _ADDED.items() if version <= first for key, value in new.items()}
    if set(spec) & set(of_spec) or set(values) & set(added):
        return values
    return {**values, **added, "schema_version": SCHEMA_VERSION, "spec": {**spec, **of_spec}}


_ADDED: dict[int, dict[str, Any]] = {
    3: {"crop_mode": "center"},
    4: {"grey_range": list(GREYS)},
    5: {"unknown_above": None},
    6: {"thresholds": None},
}
_ADDED_TO_SPEC: dict[int, dict[str, Any]] = {
    1: {"entry_reduction": 1},
    2: {"grid_width": None, "grid_blocks": 3, "grid_reduction": 32},
    4: {"global_pool": "avg", "head_std": False, "head_bits": 8},
}
"""What files of these versions and before lack, and the values under which nothing changes."""


def _validate_values(values: dict[str, Any]) -> None:
    validate_task_name(values["name"])
    validate_classes(values["classes"], values["spec"].num_classes)
    if values["thresholds"] is not None and len(values["thresholds"]) != len(values["classes"]):
        raise ValueError(f"{len(values['thresholds'])} thresholds for {len(values['classes'])} classes")
    validate_framing(Framing(values["image_size"], values["crop_mode"], values["grey_range"]))
    validate_training(values["training"])
    _validate_date(values["created"])
    for key in ("taps", "head_taps"):
        names = getattr(values["spec"], key)
        if names is not None and len(set(names)) != len(names):
            raise ValueError(f"metadata.spec.{key} names a tap twice")


def _validate_date(text: str) -> None:
    try:
        datetime.fromisoformat(text)
    except ValueError as error:
        raise ValueError(
            f"metadata.created is {text!r}; expected a date and time, as 2026-01-31T12:00:00+00:00"
        ) from error


MAX_SIZE_BYTES = 256 * 2**20
"""Larger files are refused before they are read, unless the caller allows more."""
MAX_HEADER_BYTES = 16 * 2**20
METADATA_KEY = "torchsnow"
_FOREIGN = {b"\x80": "a Python pickle", b"PK": "a zip archive of pickles, as torch.save writes"}


def content_hash(content: bytes) -> str:
    """SHA-256 of a task file's bytes, in hex."""
    return hashlib.sha256(content).hexdigest()


def read_task_info(path: Path | str, max_size_bytes: int = MAX_SIZE_BYTES) -> TaskInfo:
    """What a task file says about itself, without reading its tensors. Raises TaskFileError as `load_task` does."""
    path = Path(path)
    with opened(path, max_size_bytes) as file, naming(path):
        start = file.read(9)
        return decode_header(start + file.read(_header_bytes(start) - 1))


def decode_header(content: bytes) -> TaskInfo:
    """From the file's first bytes: the header's length (8 bytes, little-endian), then the header, in JSON."""
    end = 8 + _header_bytes(content[:9])
    try:
        header = parse_json(content[8:end])
        text = header["__metadata__"][METADATA_KEY]
    except (ValueError, KeyError, TypeError) as error:
        raise TaskFileError(
            "its header does not speak of a task: it was not written by torchsnow, or it is damaged"
        ) from error
    if len(header["__metadata__"]) != 1 or not isinstance(text, str):
        raise TaskFileError(f"its metadata must be one text named {METADATA_KEY!r}, and nothing else")
    return decode_info(text)


def _header_bytes(start: bytes) -> int:
    size_bytes = int.from_bytes(start[:8], "little")
    if start[8:9] == b"{" and size_bytes <= MAX_HEADER_BYTES:
        return size_bytes
    for magic, kind in _FOREIGN.items():
        if start.startswith(magic):
            raise TaskFileError(f"not a .safetensors file but {kind}; it is never unpickled")
    raise TaskFileError("not a .safetensors file, or a damaged one: it does not begin with a header")


@contextmanager
def opened(path: Path, max_size_bytes: int) -> Iterator[BinaryIO]:
    """A task file, open to be read. Raises TaskFileError for what is no file, is too large or cannot be read."""
    with clear_os_errors("read task file", path, TaskFileError):
        if path.exists() and not path.is_file():
            raise TaskFileError(f"task file {path}: this is not a file; expected a .safetensors file")
        with path.open("rb") as file:
            size_bytes = os.fstat(file.fileno()).st_size
            if size_bytes > max_size_bytes:
                raise TaskFileError(
                    f"task file {path}: it has {size_bytes} bytes, more than the {max_size_bytes} allowed"
                )
            yield file


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Errors of the block as a TaskFileError that names the file."""
    try:
        yield
    except TorchsnowError as error:
        raise TaskFileError(f"task file {path}: {error}") from error
