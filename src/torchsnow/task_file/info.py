"""What is known of a task but its numbers, and the rules that it must keep."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torchsnow.delta import DeltaSpec
from torchsnow.errors import TaskFileError
from torchsnow.source.config import CROP_MODES, MAX_IMAGE_SIZE, Framing
from torchsnow.task_file.json_shape import is_deeper
from torchsnow.task_file.source_info import SourceInfo

_TASK_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_MAX_LEVELS = 8  # of lists and objects in each other
_MAX_NAME_CHARACTERS = 1_000  # of a class
_MAX_NAMES_BYTES = 4 * 2**20  # of all classes; a header holds them in JSON within JSON, at most twice as long


@dataclass(frozen=True)
class TaskInfo:
    """All that is known of a task but its numbers.

    `classes` are in the order of the logits; `subscription` is the number of chosen channels per tap (or of all taps
    together as "grid"), the head's own last as "head"; `image_size` and `crop_mode` say how pictures were shown to it
    (see `Framing`); images whose distance (see `Head.distance`) is above `unknown_above` are unlike those that it was
    trained for (None: not known); `training` is a free JSON object, `metrics` the main results by split; `versions` are
    those of torchsnow, torch and timm, and `created` is an ISO date and time in UTC.
    """

    name: str
    classes: tuple[str, ...]
    spec: DeltaSpec
    source_info: SourceInfo
    subscription: dict[str, int]
    image_size: int
    crop_mode: str
    unknown_above: float | None
    training: dict[str, Any]
    metrics: dict[str, Any]
    versions: dict[str, str]
    created: str

    @property
    def framing(self) -> Framing:
        """How pictures are shown to it."""
        return Framing(self.image_size, self.crop_mode)

    def __repr__(self) -> str:
        what = f"{len(self.classes)} classes, {self.image_size} px, on {self.source_info.name}"
        return f"{type(self).__name__}({self.name!r}, {what})"


def check_task_name(name: str) -> None:
    """Raise TaskFileError unless a name can be a task's: it is also a folder's name on every file system."""
    if not _TASK_NAME.fullmatch(name):
        raise TaskFileError(
            f"{name[:80]!r} cannot be a task's name; expected 1 to 64 of a-z, 0-9, '.', '_' and '-', "
            "beginning with a letter or a digit, for example 'solar-cells'"
        )


def check_framing(framing: Framing) -> None:
    """Raise TaskFileError unless such images can be asked of whoever uses the task."""
    if not 1 <= framing.image_size <= MAX_IMAGE_SIZE:
        raise TaskFileError(f"image_size is {framing.image_size}; expected 1 pixel to {MAX_IMAGE_SIZE}")
    if framing.crop_mode not in CROP_MODES:
        raise TaskFileError(f"crop_mode is {framing.crop_mode!r}; expected one of {', '.join(CROP_MODES)}")


def check_training(training: Mapping[str, Any]) -> None:
    """Raise TaskFileError for settings of a training, in JSON values, that not every printer of JSON could print."""
    if is_deeper(training, _MAX_LEVELS):
        raise TaskFileError(
            f"training is nested too deeply; expected {_MAX_LEVELS} levels of lists and objects or fewer"
        )


def check_classes(classes: Sequence[str], num_classes: int) -> None:
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
