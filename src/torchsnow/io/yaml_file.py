"""YAML files that people write: read within limits, for a small file can describe a large value."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from torchsnow.errors import TorchsnowError
from torchsnow.io.files import clear_os_errors

_MAX_BYTES = 2**20
_MAX_DEPTH = 20
_MAX_VALUES = 100_000


def read_yaml(path: Path, error: type[TorchsnowError], what: str = "") -> Any:
    """The value in a YAML file; `what` it is, is for messages.

    Raises `error` for a file that cannot be read or is no YAML, and for one of more than 1 MiB, 20 levels or 100,000
    values, each counted as often as an alias repeats it.
    """
    with clear_os_errors(f"read {what}".rstrip(), path, error), path.open("rb") as file:
        content = file.read(_MAX_BYTES + 1)
    if len(content) > _MAX_BYTES:
        raise error(f"{path} has more than {_MAX_BYTES} bytes; expected settings that a person writes")
    try:
        _validate_depth(content)
        node = yaml.compose(content, Loader=yaml.SafeLoader)
        if node is not None:
            _count(node, {})
        return yaml.safe_load(content)
    # Of what is no YAML, a number of thousands of digits and a date that there is not are ValueErrors.
    except (yaml.YAMLError, ValueError, OverflowError) as problem:
        raise error(f"{path} is not a YAML file that can be used: {problem}") from problem


def _validate_depth(content: bytes) -> None:
    """Raise ValueError for what is nested so deeply that reading it would run out of stack."""
    depth = 0
    for event in yaml.parse(content, Loader=yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _MAX_DEPTH:
            raise ValueError(f"it is nested more than {_MAX_DEPTH} levels deep")


def _count(node: yaml.Node, known: dict[int, int | None]) -> int:
    """How many values a node stands for. Raises ValueError for too many, and for a node inside itself."""
    if id(node) not in known:
        known[id(node)] = None  # until its parts are counted
        parts = node.value if isinstance(node, yaml.CollectionNode) else []
        inner = [part for pair in parts for part in pair] if isinstance(node, yaml.MappingNode) else parts
        known[id(node)] = 1 + sum(_count(part, known) for part in inner)
    number = known[id(node)]
    if number is None:
        raise ValueError("an alias stands for a value that it is part of")
    if number > _MAX_VALUES:
        raise ValueError(f"its aliases make more than {_MAX_VALUES} values of it")
    return number
